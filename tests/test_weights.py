"""A model's first weights: from a file, from the cache without a network, or a quick sentence."""

import argparse
import dataclasses
import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch
from conftest import CPU, prepare, serving, train
from huggingface_hub import constants
from safetensors.torch import load_file, save, save_file
from timm.models import _registry
from torch import nn

from aiornot.config import InputError, TrainConfig
from aiornot.delivery import bundle, manifest
from aiornot.training import model, weights

NAME = "test_resnet.r160_in1k"
KINDS = ["test_resnet", "test_efficientnet", "test_byobnet", "test_convnext", "test_vit"]


def config(name: str = NAME, **values: object) -> TrainConfig:
    return TrainConfig.from_dict({"model": name} | values)


def trained(name: str = NAME, *, seed: int = 7, **options: object) -> dict[str, torch.Tensor]:
    """Weights with 1000 classes, none of them as they are at a model's start."""
    module = timm.create_model(name, **options)
    generator = torch.Generator().manual_seed(seed)
    return {
        key: torch.rand(value.shape, generator=generator) if value.ndim else value
        for key, value in module.state_dict().items()
    }


def file_of(folder: Path, name: str = NAME, **options: object) -> Path:
    save_file(trained(name, **options), folder / "first.safetensors")
    return folder / "first.safetensors"


