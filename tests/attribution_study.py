"""A small study of clusters and attributions on untrained networks: seconds to run."""

from pathlib import Path
from typing import Any

import numpy as np
from conftest import STUDY, write_checkpoint, write_samples

from neurolens import rows
from neurolens.study import load_study

TEXT = STUDY.replace("[samples]\n", "") + (
    """[clusters]
layers = ["bn2", "bn3"]
k = [2, 3]
images = 16
[attributions]
images = 6
block = 2
steps = 4
grid = 4
controlled = ["bn3/without k2/0"]
controls = 2
"""
)


def write_study(home: Path, *, checkpoints: int, samples: int, text: str = TEXT) -> Path:
    """Write a study with digits and untrained networks, and return its path."""
    home.mkdir(parents=True, exist_ok=True)
    write_samples(home, np.arange(samples))
    for epoch in range(checkpoints):
        write_checkpoint(home, epoch)
    path = home / "study.toml"
    path.write_text(text)
    return path


def run(path: Path, cube: str, *overrides: str) -> list[rows.Result]:
    """Bring one cube of a study up to date, as a flow does."""
    study = load_study(path, overrides=overrides)
    materials = rows.gather(study, cube)
    plan = rows.plan(materials, rows.open_for_reading(study))
    return rows.run_rows(materials, plan.todo, rows.open_for_writing(study)) if plan.todo else []


def run_both(path: Path, *overrides: str) -> dict[str, list[rows.Result]]:
    """Bring clusters, then attributions up to date."""
    return {cube: run(path, cube, *overrides) for cube in ("clusters", "attributions")}


def outcomes(results: list[rows.Result]) -> set[Any]:
    """What became of rows, and why where they failed."""
    return {(result.outcome, result.why) for result in results}
