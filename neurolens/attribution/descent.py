"""All gradients through sets of units in one walk down the graph of a forward pass.

A gradient that comes from a cut above is, at a cut below, one more of those that start there. So they go down together,
more of them the lower it gets, and each operation is followed back once for all.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from neurolens.attribution.jacobians import Constants, Rows, Step, add, back, empty, is_fixed, scale_of, signed

_DEPTH = 40
"""How many convolutions and matrix products next to the points are followed in another type, at most. What they round
adds up with depth, and in most networks those further up are the cheap ones."""


@dataclass(frozen=True)
class Piece:
    """Some gradients of a batch of points, before what is linear and the same for all points.

    Parameters
    ----------
    vectors
        Which ones, by number.
    values : (vector, P, …)
    factor : (P, …), optional
        Still to be multiplied with.
    stem
        Operations from here to the points: applied after points are summed up.
    rest
        Places of vectors through whose rest these gradients go: they are taken from the whole.
    whole
        Gradient through all units, for those.
    """

    vectors: Sequence[int]
    values: Tensor
    factor: Tensor | None = None
    stem: Sequence[Step] = ()
    rest: list[int] = field(default_factory=list)
    whole: Tensor | None = None

    def summed(self, begin: int, end: int, weights: Tensor) -> Tensor:
        """Return the weighted sum over some of the points, with respect to the sample, (vector, …)."""
        out = torch.zeros_like(self.values[:, begin], dtype=weights.dtype)
        for point, weight in zip(range(begin, end), weights, strict=True):
            values = self.values[:, point].to(weights.dtype)
            out.addcmul_(values, weight if self.factor is None else weight * self._factor(point))
        out = self._finished(out)
        if self.whole is not None:
            out[self.rest] = torch.tensordot(weights, self.whole[begin:end].to(out.dtype), dims=1) - out[self.rest]
        return out

    def at(self, point: int) -> Tensor:
        """Return the gradients at one point, (vector, …)."""
        values = self.values[:, point]
        out = self._finished(values if self.factor is None else values * self._factor(point))
        if self.whole is not None:
            out = out.to(self.whole.dtype, copy=True)
            out[self.rest] = self.whole[point] - out[self.rest]
        return out

    def _factor(self, point: int) -> Tensor:
        assert self.factor is not None
        return self.factor[point if len(self.factor) > 1 else 0]

    def _finished(self, values: Tensor) -> Tensor:
        if not self.stem:
            return values
        dtype = self.stem[-1].node._input_metadata[0].dtype
        rows, constants = Rows(values.to(dtype)[None], owned=False), Constants(dtype)
        for step in self.stem:
            (found,) = (one for one in back(step, [rows], constants) if one is not None)
            rows = found
        return rows.plain()[0]


class Descent:
    """The graph from cuts to the points.

    Parameters
    ----------
    points : (P, …)
        The leaf.
    cuts
        Where gradients start; None of those that nothing comes from.
    tops
        Gradients with respect to what the cuts put out; None where there is none.
    constants
        In the type in which gradients are followed near the points, and that of the points.
    """

    def __init__(
        self,
        points: Tensor,
        cuts: Sequence[GradientEdge],
        tops: Sequence[Tensor | None],
        constants: tuple[Constants, Constants],
    ) -> None:
        edges = {cut: edge for cut, edge in enumerate(cuts) if tops[cut] is not None}
        places, self._steps = _ordered([edge.node for edge in edges.values()], get_gradient_edge(points).node)
        self._points, self._tops, (self._near, self._far) = points, tops, constants
        self._place = {cut: places[edge.node] for cut, edge in edges.items()}
        self._cuts: dict[int, list[tuple[int, int]]] = {}
        for cut, edge in edges.items():
            self._cuts.setdefault(places[edge.node], []).append((cut, edge.output_nr))
        self._turn = 0 if self._near.dtype == points.dtype else self._turning()
        if self._near.dtype != points.dtype:
            self._merge()
        self._stem = self._linear()

    def through(self, vectors: Sequence[tuple[int, Tensor]], rows: int) -> Iterator[Piece]:
        """Follow gradients from cuts to the points, through some of their units: at most so many at once.

        Parameters
        ----------
        vectors
            Number of the cut, and units broadcast against what it puts out.
        rows
        """
        for n, (cut, _) in enumerate(vectors):
            if cut not in self._place:
                yield Piece([n], torch.zeros_like(self._points)[None])
        order = [n for n, (cut, _) in enumerate(vectors) if cut in self._place]
        order.sort(key=lambda n: self._place[vectors[n][0]])
        for begin in range(0, len(order), rows):
            started: list[int] = []
            found = self._walk({n: vectors[n] for n in order[begin : begin + rows]}, started)
            yield Piece(started, found.values, found.factor, self._stem)

    def _walk(self, vectors: Mapping[int, tuple[int, Tensor]], started: list[int]) -> Rows:
        """Follow some gradients down to what is before the stem; say in which order they started."""
        held: dict[tuple[int, int], Rows] = {}
        for at, step in enumerate(self._steps):
            constants = self._far if at < self._turn else self._near
            given = [held.pop((at, output), None) for output in range(len(step.shapes))]
            if at == self._turn:
                given = [rows and Rows(rows.plain().to(constants.dtype)) for rows in given]
            for cut, output in self._cuts.get(at, ()):
                mine = {n: units for n, (where, units) in vectors.items() if where == cut}
                if mine:
                    given[output] = self._started(cut, mine, given[output], len(started), constants)
                    started += mine
            if at == len(self._steps) - 1 - len(self._stem):
                (found,) = given
                assert found is not None
                return found
            if not any(given) or (step.name == "CatBackward0" and self._split(step, given[0], held)):
                continue
            for edge, rows in zip(step.edges, back(step, given, constants), strict=True):
                if edge is not None and rows is not None:
                    _take(held, edge[:2], rows)
        raise AssertionError

    def _started(
        self, cut: int, units: Mapping[int, Tensor], held: Rows | None, first: int, constants: Constants
    ) -> Rows:
        """Return the gradients that arrive at a cut, and after them those that start there."""
        top = self._tops[cut]
        assert top is not None
        out = empty(first + len(units), top, constants.dtype)
        above = 0 if held is None else len(held.values)
        if held is not None:
            out[:above] = held.plain()
        out[above:first] = 0
        for row, own in enumerate(units.values(), first):
            torch.mul(top, own, out=out[row])
        return Rows(out)

    def _split(self, step: Step, rows: Rows | None, held: dict[tuple[int, int], Rows]) -> bool:
        """Give each part its gradients; neighbours whose gradients lie side by side are added at once."""
        assert rows is not None
        axis = signed(step.node._saved_dim) % len(step.shapes[0])
        rest = [edge for edge in step.edges if edge is not None]
        if sum(edge[2][axis] for edge in rest) != step.shapes[0][axis]:
            return False
        start = 0
        if not any(edge[:2] in held for edge in rest):
            rows = Rows(rows.mine())
        while rest:
            run = [rest.pop(0)]
            out = held.get(run[0][:2])
            if out is not None and out.owned and out.factor is None and len(out.values) == len(rows.values):
                values = out.values
                while rest and (wider := _joined(values, held.get(rest[0][:2]), axis + 1)) is not None:
                    values = wider
                    run.append(rest.pop(0))
            size = sum(edge[2][axis] for edge in run)
            part = _narrowed(rows, axis, start, size)
            start += size
            if len(run) > 1:
                add(values, part)
            else:
                _take(held, run[0][:2], part)
        return True

    def _uses(self) -> list[int]:
        uses = [0] * len(self._steps)
        for step in self._steps:
            for edge in step.edges:
                if edge is not None:
                    uses[edge[0]] += 1
        return uses

    def _turning(self) -> int:
        """Return the first step that all gradients pass and that has few enough operations with weights behind it."""
        weighted = [step.name in ("ConvolutionBackward0", "AddmmBackward0") for step in self._steps]
        furthest, behind = 0, sum(weighted)
        for at, step in enumerate(self._steps):
            if furthest <= at and behind <= _DEPTH:
                return at
            behind -= weighted[at]
            furthest = max([furthest, *(edge[0] for edge in step.edges if edge is not None)])
        return len(self._steps)

    def _merge(self) -> None:
        """Let convolutions of ReLUs of norms apply the norm's scale with their weights: they round once, not twice."""
        uses = self._uses()

        def below(step: Step, name: str) -> int | None:
            edge = step.edges[0]
            alone = edge is not None and step.only() and uses[edge[0]] == 1 and edge[0] not in self._cuts
            return edge[0] if edge is not None and alone and self._steps[edge[0]].name == name else None

        for at, step in enumerate(self._steps):
            if (
                at < self._turn
                or step.name != "ConvolutionBackward0"
                or step.node._saved_groups != 1
                or step.node._saved_transposed
            ):
                continue
            relu = below(step, "ReluBackward0")
            norm = None if relu is None else below(self._steps[relu], "NativeBatchNormBackward0")
            if norm is not None and is_fixed(self._steps[norm]):
                self._steps[at] = replace(step, scale=scale_of(self._steps[norm]))
                self._steps[norm] = replace(self._steps[norm], done=True)

    def _linear(self) -> list[Step]:
        """Return the operations on the points that are linear and the same for all of them, the last one first."""
        uses = self._uses()
        stem: list[Step] = []
        at = len(self._steps) - 1
        while at not in self._cuts and uses[at] == 1 and is_fixed(self._steps[at - 1]):
            at -= 1  # what takes it alone is the step before: all lead here
            stem.insert(0, self._steps[at])
        return stem


