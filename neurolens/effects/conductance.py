"""Layer conductance of units, as captum computes it, whatever module a layer is and whichever of its calls."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from neurolens.effects.interventions import intervening, logits_of
from neurolens.errors import DataError, NonFiniteError
from neurolens.layers import Layer
from neurolens.units import running

if TYPE_CHECKING:
    from neurolens.data import SampleSet
    from neurolens.models import Network

Array = npt.NDArray[Any]

PASS = {"cpu": 64}
"""Samples, times the steps of the integral, of one forward and backward pass; elsewhere 256."""


def layer_conductance(
    network: "Network",
    samples: "SampleSet",
    module: nn.Module,
    layers: Sequence[Layer],
    *,
    wanted: int = 128,
    batch_size: int = 16,
    steps: int = 50,
    device: str | torch.device = "cpu",
    progress: Callable[[int], None] | None = None,
) -> list[Array]:
    """Return the mean absolute conductance of each unit to the logit of the true class.

    The integral runs from zeros to the sample, in the network's normalised input, by the Gauss-Legendre rule. A unit's
    number is the mean over the batches of the mean of \\|conductance\\| over the batch and the unit's positions;
    batches are taken in order until (batches · size of the last one) reaches ``wanted``.

    Parameters
    ----------
    network : models.Network
        Of which ``module`` was prepared by `neurolens.units.running.prepared`.
    samples : images
    module : in eval mode; left as it was
    layers : of the network
        The integral is computed once for each, for all its units.
    wanted, batch_size, steps
        Samples, how many of them a batch has, steps of the integral.
    device
        Where to compute.
    progress : called with the samples of each batch

    Returns
    -------
    scores : (units,) for each layer

    Raises
    ------
    DataError
        If there are no samples, or they are texts, between which and zeros there is nothing.
    ModelMismatchError
        If the network does not give a row of logits per sample.
    NonFiniteError
        If a conductance is NaN or infinite.

    References
    ----------
    Dhamdhere et al. 2019, "How Important Is a Neuron?", equation 1; Shrikumar et al. 2018.
    """
    from neurolens.data import TextSet, shown

    if isinstance(samples, TextSet):
        raise DataError(
            f"{samples.name} holds texts, and conductance is an integral over pixels; set conductance = false in "
            "[effects]"
        )
    if not len(samples):
        raise DataError(f"{samples.name} has no samples to show the network; choose others with data.select")
    sums: list[Array] = [np.zeros(layer.units) for layer in layers]
    done = 0
    parameters = [p for p in module.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)  # no memory for gradients that nobody asks for
    try:
        for drawn in shown(samples, network, batch_size=batch_size, device=device):
            batch = running.laid_out(drawn, module)
            for total, layer in zip(sums, layers, strict=True):
                found = _of_batch(module, layer, batch.args[0], batch.y, steps, len(samples.classes))
                finite = np.isfinite(found).all(axis=1)
                if not finite.all():
                    sample = str(samples.ids[batch.indices[int(np.argmin(finite))]])
                    raise NonFiniteError(
                        f"sample {sample!r} has a conductance of NaN or infinity in layer {layer.name!r}, and finite "
                        "numbers were needed; leave the checkpoint out, or set conductance = false in [effects]"
                    )
                total += found.mean(axis=0)
            done += 1
            if progress is not None:
                progress(len(batch.indices))
            if done * len(batch.indices) >= wanted:
                break
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
    return [total / done for total in sums]


def shown_samples(samples: int, *, wanted: int, batch_size: int) -> int:
    """Return of how many of the samples `layer_conductance` takes its means."""
    return min(samples, -(-wanted // batch_size) * batch_size)


def _of_batch(module: nn.Module, layer: Layer, x: Tensor, y: Tensor, steps: int, classes: int) -> Array:
    """Return the mean over the positions of \\|conductance\\|, (B, U) float64."""
    from captum.attr import LayerConductance

    place = nn.Identity()  # captum hooks modules: this one is called once, with a tensor that nothing overwrites

    def passed(tensor: Tensor) -> Tensor:
        torch.set_grad_enabled(True)
        out: Tensor = place(tensor.detach().clone())
        return out

    def forward(inputs: Tensor) -> Tensor:
        # up to the layer nothing is differentiated; leaving no_grad restores the mode that `passed` has changed
        with torch.no_grad(), intervening(module, layer.tap, passed):
            return logits_of(module(inputs), len(inputs), classes)

    size = PASS.get(x.device.type, 256)
    together = max(1, size // (steps + 1))
    conductance = LayerConductance(forward, place)
    axis = 1 if layer.tap.flat else layer.axis
    rows = []
    for start in range(0, len(x), together):
        part = x[start : start + together]
        with torch.enable_grad():
            found = conductance.attribute(
                part,
                target=y[start : start + together],
                n_steps=steps,
                method="gausslegendre",
                internal_batch_size=None if len(part) * (steps + 1) <= size else max(size, 2 * len(part)),
            )
        means = found.detach().abs().movedim(axis, 1).flatten(2) if found.ndim > 2 else found.detach().abs()[..., None]
        rows.append(means.cpu().double().mean(dim=2).numpy())
    return np.concatenate(rows)
