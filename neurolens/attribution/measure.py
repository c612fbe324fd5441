"""The rows of the attributions cube: what each set of units carries of one checkpoint's answers to some samples.

Eval mode, no augmentation, the network's own preprocessing, float32. A sample's numbers depend neither on the samples
beside it nor on the other sets, beyond rounding; what rounding does at ReLUs along a path is told in the docs.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from torch import Tensor, nn

from neurolens import schema
from neurolens.attribution.captum_methods import captum_versions, require_methods
from neurolens.attribution.curves import SHARES
from neurolens.attribution.cuts import Cuts, find_cuts
from neurolens.attribution.falls import LEVELS
from neurolens.attribution.kept import PIXELS
from neurolens.attribution.masks import unit_masks
from neurolens.attribution.memory import Room, left_beside, naming
from neurolens.attribution.planner import Cost, Plan, plan
from neurolens.attribution.scores import patch_table
from neurolens.attribution.sets import PARTED, UnitSet
from neurolens.attribution.shown import NOTHING, Measuring, block_arrays
from neurolens.effects.interventions import logits_of
from neurolens.errors import DataError, SchemaError, StudyError, nearest
from neurolens.study import Attributions
from neurolens.units import running

if TYPE_CHECKING:
    from neurolens.data import SampleSet, Shown
    from neurolens.models import Network
    from neurolens.store import Axis

Array = npt.NDArray[Any]

MEASUREMENT_VERSION = {"answers": 1, "maps": 1, "faithfulness": 1, "curves": 1, "reduced": 1, "full": 1}
"""Raised when the numbers of a part change."""

_EXPLAINED = ("target", "explain", "baseline")
_OF_MAPS = ("target", "explain", "cotangents")
_SETTINGS = {
    "answers": ("scored",),
    "maps": ("grid", "mass", "compat"),
    "faithfulness": ("scored", "grid", "drop", "fill", "compat"),
    "curves": ("scored", "grid", "fill", "compat"),
    "reduced": ("compat",),
    "full": (),
}
"""What the numbers of a part depend on, besides what all maps depend on."""

CHOOSING = ("full",)
"""Parts that are of chosen samples alone: of a block, their ids are in the key."""


def parts(table: Attributions) -> tuple[str, ...]:
    """Return the parts of the cube that the study asks for."""
    return tuple(p.name for p in schema.ATTRIBUTIONS.parts if p.option is None or getattr(table, p.option))


def key_config(table: Attributions, part: str) -> dict[str, Any]:
    """Return the settings that the numbers of a part depend on, with its version, JSON-able.

    What decides the sets of units is not among them: their digests are.

    Raises
    ------
    SchemaError
        If there is no such part.
    StudyError
        If a method is unknown, or a study cannot give a class of captum what it needs.
    """
    if part not in MEASUREMENT_VERSION:
        raise SchemaError(f"the attributions cube has no part {part!r}; {nearest(part, MEASUREMENT_VERSION)}")
    require_methods(table.methods)
    names: tuple[str, ...] = _EXPLAINED
    config: dict[str, Any] = {"version": MEASUREMENT_VERSION[part]}
    if part != "answers":
        config |= {"methods": list(table.methods)} | captum_versions(table.methods)
        integrated = "integrated_gradients" in table.methods
        names = (*_OF_MAPS, *(["steps", "rule"] if integrated else []))
        if integrated or "captum" in config:
            names = (*names, "baseline")
        if "captum" in config:
            names = (*names, "grid")
    return config | {name: getattr(table, name) for name in (*names, *_SETTINGS[part])}


def encodings(table: Attributions) -> dict[str, str]:
    """Return how the store writes what is NaN for most maps, or most images."""
    return {"dot": "float64-zstd", "reconstruction_error": "float64-zstd", "full_map": "float32-zstd"}


def block_size(table: Attributions, axes: Mapping[str, "Axis"]) -> int:
    """Return how many samples are measured and written together."""
    return table.block


def axes(
    network: "Network", samples: "SampleSet", table: Attributions, *, device: str | torch.device = "cpu"
) -> dict[str, "Axis"]:
    """Return the axes of the cube that the network and the study decide: all but those of the sets of units.

    Raises
    ------
    DataError
        If the network is not shown images, or there are none.
    ModelMismatchError
        If it does not give a row of logits per image.
    SchemaError
        If an image has fewer pixels than the grid has cells.
    StudyError
        If a method is unknown, or curves are filled by what needs pixels that are left.
    """
    from neurolens.store import Axis

    require_methods(table.methods)
    if table.curves and table.fill == "road":
        raise StudyError(
            "attributions.curves takes everything away at its end, and fill = 'road' interpolates from what is left; "
            "set fill to zero, mean or blur, or leave the curves out"
        )
    with running.prepared(network, device=device, bf16=False) as module:
        x = _pictures(running.first_batch(network, samples, module, device=device))
        logits_of(module(x), len(x), 1)
    shape = dict(zip(PIXELS, x.shape[1:], strict=True))
    patch_table(xr.DataArray(np.zeros(x.shape[2:], np.float32), dims=PIXELS[1:]), grid=table.grid)
    found = {"attribution": Axis(np.array(table.methods, dtype=np.str_))}
    found |= {dim: Axis(np.arange(table.grid)) for dim in ("patch_y", "patch_x")}
    if table.faithfulness:
        found["level"] = Axis(np.array(LEVELS, dtype=np.str_))
    if table.curves:
        found["share"] = Axis(np.array(SHARES))
    return found | {dim: Axis(np.arange(shape[dim])) for dim in PIXELS}  # always: correlations take the size of a map


def measure(
    network: "Network",
    samples: "SampleSet",
    *,
    parts: Sequence[str],
    table: Attributions,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int], None] | None = None,
    sets: Sequence[UnitSet] = (),
    mates: int = 1,
    chosen: Sequence[str] = (),
) -> dict[str, Array]:
    """Measure what sets of units carry of one checkpoint's answers to a block of samples.

    Parameters
    ----------
    network : models.Network
        The filled module, left as it was. It takes images and gives logits.
    samples : data.SampleSet
        N images.
    parts
        Parts of the attributions cube.
    table : study.Attributions
        Settings of the measurement.
    batch_size
        Points of a pass, cut to what suits a CPU's caches and to memory. Changes no number beyond rounding.
    device
        Where to compute, as torch names it.
    progress
        Called with (samples done, N).
    sets
        The sets of units, those of kind "only" with all others of their clustering.
    mates
        Entries along ``mate``: clusters that a clustering has at most.
    chosen
        Ids of the samples whose whole maps are kept.

    Returns
    -------
    values : variable name → array
        Shaped as in the cube without the series, over the samples, the sets in the order given, and the axes of `axes`.
        NaN: of a class of captum.attr for maps of some units; scores of a map that is zero everywhere; ``dot`` and
        ``reconstruction_error`` of sets that are no cluster; ``full_map`` of samples that are not chosen.

    Raises
    ------
    SchemaError
        If a part is unknown, a set has the units of another layer, or a cluster is beyond ``mates``.
    StudyError
        If ``table.memory_mib`` does not hold a sample, or what is returned; the message says what to set.
    CaptureError
        If a layer is not there, or is no cut, with the residual.
    DataError
        If the samples are no images, or there are none.
    ModelMismatchError
        If the network does not give a row of logits per sample, has fewer classes than the labels, or is nothing for
        a class of captum.attr.
    NonFiniteError
        If a logit or a gradient is NaN or infinite, naming the sample.
    """
    return measure_block(
        network,
        samples,
        parts=parts,
        table=table,
        batch_size=batch_size,
        device=device,
        progress=progress,
        sets=sets,
        mates=mates,
        chosen=chosen,
    )[0]


def measure_block(
    network: "Network",
    samples: "SampleSet",
    *,
    parts: Sequence[str],
    table: Attributions,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int], None] | None = None,
    sets: Sequence[UnitSet] = (),
    mates: int = 1,
    chosen: Sequence[str] = (),
) -> tuple[dict[str, Array], Cost]:
    """Return what `measure` returns, and how often the network ran, and gradients were followed back, for the maps."""
    from neurolens.data import shown

    require_methods(table.methods)
    _require_mates(sets, mates)
    for part in parts:
        schema.ATTRIBUTIONS.part(part)
    cost, done = NOTHING, 0

    def report(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, len(samples))

    with running.prepared(network, device=device, bf16=False) as module:
        first = _pictures(running.first_batch(network, samples, module, device=device))
        sizes = _sizes(samples, sets, table, mates, tuple(first.shape[1:]))
        kept = not set(map(str, samples.ids)).isdisjoint(chosen)
        values, nbytes = block_arrays(parts, sizes, kept=kept)
        wanted = list(sets) if set(parts) - {"answers", *(() if kept else CHOOSING)} else []
        free = left_beside(table.memory_mib, nbytes, len(samples))
        head = list(map(str, samples.ids[:2]))
        found, made = _planned(module, wanted, first, table, head) if wanted else (None, None)
        room = Room.of(
            free,
            vectors=len(made.chosen()) if made is not None else 0,
            kinds=1 + ("integrated_gradients" in table.methods),
            maps=len(wanted) * len(table.methods),
            pixels=sizes["y"] * sizes["x"],
            channels=sizes["channel"],
        )
        points = min(batch_size, running.CPU_BATCH) if first.device.type == "cpu" else batch_size
        measuring = Measuring(
            module=module,
            preprocessing=network.preprocessing,
            table=table,
            parts=parts,
            sets=wanted,
            mates=mates,
            chosen=frozenset(chosen),
            cuts=found,
            plan=made,
            room=room,
            batch_size=points,
            out=values,
        )
        for drawn in shown(samples, network, batch_size=room.samples(table.block), device=device):
            batch = running.laid_out(drawn, module)
            names = [str(samples.ids[at]) for at in batch.indices]
            spent = measuring.measure(batch.args[0], batch.y, batch.indices, names, report)
            cost = Cost(*(one + other for one, other in zip(cost, spent, strict=True)))
    return values, cost


def _planned(
    module: nn.Module, sets: Sequence[UnitSet], first: Tensor, table: Attributions, ids: Sequence[str]
) -> tuple[Cuts, Plan]:
    """Return the cuts of the sets, as the first sample tells them, and the plan of their maps."""
    masks: dict[str, dict[str, Array]] = {}
    for one in sets:
        if one.kind != "whole":
            masks.setdefault(one.cut, {})[one.name.removeprefix(f"{one.cut}/")] = one.units
    with naming(ids, table.memory_mib):
        cuts = find_cuts(module, list(masks), first, tolerance=table.tolerance)
    known = {layer.name: layer.units for layer in cuts.layers}
    for one in sets:
        if one.cut in known and len(one.units) != known[one.cut]:
            raise SchemaError(
                f"set {one.name!r} is of {len(one.units)} units, and layer {one.cut!r} has {known[one.cut]}: these are "
                "clusters of another layer or network; name their layer in attributions.files, or cluster this one anew"
            )
    return cuts, plan({cut: unit_masks(rows) for cut, rows in masks.items()}, whole=True)


def _pictures(batch: "Shown") -> Tensor:
    """Return images (B, channel, y, x) as the network takes them.

    Raises
    ------
    DataError
        If these are others.
    """
    x = batch.args[0] if batch.args else None
    if x is None or x.ndim != 4:
        found = "texts" if x is None else f"samples of shape {tuple(x.shape[1:])}"
        raise DataError(
            f"found {found}, and images (channel, y, x) were needed: attributions are maps over pixels; leave out "
            "[attributions], or name images in [data]"
        )
    return x


def _sizes(
    samples: "SampleSet", sets: Sequence[UnitSet], table: Attributions, mates: int, shape: tuple[int, ...]
) -> dict[str, int]:
    """Return how many entries each dim of a block has."""
    return {
        "sample": len(samples),
        "map": len(sets),
        "attribution": len(table.methods),
        "patch_y": table.grid,
        "patch_x": table.grid,
        "level": len(LEVELS),
        "mate": mates,
        "share": len(SHARES),
        **dict(zip(PIXELS, shape, strict=True)),
    }


def _require_mates(sets: Sequence[UnitSet], mates: int) -> None:
    for one in sets:
        if one.kind in PARTED and not 0 <= one.cluster < mates:
            raise SchemaError(
                f"set {one.name!r} is of cluster {one.cluster}, and dim 'mate' has {mates} entries; give one for each "
                "cluster of a clustering"
            )