def _take(held: dict[tuple[int, int], Rows], place: tuple[int, int], rows: Rows) -> None:
    held[place] = rows if place not in held else held[place].plus(rows)


def _narrowed(rows: Rows, axis: int, start: int, size: int) -> Rows:
    factor = rows.factor
    if factor is not None and factor.shape[axis] > 1:
        factor = factor.narrow(axis, start, size)
    return Rows(rows.values.narrow(axis + 1, start, size), factor, rows.owned)


def _joined(values: Tensor, right: Rows | None, axis: int) -> Tensor | None:
    """Return two tensors as one where they lie side by side in memory."""
    if right is None or not right.owned or right.factor is not None:
        return None
    other = right.values
    if (
        other.untyped_storage().data_ptr() != values.untyped_storage().data_ptr()
        or other.stride() != values.stride()
        or other.storage_offset() != values.storage_offset() + values.shape[axis] * values.stride(axis)
        or len(other) != len(values)
    ):
        return None
    shape = list(values.shape)
    shape[axis] += other.shape[axis]
    return values.as_strided(shape, values.stride(), values.storage_offset())


def _ordered(roots: Sequence[Any], leaf: Any) -> tuple[dict[Any, int], list[Step]]:
    """Return the nodes from roots to leaf, each before those whose outputs it takes."""
    leads: dict[Any, bool] = {leaf: True}
    done: list[Any] = [leaf]
    waiting: list[Any] = list(roots)
    while waiting:
        node = waiting[-1]
        if node in leads:
            waiting.pop()
            continue
        below = [other for other, _ in node.next_functions if other is not None]
        if missing := [other for other in below if other not in leads]:
            waiting += missing
            continue
        waiting.pop()
        leads[node] = any(leads[other] for other in below)
        if leads[node]:
            done.append(node)
    places = {node: at for at, node in enumerate(reversed(done))}
    steps = []
    for node in reversed(done):
        edges = tuple(
            (places[other], output, tuple(other._input_metadata[output].shape)) if other in places else None
            for other, output in node.next_functions
        )
        shapes = tuple(tuple(meta.shape) for meta in node._input_metadata)
        steps.append(Step(node, shapes, edges))
    return places, steps
