"""Dissect a network: all its layers in one forward pass per batch, once for thresholds and once for the tally."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from neurolens.dissection.labels import Labels
from neurolens.dissection.ranks import QUANTILE, Compat
from neurolens.dissection.tally import Tally
from neurolens.dissection.thresholds import MEMORY_MIB, Thresholds
from neurolens.errors import CaptureError, NonFiniteError, SchemaError
from neurolens.layers import Layer, find_layers
from neurolens.units import running

if TYPE_CHECKING:
    from neurolens.data import SampleSet, Shown
    from neurolens.models import Network

Array = npt.NDArray[Any]


def dissect(
    network: "Network",
    samples: "SampleSet",
    labels: Labels,
    *,
    layers: Literal["auto"] | Sequence[str],
    quantile: float = QUANTILE,
    compat: Compat | None = None,
    thresholds: npt.ArrayLike | None = None,
    memory_mib: float = MEMORY_MIB,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    bf16: bool = False,
    progress: Callable[[int, int], None] | None = None,
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
    layers : "auto" or globs, as for `neurolens.layers.find_layers`
        Layers with maps (B, U, h, w) of one size.
    quantile, compat : as for `Thresholds`
    thresholds : (U,) over the units of all layers in order, e.g. of another checkpoint; None: this network's own
    memory_mib : budget of the candidates of all layers together, shared by their numbers of activations
    batch_size, device, bf16 : as for the units of a study
    progress : called with (images done, images of all passes)

    Returns
    -------
    values : variable name → array
        Those of the concepts cube without the series: ``threshold`` (unit,), ``intersection`` (block, unit, concept),
        ``unit_area`` and ``unit_area_lite`` (block, unit, category), ``concept_area`` (block, concept), ``n_images``.

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
    with running.prepared(network, device=device, bf16=bf16) as module, ExitStack() as stack:
        probe = running.first_batch(network, samples, module, device=device)
        found = find_layers(module, layers, probe)
        _require_maps(found)
        edges = np.cumsum([0, *(layer.units for layer in found)])
        given = None if thresholds is None else np.asarray(thresholds, dtype=np.float64)
        if given is not None and given.shape != (edges[-1],):
            raise SchemaError(f"found thresholds of shape {given.shape}; one for each of {edges[-1]} units is needed")
        passes, done = 1 if given is not None else 2, 0
        workers = torch.get_num_threads()

        def sweep(take: Callable[[int, Array, Array], None]) -> None:
            def observe(index: int, tensor: Tensor, batch: "Shown") -> None:
                # at once, on the live tensor: of a forward that fails, nothing is returned
                maps = tensor.detach().to(device="cpu", dtype=torch.float32).numpy()
                try:
                    take(index, maps, batch.indices)
                except NonFiniteError as error:
                    raise NonFiniteError(f"layer {found[index].name!r}: {error}") from None

            def commit(batch: "Shown", _: Mapping[int, None]) -> None:
                nonlocal done
                done += len(batch.indices)
                if progress is not None:
                    progress(done, passes * images)

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

        if given is None:
            share = np.array([layer.units * int(np.prod(layer.shape)) for layer in found], dtype=np.float64)
            filters = [
                stack.enter_context(
                    Thresholds(
                        layer.units,
                        images * int(np.prod(layer.shape)),
                        quantile=quantile,
                        compat=compat,
                        memory_mib=memory_mib * part,
                        workers=workers,
                    )
                )
                for layer, part in zip(found, share / share.sum())
            ]
            sweep(lambda index, maps, _: filters[index].update(maps))
            given = np.concatenate([one.result() for one in filters])
            for one in filters:
                one.close()
        tallies = [Tally(labels, layer.units, workers=workers) for layer in found]
        limits = np.split(given, edges[1:-1])
        sweep(lambda index, maps, at: tallies[index].add(maps, limits[index], at))
    rows = [tally.variables() for tally in tallies]
    joined = {name: np.concatenate([row[name] for row in rows], axis=1) for name in ("intersection", "unit_area")}
    joined["unit_area_lite"] = np.concatenate([row["unit_area_lite"] for row in rows], axis=1)
    return {"threshold": given} | joined | {name: rows[0][name] for name in ("concept_area", "n_images")}


def _require_maps(layers: Sequence[Layer]) -> None:
    for layer in layers:
        if layer.axis != 1 or len(layer.shape) != 2:
            raise CaptureError(
                f"layer {layer.name!r} has activations of shape {layer.shape} per unit, and maps (h, w) are needed to "
                "compare with labels; name layers of convolutions"
            )
