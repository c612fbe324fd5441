"""What one checkpoint makes of each sample: loss, margin, input-gradient norm, … one pass, one number per sample.

Eval mode, no augmentation, float32 (bfloat16 only where the study asks for it; GraNd's forward pass is float64), batch
norms folded. A sample's numbers do not depend on the batch it came in, beyond float rounding.
"""

import contextlib
import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from neurolens import schema
from neurolens.errors import ModelMismatchError, SchemaError, nearest
from neurolens.samples.finite import require_finite
from neurolens.samples.folding import folded
from neurolens.samples.grand import GradientNorms
from neurolens.samples.input_curvature import input_curvature, rademacher, row_norms
from neurolens.samples.softmax import full_precision, input_gradient, statistics
from neurolens.study import Preprocessing, Samples

if TYPE_CHECKING:
    from neurolens.data import SampleSet
    from neurolens.models import Network

MEASUREMENT_VERSION = {"forward": 1, "input_gradient": 1, "grand": 2, "curvature": 1}
"""Raised when a part's numbers change; part of its key, so that new code never serves old numbers."""

CPU_BATCH = {"forward": 64, "grand": 16, "curvature": 64}
"""Larger passes than this fall out of a CPU's caches; batches are cut down to it there."""

Columns = dict[str, Tensor]
Step = Callable[[Tensor, Tensor, Sequence[str]], Columns]


def parts(table: Samples) -> tuple[str, ...]:
    """Return the parts of the samples cube that the study asks for."""
    return tuple(p.name for p in schema.SAMPLES.parts if p.option is None or getattr(table, p.option))


def key_config(table: Samples, part: str) -> dict[str, Any]:
    """Return the settings that change a part's numbers, with its version, JSON-able.

    Batch size, device, workers and threads are not among them; nor is ``allow_non_finite``, which decides whether a
    row is kept, not what is in it.

    Raises
    ------
    SchemaError
        If there is no such part.
    """
    if part not in MEASUREMENT_VERSION:
        raise SchemaError(f"the samples cube has no part {part!r}; {nearest(part, MEASUREMENT_VERSION)}")
    config: dict[str, Any] = {"version": MEASUREMENT_VERSION[part], "dtype": "float32"}
    if part in ("forward", "input_gradient") and table.bf16:
        config["dtype"] = "bfloat16"
    if part == "grand":
        config["dtype"] = table.grand_arithmetic
    if part == "curvature":
        config |= {"draws": table.curvature_draws, "h": table.curvature_h, "seed": table.curvature_seed}
    return config


def measure(
    network: "Network",
    samples: "SampleSet",
    *,
    parts: Sequence[str],
    table: Samples,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, npt.NDArray[Any]]:
    """Measure every sample with one checkpoint.

    Parameters
    ----------
    network : models.Network
        The filled module and its preprocessing. The module is copied, never changed.
    samples : data.SampleSet
        N samples.
    parts
        Parts of the samples cube: of ``forward``, ``input_gradient``, ``grand``, ``curvature``.
    table : study.Samples
        Settings of the measurement. With ``bf16`` the forward and input-gradient parts are computed in bfloat16
        (the others do not: a finite difference drowns in bfloat16). ``grand_arithmetic`` is that of
        :class:`neurolens.samples.grand.GradientNorms`.
    batch_size
        Samples a pass; on a CPU it is cut to what suits its caches. Changes no number beyond float rounding.
    device
        Where to compute, as torch names it.
    progress
        Called with (samples done, N) after each batch; parts that take passes of their own count N each.

    Returns
    -------
    values : variable name → (N,)
        The variables of these parts in the schema's dtypes. ``grad_norm`` is in the network's normalised input space;
        ``grad_norm_pixel`` is of pixels in [0, 1] at the network's input size: dL/dpixel = dL/dx / std.

    Raises
    ------
    NonFiniteError
        If a logit, loss or gradient is NaN or infinite, naming the first such sample and the first layer where it
        appears; not with ``table.allow_non_finite``.
    ModelMismatchError
        If the network does not return one row of logits per sample, or mixes samples in eval mode.
    SchemaError
        If a part is unknown.
    """
    from neurolens.data import batches

    for part in parts:
        schema.SAMPLES.part(part)
    device = torch.device(device)
    head = np.arange(min(2, len(samples)))
    module = _prepared(network.module, device)
    columns: dict[str, list[Tensor]] = {}
    with full_precision(), contextlib.ExitStack() as stack:
        probe = next(
            (b.x for b in batches(samples, network.preprocessing, batch_size=2, device=device, indices=head)), None
        )
        passes = {} if probe is None else _passes(module, probe, samples, network.preprocessing, parts, table, stack)
        done, total = 0, len(samples) * len(passes)
        for kernel, step in passes.items():
            size = min(batch_size, CPU_BATCH[kernel]) if device.type == "cpu" else batch_size
            for batch in batches(samples, network.preprocessing, batch_size=size, device=device):
                ids = [str(i) for i in samples.ids[batch.indices]]
                values = step(batch.x, batch.y, ids)
                if not table.allow_non_finite:
                    require_finite(values, module, batch.x, batch.y, ids)
                for name, column in values.items():
                    columns.setdefault(name, []).append(column)
                done += len(ids)
                if progress is not None:
                    progress(done, total)
    variables = [v for p in schema.SAMPLES.parts if p.name in parts for v in p.variables]
    empty = [torch.empty(0)]
    return {v.name: torch.cat(columns.get(v.name, empty)).numpy().astype(v.dtype, copy=False) for v in variables}


