"""A study of concepts on disk: generated shapes, a small network of one's own, and untrained checkpoints."""

from pathlib import Path

import torch

from neurolens import rows
from neurolens.data import make_concepts
from neurolens.study import load_study

NETWORK = """
import torch
from torch import nn


def build(classes, **options):
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(6, 5, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, classes),
    )
"""

STUDY = """name = "shapes"
[model]
name = "network.py:build"
classes = 6
[model.preprocessing]
mean = [0.5, 0.5, 0.5]
std = [0.25, 0.25, 0.25]
[data]
source = "folder"
root = "concepts/images"
split = "train"
[compute]
device = "cpu"
threads = 1
[concepts]
root = "concepts"
quantile = 0.05
top = 3
"""


def write_study(home: Path, *, checkpoints: int = 3, text: str = STUDY, n: int = 30, size: int = 32) -> Path:
    """Write concept data, a network, untrained checkpoints and a study of them; return the study's path."""
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "concepts").exists():
        make_concepts(home / "concepts", n=n, size=size)
    (home / "network.py").write_text(NETWORK)
    for epoch in range(checkpoints):
        write_checkpoint(home, epoch)
    path = home / "study.toml"
    path.write_text(text)
    return path


def write_checkpoint(home: Path, epoch: int, *, seed: int | None = None) -> Path:
    """Write the network with weights drawn from ``seed`` (default: the epoch) as a checkpoint."""
    space: dict = {}
    exec(NETWORK, space)
    path = home / "checkpoints" / f"epoch_{epoch}.pt"
    path.parent.mkdir(exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(epoch if seed is None else seed)
        torch.save(space["build"](classes=6).state_dict(), path)
    return path


def run(path: Path, cube: str = "concepts", *overrides: str) -> list[rows.Result]:
    """Measure what is missing of a cube, and return what became of each row."""
    study = load_study(path, overrides=overrides)
    materials = rows.gather(study, cube)
    plan = rows.plan(materials, rows.open_for_reading(study))
    if not plan.rows:
        return []
    return rows.run_rows(materials, plan.todo, rows.open_for_writing(study))
