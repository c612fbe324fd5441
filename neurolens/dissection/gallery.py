"""Where units fire on a few images: their masks, made again from a checkpoint as the tally saw them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from neurolens.dissection.mapped import mapped_layers
from neurolens.dissection.maps import maps_of
from neurolens.dissection.tally import unit_mask
from neurolens.errors import NonFiniteError, SchemaError
from neurolens.units import running

if TYPE_CHECKING:
    from neurolens.data import SampleSet, Shown
    from neurolens.models import Network


class UnitMasks(NamedTuple):
    """Where units fire on images.

    Attributes
    ----------
    masks : (unit, rank, h, w) bool
        False all over where there is no image.
    largest : (unit, rank) float32
        The largest activation of each map; NaN where there is no image.
    """

    masks: npt.NDArray[np.bool_]
    largest: npt.NDArray[np.float32]


def unit_masks(
    network: "Network",
    samples: "SampleSet",
    *,
    layers: Literal["auto"] | Sequence[str],
    units: Sequence[int],
    thresholds: npt.ArrayLike,
    images: npt.ArrayLike,
    shape: tuple[int, int],
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    bf16: bool = False,
) -> UnitMasks:
    """Make the masks of units on some images again: one forward over the images that are asked for.

    Parameters
    ----------
    network : the filled module, left as it was
    samples : the images that were dissected
    layers : as for `neurolens.dissection.measure.dissect`
    units : (unit,) positions along the units of all layers in order
    thresholds : (unit,) float64
    images : (unit, rank) positions among the samples; negative or NaN: none
    shape : (h, w) of the masks
        With the size of the labels, they are those that were counted, up to what a network computes differently in
        another batch.
    batch_size, device, bf16 : as for `neurolens.dissection.measure.dissect`

    Returns
    -------
    UnitMasks

    Raises
    ------
    SchemaError
        If there is no such unit or image, or shapes do not fit.
    CaptureError, NonFiniteError
        As for `neurolens.dissection.measure.dissect`.
    """
    at, wanted, limits = _asked(units, images, thresholds, len(samples))
    masks = np.zeros((*wanted.shape, *shape), dtype=np.bool_)
    largest = np.full(wanted.shape, np.nan, dtype=np.float32)
    shown = np.unique(wanted[wanted >= 0])
    if not len(shown):
        return UnitMasks(masks, largest)
    with running.prepared(network, device=device, bf16=bf16) as module:
        found = mapped_layers(module, layers, running.first_batch(network, samples, module, device=device))
        edges = np.cumsum([0, *(layer.units for layer in found)])
        if at.max() >= edges[-1]:
            raise SchemaError(f"there is no unit {at.max()}; the layers have units 0 to {edges[-1] - 1}")
        of = np.searchsorted(edges, at, side="right") - 1
        looked_at = [found[index] for index in np.unique(of)]

        def observe(index: int, tensor: Tensor, batch: "Shown") -> None:
            layer = looked_at[index]
            try:
                maps = maps_of(layer.maps(tensor.detach()).to(device="cpu", dtype=torch.float32).numpy(), layer.units)
            except NonFiniteError as error:
                raise NonFiniteError(f"layer {layer.name!r}: {error}") from None
            rows = {image: row for row, image in enumerate(shown[batch.indices].tolist())}
            for u in np.flatnonzero(of == found.index(layer)):
                unit = at[u] - edges[of[u]]
                for rank in np.flatnonzero(np.isin(wanted[u], list(rows))):
                    row = rows[int(wanted[u, rank])]
                    largest[u, rank] = maps.largest[row, unit]
                    if float(maps.largest[row, unit]) > limits[u]:
                        masks[u, rank] = unit_mask(maps.values[row, unit], limits[u], shape)

        running.sweep(
            network,
            samples.subset(shown),
            module,
            looked_at,
            observe=observe,
            commit=lambda batch, seen: None,
            batch_size=batch_size,
            device=device,
        )
    return UnitMasks(masks, largest)


def _asked(units: Sequence[int], images: npt.ArrayLike, thresholds: npt.ArrayLike, samples: int) -> Any:
    at = np.asarray(units, dtype=np.int64)
    given, limits = np.asarray(images, dtype=np.float64), np.asarray(thresholds, dtype=np.float64)
    if at.ndim != 1 or given.ndim != 2 or len(given) != len(at) or limits.shape != at.shape:
        raise SchemaError(
            f"found images {given.shape} and thresholds {limits.shape} of {at.shape} units; (unit, rank) positions of "
            "images and one threshold per unit are needed"
        )
    wanted = np.where(np.isfinite(given), given, -1).astype(np.int64)
    if len(at) and (at.min() < 0 or wanted.max(initial=-1) >= samples):
        raise SchemaError(
            f"found unit {at.min()} and image {wanted.max(initial=-1)}; units count from 0, and there are {samples} "
            "images"
        )
    return at, wanted, limits
