"""What exports of attributions are read with, and the scores they must hold."""

import csv
import json
from pathlib import Path

import numpy as np

METRICS = ["sparsity_mean", "sparsity_std", "faithfulness_mean", "faithfulness_std"]
FIRST = "filtered_stage1_cluster_0_k3"


def of_json(path):
    return json.loads(Path(path).read_text())


def of_csv(path):
    with Path(path).open(newline="") as file:
        return list(csv.reader(file))


def scores_by_hand(cube, name, method, level):
    """Sparsity (of patches, mass 0.9) and drop of each image, written out from the definition."""
    one = cube.isel(epoch=0).sel({"map": name, "attribution": method})
    drop = np.exp(one["log_prob"].values) - np.exp(one["masked_log_prob"].sel(level=level).values)
    if level == "pixel":
        return one["pixel_sparsity"].values, drop
    sparsity = []
    for table in one["patch"].values.astype(float):
        held = np.cumsum(np.sort(table.ravel())[::-1])
        needed = int((held < 0.9 * held[-1] * (1 - 1e-12)).sum()) + 1
        sparsity.append(1 - needed / table.size)
    return np.array(sparsity), drop
