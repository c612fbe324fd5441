"""How few backward passes give all maps: a basis of cotangents for the masks that are asked for, and the way back.

Where every path from input to output crosses a layer, the gradient through a set of its units is linear in the set's
indicator vector. So maps of linearly dependent sets follow from each other, and the gradient through all units is the
same one at every such layer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import isqrt, lcm
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr

from neurolens.attribution.masks import require_masks
from neurolens.errors import SchemaError, nearest

Array = npt.NDArray[Any]

WHOLE = "whole"
"""Name of the map through all units."""

_PRIME = 2**31 - 1
_AMPLIFICATION = 100
"""A map that would be made of others with factors of more than this in sum gets a pass of its own: rounding."""


class Cost(NamedTuple):
    """What a measurement takes: how often the network ran, and gradients were followed back.

    ``forwards`` of batches of points; ``baseline_forwards`` of baselines, without gradients; ``backwards`` from the
    output to the cuts (and on to the input, where the whole map is in the basis), one per forward;
    ``partial_backwards`` from one of the cuts to the input.
    """

    forwards: int
    baseline_forwards: int
    backwards: int
    partial_backwards: int


@dataclass(frozen=True)
class Plan:
    """The passes that give all maps, and the linear map back.

    Parameters
    ----------
    vectors : cut → (vectors, units) bool
        Sets of units through which a pass goes, from the cut to the input.
    combine : (map, vector) float64
        What each map is made of; coordinates ``map`` (``cut/name``, ``whole``), ``vector``, and ``cut`` of each map.
        Vectors are in the order in which a measurement gives them: ``whole`` if it is there, then cut by cut.
    """

    vectors: Mapping[str, Array]
    combine: xr.DataArray

    @property
    def whole(self) -> bool:
        """Whether the gradient through all units is one of the basis: the backward pass from the output gives it."""
        return WHOLE in self.combine["vector"].to_numpy()

    @property
    def partial(self) -> int:
        """How many passes go from a cut to the input, for each batch."""
        return sum(len(rows) for rows in self.vectors.values())

    def chosen(self, vectors: Sequence[str] | None = None) -> list[str]:
        """Return the names of some vectors, or of all, in the order of the basis.

        Raises
        ------
        SchemaError
            If there is no such vector, or none is named.
        """
        known = [str(name) for name in self.combine["vector"].to_numpy()]
        for name in vectors or ():
            if name not in known:
                raise SchemaError(f"the plan has no vector {name!r}; {nearest(name, known)}")
        names = [name for name in known if vectors is None or name in vectors]
        if not names:
            raise SchemaError(f"no vector is asked for; name at least one of the {len(known)} of the plan")
        return names

    def cost(self, points: int, *, batch_size: int, baselines: int = 0, vectors: Sequence[str] | None = None) -> Cost:
        """Return what so many points (samples, times steps of an integral) take in batches of so many."""
        forwards, partial = -(-points // batch_size), sum(name != WHOLE for name in self.chosen(vectors))
        return Cost(forwards, -(-baselines // batch_size), forwards, forwards * partial)


def plan(requests: Mapping[str, xr.DataArray], *, whole: bool = True) -> Plan:
    """Find the fewest passes that give all requested maps.

    The rank is exact: rows are eliminated modulo a prime, and what seems dependent is verified in rational numbers.
    Vectors are taken from the masks in the order of the request, so that asking for more masks after the same ones
    keeps the vectors that were there. Masks that come twice, or are the rest of another, cost nothing.

    Parameters
    ----------
    requests : cut → (map, unit) bool
        Masks over the units of each cut, with names.
    whole
        Whether the map through all units is asked for too. It is in the basis in any case where a cut's masks add up
        to all units in some way: then it stands for one vector of each such cut.

    Returns
    -------
    Plan

    Raises
    ------
    SchemaError
        If nothing is requested, or masks are not what `neurolens.attribution.unit_masks` makes.
    """
    if not requests and not whole:
        raise SchemaError("no map is asked for; give masks by cut, or whole=True for the map through all units")
    rows = {cut: require_masks(masks) for cut, masks in requests.items()}
    tables = {cut: _columns(list(found.values())) for cut, found in rows.items()}
    shared = whole or any(_spans_whole(table) for table, _ in tables.values())
    maps, cuts, parts = ([WHOLE], [""], [{WHOLE: Fraction(1)}]) if whole else ([], [], [])
    names, vectors = [WHOLE] if shared else [], {}
    for cut, found in rows.items():
        table, column = tables[cut]
        span = _basis(table, shared)
        labels = _labels(cut, span.vectors, found, table, shared)
        names += labels[shared:]
        vectors[cut] = np.array(span.vectors[shared:], dtype=bool).reshape(-1, table.shape[1])[:, column]
        for name, row in zip(found, table, strict=True):
            made = span.express(row)
            assert made is not None
            maps.append(f"{cut}/{name}")
            cuts.append(cut)
            parts.append({label: factor for label, factor in zip(labels, made, strict=True) if factor})
    combine = np.array([[float(part.get(name, 0)) for name in names] for part in parts]).reshape(len(maps), len(names))
    coords = {
        "map": np.array(maps, dtype=object),
        "vector": np.array(names, dtype=object),
        "cut": ("map", np.array(cuts, dtype=object)),
    }
    return Plan(vectors, xr.DataArray(combine, dims=("map", "vector"), coords=coords, name="combine"))


class _Span:
    """Vectors of zeros and ones, and what can be made of them."""

    def __init__(self, columns: int) -> None:
        self.vectors: list[Array] = []
        self._places: dict[bytes, int] = {}
        self._independent: list[int] = []
        self._pivots: list[int] = []
        self._reduced = np.zeros((0, columns), np.int64)  # the independent vectors, in reduced row echelon form mod p
        self._turn = np.zeros((0, 0), np.int64)  # reduced = turn @ independent vectors

    def express(self, row: Array) -> list[Fraction] | None:
        """Return what a row is of each vector; None where it is not made of them, or not of few of them."""
        out = [Fraction(0)] * len(self.vectors)
        if row.tobytes() in self._places:
            out[self._places[row.tobytes()]] = Fraction(1)
            return out
        known, residual = self._eliminated(row)
        if residual.any():
            return None
        factors = [_fraction(int(value)) for value in _product(known, self._turn)]
        if sum(map(abs, factors)) > _AMPLIFICATION:
            return None
        common = lcm(*(factor.denominator for factor in factors))
        whole = np.array([int(factor * common) for factor in factors], dtype=object)
        basis = np.array([self.vectors[at] for at in self._independent], dtype=object).reshape(len(whole), len(row))
        if (whole @ basis.astype(int).astype(object) != common * row.astype(object)).any():
            return None
        for at, factor in zip(self._independent, factors, strict=True):
            out[at] = factor
        return out

    def add(self, row: Array) -> None:
        """Take in a row."""
        self._places[row.tobytes()] = len(self.vectors)
        self.vectors.append(row)
        known, residual = self._eliminated(row)
        if not residual.any():
            return
        pivot = int(np.flatnonzero(residual)[0])
        inverse = pow(int(residual[pivot]), -1, _PRIME)
        new = residual * inverse % _PRIME
        turn = np.append(-_product(known, self._turn) * inverse % _PRIME, inverse)
        wide = np.pad(self._turn, ((0, 0), (0, 1)))
        factors = self._reduced[:, pivot, None]
        self._reduced = np.vstack([(self._reduced - factors * new % _PRIME) % _PRIME, new])
        self._turn = np.vstack([(wide - factors * turn % _PRIME) % _PRIME, turn])
        self._pivots.append(pivot)
        self._independent.append(len(self.vectors) - 1)

    def _eliminated(self, row: Array) -> tuple[Array, Array]:
        known = row[self._pivots].astype(np.int64)
        return known, (row - _product(known, self._reduced)) % _PRIME


def _product(factors: Array, rows: Array) -> Array:
    """Return factors @ rows modulo the prime, without overflow."""
    product: Array = (factors[:, None] * rows % _PRIME).sum(axis=0) % _PRIME
    return product


def _fraction(value: int) -> Fraction:
    """Return the rational of small numerator and denominator that is ``value`` modulo the prime (Wang 1981)."""
    bound = isqrt(_PRIME // 2)
    (r0, t0), (r1, t1) = (_PRIME, 0), (value, 1)
    while r1 > bound:
        (r0, t0), (r1, t1) = (r1, t1), (r0 - r0 // r1 * r1, t0 - r0 // r1 * t1)
    return Fraction(r1, t1)


def _columns(rows: Sequence[Array]) -> tuple[Array, Array]:
    """Return masks over groups of units that no mask tells apart, (map, group) int64, and the group of each unit."""
    distinct, column = np.unique(np.stack(rows), axis=1, return_inverse=True)
    return distinct.astype(np.int64), column.reshape(-1)


def _spans_whole(table: Array) -> bool:
    return _basis(table, False).express(np.ones(table.shape[1], np.int64)) is not None


def _basis(table: Array, whole: bool) -> _Span:
    """Return vectors, all units first where ``whole``, of which all rows are made."""
    columns = table.shape[1]
    groups = np.eye(columns, dtype=np.int64)[table.any(axis=0) | whole]
    for rows in (table, groups):
        span = _Span(columns)
        for row in [*([np.ones(columns, np.int64)] if whole else []), *rows]:
            if row.any() and span.express(row) is None:
                span.add(row)
        if len(span.vectors) <= len(groups):
            break  # else the groups themselves are fewer
    return span


def _labels(cut: str, vectors: Sequence[Array], found: Mapping[str, Array], table: Array, whole: bool) -> list[str]:
    """Name vectors by the first mask that they are, and groups of units by their number."""
    known: dict[bytes, str] = {}
    for name, row in zip(found, table, strict=True):
        known.setdefault(row.tobytes(), f"{cut}/{name}")
    labels = [known.get(vector.tobytes(), f"{cut}/group {np.flatnonzero(vector)[0]}") for vector in vectors]
    return [WHOLE, *labels[1:]] if whole else labels
