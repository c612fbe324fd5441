"""The sets of units that are measured: each cluster of each layer, what is left without it, unions, random controls."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from neurolens.attribution.masks import cluster_masks, complements, controls, unit_masks
from neurolens.attribution.planner import WHOLE
from neurolens.errors import SchemaError, nearest
from neurolens.study import Attributions

Array = npt.NDArray[Any]
Kind = Literal["whole", "only", "without", "union", "control"]

PARTED = ("only",)
"""Kinds that are the parts of a clustering: they add up to the whole."""


@dataclass(frozen=True)
class UnitSet:
    """A set of units of one cut, by the name of its map.

    ``units`` (units of the cut,) bool are those that the gradient goes through; of the whole there are none to name.
    ``basis`` is what the set was made from (the labels of its clustering): sets of one name and one ``digest`` have
    the same numbers, those of their mates included.
    """

    name: str
    cut: str = ""
    clustering: str = ""
    cluster: int = -1
    kind: Kind = "whole"
    of: str = ""
    draw: int = -1
    units: Array = field(default_factory=lambda: np.zeros(0, dtype=np.bool_), compare=False)
    basis: bytes = field(default=b"", repr=False)

    @cached_property
    def digest(self) -> str:
        """Return 12 hex digits of the sha256 over all that decides the numbers."""
        told = "\0".join((self.name, self.cut, self.clustering, str(self.cluster), self.kind, self.of)).encode()
        packed = np.packbits(self.units).tobytes()
        return hashlib.sha256(b"\0\0".join((told, packed, self.basis))).hexdigest()[:12]


def unit_sets(
    labels: Mapping[str, Mapping[str, npt.ArrayLike]], table: Attributions | None = None
) -> tuple[UnitSet, ...]:
    """Return the sets that a study asks for, the whole first, then cut by cut.

    Parameters
    ----------
    labels : cut → clustering (``k3``, say) → (units,) whole numbers
        The cluster of each unit, from 0.
    table
        The study's [attributions]: which kinds, unions and controls; defaults without it.

    Returns
    -------
    sets
        Named ``cut/k3/0`` (only), ``cut/without k3/0``, ``cut/…`` as unions are called, and ``… control 0`` for
        controls of any of them. The random sets of one size and one layer are the same, whatever they control.

    Raises
    ------
    SchemaError
        If a union names no cluster there is (near names are given), or clusters of several layers, or has the name of
        one; if a pattern of ``controlled`` or a layer of ``strata`` meets nothing, or strata do not fit the layer.
    """
    table = Attributions() if table is None else table
    found: dict[str, UnitSet] = {WHOLE: UnitSet(WHOLE)}
    parts: dict[str, UnitSet] = {}
    taken: set[str] = set()
    for cut, clusterings in labels.items():
        for clustering, given in clusterings.items():
            basis = np.ascontiguousarray(given, dtype=np.int64).tobytes()
            only = cluster_masks(np.asarray(given), name=clustering)
            for number, (kept, left) in enumerate(zip(only, complements(only), strict=True)):
                cluster = int(np.unique(np.asarray(given))[number])
                for kind, row in (("only", kept), ("without", left)):
                    name = f"{cut}/{row['map'].item()}"
                    one = UnitSet(name, cut, clustering, cluster, kind, units=row.to_numpy(), basis=basis)  # type: ignore[arg-type]
                    taken.add(name)
                    parts |= {name: one} if kind == "only" else {}
                    found |= {name: one} if kind in table.sets else {}
    for name, members in table.unions.items():
        one = _union(name, members, parts)
        if one.name in taken:
            raise SchemaError(
                f"union {name!r} would be called {one.name!r}, as a cluster or what is left without it "
                "is; give it another name"
            )
        found[one.name] = one
    for one in _controls(found, table):
        found[one.name] = one
    return tuple(found.values())


def _union(name: str, members: Sequence[str], parts: Mapping[str, UnitSet]) -> UnitSet:
    if not members:
        raise SchemaError(f"union {name!r} is of no clusters; name at least one, e.g. {next(iter(parts), 'cut/k3/0')}")
    for member in members:
        if member not in parts:
            raise SchemaError(f"union {name!r}: there is no cluster {member!r}; {nearest(member, parts)}")
    cuts = {parts[member].cut for member in members}
    if len(cuts) > 1:
        raise SchemaError(
            f"union {name!r} is of clusters of {sorted(cuts)}, and a set has the units of one layer; make one for each"
        )
    cut = cuts.pop()
    units = np.any([parts[member].units for member in members], axis=0)
    return UnitSet(f"{cut}/{name}", cut, kind="union", units=units)


def _controls(found: Mapping[str, UnitSet], table: Attributions) -> Iterable[UnitSet]:
    names = [name for name in found if name != WHOLE]
    for pattern in table.controlled:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise SchemaError(f"controlled names {pattern!r}, and there is no such set; {nearest(pattern, names)}")
    known = {one.cut: len(one.units) for one in found.values() if one.cut}
    for cut, starts in table.strata.items():
        if cut not in known:
            raise SchemaError(f"strata are given of {cut!r}, which has no clusters; {nearest(cut, known)}")
        if list(starts) != sorted(set(starts)) or starts[-1:] >= (known[cut],):
            raise SchemaError(
                f"strata of {cut!r} begin at {list(starts)}, and its units are 0 to {known[cut] - 1}; give rising "
                "numbers of units"
            )
    if not table.controls:
        return
    for name in names:
        if not any(fnmatchcase(name, pattern) for pattern in table.controlled):
            continue
        one = found[name]
        strata = None
        if table.strata.get(one.cut):
            strata = np.searchsorted(table.strata[one.cut], np.arange(len(one.units)), side="right")
        # the reference draws the units that it filters away, of which a set without a cluster is the rest
        flipped = table.control_compat is not None and one.kind == "without"
        drawn = controls(
            unit_masks({name: one.units ^ flipped}),
            draws=table.controls,
            seed=table.control_seed,
            strata=strata,
            compat=table.control_compat,
        )
        for draw, row in enumerate(drawn):
            yield UnitSet(
                f"{name} control {draw}",
                one.cut,
                one.clustering,
                one.cluster,
                "control",
                of=name,
                draw=draw,
                units=row.to_numpy() ^ flipped,
            )
