"""One checkpoint of a store's cubes of pairs, put together: what reductions take as scalars and as factors."""

import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from neurolens import schema
from neurolens.backend import open_at
from neurolens.errors import MissingCheckpointError, MissingMeasurementError, SchemaError, nearest

Array = npt.NDArray[Any]
CUBES = ("pools", "pairs", "texts")
ORDER = ("sample", "unit", "head", "phrase", "token", "rank")
"""Dims of what reductions take, in their order; factors keep their own."""

FACTORS = ("value", "output", "constant")
SAMPLES = ("top_sample", "bottom_sample")
ONCE = ("count", "worst_residual")
"""Of the whole pool; a store holds them once for each head."""

_SHOWN = 6


def at(
    run: str | os.PathLike[str] | xr.Dataset | xr.DataTree,
    *,
    epoch: int | None = None,
    step: int | None = None,
    cubes: Sequence[str] = CUBES,
) -> xr.Dataset:
    """Return one checkpoint of the cubes `pools`, `pairs` and `texts`, all at one snapshot of the store; lazy.

    The Dataset is what reductions take, as scalars and as factors: ``pair_norms(ds, ds)``, ``directions(ds)``,
    ``text_scores(ds, ds["text"])``; ``ds.lens`` has them as methods.

    Parameters
    ----------
    run
        The store's folder or URL; or what is opened of it: the tree, or one cube, whose siblings are then read from the
        same snapshot, and whose own selection of samples is kept.
    epoch, step
        The checkpoint; by default the last one at which all of these cubes that the store holds are measured.
    cubes
        Those to take, of the ones that there are. ``("pools", "texts")`` leaves the scalars out: norms, means and
        signs are then of the totals, which is faster, and no more than `ScalarTotals` knows.

    Returns
    -------
    Dataset
        Of `pairs`: ``scalar`` and, if they were kept, ``patch``, ``mean_token``, ``positional`` (sample, unit, head);
        ``embedding`` (sample, feature), ``completeness`` (sample,), ``attention`` (sample, head, token); NaN where a
        part failed. Of `pools`: ``value`` (head, d, unit), ``output`` (feature, head, d), ``constant`` (head, feature);
        and the totals ``count``, ``mean``, ``std`` (unit, head), ``top``, ``bottom`` (unit, head, rank) with
        ``top_sample`` and ``bottom_sample``, positions along ``sample`` as it is returned, -1 for none and for images
        that the cube of scalars does not have; ``worst_residual``. Of `texts`: ``text`` (phrase, feature), with ``set``
        and ``words`` along ``phrase``; see `phrase_set`.

    Raises
    ------
    MissingMeasurementError
        If the store holds none of these cubes, or one was not measured at the checkpoint.
    MissingCheckpointError
        If there is no such checkpoint.
    SchemaError
        If an unknown cube is named, both an epoch and a step are, or the cubes are of different pairs.
    StoreError
        If there is no store.
    """
    for name in cubes:
        if name not in CUBES:
            raise SchemaError(f"there is no cube {name!r} of one checkpoint; {nearest(str(name), CUBES)}")
    found = one_checkpoint(cubes_of(run, cubes), epoch=epoch, step=step)
    parts = {"pairs": _of_pairs, "pools": _of_pools, "texts": _of_texts}
    out = xr.Dataset(attrs=_attrs(found) | (_pool_attrs(found["pairs"]) if "pairs" in found else {}))
    for name in ("pairs", "pools", "texts"):
        if name in found:
            out = _joined(out, parts[name](found[name], out), name)
    return out


