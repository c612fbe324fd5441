"""How several gradients of one tensor are followed back together through one operation of a network.

Each rule is the transposed Jacobian of an operation, applied to a stack of gradients at once: what does not depend on
the gradient (weights, which ReLUs are open) is read once for all. Operations without a rule go through their own node
of the graph, gradient by gradient.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge


@dataclass
class Rows:
    """Gradients with respect to one tensor (N, …).

    Parameters
    ----------
    values : (row, N, …)
    factor : broadcasts to (N, …), optional
        Still to be multiplied with, the same for all rows.
    owned
        Whether nobody else reads ``values``: they may be written to.
    """

    values: Tensor
    factor: Tensor | None = None
    owned: bool = True

    def plain(self) -> Tensor:
        """Return the gradients with the factor; ``values`` are overwritten if they may be."""
        if self.factor is None:
            return self.values
        return self.values.mul_(self.factor) if self.owned else self.values * self.factor

    def mine(self) -> Tensor:
        """Return them as a tensor that may be written to."""
        plain = self.plain()
        return plain if self.owned or self.factor is not None else plain.clone()

    def times(self, factor: Tensor) -> "Rows":
        """Return them multiplied."""
        return Rows(self.values, factor if self.factor is None else self.factor * factor, self.owned)

    def plus(self, other: "Rows") -> "Rows":
        """Return the sum; of other numbers of rows, the first ones are added up."""
        one, two = (self, other) if len(self.values) >= len(other.values) else (other, self)
        out = one.mine()
        add(out[: len(two.values)], two)
        return Rows(out)


def add(out: Tensor, rows: Rows) -> None:
    """Add in place."""
    if rows.factor is None:
        out += rows.values
    else:
        out.addcmul_(rows.values, rows.factor)


@dataclass(frozen=True)
class Step:
    """A node of the graph: an operation that is followed back.

    Parameters
    ----------
    node
        Of autograd.
    shapes
        Of each tensor that the operation puts out.
    edges
        Of each tensor that it takes: the step that made it, by number, which of its outputs it is, and its shape; None
        where nothing leads to the points.
    scale : (unit,), optional
        Of a norm below, which a convolution applies with its weights.
    done
        Whether this is such a norm.
    """

    node: Any
    shapes: tuple[tuple[int, ...], ...]
    edges: tuple[tuple[int, int, tuple[int, ...]] | None, ...]
    scale: Tensor | None = None
    done: bool = False

    @property
    def name(self) -> str:
        """Of the kind of node."""
        return type(self.node).__name__

    def only(self) -> bool:
        """Whether gradients go to the first tensor alone."""
        return self.edges[0] is not None and not any(self.edges[1:])


class Constants:
    """Weights in the type and layout in which gradients are followed."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._held: dict[Any, tuple[Tensor, Tensor]] = {}

    def __call__(self, weight: Tensor, last: bool = False, scale: Tensor | None = None) -> Tensor:
        """Return a weight, its inputs scaled; with channels last where it says so, even if it is of one pixel."""
        key = weight.data_ptr(), weight.shape, weight.stride(), last
        if key not in self._held:
            out = weight.detach() if scale is None else weight.detach() * scale.view(-1, *[1] * (weight.ndim - 2))
            out = out.to(self.dtype)
            if last and out.shape[2:].numel() == 1 and out.is_contiguous():
                units = out.shape[1]  # the strides of one pixel are free, and kernels go by them
                out = out.as_strided(out.shape, (units, 1, units, units))
            elif last:
                out = out.contiguous(memory_format=torch.channels_last)
            self._held[key] = weight, out
        return self._held[key][1]


Rule = Callable[[Step, Rows, Constants], Sequence[Rows | None] | None]
"""From the gradients of what an operation puts out to those of what it takes; None where the rule does not apply."""


def back(step: Step, given: Sequence[Rows | None], constants: Constants) -> Sequence[Rows | None]:
    """Follow gradients of what an operation puts out, one entry for each, to those of what it takes."""
    rule = RULES.get(step.name)
    if rule is not None and given[0] is not None and not any(given[1:]):
        found = rule(step, given[0], constants)
        if found is not None:
            return found
    return _one_by_one(step, given)


def is_fixed(step: Step) -> bool:
    """Whether it is a linear operation with weights that are the same for all points, on one tensor."""
    if step.name == "NativeBatchNormBackward0":
        return step.only() and not step.node._saved_training
    if step.name == "AddmmBackward0":
        return _is_affine(step)
    return step.name == "ConvolutionBackward0" and step.only()


