"""Units of a layer turned at random: what dissection finds where directions mean nothing."""

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from neurolens.dissection.labels import Labels
from neurolens.dissection.overlap import best_concept
from neurolens.dissection.tally import Tally


def random_rotation(units: int, *, layer: str, rotation: int, seed: int) -> npt.NDArray[np.float64]:
    """Draw an orthogonal matrix, uniform over all of them (Haar).

    Parameters
    ----------
    units : U
    layer, rotation, seed
        Name of the layer, number of the rotation, and the seed of all. The matrix follows from these three and the
        number of units: not from other layers, nor from the checkpoint, so that a direction can be followed.

    Returns
    -------
    rotation : (U, U) float64, orthogonal; determinant 1 or -1
        Row v is the rotated unit v, as weights of the units. Reproduced up to rounding on another machine.

    References
    ----------
    Bau et al. 2017, "Network Dissection", section 3.2; Mezzadri 2007, "How to generate random matrices from the
    classical compact groups": Q of a Gaussian matrix, with the signs of the diagonal of R.
    """
    entropy = hashlib.sha256(f"{seed}|{rotation}|{layer}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(entropy, "little"))
    q, r = np.linalg.qr(rng.standard_normal((units, units)))
    turned: npt.NDArray[np.float64] = q * np.where(np.diagonal(r) < 0, -1.0, 1.0)
    return turned


def rotated(values: npt.NDArray[np.float32], rotation: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the maps of rotated units, (B, U, h, w) float32 with channels last, of the maps of units."""
    import torch

    batch, units, height, width = values.shape
    rows = torch.from_numpy(values).permute(0, 2, 3, 1).reshape(-1, units)
    mixed: npt.NDArray[np.float32] = (rows @ torch.from_numpy(rotation).T).numpy()
    return mixed.reshape(batch, height, width, units).transpose(0, 3, 1, 2)


def whole_tally(labels: Labels, units: int, *, workers: int = 1) -> Tally:
    """Return a tally in as few blocks of images as can be counted: for scores over all images."""
    images, (height, width) = len(labels.indptr) - 1, labels.label_size
    most = max(1, (2**32 - 2) // (height * width))
    return Tally(labels, units, blocks=np.arange(images) // most, workers=workers)


def best_scores(tally: Tally, labels: Labels) -> dict[str, npt.NDArray[np.float64]]:
    """Return the IoU of each unit with its best concept, in both readings: as `best_concept`, NaN where it has none.

    Returns
    -------
    scores : reading → (U,) float64
    """
    dims: dict[str, Any] = {
        "intersection": ("block", "unit", "concept"),
        "unit_area": ("block", "unit", "category"),
        "unit_area_lite": ("block", "unit", "category"),
        "concept_area": ("block", "concept"),
    }
    counts = tally.variables()
    categories = np.arange(labels.n_categories).astype(str)
    cube = xr.Dataset(
        {name: (of, counts[name].astype(np.float64)) for name, of in dims.items()},
        {
            "concept": np.arange(len(labels.category)).astype(str),
            "concept_category": ("concept", categories[labels.category]),
            "category": categories,
        },
    )
    return {reading: best_concept(cube, reading=reading)["score"].data for reading in ("paper", "lite")}
