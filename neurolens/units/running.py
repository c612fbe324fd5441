"""A network shown its samples, with something to do at each of its layers: what every measurement of units runs on."""

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from neurolens.capture import capture
from neurolens.errors import DataError, ModelMismatchError, NonFiniteError
from neurolens.layers import Layer
from neurolens.samples.softmax import full_precision

if TYPE_CHECKING:
    from neurolens.data import SampleSet, Shown
    from neurolens.models import Network

CPU_BATCH = 32
"""Larger batches of images than this fall out of a CPU's caches; they are cut down to it there."""

Seen = TypeVar("Seen")


@contextlib.contextmanager
def prepared(network: "Network", *, device: str | torch.device, bf16: bool) -> Iterator[nn.Module]:
    """Lend the network in eval mode on the device; it is left as it was.

    It runs in the dtype its weights are held in, or in bfloat16; nothing is folded, so that every layer puts out what
    it is known for. It is copied only where it has to be turned: to another device or dtype, or, with convolutions, to
    the layout that those are fastest in.

    Raises
    ------
    ModelMismatchError
        If a batch norm without running statistics would make a sample's activations depend on its batch.
    """
    module, device = network.module, torch.device(device)
    for name, layer in module.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is None:
            raise ModelMismatchError(
                f"layer {name!r} ({type(layer).__name__}) has no running statistics, so activations would depend on "
                "the batch; build the network with track_running_stats=True"
            )
    tensors = [*module.parameters(), *module.buffers()]
    turned = any(t.device != device or (t.is_floating_point() and (bf16 or t.dtype == torch.float64)) for t in tensors)
    images = any(isinstance(m, nn.Conv2d) for m in module.modules())
    if turned or images:
        module = copy.deepcopy(module)
        dtype = torch.bfloat16 if bf16 else torch.float32 if any(t.dtype == torch.float64 for t in tensors) else None
        module = module.to(device=device, dtype=dtype)
        if images:
            module = module.to(memory_format=torch.channels_last)
    modes = {m: m.training for m in module.modules()}
    module.eval()
    try:
        with full_precision(), torch.no_grad():
            yield module
    finally:
        for m, mode in modes.items():
            m.training = mode


def laid_out(batch: "Shown", module: nn.Module) -> "Shown":
    """Return a batch as the module takes it: floating point in its dtype, images channels-last."""
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)

    def turned(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        return value.to(dtype=dtype, memory_format=torch.channels_last if value.ndim == 4 else torch.preserve_format)

    kwargs = {name: turned(value) for name, value in batch.kwargs.items()}
    return batch._replace(args=tuple(map(turned, batch.args)), kwargs=kwargs)


def first_batch(network: "Network", samples: "SampleSet", module: nn.Module, *, device: str | torch.device) -> "Shown":
    """Return the first one or two samples, as the module takes them.

    Raises
    ------
    DataError
        If there are no samples.
    """
    from neurolens.data import shown

    if not len(samples):
        raise DataError(f"{samples.name} has no samples to show the network; choose others with data.select")
    head = np.arange(min(2, len(samples)))
    return laid_out(next(iter(shown(samples, network, batch_size=2, device=device, indices=head))), module)


def sweep(
    network: "Network",
    samples: "SampleSet",
    module: nn.Module,
    layers: Sequence[Layer],
    *,
    observe: Callable[[int, Tensor, "Shown"], Seen],
    commit: Callable[["Shown", Mapping[int, Seen]], None],
    batch_size: int,
    device: str | torch.device,
    in_order: bool = False,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Show the network all samples once.

    Parameters
    ----------
    observe
        Called inside the hook with the index of the layer, its live tensor and the batch; what it returns is passed on.
    commit
        Called with the batch and what was observed at each layer, once the forward has returned.
    in_order
        Texts are shown in order of length, the longest first, so that little is padded; True: as they stand.
    progress
        Called with the samples that each batch has.

    Raises
    ------
    ModelMismatchError
        If a layer does not give one entry per sample.
    """
    from neurolens.data import shown

    device = torch.device(device)
    lengths = token_counts(samples, network)
    size = min(batch_size, CPU_BATCH) if lengths is None and device.type == "cpu" else batch_size
    order = np.arange(len(samples))
    if lengths is not None and not in_order:
        order = np.argsort(-lengths, kind="stable")
    now: list[Shown] = []
    seen: dict[int, Seen] = {}

    def on(index: int, tensor: Tensor) -> None:
        if len(tensor) != len(now[0].indices):
            raise ModelMismatchError(
                f"layer {layers[index].name!r} has {len(tensor)} entries for {len(now[0].indices)} samples, and one "
                "per sample was needed; leave it out of layers"
            )
        seen[index] = observe(index, tensor, now[0])

    with capture(module, [layer.tap for layer in layers], on=on):
        for drawn in shown(samples, network, batch_size=size, device=device, indices=order):
            batch = laid_out(drawn, module)
            now[:] = [batch]
            seen.clear()
            module(*batch.args, **batch.kwargs)
            commit(batch, seen)
            if progress is not None:
                progress(len(batch.indices))


def token_counts(samples: "SampleSet", network: "Network") -> npt.NDArray[np.int64] | None:
    """Return how many tokens each text has for the network, (N,); None where the samples are no texts."""
    from neurolens.data import TextSet

    known = samples.coords.get("tokens")
    if known is not None or not isinstance(samples, TextSet) or network.tokenizer is None:
        return known
    return np.array([len(ids) for ids in samples.tokens(network.tokenizer)], dtype=np.int64)


def has_tokens(layer: Layer, tensor: Tensor, mask: Tensor | None) -> bool:
    """Tell whether a layer has one entry per token of the text.

    Raises
    ------
    ModelMismatchError
        If it has positions, but not those of the text.
    """
    if mask is None or tensor.ndim < 3:
        return False
    if tensor.ndim == 3 and layer.axis == 2 and tensor.shape[1] == mask.shape[1]:
        return True
    raise ModelMismatchError(
        f"layer {layer.name!r} has activations of shape {tuple(tensor.shape)} for texts of {mask.shape[1]} tokens, and "
        f"({len(mask)}, {mask.shape[1]}, units) was needed to tell padding; leave it out of layers"
    )


def require_tokens(mask: Tensor, batch: "Shown", samples: "SampleSet") -> None:
    """Check that each text of a batch has a token.

    Raises
    ------
    DataError
        Naming the first that has none.
    """
    empty = (~mask.any(dim=1)).nonzero()
    if len(empty):
        raise DataError(
            f"text {str(samples.ids[batch.indices[int(empty[0, 0])]])!r} has no token, only padding; remove it, or "
            "choose others with data.select"
        )


def require_finite(
    finite: npt.NDArray[np.bool_], layer: Layer, batch: "Shown", samples: "SampleSet", *, table: str
) -> None:
    """Check what a layer put out, (B, U) or (B,): whether it is finite.

    Raises
    ------
    NonFiniteError
        Naming the layer and the first sample.
    """
    if finite.all():
        return
    place = np.argwhere(~finite)[0]
    unit = f", unit {place[1]}" if len(place) > 1 else ""
    raise NonFiniteError(
        f"layer {layer.name!r}{unit} has an activation of NaN or infinity on sample "
        f"{str(samples.ids[batch.indices[place[0]]])!r}, and finite numbers were needed; leave the checkpoint out, or "
        f"set allow_non_finite = true in [{table}] to keep it as it is"
    )
