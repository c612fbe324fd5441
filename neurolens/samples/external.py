"""Scores per sample from elsewhere (memorisation, influence, human labels), aligned to a run's samples and compared."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import xarray as xr
from scipy.stats import rankdata

from neurolens.errors import DataError, SchemaError, nearest

ID_COLUMNS = ("sample", "sample_id", "id")
POSITION_COLUMNS = ("position", "index", "idx", "tr_idx")


def load_scores(path: Path | str, *, key: str | None = None, ids: str | None = None) -> xr.DataArray:
    """Read a score per sample from a .npy, .npz or .csv file. **Eager.**

    Parameters
    ----------
    path : path
        ``.npy``: one value per position in the named data set. ``.npz``: the array ``key`` likewise. ``.csv`` with a
        header: the column ``key``.
    key : str, optional
        Which array or column; may be left out where only one can be meant.
    ids : str, optional
        The array or column that holds sample ids, or integer positions. By default one of `sample`, `sample_id`, `id`
        (ids) or `position`, `index`, `idx`, `tr_idx` (positions), else the order of the values is the position.

    Returns
    -------
    score : (sample,), float64, over sample ids, or (position,) over positions
        NaN where the file has none. Named after ``key`` or the file.

    Raises
    ------
    DataError
        If the file is missing, has no such array or column, is not one value per sample, or repeats an id.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"there is no score file {path}; give the path of a .npy, .npz or .csv")
    columns = _columns(path)
    keys = [name for name in columns if name not in (*ID_COLUMNS, *POSITION_COLUMNS, ids)]
    if key is None:
        if len(keys) != 1:
            raise DataError(f"{path} holds {len(keys)} scores; pass key= one of them: {', '.join(keys[:12])}")
        key = keys[0]
    where = ids or next((name for name in (*ID_COLUMNS, *POSITION_COLUMNS) if name in columns and name != key), None)
    for name in (key, where):
        if name is not None and name not in columns:
            raise DataError(f"{path} has no {name!r}; {nearest(name, columns)}")
    try:
        values = np.asarray(columns[key], dtype="float64")
    except ValueError as error:
        raise DataError(f"{path}: {key!r} is not numeric ({error}); name a numeric column with key=") from error
    if values.ndim != 1:
        raise DataError(
            f"{path}: {key!r} has shape {values.shape}; a score has one value per sample: pick one with key="
        )
    dim, index = _index(columns, where, len(values))
    if len(index) != len(values):
        raise DataError(f"{path}: {len(values)} values of {key!r} but {len(index)} of {where!r}; they must match")
    if len(np.unique(index)) != len(index):
        raise DataError(f"{path}: {where!r} repeats a sample; keep one value for each")
    name = path.stem if path.suffix == ".npy" else key
    return xr.DataArray(values, dims=(dim,), coords={dim: index}, name=name, attrs={"source": path.name})


def _columns(path: Path) -> dict[str, Any]:
    try:
        return _read(path)
    except DataError:
        raise
    except (ValueError, EOFError, OSError, csv.Error, BadZipFile) as error:
        raise DataError(f"{path} cannot be read ({error}); write plain numbers, without pickled objects") from error


def _read(path: Path) -> dict[str, Any]:
    if path.suffix == ".npy":
        return {path.stem: np.load(path, allow_pickle=False)}
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        if not rows:
            raise DataError(f"{path} has no rows; it needs a header and one row per sample")
        return {name: [row[name] or "nan" for row in rows] for name in rows[0]}
    raise DataError(f"{path} is a {path.suffix or 'file without suffix'}; scores are read from .npy, .npz or .csv")


def _index(columns: dict[str, Any], where: str | None, n: int) -> tuple[str, Any]:
    if where is None:
        return "position", np.arange(n)
    index = np.asarray(columns[where])
    if where in POSITION_COLUMNS or index.dtype.kind in "iu":
        try:
            return "position", index.astype("int64")
        except ValueError as error:
            raise DataError(
                f"{where!r} is not a whole number ({error}); sample ids belong in a column `sample`"
            ) from error
    return "sample", index.astype(str)