def assert_taken_over(module: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """All but the head is that of the file, to the bit; the head is fresh."""
    heads = weights.classifiers(module)
    for key, value in module.state_dict().items():
        if key.rpartition(".")[0] in heads:
            assert value.shape[0] == 1
            assert key.endswith("bias") or float(value.std()) == pytest.approx(0.01, rel=0.3)
        elif not key.startswith("fc_norm."):  # a transformer's norm when it pools by avg
            assert torch.equal(value, tensors[key]), key


def refusal(values: TrainConfig) -> str:
    started = time.monotonic()
    with pytest.raises(InputError) as caught:
        model.build(values, size=64)
    assert time.monotonic() - started < 10
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def cache(monkeypatch, tmp_path) -> Path:
    """An empty cache of weights, and no token of anybody's."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    # The library has read its environment already.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    return tmp_path


@pytest.fixture
def unplugged(monkeypatch, cache) -> Path:
    """No connection is even tried."""

    def refuse(*args: object) -> None:
        raise AssertionError("somebody opens a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return cache


@pytest.mark.parametrize("name", KINDS)
def test_a_file_gives_the_backbone_and_not_the_head(unplugged, name):
    module = model.build(config(name, weights=str(file_of(unplugged, name))), size=160)
    assert_taken_over(module, load_file(unplugged / "first.safetensors"))
    assert module.pretrained_cfg["file"] == str(unplugged / "first.safetensors")


def test_a_file_wins_over_pretrained_false(unplugged):
    path = file_of(unplugged)
    module = model.build(config(weights=str(path), pretrained=False), size=64)
    assert_taken_over(module, load_file(path))


def test_a_file_and_a_stem_without_stride_go_together(unplugged):
    path = file_of(unplugged)
    module = model.build(config(weights=str(path), stem_stride=1), size=64)
    assert_taken_over(module, load_file(path))


def test_positions_are_resized_to_the_images(unplugged):
    path = file_of(unplugged, "test_vit")
    module = model.build(config("test_vit", weights=str(path)), size=64)
    tensors, found = load_file(path), module.state_dict()
    assert found["pos_embed"].shape[1] < tensors["pos_embed"].shape[1]
    assert torch.equal(found["blocks.0.attn.qkv.weight"], tensors["blocks.0.attn.qkv.weight"])


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tensors: tensors,
        lambda tensors: {"state_dict": {f"module.{k}": v for k, v in tensors.items()}},
        # As timm's own training script leaves it.
        lambda tensors: {"state_dict": tensors, "args": argparse.Namespace(lr=1.0), "epoch": 3},
    ],
)
def test_a_file_of_torch_with_tensors_alone_is_read(unplugged, wrap):
    tensors = trained()
    torch.save(wrap(tensors), unplugged / "first.pth")
    module = model.build(config(weights=str(unplugged / "first.pth")), size=64)
    assert_taken_over(module, tensors)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("README.md", b"# A text", "is no file of weights; give a .safetensors file"),
        ("first.pth", b"", "is no file of weights; give"),
        ("first.safetensors", b"# A text", "is no safetensors file, or not a whole one"),
        ("cut.pth", b"PK\x03\x04 and no more", "is damaged, or holds more than tensors"),
    ],
)
def test_what_is_no_weights_is_a_sentence_of_ours(unplugged, name, content, said):
    (unplugged / name).write_bytes(content)
    assert refusal(config(weights=str(unplugged / name))).startswith(f"{unplugged / name} {said}")


def test_what_is_no_weights_is_refused_before_a_run_begins(unplugged):
    (unplugged / "README.md").write_text("# A text")
    with pytest.raises(InputError, match="no file of weights"):
        model.check(config(weights=str(unplugged / "README.md")), size=64)


class Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.target,)


def test_a_pickle_that_holds_more_than_tensors_is_refused_and_not_run(unplugged):
    path = unplugged / "first.pth"
    torch.save({"state_dict": trained(), "extra": Payload(unplugged / "run")}, path)
    message = refusal(config(weights=str(path)))
    assert message.startswith(f"{path} is damaged, or holds more than tensors")
    assert message.endswith("convert it to safetensors where you trust it")
    assert not (unplugged / "run").exists()


@pytest.mark.parametrize("name", ["first.safetensors", "first.pth", "first.bin", "first.npz"])
def test_bytes_that_are_no_weights_are_refused(unplugged, name):
    (unplugged / name).write_bytes(b"\x08" * 100)
    assert refusal(config(weights=str(unplugged / name))).startswith(f"{unplugged / name} is no ")


def test_a_file_of_torch_without_names_is_refused(unplugged):
    torch.save({"step": 3}, unplugged / "first.pth")
    assert "holds no tensors by name" in refusal(config(weights=str(unplugged / "first.pth")))


@pytest.mark.parametrize("given", ["absent.safetensors", "empty"])
def test_a_file_that_is_not_there_is_refused_before_training(unplugged, given):
    (unplugged / "empty").mkdir()
    values = config(weights=str(unplugged / given))
    expected = unplugged / given / weights.FILE if given == "empty" else unplugged / given
    with pytest.raises(InputError) as caught:
        model.check(values, size=64)
    assert str(caught.value) == refusal(values)
    assert f"there is no file {expected}; give a .safetensors file" in str(caught.value)


def counted(tensors: dict[str, torch.Tensor]) -> set[str]:
    """What is compared: not the head, and not the counters of the norms."""
    left_out = ("num_batches_tracked", "fc.weight", "fc.bias")
    # The other model's head is not known to this one, so it counts.
    return {name for name in tensors if not name.endswith(left_out) or name.startswith("head.")}


def test_another_architecture_is_refused_with_how_much_does_not_fit(unplugged):
    load = nn.Module.load_state_dict
    path = file_of(unplugged, "test_byobnet")
    message = refusal(config(weights=str(path)))
    wanted, found = counted(trained()), counted(trained("test_byobnet"))
    assert message == (
        f"weights={str(path)!r} does not fit model={NAME!r}: of {len(wanted | found)} tensors "
        f"{len(wanted - found)} are missing, {len(found - wanted)} unknown and 0 of another shape "
        "(the first: conv1.0.weight); give weights of that architecture"
    )
    assert nn.Module.load_state_dict is load


def test_a_deeper_network_is_refused_although_it_holds_all_that_is_wanted(unplugged):
    path = file_of(unplugged, "resnet34")
    message = refusal(config("resnet18.a1_in1k", weights=str(path)))
    # Sixteen more convolutions, and the five tensors of each one's norm less its counter.
    assert "tensors 0 are missing, 80 unknown and 0 of another shape" in message


def test_a_wider_network_is_refused(unplugged):
    path = file_of(unplugged, "convnext_femto")
    message = refusal(config("convnext_atto", weights=str(path)))
    assert " 0 are missing, 0 unknown and " in message


def test_an_input_of_other_channels_is_refused(unplugged):
    path = file_of(unplugged, in_chans=1)
    message = refusal(config(weights=str(path)))
    assert message.startswith(f"weights={str(path)!r} does not fit model={NAME!r}: ")
    assert "conv1.0" in message


def test_a_bundle_and_a_checkpoint_are_weights_and_then_no_longer_needed(unplugged):
    """Trained on from each other; what is delivered holds all that it needs."""
    data = prepare(unplugged / "tiny.h5")
    values = {"pretrained": False, "epochs": 1, "batch_size": 8, "ema_decay": 0.9}
    first = train(config(**values), data=data, out=unplugged / "checkpoint")
    folder = bundle.write(first, unplugged / "one", data=data, device=CPU, lineage={})
    tensors = load_file(folder / weights.FILE)
    for place in (first, folder, folder / weights.FILE):
        module = model.build(config(weights=str(place)), size=32)
        assert_taken_over(module, tensors)
    assert not torch.equal(module.fc.weight, tensors["fc.weight"])

    given = config(weights=str(folder), **values)
    second = train(given, data=data, out=unplugged / "again")
    (folder / weights.FILE).unlink()
    out = bundle.write(second, unplugged / "two", data=data, device=CPU, lineage={})
    loaded = bundle.load(out, device=CPU)
    assert torch.equal(loaded.module.fc.weight, load_file(second / weights.FILE)["fc.weight"])
    assert loaded.description["config"]["weights"] == str(folder)
    assert str(folder) not in (out / manifest.CONFIG).read_text()


def test_a_check_allocates_and_fetches_nothing(unplugged):
    """The giant has 1.8 billion parameters: 7 GB, if they were made."""
    before = sorted(unplugged.iterdir())
    model.check(config("resnet18.a1_in1k"), size=64)
    model.check(config("vit_gigantic_patch14_224"), size=224)
    assert sorted(unplugged.iterdir()) == before


def test_a_skeleton_asks_for_nothing(unplugged):
    module = model.skeleton(config(weights="no/such/file"), size=64)
    assert module.get_classifier().out_features == 1


class Shelf(ThreadingHTTPServer):
    """As much of the hub as a download of weights needs; and a plain web server."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.files: dict[str, bytes] = {}
        """By the end of the address."""
        self.refused = ""
        """An error code of the hub, for everything."""
        self.asked: list[str] = []


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Shelf

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        time.sleep(0.2)  # long enough that another could begin, too
        self.answer()

    def answer(self) -> None:
        self.server.asked.append(f"{self.command} {self.path.rpartition('/')[2]}")
        body = self.server.files.get(self.path.rpartition("/")[2])
        told = {"X-Repo-Commit": "c" * 40}
        if self.server.refused:
            told, status, body = {"X-Error-Code": self.server.refused}, 403, None
        elif body is None:
            told, status = told | {"X-Error-Code": "EntryNotFound"}, 404
        else:
            told, status = told | {"ETag": f'"{hashlib.sha256(body).hexdigest()}"'}, 200
        self.send_response(status)
        for name, value in (told | {"Content-Length": str(len(body or b""))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET" and body:
            self.wfile.write(body)


def settle(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def shelf(monkeypatch, cache) -> Iterator[Shelf]:
    """A hub of one's own."""
    server = Shelf()
    with serving(server) as address:
        settle(monkeypatch, address)
        yield server


def pickled(tensors: dict[str, torch.Tensor], folder: Path) -> bytes:
    torch.save(tensors, folder / "pickled")
    return (folder / "pickled").read_bytes()


@pytest.mark.parametrize("filename", ["model.safetensors", "pytorch_model.bin"])
def test_weights_of_the_hub_are_fetched_once_and_then_need_no_network(
    shelf, cache, filename, request
):
    tensors = trained()
    safe = filename.endswith("safetensors")
    shelf.files[filename] = save(tensors) if safe else pickled(tensors, cache)
    module = model.build(config(), size=64)
    assert_taken_over(module, tensors)
    assert module.pretrained_cfg["hf_hub_id"] == f"timm/{NAME}"
    assert shelf.asked.count(f"GET {filename}") == 1
    del shelf.asked[:]
    request.getfixturevalue("unplugged")
    again = model.build(config(), size=64)
    assert_taken_over(again, tensors)
    assert again.pretrained_cfg["hf_hub_id"] == f"timm/{NAME}"
    assert "file" not in again.pretrained_cfg
    assert not shelf.asked


def test_trials_of_one_node_fetch_weights_of_the_hub_once(shelf):
    tensors = trained()
    shelf.files["model.safetensors"] = save(tensors)
    with ThreadPoolExecutor(3) as pool:
        for module in pool.map(lambda _: model.build(config(), size=64), range(3)):
            assert_taken_over(module, tensors)
    assert shelf.asked.count("GET model.safetensors") == 1


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("GatedRepo", f"accept the conditions at https://127.0.0.1/timm/{NAME}, then set "),
        ("RepoNotFound", f"127.0.0.1 has no timm/{NAME}, or shows it only to a token in HF_TOKEN"),
    ],
)
def test_a_hub_that_refuses_is_one_sentence(shelf, code, expected):
    shelf.refused = code
    message = refusal(config())
    assert message.startswith(f"the pretrained weights of {NAME!r} cannot be had ({expected}")
    assert len(shelf.asked) == 1


@contextmanager
def deaf() -> Iterator[str]:
    """An address that takes every connection and never answers, as behind many firewalls."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@contextmanager
def closed() -> Iterator[str]:
    """An address where nobody listens."""
    with deaf() as address:
        pass
    yield address


absent = pytest.mark.parametrize("network", [closed, deaf])


@absent
def test_a_network_that_is_not_there_is_one_sentence_within_seconds(cache, monkeypatch, network):
    """huggingface_hub alone would try for 47 s, and for minutes where nobody answers."""
    monkeypatch.setattr(weights, "PATIENCE", 0.3)
    with network() as address:
        settle(monkeypatch, address)
        started = time.monotonic()
        message = refusal(config())
        assert time.monotonic() - started < 4
    assert message.startswith(
        f"the pretrained weights of {NAME!r} cannot be had (127.0.0.1 cannot be reached, "
    )
    assert message.endswith(
        "check the network and HF_HOME, give a file with --weights, or train from scratch with "
        "--set pretrained=false"
    )


def test_offline_mode_is_one_sentence(unplugged, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "OfflineModeIsEnabled" in refusal(config())


def test_a_model_without_weights_says_so(unplugged):
    assert "cannot be had (timm has none for it); " in refusal(config("vit_gigantic_patch14_224"))


@pytest.fixture
def addressed(monkeypatch, cache) -> Callable[[str], None]:
    """Give the model weights at a plain address, as nineteen of timm's have."""
    known = _registry._model_pretrained_cfgs

    def give(url: str) -> None:
        changed = dataclasses.replace(known[NAME], hf_hub_id=None, url=url)
        monkeypatch.setitem(known, NAME, changed)

    return give


def test_weights_of_an_address_are_fetched_once_and_then_need_no_network(
    shelf, cache, addressed, request
):
    tensors = trained()
    shelf.files["old.pth"] = pickled(tensors, cache)
    addressed(f"{constants.ENDPOINT}/releases/old.pth")
    with ThreadPoolExecutor(3) as pool:
        for module in pool.map(lambda _: model.build(config(), size=64), range(3)):
            assert_taken_over(module, tensors)
    assert shelf.asked == ["HEAD old.pth", "GET old.pth"]
    request.getfixturevalue("unplugged")
    assert_taken_over(model.build(config(), size=64), tensors)


def test_an_address_that_is_gone_is_one_sentence(shelf, addressed):
    addressed(f"{constants.ENDPOINT}/releases/old.pth")
    assert "/releases/old.pth is gone); " in refusal(config())


@absent
def test_an_address_that_does_not_answer_is_one_sentence(addressed, monkeypatch, network):
    monkeypatch.setattr(weights, "PATIENCE", 0.3)
    with network() as address:
        addressed(f"{address}/old.pth")
        assert f"({address}/old.pth cannot be reached, " in refusal(config())


def test_files_compared_in_threads_do_not_meddle(unplugged):
    """Only the loads of the thread that gave a file are compared with a model."""
    path = file_of(unplugged)
    load = nn.Module.load_state_dict
    other = nn.Linear(2, 2)
    inside, done = threading.Event(), threading.Event()

    def elsewhere() -> None:
        inside.wait()
        other.load_state_dict(other.state_dict())
        done.set()

    threading.Thread(target=elsewhere).start()
    with weights.source(config(weights=str(path))):
        inside.set()
        assert done.wait(5)
    assert nn.Module.load_state_dict is load
