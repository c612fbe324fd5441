"""Dissect a network: all its layers in one forward pass per batch, once for thresholds and once for the tally."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from neurolens.dissection.labels import Labels
from neurolens.dissection.mapped import MappedLayer, mapped_layers
from neurolens.dissection.maps import Maps, maps_of
from neurolens.dissection.ranks import QUANTILE, Compat
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
        What `dissect` finds in its first pass; in its argument ``thresholds``, those of another checkpoint.

    Raises
    ------
    CaptureError, NonFiniteError
        As for `dissect`.
    """
    with _passes(network, samples, 1, layers, batch_size, device, bf16, progress) as (found, sweep):
        return _found_thresholds(found, sweep, len(samples), quantile, compat, memory_mib)


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
    memory_mib: float = MEMORY_MIB,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    bf16: bool = False,
    progress: Progress | None = None,
) -> dict[str, Array]:
    """Count what the masks of a network's units have in common with concepts.

    Two passes over the images: thresholds, then the tally; with given thresholds one. Every layer is read in the hooks
    of the same forward pass, and nothing of it is kept but candidates for thresholds and counts.

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
        Those of another checkpoint: `own_thresholds`.
    top : how many of the images that excite a unit most are returned
    memory_mib : budget of the candidates of all layers together, shared by their numbers of activations
    batch_size, device, bf16 : as for the units of a study
    progress : called with (images done, images of all passes)

    Returns
    -------
    values : variable name → array
        Those of the concepts cube without the series: ``threshold`` (unit,), ``intersection`` (block, unit, concept),
        ``unit_area`` and ``unit_area_lite`` (block, unit, category), ``concept_area`` (block, concept), ``n_images``.
        With ``top``: ``top_value`` and ``top_sample`` (unit, rank), the largest maxima of the unit's maps over the
        images, decreasing, and the positions of their images; equal ones in the order of the images, NaN and -1 where
        there are fewer images than ranks.

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
    if top < 0:
        raise SchemaError(f"top={top} is no number of images; give 0 or more")
    given = None if thresholds is None else np.asarray(thresholds, dtype=np.float64)
    passes = 1 if given is not None else 2
    with _passes(network, samples, passes, layers, batch_size, device, bf16, progress) as (found, sweep):
        units = sum(layer.units for layer in found)
        if given is not None and given.shape != (units,):
            raise SchemaError(f"found thresholds of shape {given.shape}; one for each of {units} units is needed")
        if given is None:
            given = _found_thresholds(found, sweep, images, quantile, compat, memory_mib)
        limits = np.split(given, np.cumsum([layer.units for layer in found])[:-1])
        tallies = [Tally(labels, layer.units, workers=torch.get_num_threads()) for layer in found]
        tops = [Top(layer.units, top) for layer in found]

        def take(index: int, maps: Maps, at: Array) -> None:
            checked: Any = maps
            tallies[index].add(checked, limits[index], at)
            tops[index].add(maps.largest, at)

        sweep(take)
    rows = [tally.variables() for tally in tallies]
    out = {"threshold": given}
    for name in ("intersection", "unit_area", "unit_area_lite"):
        out[name] = np.concatenate([row[name] for row in rows], axis=1)
    out |= {name: rows[0][name] for name in ("concept_area", "n_images")}
    if top:
        best = [one.variables() for one in tops]
        out |= {name: np.concatenate([row[name] for row in best]) for name in ("top_value", "top_sample")}
    return out


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
        done, workers = 0, torch.get_num_threads()

        def commit(batch: "Shown", _: Mapping[int, None]) -> None:
            nonlocal done
            done += len(batch.indices)
            if progress is not None:
                progress(done, passes * len(samples))

        def sweep(take: Take) -> None:
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
    layers: Sequence[MappedLayer], sweep: Sweep, images: int, quantile: float, compat: Compat | None, memory_mib: float
) -> npt.NDArray[np.float64]:
    """Find the thresholds of the units of all layers, in one sweep."""
    positions = [int(np.prod(layer.grid)) for layer in layers]
    share = np.array([layer.units * size for layer, size in zip(layers, positions)], dtype=np.float64)
    with ExitStack() as stack:
        filters = [
            stack.enter_context(
                Thresholds(
                    layer.units,
                    images * size,
                    quantile=quantile,
                    compat=compat,
                    memory_mib=memory_mib * part,
                    workers=torch.get_num_threads(),
                )
            )
            for layer, size, part in zip(layers, positions, share / share.sum())
        ]

        def take(index: int, maps: Maps, _: Array) -> None:
            checked: Any = maps
            filters[index].update(checked)

        sweep(take)
        return np.concatenate([one.result() for one in filters])