def align(external: xr.DataArray, ds: xr.Dataset | xr.DataArray) -> xr.DataArray:
    """Put an external score in the order of ``ds.sample``. **Eager** in the coordinates.

    Parameters
    ----------
    external : (sample,) or (position,)
        From :func:`load_scores`.
    ds : with `sample`; by position also with `position` (sample), each sample's place in the named data set

    Returns
    -------
    score : (sample,)
        NaN for samples that the file does not have.

    Raises
    ------
    SchemaError
        If positions are needed and ``ds`` has none, or nothing matches.
    """
    if "sample" not in ds.coords:
        raise SchemaError("ds has no `sample` coordinate to align to")
    wanted = ds.coords["sample"]
    if external.dims == ("sample",):
        keys = wanted.to_index()
    elif external.dims == ("position",):
        if "position" not in ds.coords:
            raise SchemaError(
                "the score is by position, but ds has no `position` coordinate; give the file a column `sample`"
            )
        keys = ds.coords["position"].to_index()
    else:
        raise SchemaError(f"an external score has dims {external.dims}; it needs ('sample',) or ('position',)")
    places = external.get_index(str(external.dims[0])).get_indexer(keys)
    if not (places >= 0).any():
        raise SchemaError(
            f"none of the {len(keys)} samples is among the {external.size} of {external.name!r}; "
            "is it a score of the same data set, by the same ids?"
        )
    aligned = external.astype("float64").data[places]
    where = xr.DataArray(places >= 0, dims=("sample",))
    coords = {k: v for k, v in ds.coords.items() if v.dims == ("sample",)}
    return xr.DataArray(aligned, dims=("sample",), coords=coords, name=external.name, attrs=external.attrs).where(where)


def compare(score: xr.DataArray, external: xr.DataArray, *, top: int = 5000) -> xr.Dataset:
    """Likeness of two scores over the samples that have both, and over the top of the external one.

    Parameters
    ----------
    score, external : (sample,), any units
        Aligned by `sample`; see :func:`align`.
    top : int
        How many of the highest external scores make the top; all if there are fewer samples.

    Returns
    -------
    Dataset, lazy if an input is
        `cosine` of the raw vectors (what the CSL authors report), `pearson`, `spearman`, `top_cosine` (cosine over the
        top), `top_overlap` (share of the external top that is in the score's top), `n_samples`. 1; NaN for a constant.

    Raises
    ------
    SchemaError
        If the two do not cover the same samples in the same order.

    References
    ----------
    Ravikumar et al. 2025: cosine over all samples and over the 5 000 with the highest memorisation score.
    """
    _paired(score, external)
    if top < 1:
        raise SchemaError(f"top={top} leaves no samples; give at least 1")
    table = xr.apply_ufunc(
        _likeness,
        *(_bare(a) for a in (score, external)),
        kwargs={"top": top},
        input_core_dims=[["sample"], ["sample"]],
        output_core_dims=[["entry"]],
        dask="parallelized",
        dask_gufunc_kwargs={"allow_rechunk": True, "output_sizes": {"entry": 6}},
        output_dtypes=[float],
    )
    names = ("cosine", "pearson", "spearman", "top_cosine", "top_overlap", "n_samples")
    return xr.Dataset({n: table.isel(entry=k).assign_attrs(units="1") for k, n in enumerate(names)}, attrs={"top": top})