def _one_by_one(step: Step, given: Sequence[Rows | None]) -> Sequence[Rows | None]:
    """As autograd does it: one gradient after the other, through the node itself."""
    plain = [None if rows is None else rows.plain() for rows in given]
    some = max((values for values in plain if values is not None), key=len)
    types = [meta.dtype for meta in step.node._input_metadata]
    through = _by_engine if isinstance(step.node, torch.autograd.function.BackwardCFunction) else _by_call
    out: list[list[Tensor]] = [[] for _ in step.edges]
    for row in range(len(some)):
        grads = [
            None if values is None or row >= len(values) else values[row].to(dtype)
            for values, dtype in zip(plain, types, strict=True)
        ]
        for at, (edge, gradient) in enumerate(zip(step.edges, through(step, grads), strict=True)):
            if edge is not None:
                gradient = some.new_zeros(edge[2]) if gradient is None else gradient
                out[at].append(gradient.sum_to_size(edge[2]).to(some.dtype))
    return [_stacked(gradients) if gradients else None for gradients in out]


def _by_call(step: Step, grads: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    found = step.node(*grads)
    found = found if isinstance(found, tuple | list) else (found,)
    return [*found, *[None] * (len(step.edges) - len(found))]


def _by_engine(step: Step, grads: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """Follow a gradient through a function written in Python, whose node does not say which inputs are tensors."""
    places = [GradientEdge(*edge) for edge in step.node.next_functions]
    first = {edge[:2]: at for at, edge in reversed(list(enumerate(step.edges))) if edge is not None}
    starts = [GradientEdge(step.node, at) for at, gradient in enumerate(grads) if gradient is not None]
    found = torch.autograd.grad(
        starts,
        [places[at] for at in first.values()],
        grad_outputs=[gradient for gradient in grads if gradient is not None],
        retain_graph=True,
        allow_unused=True,
    )
    known = dict(zip(first.values(), found, strict=True))
    return [known.get(at) for at in range(len(step.edges))]


def _stacked(gradients: Sequence[Tensor]) -> Rows:
    if len(gradients) == 1 or gradients[0].ndim < 1:
        return Rows(torch.stack(list(gradients)))
    out = empty(len(gradients), gradients[0], gradients[0].dtype)
    return Rows(torch.stack(list(gradients), out=out))


def empty(count: int, like: Tensor, dtype: torch.dtype) -> Tensor:
    """Return room for so many gradients with respect to a tensor (N, …), in its layout."""
    shape = (count * like.shape[0], *like.shape[1:])
    out = torch.empty(shape, dtype=dtype, device=like.device, memory_format=_layout(like))
    return out.view(count, *like.shape)


def _layout(tensor: Tensor) -> torch.memory_format:
    last = tensor.ndim == 4 and min(tensor.shape[1], tensor.shape[2:].numel()) > 1 and tensor.stride(1) == 1
    return torch.channels_last if last else torch.contiguous_format


def _convolution(step: Step, rows: Rows, constants: Constants) -> Sequence[Rows | None] | None:
    if not step.only():
        return None
    node, plain = step.node, rows.plain()
    count, flat = len(plain), plain.flatten(0, 1)
    layout = _layout(flat)
    flat = flat.contiguous(memory_format=layout)
    weight = constants(node._saved_weight, layout == torch.channels_last, step.scale)
    assert step.edges[0] is not None
    taken = weight.new_empty(1).expand(len(flat), *step.edges[0][2][1:])  # of which the shape is read only
    found = torch.ops.aten.convolution_backward(
        flat,
        taken,
        weight,
        None,
        node._saved_stride,
        node._saved_padding,
        node._saved_dilation,
        node._saved_transposed,
        node._saved_output_padding,
        node._saved_groups,
        [True, False, False],
    )[0]
    return [Rows(found.unflatten(0, (count, -1))), *[None] * (len(step.edges) - 1)]


def _norm(step: Step, rows: Rows, constants: Constants) -> Sequence[Rows | None] | None:
    node = step.node
    if not step.only() or node._saved_training:
        return None
    if not step.done:
        shape = (1, -1, *[1] * (len(step.shapes[0]) - 2))
        rows = rows.times(scale_of(step).to(constants.dtype).view(shape))
    return [rows, *[None] * (len(step.edges) - 1)]


def scale_of(norm: Step) -> Tensor:
    """Return what a norm in eval mode multiplies each unit by, (unit,)."""
    node = norm.node
    scale = torch.rsqrt(node._saved_running_var + node._saved_eps)
    return scale if node._saved_weight is None else scale * node._saved_weight


def _relu(step: Step, rows: Rows, constants: Constants) -> Sequence[Rows | None] | None:
    return [rows.times(torch.sign(step.node._saved_result).to(constants.dtype))]


def _elementwise(step: Step, rows: Rows, constants: Constants) -> Sequence[Rows | None] | None:
    """Its derivative is what its node makes of ones."""
    ones = torch.ones(step.shapes[0], dtype=step.node._input_metadata[0].dtype, device=rows.values.device)
    return [rows.times(step.node(ones).to(constants.dtype))]


def _product(step: Step, rows: Rows, constants: Constants) -> Sequence[Rows | None] | None:
    if not step.only() or step.edges[0] is None or step.edges[0][2] != step.shapes[0]:
        return None
    other = torch.as_tensor(step.node._saved_other).to(rows.values)
    missing = len(step.shapes[0]) - other.ndim
    return [rows.times(other.view(*[1] * missing, *other.shape)), None]


def _sum(step: Step, rows: Rows, constants: Constants) -> Sequence[Rows | None] | None:
    edges = [edge for edge in step.edges if edge is not None]
    if step.node._saved_alpha != 1 or any(edge[2] != step.shapes[0] for edge in edges):
        return None
    one = Rows(rows.values, rows.factor, rows.owned and len(edges) == 1)
    return [None if edge is None else one for edge in step.edges]


def _same(step: Step, rows: Rows, constants: Constants) -> Sequence[Rows | None] | None:
    return [rows]


def _reshaped(step: Step, rows: Rows, constants: Constants) -> Sequence[Rows | None] | None:
    plain = rows.plain()
    assert step.edges[0] is not None
    return [Rows(plain.reshape(len(plain), *step.edges[0][2]), owned=rows.owned)]


def _permuted(step: Step, rows: Rows, constants: Constants) -> Sequence[Rows | None] | None:
    ndim = len(step.shapes[0])
    dims = [signed(dim) % ndim for dim in step.node._saved_dims]
    return [Rows(rows.plain().permute(0, *(1 + dims.index(dim) for dim in range(ndim))), owned=rows.owned)]


def _transposed(step: Step, rows: Rows, constants: Constants) -> Sequence[Rows | None] | None:
    ndim, node = len(step.shapes[0]), step.node
    dims = (1 + signed(dim) % ndim for dim in (node._saved_dim0, node._saved_dim1))
    return [Rows(rows.plain().transpose(*dims), owned=rows.owned)]


def _is_affine(step: Step) -> bool:
    _, left, right = step.edges
    return left is not None and right is None and step.edges[0] is None and step.node._saved_alpha == 1


def _affine(step: Step, rows: Rows, constants: Constants) -> Sequence[Rows | None] | None:
    if not _is_affine(step):
        return None
    return [None, Rows(rows.plain() @ constants(step.node._saved_mat2).t()), None]


def _averaged(step: Step, rows: Rows, constants: Constants) -> Sequence[Rows | None] | None:
    node, plain = step.node, rows.plain()
    flat = plain.flatten(0, 1)
    found = torch.ops.aten.avg_pool2d_backward(
        flat,
        _taken(step, flat),
        node._saved_kernel_size,
        node._saved_stride,
        node._saved_padding,
        node._saved_ceil_mode,
        node._saved_count_include_pad,
        node._saved_divisor_override,
    )
    return [Rows(found.unflatten(0, (len(plain), -1)))]


def _highest(step: Step, rows: Rows, constants: Constants) -> Sequence[Rows | None] | None:
    node, plain = step.node, rows.plain()
    flat, places = plain.flatten(0, 1), node._saved_result1
    found = torch.ops.aten.max_pool2d_with_indices_backward(
        flat,
        _taken(step, flat),
        node._saved_kernel_size,
        node._saved_stride,
        node._saved_padding,
        node._saved_dilation,
        node._saved_ceil_mode,
        empty(len(plain), places, places.dtype).copy_(places).flatten(0, 1),
    )
    return [Rows(found.unflatten(0, (len(plain), -1)))]


def _taken(step: Step, flat: Tensor) -> Tensor:
    """Stand for what a pool took: its shape and layout are read only."""
    assert step.edges[0] is not None
    shape = (len(flat), *step.edges[0][2][1:])
    return torch.empty(shape, dtype=flat.dtype, device=flat.device, memory_format=_layout(flat))


def signed(dim: int) -> int:
    """Return a dim that autograd keeps as an unsigned number."""
    return dim - 2**64 if dim >= 2**63 else dim


_ELEMENTWISE = (
    *("Elu", "Gelu", "Hardsigmoid", "Hardswish", "Hardtanh", "LeakyRelu", "Mish", "Sigmoid", "Silu"),
    *("Softplus", "Tanh", "Neg"),
)

RULES: dict[str, Rule] = {
    "AddBackward0": _sum,
    "AddmmBackward0": _affine,
    "AliasBackward0": _same,
    "AvgPool2DBackward0": _averaged,
    "CloneBackward0": _same,
    "ConvolutionBackward0": _convolution,
    "MaxPool2DWithIndicesBackward0": _highest,
    "MulBackward0": _product,
    "NativeBatchNormBackward0": _norm,
    "PermuteBackward0": _permuted,
    "ReluBackward0": _relu,
    "ReshapeAliasBackward0": _reshaped,
    "TransposeBackward0": _transposed,
    "UnsafeViewBackward0": _reshaped,
    "ViewBackward0": _reshaped,
    **{f"{name}Backward0": _elementwise for name in _ELEMENTWISE},
}