def codes_at(
    run: str | os.PathLike[str] | xr.Dataset | xr.DataTree, *, epoch: int | None = None, step: int | None = None
) -> xr.Dataset:
    """Return the codes of one checkpoint as `sparse_codes.sparse_codes` does, over units and heads; lazy.

    Parameters
    ----------
    run, epoch, step
        As of `at`; by default the last checkpoint that has codes.

    Returns
    -------
    Dataset
        ``index``, ``value``, ``residual`` (unit, head, atom): -1 and NaN of pairs that were not coded. The coordinate
        ``phrase`` names those that ``index`` counts in: ``describe(codes, codes["phrase"])``.

    Raises
    ------
    MissingMeasurementError
        If there are no codes, or none at the checkpoint.
    MissingCheckpointError
        If there is no such checkpoint.
    StoreError
        If there is no store.
    """
    held = cubes_of(run, ("codes", "pools"))
    if "codes" not in held:
        raise _nothing(("codes",), held)
    found = one_checkpoint({"codes": held["codes"]}, epoch=epoch, step=step)["codes"]
    flat = found.drop_vars(["measured", "pair"], errors="ignore").reset_coords(["unit", "head"])
    unit, head = (flat[name].to_numpy().astype(np.int64) for name in ("unit", "head"))
    labels = {
        name: np.unique(coded) if "pools" not in held else held["pools"][name].to_numpy()
        for name, coded in (("unit", unit), ("head", head))
    }
    place = np.full((len(labels["unit"]), len(labels["head"])), -1)
    place[np.searchsorted(labels["unit"], unit), np.searchsorted(labels["head"], head)] = np.arange(len(unit))
    index = xr.DataArray(place, dims=("unit", "head"), coords=labels)
    spread = flat[["index", "value", "residual"]].isel(pair=index.clip(min=0)).where(index >= 0)
    out = spread.transpose("unit", "head", "atom")
    out["index"] = out["index"].fillna(-1).astype(np.int32)
    if "phrase" in found.coords:
        out = out.assign_coords(phrase=found["phrase"].variable)
    settings = json.loads(found.attrs.get("settings", "{}")).get("parts", {}).get("codes", {})
    # The cube takes the mean over the phrases off in any case.
    told = {"norm": settings.get("norm", "rows"), "centred": 1, "phrases": found.sizes.get("phrase", 0)}
    out.attrs = _attrs({"codes": found}) | told
    return out


def phrase_set(data: xr.Dataset, name: str) -> xr.DataArray:
    """Return the embeddings of one set of phrases, named by the phrases themselves.

    Parameters
    ----------
    data
        As `at` gives it, or the opened cube `texts`.
    name
        Of the set, as the study has it under ``[texts.sets.NAME]``.

    Returns
    -------
    array (…, phrase, feature), lazy if the Dataset is

    Raises
    ------
    MissingMeasurementError
        If there are no phrases.
    SchemaError
        If there is no such set.
    """
    schema.present(data, "text")
    sets = _names(data["set"])
    if name not in sets:
        raise SchemaError(f"there is no set of phrases {name!r}; {nearest(name, set(sets))}")
    chosen = data["text"].isel(phrase=[i for i, one in enumerate(sets) if one == name])
    words = chosen["words"].variable
    return chosen.drop_vars(["set", "words", "phrase"], errors="ignore").assign_coords(phrase=("phrase", words.data))


def cubes_of(run: str | os.PathLike[str] | xr.Dataset | xr.DataTree, names: Sequence[str]) -> dict[str, xr.Dataset]:
    """Return these cubes of a run, of those that it holds, lazily and all of one snapshot.

    Raises
    ------
    SchemaError
        If what is given is no run.
    StoreError
        If there is no store.
    """
    given: dict[str, xr.Dataset] = {}
    if isinstance(run, xr.DataTree):
        if not run.children and "cube" in run.attrs:
            run = run.to_dataset()
        else:
            return {name: run[name].to_dataset() for name in names if name in run.children}
    if isinstance(run, xr.Dataset):
        cube = run.attrs.get("cube")
        if cube not in schema.CUBES:
            raise SchemaError(
                f"found a Dataset without the name of its cube, of {sorted(map(str, run.data_vars))[:_SHOWN]}; give "
                "the store's folder, or one cube as neurolens.open_run opens it, with its attributes"
            )
        given = {cube: run} if cube in names else {}
        if "url" not in run.attrs:
            return given
        place = {key: run.attrs[key] for key in ("endpoint", "region") if key in run.attrs}
        url, snapshot = str(run.attrs["url"]), str(run.attrs["snapshot"])
        held = open_at(url, snapshot=snapshot, **place).cubes
    elif isinstance(run, str | os.PathLike):
        opened = open_at(run)
        url, snapshot, held, place = opened.url, str(opened.session.snapshot_id), opened.cubes, {}
    else:
        raise SchemaError(f"found {type(run).__name__}, and a store's folder or URL, or a cube of it, was needed")
    options = {"engine": "neurolens", "snapshot": snapshot, "cache": False, **place}
    for name in names:
        if name in held and name not in given:
            given[name] = xr.open_dataset(url, group=name, chunks=None, **options)
    return given


