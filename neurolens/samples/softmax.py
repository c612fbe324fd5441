"""The softmax at the end of a classifier: what it says of each sample, and the gradient that starts there.

The loss is the float32 cross-entropy that training code reports, zeros included. Everything else is computed in
float64 from the float32 logits: 1 - p(true) of a confident sample is lost in float32, and all gradients are scaled by
it.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def statistics(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return the forward part of the samples cube, per sample, on the CPU.

    Parameters
    ----------
    logits : (n, classes), any float dtype
    labels : (n,) int64

    Returns
    -------
    values : (n,) each
        ``loss`` (float32 cross-entropy), ``margin`` (label's logit minus the largest other; infinite with one class),
        ``p_true``, ``entropy``, ``el2n`` (float32, from float64), ``correct`` (int8) and ``predicted`` (int32), both
        -1 where a logit is NaN. Of equal top logits the first is the predicted one.

    References
    ----------
    Margin: Pleiss et al. 2020, eq. 1. EL2N: Paul et al. 2021, definition 2.2.
    """
    logits, labels = logits.detach().float().cpu(), labels.detach().cpu()
    exact = logits.double()
    log_p = F.log_softmax(exact, dim=1)
    probability = log_p.exp()
    column = labels[:, None]
    others = exact.scatter(1, column, -torch.inf)
    margin = exact.gather(1, column)[:, 0] - others.amax(dim=1)
    # 0 · log 0 is 0: a logit of -inf has no probability and adds no entropy
    entropy = -torch.where(probability > 0, probability * log_p, probability).sum(dim=1)
    predicted = logits.argmax(dim=1)
    undefined = logits.isnan().any(dim=1)
    return {
        "loss": F.cross_entropy(logits, labels, reduction="none"),
        "margin": margin.float(),
        "p_true": probability.gather(1, column)[:, 0].float(),
        "entropy": entropy.float(),
        "el2n": _minus_one_hot(probability, labels).norm(dim=1).float(),
        "correct": (predicted == labels).to(torch.int8).masked_fill(undefined, -1),
        "predicted": predicted.to(torch.int32).masked_fill(undefined, -1),
    }


def cotangent(logits: Tensor, labels: Tensor) -> Tensor:
    """Return d(cross-entropy)/d(logits) = softmax - one-hot, (n, classes), in the logits' dtype and device.

    It is computed in float64 and rounded once, so that it keeps its relative precision for confident samples.
    """
    exact = logits.detach().cpu() if logits.device.type == "mps" else logits.detach()  # MPS has no float64
    gradient = _minus_one_hot(F.softmax(exact.double(), dim=1), labels.to(exact.device))
    return gradient.to(dtype=logits.dtype).to(logits.device)


def _minus_one_hot(probability: Tensor, labels: Tensor) -> Tensor:
    """Softmax minus one-hot; at the label it is minus the sum of the others, which cannot cancel."""
    others = probability.scatter(1, labels[:, None], 0.0)
    return others.scatter(1, labels[:, None], -others.sum(dim=1, keepdim=True))


def input_gradient(module: nn.Module, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits and d(sum of the losses)/d(inputs), whose rows are the per-sample gradients.

    One forward and one backward pass. ``module`` must be in eval mode, where no sample sees another.
    """
    leaf = inputs.detach().requires_grad_()
    logits = module(leaf)
    (gradient,) = torch.autograd.grad(logits, leaf, cotangent(logits, labels))
    return logits.detach(), gradient


class _Precision:
    """How many passes are inside :func:`full_precision`, and the settings to go back to after the last."""

    lock = threading.Lock()
    depth = 0
    before: tuple[str, bool, bool, bool] = ("highest", True, False, False)


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute float32 as float32: no TF32, no benchmarked or non-deterministic convolutions, while any pass is inside.

    The settings are the process's, so worker threads share them: the first one in sets them, the last one out restores.
    """
    cudnn = torch.backends.cudnn
    with _Precision.lock:
        if _Precision.depth == 0:
            _Precision.before = (
                torch.get_float32_matmul_precision(),
                cudnn.allow_tf32,
                cudnn.benchmark,
                cudnn.deterministic,
            )
            _set_precision("highest", False, False, True)
        _Precision.depth += 1
    try:
        yield
    finally:
        with _Precision.lock:
            _Precision.depth -= 1
            if _Precision.depth == 0:
                _set_precision(*_Precision.before)


def _set_precision(matmul: str, tf32: bool, benchmark: bool, deterministic: bool) -> None:
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = benchmark
    torch.backends.cudnn.deterministic = deterministic
