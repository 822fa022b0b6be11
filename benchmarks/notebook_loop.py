"""The notebook's training loop, re-created to be measured against ours.

``train_step.py`` and ``gpu_throughput.py`` run it; it needs Lightning, and no Ray.

As in the notebook:
- images are read row by row with h5py by a DataLoader of one worker (pinned, not persistent), made
  float32 and normalised there, and normalised a second time after the augmentation;
- torchvision's transforms in one TorchScript module run on the training device, inside the step and
  its autocast: one draw for the whole batch, colours changed after the first normalisation;
- Lightning drives: 16-bit with a gradient scaler on a GPU, gradient clipping, AdamW that is not
  fused, OneCycle per step, NCHW, ``benchmark=True``, a log entry every 10 steps;
- loss and four torchmetrics (accuracy, precision, recall, AUROC) are computed and logged per step;
- the label smoothing is a hyper-parameter that the loss never sees.

Not as in the notebook:
- Lightning 2.6 instead of 1.x: ``precision=16`` is now called ``"16-mixed"``, and
  ``auto_scale_batch_size`` is gone, so that the batch size is given instead of filling the memory;
- to its advantage, no W&B logger, progress bar, checkpoint, model summary or validation;
- the weights start at random; on a CPU all is float32;
- the file is ours, contiguous as the notebook's was, with other names in it.
"""

import dataclasses
import logging
import time
import warnings
from pathlib import Path
from typing import Any

import h5py
import lightning.pytorch as pl
import timm
import torch
import torchmetrics
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import (
    ColorJitter,
    Compose,
    Normalize,
    RandomAdjustSharpness,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomRotation,
    RandomVerticalFlip,
    ToTensor,
)

from aiornot.config import TrainConfig

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PREPROCESS = Compose([ToTensor(), Normalize(MEAN, STD)])


class Rows(Dataset):
    """The notebook's AIOrNotDataset."""

    def __init__(self, images: h5py.Dataset, targets: h5py.Dataset) -> None:
        self.images = images
        self.targets = targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = PREPROCESS(self.images[row])
        return image, torch.tensor((self.targets[row],), dtype=torch.float32)


class Data(pl.LightningDataModule):
    """The notebook's AIOrNotDataModule: the file is opened here, and its worker is a fork."""

    def __init__(self, path: Path, *, batch_size: int, workers: int = 1) -> None:
        super().__init__()
        self.path = path
        self.batch_size = batch_size
        self.workers = workers

    def setup(self, stage: str) -> None:
        self.file = h5py.File(self.path)

    def __len__(self) -> int:
        with h5py.File(self.path) as file:
            return len(file["train"]["label"])

    def train_dataloader(self) -> DataLoader:
        return self._loader("train", self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        return self._loader("val", 2 * self.batch_size, shuffle=False, drop_last=False)

    def _loader(self, split: str, batch_size: int, **options: bool) -> DataLoader:
        group = self.file[split]
        rows = Rows(group["image"], group["label"])
        pinned = torch.cuda.is_available()
        return DataLoader(rows, batch_size, num_workers=self.workers, pin_memory=pinned, **options)

    def teardown(self, stage: str) -> None:
        self.file.close()


def train_transforms(config: TrainConfig, size: int) -> torch.jit.ScriptModule:
    """The notebook's ``get_train_transforms``, from our names for its strengths."""
    operations = [
        RandomResizedCrop((size, size), scale=(config.crop_scale, 1.0), antialias=True),
        RandomRotation(config.degrees),
        RandomHorizontalFlip(p=config.hflip),
        RandomVerticalFlip(p=config.vflip),
        ColorJitter(brightness=config.brightness, contrast=config.contrast),
        RandomAdjustSharpness(sharpness_factor=config.sharpness_factor, p=config.sharpness),
        Normalize(MEAN, STD),
    ]
    return _scripted(operations if config.random_resized_crop else operations[1:])


def _scripted(operations: list[nn.Module]) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        # Deprecated, as a newer torch says; it is the notebook's, and it still works.
        warnings.simplefilter("ignore")
        return torch.jit.script(nn.Sequential(*operations))


class Module(pl.LightningModule):
    """The notebook's AIOrNotModule."""

    def __init__(self, config: TrainConfig, *, size: int) -> None:
        super().__init__()
        self.model = timm.create_model(
            config.model, pretrained=False, num_classes=1, global_pool=config.global_pool
        )
        self.loss_func = nn.BCEWithLogitsLoss()
        self.lr = config.lr
        self.weight_decay = config.weight_decay
        metrics = torchmetrics.MetricCollection(
            [
                torchmetrics.Accuracy(task="binary"),
                torchmetrics.Precision(task="binary"),
                torchmetrics.Recall(task="binary"),
                torchmetrics.AUROC(task="binary"),
            ]
        )
        self.train_metrics = metrics.clone(prefix="train_")
        self.val_metrics = metrics.clone(prefix="val_")
        self.train_transforms = train_transforms(config, size)
        self.valid_transforms = _scripted([Normalize(MEAN, STD)])

    def forward(self, x: torch.Tensor, transform: nn.Module | None = None) -> torch.Tensor:
        if transform is not None:
            x = transform(x)
        return self.model(x)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        x, y = batch
        y_hat = self(x, self.train_transforms)
        loss = self.loss_func(y_hat, y)
        self.log("train_loss", loss, prog_bar=True, logger=True)
        self.log_dict(self.train_metrics(y_hat, y))
        return loss

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        x, y = batch
        y_hat = self(x, self.valid_transforms)
        loss = self.loss_func(y_hat, y)
        self.log("val_loss", loss, prog_bar=True, logger=True)
        self.log_dict(self.val_metrics(y_hat, y))
        return loss

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=self.lr, total_steps=self.trainer.estimated_stepping_batches
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step", "frequency": 1},
        }


