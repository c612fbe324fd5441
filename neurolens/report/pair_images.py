"""A folder of the images that units stand for, as the reference writes one: the first ten of each, and of each head."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr

from neurolens.errors import SchemaError, StoreError
from neurolens.pairs.retrieval import retrieve
from neurolens.pairs.writing import matched
from neurolens.plot.pairs_images import ImagesById

TABLE = "strengths.csv"
WHOLE = "all-heads"


def write_images(
    ds: xr.Dataset,
    images: ImagesById,
    folder: str | Path,
    *,
    units: Sequence[Any],
    heads: Sequence[Any] | None = None,
    top: int = 10,
    kind: Literal["signed", "norm"] = "signed",
    bias: bool = False,
    overwrite: bool = False,
) -> list[Path]:
    """Write the images at which units are strongest, through all heads and through each one, as PNG files. **Eager**.

    Parameters
    ----------
    ds : Dataset
        Scalars (sample, unit, head) and factors: what `neurolens.pairs.at` returned.
    images : function
        From sample ids to their (H, W, C) images; see `neurolens.report.images_of`.
    folder
        Made if it is not there. It gets ``unit-37/all-heads/01.png``, ``unit-37/head-2/01.png``, …, the strongest
        first, and ``strengths.csv``: a line per file with unit, head, rank, sample and strength.
    units, heads
        Labels; all heads by default.
    top
        How many images, of those there are.
    kind, bias
        Of `neurolens.pairs.strengths`: the reference has ``kind="norm", bias=True``.
    overwrite
        Write into folders of units that are there already.

    Returns
    -------
    The files, the table last.

    Raises
    ------
    SchemaError
        If there is no such unit or head, or no scalars.
    DataError
        If an image is not there.
    StoreError
        If a unit's folder is there already, or cannot be written.
    """
    cube, fixed = matched(ds, ds)
    asked = list(units)
    through = cube["head"].to_numpy().tolist() if heads is None and "head" in cube.coords else heads
    through = list(range(cube.sizes["head"])) if through is None else list(through)
    out = Path(folder)
    there = [out / f"unit-{unit}" for unit in asked if (out / f"unit-{unit}").exists()]
    if there and not overwrite:
        raise StoreError(f"{there[0]} is there already; name another folder, or pass overwrite=True")
    written, lines = [], []
    for unit in asked:
        few, some, label = _of_unit(cube, fixed, unit)
        for head in (None, *through):
            found = retrieve(few, some, unit=label, head=head, k=min(top, cube.sizes["sample"]), kind=kind, bias=bias)
            place = out / f"unit-{unit}" / (WHOLE if head is None else f"head-{head}")
            names: Sequence[Any] = found["sample" if "sample" in found else "position"].to_numpy().tolist()
            for rank, (name, image) in enumerate(zip(names, images(names), strict=True), start=1):
                path = place / f"{rank:02}.png"
                _save(path, np.asarray(image))
                written.append(path)
                strength = float(found["strength"][rank - 1])
                lines.append(
                    [unit, "all" if head is None else head, rank, name, f"{strength:.6g}", path.relative_to(out)]
                )
    table = out / TABLE
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["unit", "head", "rank", "sample", "strength", "file"])
        writer.writerows(lines)
    return [*written, table]


def _of_unit(cube: xr.DataArray, fixed: xr.Dataset, unit: Any) -> tuple[xr.DataArray, xr.Dataset, Any]:
    """Read the scalars and factors of one unit; its label there."""
    labels = cube["unit"].to_numpy().tolist() if "unit" in cube.coords else list(range(cube.sizes["unit"]))
    if unit not in labels:
        raise SchemaError(f"there is no unit {unit!r} among {len(labels)}; name one that was measured")
    at = [labels.index(unit)]
    return cube.isel(unit=at).compute(), fixed.isel(unit=at).compute(), unit if "unit" in cube.coords else 0


def _save(path: Path, image: np.ndarray) -> None:
    """Write an image (H, W) or (H, W, C), uint8 or in [0, 1], as it is."""
    from PIL import Image

    pixels = image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image
    if pixels.dtype != np.uint8:
        pixels = np.round(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    except OSError as error:
        raise StoreError(f"{path} cannot be written ({error.strerror}); name a folder you may write to") from error