def measure_batch(
    module: nn.Module, inputs: Tensor, labels: Tensor, *, std: Sequence[float] | None = None, gradients: bool = True
) -> Columns:
    """Return the forward and, if asked, input-gradient values of one batch: one forward and one backward pass.

    Parameters
    ----------
    module : network in eval mode, its parameters frozen
        Its dtype is the one computed in.
    inputs : (n, …), normalised input
    labels : (n,) int64
    std : per channel
        What the pixels were divided by; absent: 1.
    gradients
        Whether to measure ``grad_norm`` and ``grad_norm_pixel`` too.

    Returns
    -------
    values : variable name → (n,), on the CPU
        As in :func:`neurolens.samples.softmax.statistics`, and the gradient norms in float32.
    """
    inputs = _laid_out(inputs, module)
    if not gradients:
        with torch.no_grad():
            return statistics(module(inputs), labels)
    logits, gradient = input_gradient(module, inputs, labels)
    values = statistics(logits, labels)
    values["grad_norm"] = row_norms(gradient).float()
    spread = torch.as_tensor(std if std is not None else (1.0,), dtype=torch.float64)
    values["grad_norm_pixel"] = row_norms(gradient, divide_by=spread).float()
    return values


def _passes(
    module: nn.Module,
    probe: Tensor,
    samples: "SampleSet",
    preprocessing: Preprocessing,
    parts: Sequence[str],
    table: Samples,
    stack: contextlib.ExitStack,
) -> dict[str, Step]:
    """Return the passes over the samples that these parts need, each a function of one batch."""
    steps: dict[str, Step] = {}
    _check_logits(module, probe, samples)
    fast = folded(module, probe=probe)
    if probe.ndim == 4:
        fast = fast.to(memory_format=torch.channels_last)
    if {"forward", "input_gradient"} & set(parts):
        gradients = "input_gradient" in parts
        cast = copy.deepcopy(fast).to(torch.bfloat16) if table.bf16 else fast

        def forward(x: Tensor, y: Tensor, ids: Sequence[str]) -> Columns:
            return measure_batch(cast, x, y, std=preprocessing.std, gradients=gradients)

        steps["forward"] = forward
    if "grand" in parts:
        # MPS has no float64 to sum squares in
        where = torch.device("cpu") if probe.device.type == "mps" else probe.device
        norms = stack.enter_context(GradientNorms(copy.deepcopy(module).to(where), arithmetic=table.grand_arithmetic))
        steps["grand"] = lambda x, y, ids: {"grand": norms(x.to(where), y.to(where)).float()}
    if "curvature" in parts:

        def bend(x: Tensor, y: Tensor, ids: Sequence[str]) -> Columns:
            signs = rademacher(ids, x.shape[1:], draws=table.curvature_draws, seed=table.curvature_seed)
            return {"curvature": input_curvature(fast, _laid_out(x, fast), y, signs, h=table.curvature_h).float()}

        steps["curvature"] = bend
    return steps


def _check_logits(module: nn.Module, probe: Tensor, samples: "SampleSet") -> None:
    """Raise ModelMismatchError unless the network gives a row of logits per sample, with one for every label."""
    with torch.no_grad():
        logits = module(probe)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(probe):
        found = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelMismatchError(
            f"the network returned {found} for {len(probe)} samples, and ({len(probe)}, classes) logits were needed; "
            "name a factory in [model] whose network returns just those"
        )
    low, high = int(samples.labels.min()), int(samples.labels.max())
    if low < 0 or high >= logits.shape[1]:
        raise ModelMismatchError(
            f"the network has {logits.shape[1]} classes, and the labels go from {low} to {high}; "
            "set classes in [model], or choose other samples"
        )


def _laid_out(inputs: Tensor, module: nn.Module) -> Tensor:
    """Inputs in the module's dtype, images channels-last, the layout that convolutions are fastest in."""
    dtype = next((p.dtype for p in module.parameters()), inputs.dtype)
    if inputs.ndim == 4:
        return inputs.to(dtype=dtype, memory_format=torch.channels_last)
    return inputs.to(dtype=dtype)


def _prepared(module: nn.Module, device: torch.device) -> nn.Module:
    """Return a float32 copy in eval mode on the device.

    Raises
    ------
    ModelMismatchError
        If a batch norm without running statistics would make a sample's numbers depend on its batch.
    """
    for name, layer in module.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is None:
            raise ModelMismatchError(
                f"layer {name!r} ({type(layer).__name__}) has no running statistics, so a sample's loss would depend "
                "on its batch; build the network with track_running_stats=True"
            )
    return copy.deepcopy(module).to(device=device, dtype=torch.float32).eval()
