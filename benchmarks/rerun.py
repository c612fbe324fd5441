"""What running again costs when nothing is new, against the first run; both without imports and Prefect's start-up.

``python -m benchmarks.rerun [--quick]``. Goal: at most 5 % of the first run.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from neurolens import models, rows
from neurolens.study import Study

GOAL = 0.05


def study_in(folder: Path, *, model: str, side: int, channels: int, samples: int, checkpoints: int) -> Study:
    """Make a study with random images and untrained checkpoints."""
    rng = np.random.default_rng(0)
    shape = (samples, side, side, channels) if channels > 1 else (samples, side, side)
    images = rng.integers(0, 256, shape, dtype=np.uint8)
    np.savez(folder / "data.npz", images=images, labels=rng.integers(0, 10, samples))
    study = Study.model_validate(
        {
            "name": "rerun",
            "model": {"name": model, "classes": 10},
            "checkpoints": {"folder": folder / "checkpoints"},
            "data": {"source": "arrays", "root": folder / "data.npz", "split": "all"},
            "store": {"url": str(folder / "store.icechunk")},
            "compute": {"device": "cpu"},
            "samples": {},
        }
    )
    study.checkpoints.folder.mkdir()
    for epoch in range(checkpoints):
        state = models.build(study.model, seed=epoch).module.state_dict()
        torch.save(state, study.checkpoints.folder / f"epoch_{epoch}.pt")
    return study


def run(study: Study) -> tuple[float, int]:
    """Bring the store up to date and return the seconds that took, and how many rows were computed."""
    began = time.perf_counter()
    materials, store = rows.gather(study), rows.open_for_reading(study)
    todo = rows.plan(materials, store).todo
    results = rows.run_rows(materials, todo, rows.open_for_writing(study)) if todo else []
    return time.perf_counter() - began, sum(result.outcome == "computed" for result in results)


def main(quick: bool) -> None:
    """Print both times and their ratio."""
    small = {"model": "digits_convnet", "side": 8, "channels": 1}
    large = {"model": "cifar_resnet18", "side": 32, "channels": 3, "samples": 1000, "checkpoints": 10}
    with tempfile.TemporaryDirectory() as folder:
        warm = study_in(Path(folder), **small, samples=40, checkpoints=1)
        run(warm)
    with tempfile.TemporaryDirectory() as folder:
        study = study_in(Path(folder), **(small | {"samples": 1500, "checkpoints": 20} if quick else large))
        first, computed = run(study)
        again = []
        for _ in range(5):
            seconds, none = run(study)
            assert none == 0
            again.append(seconds)
    ratio = float(np.median(again)) / first
    print(f"first run: {computed} rows in {first:.2f} s; again: 0 rows in {np.median(again):.3f} s")
    print(f"ratio {ratio:.2%} (goal: at most {GOAL:.0%})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="digits instead of CIFAR-sized images")
    main(parser.parse_args().quick)
