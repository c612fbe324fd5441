"""An attributions cube made by hand: what a store opens as, of random maps whose clusters add up to the whole."""

from typing import Any

import numpy as np
import xarray as xr

from neurolens import schema
from neurolens.attribution import patch_table, sparsity
from neurolens.attribution.sets import UnitSet, unit_sets
from neurolens.study import Attributions

SIDE, GRID, UNITS = 8, 4, {"stage1": 6, "stage2": 8}
SHARES = (0.0, 0.25, 0.5, 1.0)


def labels(ks: tuple[int, ...] = (2, 3)) -> dict[str, dict[str, Any]]:
    """The cluster of each unit of two layers, for each k."""
    return {cut: {f"k{k}": np.arange(units) % k for k in ks} for cut, units in UNITS.items()}


def sets(table: Attributions | None = None, ks: tuple[int, ...] = (2, 3)) -> tuple[UnitSet, ...]:
    """The sets of those clusters, with controls of one of them."""
    given = Attributions(controlled=("stage1/without k3/0",), controls=20) if table is None else table
    return unit_sets(labels(ks), given)


def attributions_cube(
    *,
    epochs: tuple[int, ...] = (9,),
    samples: int = 12,
    classes: int = 3,
    methods: tuple[str, ...] = ("integrated_gradients", "saliency"),
    seed: int = 0,
    reduced: bool = True,
    full: bool = True,
    curves: bool = True,
) -> xr.Dataset:
    """Return the cube as a store opens it: every part measured, all values those of one set of random maps."""
    random, found = np.random.default_rng(seed), sets()
    names, mates = [one.name for one in found], 3
    shape = (len(epochs), samples)
    per_unit = {cut: random.standard_normal((*shape, units, 3, SIDE, SIDE)) for cut, units in UNITS.items()}
    whole = per_unit["stage1"].sum(axis=2)
    gap = whole - per_unit["stage2"].sum(axis=2)
    per_unit["stage2"] += gap[:, :, None] / UNITS["stage2"]
    signed = np.stack(
        [
            whole if not one.cut else np.einsum("u,esuchw->eschw", one.units.astype(float), per_unit[one.cut])
            for one in found
        ],
        axis=2,
    )
    each = {"integrated_gradients": signed, "saliency": np.abs(signed) * 0.5, "input_x_gradient": signed * 2}
    maps = xr.DataArray(
        np.stack([each[method] for method in methods], axis=3),
        dims=("epoch", "sample", "map", "attribution", "channel", "y", "x"),
    ).astype(np.float32)
    pixels = ("channel", "y", "x")
    flat = maps.to_numpy().reshape(*maps.shape[:4], -1).astype(float)
    dot = np.full((*maps.shape[:4], mates), np.nan)
    error = np.full(maps.shape[:4], np.nan)
    for at, one in enumerate(found):
        if one.kind != "only":
            continue
        own = [
            i
            for i, other in enumerate(found)
            if other.kind == "only" and (other.cut, other.clustering) == (one.cut, one.clustering)
        ]
        for i in own:
            dot[:, :, at, :, found[i].cluster] = (flat[:, :, at] * flat[:, :, i]).sum(axis=-1)
        error[:, :, at] = np.abs(flat[:, :, own].sum(axis=2) - flat[:, :, 0]).mean(axis=-1)
    lead = ("epoch", "sample", "map", "attribution")
    logit = random.normal(3, 1, shape)
    log_prob = -random.exponential(0.3, shape)
    fall = random.exponential(0.5, (*maps.shape[:4], 2))
    label = np.arange(samples) % classes
    rank = (random.random(shape) < 0.25) * random.integers(1, classes, shape)
    target = np.where(rank == 0, label, (label + rank) % classes).astype(float)
    total, absolute = maps.sum(pixels, dtype=float), abs(maps).sum("channel", dtype=float)
    data: dict[str, Any] = {
        "target": (lead[:2], target),
        "predicted": (lead[:2], target),
        "scored": (lead[:2], target),
        "label_rank": (lead[:2], rank.astype(float)),
        "output": (lead[:2], logit),
        "baseline_output": (lead[:2], logit - total.isel(map=0, attribution=0).to_numpy() * 1.01),
        "logit": (lead[:2], logit),
        "log_prob": (lead[:2], log_prob),
        "patch": patch_table(maps, grid=GRID).astype(np.float32),
        "total": total,
        "mass": abs(maps).sum(pixels, dtype=float),
        "norm": (lead, np.sqrt((flat**2).sum(axis=-1))),
        "pixel_sparsity": sparsity(maps),
        "dot": ((*lead, "mate"), dot),
        "reconstruction_error": (lead, error),
        "masked_logit": ((*lead, "level"), logit[:, :, None, None, None] - fall),
        "masked_log_prob": ((*lead, "level"), log_prob[:, :, None, None, None] - fall),
    }
    if curves:
        steps = np.exp(log_prob)[:, :, None, None, None] * (1 - np.array(SHARES))
        steps = np.broadcast_to(steps, (*maps.shape[:4], len(SHARES))).astype(np.float32)
        data |= {"deletion": ((*lead, "share"), steps), "insertion": ((*lead, "share"), steps[..., ::-1])}
    if reduced:
        scale = absolute.max(("y", "x"))
        data |= {
            "reduced": (maps.sum("channel", dtype=float) / scale).astype(np.float16),
            "reduced_mass": (absolute / scale).astype(np.float16),
            "reduced_scale": scale,
        }
    if full:
        data["full_map"] = maps.where(xr.DataArray(np.arange(samples) % 6 == 0, dims="sample"))
    text = np.dtypes.StringDType()
    coords: dict[str, Any] = {
        "epoch": np.array(epochs),
        "measured": ("epoch", np.ones(len(epochs), dtype=bool)),
        "sample": np.array([f"{i:032x}" for i in range(samples)], dtype=text),
        "label": ("sample", label),
        "class": np.array([f"class{c}" for c in range(classes)], dtype=text),
        "map": np.array(names, dtype=text),
        "attribution": np.array(methods, dtype=text),
        "level": np.array(["pixel", "patch"], dtype=text),
        "mate": np.arange(mates),
    }
    for name in ("cut", "clustering", "kind", "of"):
        coords[name] = ("map", np.array([getattr(one, name) for one in found], dtype=text))
    for name in ("cluster", "draw"):
        coords[name] = ("map", np.array([getattr(one, name) for one in found]))
    coords["kept"] = ("map", np.array([int(one.units.sum()) if one.cut else -1 for one in found]))
    if curves:
        coords["share"] = np.array(SHARES)
    out = xr.Dataset(data, coords, attrs={"run": "case", "cube": "attributions", "data": "case"})
    declared = {variable.name: variable for variable in schema.ATTRIBUTIONS.variables}
    for name in out.data_vars:
        out[name].attrs = dict(declared[str(name)].attrs)
    return out