def one_checkpoint(
    held: dict[str, xr.Dataset], *, epoch: int | None = None, step: int | None = None
) -> dict[str, xr.Dataset]:
    """Select one checkpoint of cubes, the last that all have by default, and make them lazy.

    Raises
    ------
    SchemaError
        If both an epoch and a step are given, or the series is of the other one.
    MissingCheckpointError, MissingMeasurementError
        If there is no such checkpoint, or a cube was not measured there.
    """
    if not held:
        raise _nothing(CUBES, held)
    if epoch is not None and step is not None:
        raise SchemaError(f"found epoch={epoch} and step={step}; pass one of them")
    there = {name: _measured(ds) for name, ds in held.items()}
    dims = {dim for dim, _ in there.values()}
    if len(dims) > 1:
        raise SchemaError(f"the cubes are along {' and '.join(sorted(dims))}; give cubes of one run")
    (dim,) = dims
    wanted = _wanted(held, there, dim, epoch, step)
    out = {}
    for name, ds in held.items():
        labels = there[name][1]
        if wanted not in labels:
            raise MissingMeasurementError(
                f"{name} was not measured at {dim} {wanted}, or failed there (it is at {_listed(sorted(labels))}); "
                f"measure it: `neurolens run STUDY --only {name}` (`neurolens status STUDY` says why it is missing), "
                f"or leave it out: cubes={tuple(other for other in held if other != name)}"
            )
        out[name] = _lazy(ds.isel({dim: labels[wanted]}) if dim in ds.dims else ds)
    return out


def _measured(ds: xr.Dataset) -> tuple[str, dict[int, int]]:
    """Return the series of a cube, and the place of each checkpoint that was measured, in order."""
    for dim in schema.SERIES_DIMS:
        if dim in ds.dims:
            done = ds["measured"].to_numpy() if "measured" in ds.coords else np.ones(ds.sizes[dim], bool)
            return dim, {int(ds[dim][i]): int(i) for i in np.flatnonzero(done)}
    for dim in (str(ds.attrs.get("series", "")), *schema.SERIES_DIMS):
        if dim in ds.coords and not ds[dim].dims:
            there = "measured" not in ds.coords or bool(ds["measured"])
            return dim, {int(ds[dim]): 0} if there else {}
    raise SchemaError(
        f"found a cube over {dict(ds.sizes)} without epoch or step; select checkpoints with isel, which keeps them"
    )


def _wanted(
    held: dict[str, xr.Dataset],
    there: dict[str, tuple[str, dict[int, int]]],
    dim: str,
    epoch: int | None,
    step: int | None,
) -> int:
    """Return the label of the checkpoint asked for along the series."""
    asked, label = ("step", step) if epoch is None else ("epoch", epoch)
    if label is None:
        common = set.intersection(*(set(labels) for _, labels in there.values()))
        if not common:
            told = "; ".join(f"{name} at {_listed(sorted(labels))}" for name, (_, labels) in there.items())
            raise MissingMeasurementError(
                f"there is no {dim} at which all of these are measured: {told}; measure them: `neurolens run STUDY "
                f"--only {','.join(held)}`"
            )
        return max(common)
    known: dict[int, set[int]] = {}
    for ds in held.values():
        if asked != dim and asked not in ds.coords:
            raise SchemaError(f"the checkpoints of this run are known by {dim}, not by {asked}; pass {dim}=")
        for one, other in zip(np.atleast_1d(ds[dim].to_numpy()), np.atleast_1d(ds[asked].to_numpy()), strict=True):
            if np.isfinite(other):
                known.setdefault(int(other), set()).add(int(one))
    if label not in known:
        raise MissingCheckpointError(f"there is no {asked} {label}; there is {_listed(sorted(known))}")
    if len(known[label]) > 1:
        raise SchemaError(f"{asked} {label} is of {dim} {_listed(sorted(known[label]))}; pass one of these as {dim}=")
    return next(iter(known[label]))


def _lazy(ds: xr.Dataset) -> xr.Dataset:
    """Return a cube with dask arrays, in the chunks that the store reads well; what is small is read."""
    small = {name: coord.compute() for name, coord in ds.coords.items() if name not in ds.indexes}
    arrays = {}
    for name, array in ds.data_vars.items():
        preferred = array.encoding.get("preferred_chunks", {})
        chunks = {dim: preferred.get(dim, -1) for dim in array.dims}
        arrays[name] = array.chunk(chunks) if array.chunks is None else array
    return ds.assign_coords(small).assign(arrays)


def _of_pairs(ds: xr.Dataset, _: xr.Dataset) -> xr.Dataset:
    return ds.transpose(*ORDER, ..., missing_dims="ignore")