def binned_curve(
    score: xr.DataArray,
    external: xr.DataArray,
    *,
    bins: int = 15,
    limits: Sequence[float] | None = None,
) -> xr.Dataset:
    """Mean of a score in equal-width bins of an external one.

    Parameters
    ----------
    score, external : (sample,), any units
        Aligned by `sample`.
    bins : int
        How many; the CSL authors take 15 for CIFAR-100 and 21 for ImageNet.
    limits : (low, high), optional
        Range of the bins in units of ``external``; its own range if left out. Samples beyond are left out.

    Returns
    -------
    Dataset over `bin`, lazy if an input is
        `mean` and `sem` (standard error) of the score, units of ``score``; `centre` of the bin, units of ``external``;
        `n`, the samples in it. NaN in empty bins; `sem` is NaN below two samples.

    Raises
    ------
    SchemaError
        If the two do not cover the same samples in the same order.
    """
    _paired(score, external)
    if bins < 1:
        raise SchemaError(f"bins={bins} is no number of bins; give at least 1")
    table = xr.apply_ufunc(
        _binned,
        *(_bare(a) for a in (score, external)),
        kwargs={"bins": bins, "limits": None if limits is None else (float(limits[0]), float(limits[1]))},
        input_core_dims=[["sample"], ["sample"]],
        output_core_dims=[["entry", "bin"]],
        dask="parallelized",
        dask_gufunc_kwargs={"allow_rechunk": True, "output_sizes": {"entry": 4, "bin": bins}},
        output_dtypes=[float],
    )
    return xr.Dataset({name: table.isel(entry=k) for k, name in enumerate(("centre", "mean", "sem", "n"))})


def _bare(array: xr.DataArray) -> xr.DataArray:
    return array.astype("float64").reset_coords(drop=True).drop_vars("sample", errors="ignore")


def _paired(score: xr.DataArray, external: xr.DataArray) -> None:
    for name, array in (("score", score), ("external", external)):
        if array.dims != ("sample",):
            raise SchemaError(
                f"{name} has dims {array.dims}; it needs ('sample',): align(external, ds) brings it there"
            )
    same = score.sizes["sample"] == external.sizes["sample"]
    if same and "sample" in score.indexes and "sample" in external.indexes:
        same = score.indexes["sample"].equals(external.indexes["sample"])
    if not same:
        raise SchemaError("score and external cover different samples, or in another order; use align(external, score)")


def _likeness(score: Any, external: Any, *, top: int) -> Any:
    here = ~(np.isnan(score) | np.isnan(external))
    score, external = score[here], external[here]
    k = min(top, len(score))
    best = np.argsort(-external, kind="stable")[:k]
    mine = np.argsort(-score, kind="stable")[:k]
    overlap = len(np.intersect1d(best, mine)) / k if k else np.nan
    return np.array(
        [
            _cosine(score, external),
            _cosine(score - score.mean(), external - external.mean()) if k else np.nan,
            _rank_correlation(score, external) if k else np.nan,
            _cosine(score[best], external[best]),
            overlap,
            len(score),
        ]
    )


def _cosine(a: Any, b: Any) -> float:
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / size if size > 0 else float("nan")


def _rank_correlation(a: Any, b: Any) -> float:
    a, b = rankdata(a), rankdata(b)
    return _cosine(a - a.mean(), b - b.mean())


def _binned(score: Any, external: Any, *, bins: int, limits: tuple[float, float] | None) -> Any:
    here = ~(np.isnan(score) | np.isnan(external))
    score, external = score[here], external[here]
    if limits is None:
        limits = (float(external.min()), float(external.max())) if len(external) else (0.0, 1.0)
    edges = np.linspace(*limits, bins + 1)
    inside = (external >= edges[0]) & (external <= edges[-1])
    score, external = score[inside], external[inside]
    place = np.clip(np.searchsorted(edges, external, side="right") - 1, 0, bins - 1)
    n = np.bincount(place, minlength=bins).astype(float)
    count = np.where(n > 0, n, np.nan)
    mean = np.bincount(place, weights=score, minlength=bins) / count
    square = np.bincount(place, weights=(score - mean[place]) ** 2, minlength=bins)
    sem = np.sqrt(square / np.where(n > 1, n - 1, np.nan) / count)
    return np.stack([(edges[1:] + edges[:-1]) / 2, mean, sem, n])
