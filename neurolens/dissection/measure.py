"""Dissect a network: all its layers in one forward pass per batch, first for thresholds, then for the tally."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from neurolens.dissection.folding import folded_around
from neurolens.dissection.kept_maps import DISK_MIB, KeptMaps, disk_budget
from neurolens.dissection.labels import Labels
from neurolens.dissection.mapped import MappedLayer, mapped_layers
from neurolens.dissection.maps import Maps, maps_of
from neurolens.dissection.ranks import QUANTILE, Compat
from neurolens.dissection.rotations import best_scores, random_rotation, rotated, whole_tally
from neurolens.dissection.tally import Tally
from neurolens.dissection.thresholds import MEMORY_MIB, Thresholds
from neurolens.dissection.top import Top
from neurolens.errors import NonFiniteError, SchemaError
from neurolens.units import running

if TYPE_CHECKING:
    from neurolens.data import SampleSet, Shown
    from neurolens.models import Network

__all__ = ["dissect", "mapped_layers", "own_thresholds"]

Array = npt.NDArray[Any]
Layers = Literal["auto"] | Sequence[str]
Progress = Callable[[int, int], None]
Take = Callable[[int, Maps, Array], None]
"""What is done with the maps of a layer, by its number, and the positions of their images."""
Sweep = Callable[[Take], None]
Keep = Callable[[int, int, Maps, npt.NDArray[np.float32], Array], None]
"""The same of a view of the layer, by its number too, told what the thresholds will not be below."""
View = npt.NDArray[np.float32] | None
"""How the units of a layer are mixed, (U, U); None: as they are."""


def own_thresholds(
    network: "Network",
    samples: "SampleSet",
    *,
    layers: Layers,
    quantile: float = QUANTILE,
    compat: Compat | None = None,
    memory_mib: float = MEMORY_MIB,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    bf16: bool = False,
    progress: Progress | None = None,
) -> npt.NDArray[np.float64]:
    """Find the top-quantile threshold of each unit of a network, in one pass over the images.

    Parameters
    ----------
    network, samples, layers, quantile, compat, memory_mib, batch_size, device, bf16, progress
        As for `dissect`.

    Returns
    -------
    thresholds : (U,) over the units of all layers in order
        What `dissect` finds in its first pass; in its argument ``thresholds``, those of another checkpoint. NaN for a
        unit that never exceeds its own, as a dead one: that says nothing of how active it is elsewhere.

    Raises
    ------
    CaptureError, NonFiniteError
        As for `dissect`.
    """
    with _passes(network, samples, 1, layers, batch_size, device, bf16, progress) as (found, sweep):
        views: list[list[View]] = [[None] for _ in found]
        most = [np.full(layer.units, -np.inf) for layer in found]

        def see(index: int, maps: Maps, _: Array) -> None:
            np.maximum(most[index], maps.largest.max(axis=0), out=most[index])

        bounds = _found_thresholds(found, views, sweep, len(samples), quantile, compat, memory_mib, see)
        return np.concatenate([np.where(top > own, own, np.nan) for top, (own,) in zip(most, bounds)])


def dissect(
    network: "Network",
    samples: "SampleSet",
    labels: Labels,
    *,
    layers: Layers,
    quantile: float = QUANTILE,
    compat: Compat | None = None,
    thresholds: npt.ArrayLike | None = None,
    top: int = 0,
    rotations: int = 0,
    seed: int = 0,
    memory_mib: float = MEMORY_MIB,
    disk_mib: float = DISK_MIB,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    bf16: bool = False,
    progress: Progress | None = None,
) -> dict[str, Array]:
    """Count what the masks of a network's units have in common with concepts.

    One pass over the images where thresholds are given, or where what the tally needs of the maps is kept in a file
    until thresholds are found (`KeptMaps`); otherwise two: thresholds, then the tally. Every layer is read in the hooks
    of the same forward pass. The counts do not depend on the way.

    Parameters
    ----------
    network : the filled module, left as it was
        Its own preprocessing is used.
    samples : N images
    labels : the concepts of the same images, in the same order
    layers : "auto" or globs, as for `mapped_layers`
        Layers with maps (B, U, h, w) of one size, or tokens that lie on a grid.
    quantile, compat : as for `Thresholds`
    thresholds : (U,) over the units of all layers in order, e.g. of another checkpoint; None: this network's own
        Those of another checkpoint: `own_thresholds`. A unit whose threshold is NaN has no mask.
    top : how many of the images that excite a unit most are returned
    rotations : how many times the units of each layer are turned at random, for a null
        Rotated units are dissected in the same passes, always with thresholds of their own.
    seed : of the rotations; see `neurolens.dissection.rotations.random_rotation`
    memory_mib : budget of the candidates of all layers and rotations together, shared by their numbers of activations
    disk_mib : budget of the temporary files that maps are kept in, and no more than half of what is free
        5 to 17 % of the activations are kept, of units and of rotated units. Where that is more, images are shown a
        second time; with 0 always.
    batch_size, device, bf16 : as for the units of a study
    progress : called with (images done, images of all passes); a second pass that turns out to be needed adds to both

    Returns
    -------
    values : variable name → array
        Those of the concepts cube without the series: ``threshold`` (unit,), ``intersection`` (block, unit, concept),
        ``unit_area`` and ``unit_area_lite`` (block, unit, category), ``concept_area`` (block, concept), ``n_images``.
        With ``top``: ``top_value`` and ``top_sample`` (unit, rank), the largest maxima of the unit's maps over the
        images, decreasing, and the positions of their images; equal ones in the order of the images, NaN and -1 where
        there are fewer images than ranks. With ``rotations``: ``rotated_score`` and ``rotated_score_lite`` (rotation,
        unit), the IoU of each rotated unit with its best concept in the two readings, NaN where it has no mask.

    Raises
    ------
    CaptureError
        If the network does not have the layers, or one has no maps.
    SchemaError
        If there are not as many labels as images, or thresholds as units.
    NonFiniteError
        If an activation is NaN or infinite.
    """
    images = len(labels.indptr) - 1
    if images != len(samples):
        raise SchemaError(f"found labels of {images} images and {len(samples)} samples; give both for the same images")
    for name, number in (("top", top), ("rotations", rotations)):
        if number < 0:
            raise SchemaError(f"{name}={number} is no count; give 0 or more")
    given = None if thresholds is None else np.asarray(thresholds, dtype=np.float64)
    keeping = disk_mib > 0
    passes = 1 if keeping or (given is not None and not rotations) else 2
    with (
        _passes(network, samples, passes, layers, batch_size, device, bf16, progress) as (found, sweep),
        ExitStack() as stack,
    ):
        edges = np.cumsum([layer.units for layer in found])
        if given is not None and given.shape != (edges[-1],):
            raise SchemaError(f"found thresholds of shape {given.shape}; one for each of {edges[-1]} units is needed")
        workers = torch.get_num_threads()
        tallies = [Tally(labels, layer.units, workers=workers) for layer in found]
        turned = [[whole_tally(labels, layer.units, workers=workers) for _ in range(rotations)] for layer in found]
        tops = [Top(layer.units, top) for layer in found]
        limits = [] if given is None else np.split(np.where(np.isnan(given), np.inf, given), edges[:-1])
        views: list[list[View]] = [
            [None] if given is None else [] for _ in found
        ]  # thresholds of which are to be found
        counted = [[tally] if given is None else [] for tally in tallies]
        for layer, several, into, rest in zip(found, views, counted, turned):
            drawn = (random_rotation(layer.units, layer=layer.name, rotation=r, seed=seed) for r in range(rotations))
            several += [matrix.astype(np.float32) for matrix in drawn]
            into += rest

        def see(index: int, maps: Maps, at: Array) -> None:
            tops[index].add(maps.largest, at)
            if given is not None:
                tallies[index].add(_any(maps), limits[index], at)

        if not any(views):
            sweep(see)
        else:
            share = _share_of_values(found) * (disk_budget(disk_mib) if keeping else 0.0) / len(views[0])
            kept = [
                [stack.enter_context(KeptMaps(layer.units, layer.grid, disk_mib=part)) for _ in several]
                for layer, part, several in zip(found, share, views)
            ]

            def keep(index: int, view: int, maps: Maps, bound: npt.NDArray[np.float32], at: Array) -> None:
                kept[index][view].add(maps, bound, at)
                if not kept[index][view].complete:  # one that needs a second pass is reason enough for it
                    for one in itertools.chain(*kept):
                        one.close()

            bounds = _found_thresholds(
                found, views, sweep, images, quantile, compat, memory_mib, see, keep if keeping else None
            )
            limits = limits or [own for own, *_ in bounds]
            if all(one.complete for one in itertools.chain(*kept)):
                for one, tally, limit in zip(*(itertools.chain(*each) for each in (kept, counted, bounds))):
                    for maps, at in one.batches(limit):
                        tally.add(_any(maps), limit, at)
            else:

                def count(index: int, maps: Maps, at: Array) -> None:
                    for tally, view, limit in zip(counted[index], views[index], bounds[index]):
                        tally.add(_any(_seen_as(view, maps)), limit, at)

                sweep(count)
    rows = [tally.variables() for tally in tallies]
    out = {"threshold": np.concatenate(limits) if given is None else given}
    for name in ("intersection", "unit_area", "unit_area_lite"):
        out[name] = np.concatenate([row[name] for row in rows], axis=1)
    out |= {name: rows[0][name] for name in ("concept_area", "n_images")}
    if top:
        best = [one.variables() for one in tops]
        out |= {name: np.concatenate([row[name] for row in best]) for name in ("top_value", "top_sample")}
    if rotations:
        scores = [[best_scores(tally, labels) for tally in several] for several in turned]
        for name, reading in (("rotated_score", "paper"), ("rotated_score_lite", "lite")):
            out[name] = np.concatenate([np.stack([one[reading] for one in several]) for several in scores], axis=1)
    return out


def _seen_as(view: View, maps: Maps) -> Maps:
    """Return the maps of the units, or of rotated ones."""
    if view is None:
        return maps
    return maps_of(rotated(maps.values, view), len(view), workers=torch.get_num_threads())


def _any(maps: Maps) -> Any:
    """Maps that are checked already, where arrays are taken too."""
    return maps


@contextmanager
def _passes(
    network: "Network",
    samples: "SampleSet",
    passes: int,
    layers: Layers,
    batch_size: int,
    device: str | torch.device,
    bf16: bool,
    progress: Progress | None,
) -> Iterator[tuple[tuple[MappedLayer, ...], Sweep]]:
    """Lend the layers of a network, and what shows it all images and hands out the maps of each layer."""
    with running.prepared(network, device=device, bf16=bf16) as module:
        probe = running.first_batch(network, samples, module, device=device)
        found = mapped_layers(module, layers, probe)
        module = folded_around(module, found, probe)
        done, begun, workers = 0, 0, torch.get_num_threads()

        def commit(batch: "Shown", _: Mapping[int, None]) -> None:
            nonlocal done
            done += len(batch.indices)
            if progress is not None:
                progress(done, max(passes, begun) * len(samples))

        def sweep(take: Take) -> None:
            nonlocal begun
            begun += 1

            def observe(index: int, tensor: Tensor, batch: "Shown") -> None:
                # at once, on the live tensor: of a forward that fails, nothing is returned
                values = found[index].maps(tensor.detach()).to(device="cpu", dtype=torch.float32).numpy()
                try:
                    maps = maps_of(values, found[index].units, seen=int(batch.indices[0]), workers=workers)
                    take(index, maps, batch.indices)
                except NonFiniteError as error:
                    raise NonFiniteError(f"layer {found[index].name!r}: {error}") from None

            running.sweep(
                network,
                samples,
                module,
                found,
                observe=observe,
                commit=commit,
                batch_size=batch_size,
                device=device,
            )

        yield found, sweep


def _found_thresholds(
    layers: Sequence[MappedLayer],
    views: Sequence[Sequence[View]],
    sweep: Sweep,
    images: int,
    quantile: float,
    compat: Compat | None,
    memory_mib: float,
    see: Take | None = None,
    keep: Keep | None = None,
) -> list[list[Array]]:
    """Find the thresholds of the units of all layers, as each of their views shows them, in one sweep.

    ``see`` is told of the units as they are, ``keep`` of each view.
    """
    positions = [int(np.prod(layer.grid)) for layer in layers]
    share = _share_of_values(layers)
    share *= memory_mib / (share @ [len(several) for several in views])
    with ExitStack() as stack:
        filters = [
            [
                stack.enter_context(
                    Thresholds(
                        layer.units,
                        images * size,
                        quantile=quantile,
                        compat=compat,
                        memory_mib=part,
                        workers=torch.get_num_threads(),
                    )
                )
                for _ in several
            ]
            for layer, size, part, several in zip(layers, positions, share, views)
        ]

        def take(index: int, maps: Maps, at: Array) -> None:
            if see is not None:
                see(index, maps, at)
            for number, (one, view) in enumerate(zip(filters[index], views[index])):
                seen = _seen_as(view, maps)
                one.update(_any(seen))
                if keep is not None:
                    keep(index, number, seen, one.bound, at)

        sweep(take)
        return [[one.result() for one in several] for several in filters]


def _share_of_values(layers: Sequence[MappedLayer]) -> npt.NDArray[np.float64]:
    """Return the share of each layer in the activations of an image."""
    values = np.array([layer.units * int(np.prod(layer.grid)) for layer in layers], dtype=np.float64)
    return np.asarray(values / values.sum())
