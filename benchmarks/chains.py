"""A chain from end to end on the demo's data: its own stages, with tiny models and fewer trials.

    python benchmarks/chains.py seed --data demo/prepared --divide 8 --out runs-tiny

The chains for real images start from pretrained weights, which a machine without a network does not
have, and would take days on a CPU. Here each of their models is replaced by one of timm's test
models that starts from nothing, and each stage keeps one in ``--divide`` of its trials; stages,
spaces, narrowing, early stopping and selection are the chain's own. Prints its leaderboards.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

CHAINS = Path(__file__).parents[1] / "tune_spaces"

TINY = {
    "resnet18.a1_in1k": "test_resnet.r160_in1k",
    "resnet50.a1_in1k": "test_byobnet.r160_in1k",
    "regnety_004.tv2_in1k": "test_nfnet.r160_in1k",
    "efficientnet_b1.ra4_e3600_r240_in1k": "test_efficientnet.r160_in1k",
    "tf_efficientnetv2_b0.in1k": "test_efficientnet_gn.r160_in1k",
    "convnext_nano.in12k_ft_in1k": "test_convnext.r160_in1k",
    "convnext_tiny.fb_in22k": "test_convnext2.r160_in1k",
    "convnext_small.fb_in22k": "test_convnext3.r160_in1k",
}
"""A stand-in for each model, of its family where timm has a test model of that."""

SETTINGS = ('fixed={"batch_size": 32', 'baseline={"model":')
"""Where stage files say what a trial starts from."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("chain", help="name of a folder of tune_spaces/")
    parser.add_argument("--data", type=Path, required=True, help="folder of prepared files")
    parser.add_argument("--divide", type=int, default=8, help="the number of trials by this")
    parser.add_argument("--out", type=Path, default=Path("runs-tiny"))
    options = parser.parse_args()
    # The name of the folder is that of the chain.
    folder = options.out / "spaces" / options.chain
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted((CHAINS / options.chain).glob("*.py")):
        (folder / path.name).write_text(tiny(path.read_text(), divide=options.divide))
    storage = ("--storage", str(options.out / "runs"))
    aiornot("tune", str(folder), "--data", str(options.data), *storage, "--wandb", "off")
    aiornot("show", options.chain, *storage, "--trials")


def tiny(text: str, *, divide: int) -> str:
    """Return a stage file with stand-ins for its models and fewer trials where it searches."""
    for name, small in TINY.items():
        text = text.replace(f'"{name}"', f'"{small}"')
    for begun in SETTINGS:
        text = text.replace(begun, begun.replace("{", '{"pretrained": False, '))
    if "sampler=" not in text:
        return text
    count = re.compile(r"num_trials=(\d+)")
    return count.sub(lambda found: f"num_trials={max(1, int(found[1]) // divide)}", text)


def aiornot(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "aiornot", *arguments], check=True)


if __name__ == "__main__":
    main()