@dataclasses.dataclass
class Clock(pl.Callback):
    """Seconds of windows of whole steps after a warm-up; a GPU is waited for only at their ends.

    Args:
        skip: Steps before the first window; TorchScript compiles within the first few.
        steps: Steps per window.
    """

    skip: int
    steps: int
    wall: list[float] = dataclasses.field(default_factory=list)
    host: list[float] = dataclasses.field(default_factory=list)
    """CPU seconds of this thread, which the worker's and other programs' do not touch."""

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        if trainer.global_step >= self.skip and (trainer.global_step - self.skip) % self.steps == 0:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.wall.append(time.perf_counter())
            self.host.append(time.thread_time())

    def windows(self) -> list[tuple[float, float]]:
        """Return (wall, host) seconds per step of each window."""
        marks = zip(self.wall, self.wall[1:], self.host, self.host[1:], strict=False)
        return [((w1 - w0) / self.steps, (h1 - h0) / self.steps) for w0, w1, h0, h1 in marks]


def trainer(config: TrainConfig, *, callbacks: list[pl.Callback], **limits: Any) -> pl.Trainer:
    """Make the notebook's Trainer; ``limits`` say when it ends and whether it validates."""
    gpu = torch.cuda.is_available()
    for name in ("lightning.pytorch", "lightning.fabric"):  # no banners between the figures
        logging.getLogger(name).setLevel(logging.ERROR)
    return pl.Trainer(
        accelerator="gpu" if gpu else "cpu",
        devices=1,
        precision="16-mixed" if gpu else "32-true",
        gradient_clip_val=config.clip_grad,
        benchmark=True,
        detect_anomaly=False,
        log_every_n_steps=10,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=callbacks,
        **limits,
    )


def fit(module: Module, data: Data, using: pl.Trainer) -> None:
    with warnings.catch_warnings():
        # That one worker is a bottleneck, among others: it is the notebook's.
        warnings.simplefilter("ignore")
        using.fit(module, datamodule=data)


def time_steps(
    config: TrainConfig,
    module: Module,
    data: Data,
    *,
    skip: int,
    steps: int,
    windows: int = 1,
) -> list[tuple[float, float]]:
    """Train without validation; return (wall, host) seconds per step of each window."""
    clock = Clock(skip, steps)
    limits = {"max_steps": skip + steps * windows, "limit_val_batches": 0}
    fit(module, data, trainer(config, callbacks=[clock], **limits))
    return clock.windows()


@torch.inference_mode()
def predict(module: Module, data: Data, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits and labels (N,) of the validation split, as ``validation_step`` makes them."""
    module.to(device).eval()
    data.setup("fit")
    outputs, labels = [], []
    for x, y in data.val_dataloader():
        outputs.append(module(x.to(device), module.valid_transforms).float().flatten().cpu())
        labels.append(y.flatten())
    data.teardown("fit")
    return torch.cat(outputs), torch.cat(labels)