def _pool_attrs(ds: xr.Dataset) -> dict[str, Any]:
    """Return ``grid`` and ``token`` as `scalars` has them, as far as the tokens tell."""
    attrs: dict[str, Any] = {}
    if {"y", "x"} <= set(ds.coords) and ds["y"].dims == ds["x"].dims == ("token",):
        attrs["grid"] = [int(ds[name].max()) + 1 for name in ("y", "x")]
    if "token_kind" in ds.coords and ds.sizes["token"]:
        attrs["token"] = str(ds["token_kind"][0].item())
    return attrs


def _of_pools(ds: xr.Dataset, others: xr.Dataset) -> xr.Dataset:
    """Return factors in one chunk each, and totals whose images are counted along the samples that there are."""
    fixed = ds[list(FACTORS)].chunk(-1)
    totals = ds.drop_vars([*FACTORS, "d", "feature"], errors="ignore")
    if "count" not in totals or np.isnan(count := float(totals["count"].isel(head=0))):
        return fixed  # totals were not measured, or failed
    residual = float(totals["worst_residual"].isel(head=0))
    totals = totals.drop_vars(ONCE).assign(count=int(count), worst_residual=residual)
    place = np.arange(totals.sizes["sample"])
    if "sample" in others.coords:
        place = others.indexes["sample"].get_indexer(totals["sample"].to_numpy())
        totals = totals.drop_vars("sample")
    for name in SAMPLES:
        counted = totals[name].fillna(-1).astype(np.int64)
        totals[name] = xr.apply_ufunc(
            _placed, counted, kwargs={"place": place}, dask="parallelized", output_dtypes=[np.int64], keep_attrs=True
        )
    return fixed.merge(totals.transpose(*ORDER, ..., missing_dims="ignore"), join="exact")


def _of_texts(ds: xr.Dataset, _: xr.Dataset) -> xr.Dataset:
    return ds.assign(text=ds["text"].transpose("phrase", "feature").chunk({"feature": -1}))


def _placed(counted: Array, *, place: Array) -> Array:
    return np.where(counted < 0, -1, np.append(place, -1)[counted])


def _joined(out: xr.Dataset, more: xr.Dataset, name: str) -> xr.Dataset:
    """Return both together; where they share a dim they must be of the same units, heads and features."""
    more = more.drop_vars("measured", errors="ignore")
    for dim in set(out.dims) & set(more.dims):
        if dim in out.indexes and dim in more.indexes and not out.indexes[dim].equals(more.indexes[dim]):
            raise SchemaError(
                f"{name} has other labels along {dim!r} than the cubes before it; select the same of all, or measure "
                f"the older one anew: `neurolens run STUDY --only {name}`"
            )
    for dim in set(out.dims) & set(more.dims):
        if out.sizes[dim] != more.sizes[dim]:
            raise SchemaError(f"{name} has {more.sizes[dim]} along {dim!r}, and the other cubes {out.sizes[dim]}")
    return out.merge(more.drop_attrs(deep=False), compat="override", join="exact", combine_attrs="override")


def _names(coord: xr.DataArray) -> list[str]:
    return [str(name) for name in coord.to_numpy().tolist()]


def _attrs(found: dict[str, xr.Dataset]) -> dict[str, Any]:
    """Return where the numbers come from; settings are those of each cube."""
    main = next(name for name in ("pairs", "pools", "codes", "texts") if name in found)
    kept = ("run", "neurolens", "url", "snapshot", "endpoint", "region", "series", "cube", "data", "generation")
    attrs = {key: found[main].attrs[key] for key in kept if key in found[main].attrs}
    told = {name: json.loads(ds.attrs["settings"]) for name, ds in found.items() if "settings" in ds.attrs}
    return attrs | ({"settings": json.dumps(told, sort_keys=True)} if told else {})


def _nothing(wanted: Sequence[str], held: dict[str, xr.Dataset]) -> MissingMeasurementError:
    return MissingMeasurementError(
        f"the run holds none of {', '.join(wanted)}{' but ' + ', '.join(held) if held else ''}; measure them: "
        f"`neurolens run STUDY --only {','.join(wanted)}`, with the tables "
        f"{', '.join(f'[{name}]' for name in wanted)} in the study"
    )


def _listed(labels: Sequence[int]) -> str:
    shown = ", ".join(map(str, labels[-_SHOWN:]))
    return f"…, {shown}" if len(labels) > _SHOWN else shown or "none"
