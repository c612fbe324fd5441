"""Samples of a block, measured a few at a time: their answers, the maps of all sets, and what is kept of them."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from torch import Tensor, nn

from neurolens import schema
from neurolens.attribution.answered import Answered, answer_values, answered
from neurolens.attribution.captum_methods import PREFIX, captum_map
from neurolens.attribution.cuts import Cuts
from neurolens.attribution.falls import entries, falls
from neurolens.attribution.gradients import basis_gradients
from neurolens.attribution.kept import PIXELS, clustering_values, map_values
from neurolens.attribution.maps import METHODS, attributions
from neurolens.attribution.memory import Room, chunks, naming
from neurolens.attribution.paths import path_starts
from neurolens.attribution.planner import WHOLE, Cost, Plan
from neurolens.attribution.sets import PARTED, UnitSet
from neurolens.study import Attributions, Preprocessing

Array = npt.NDArray[Any]
NOTHING = Cost(0, 0, 0, 0)


def block_arrays(parts: Collection[str], sizes: dict[str, int], *, kept: bool = True) -> tuple[dict[str, Array], int]:
    """Return the variables of these parts with nothing measured, and what they take in bytes.

    Parameters
    ----------
    sizes : dim → entries, of all dims but the series
    kept
        Whether a whole map of the block is kept; if none is, ``full_map`` takes no memory, and cannot be written to.
    """
    out: dict[str, Array] = {}
    for variable in (v for part in parts for v in schema.ATTRIBUTIONS.part(part).variables):
        shape = tuple(sizes[dim] for dim in variable.dims[1:])
        fill = np.array(variable.fill_value, variable.dtype)
        out[variable.name] = (
            np.full(shape, fill) if kept or variable.name != "full_map" else np.broadcast_to(fill, shape)
        )
    return out, sum(array.nbytes for array in out.values() if array.flags.writeable)


@dataclass(frozen=True)
class Measuring:
    """What samples are measured with, and the arrays of the block that numbers are written to.

    ``plan`` is None where no map is asked for.
    """

    module: nn.Module
    preprocessing: Preprocessing
    table: Attributions
    parts: Collection[str]
    sets: Sequence[UnitSet]
    mates: int
    chosen: Collection[str]
    cuts: Cuts | None
    plan: Plan | None
    room: Room
    batch_size: int
    out: dict[str, Array]

    def measure(
        self, x: Tensor, labels: Tensor, rows: Array, ids: Sequence[str], report: Callable[[int], None]
    ) -> Cost:
        """Measure the samples that are ``rows`` of the block; ``report`` is told how many are done."""
        table = self.table
        start = path_starts(x, table.baseline, self.preprocessing)
        found = answered(self.module, x, labels, table, ids=ids, batch_size=self.batch_size)
        if "answers" in self.parts:
            values = answer_values(self.module, found, start, table, ids=ids, batch_size=self.batch_size)
            for name, value in values.items():
                self.out[name][rows] = value
        if self.plan is None:
            report(len(x))
            return NOTHING
        basis, cost = None, NOTHING
        if self._own:
            with naming(ids, table.memory_mib):
                basis = self._basis(x, found.target, start)
            cost = Cost(**{name: basis.attrs[name] for name in Cost._fields})
        size = self.room.slices(len(x))
        for begin in range(0, len(x), size):
            at = slice(begin, begin + size)
            here = None if basis is None else basis.isel(sample=at)
            with naming(ids[at], table.memory_mib):
                self._maps(here, x[at], start if len(start) == 1 else start[at], found, at, rows[at], ids[at], len(x))
            report(len(x[at]))
        return cost

    @property
    def _own(self) -> list[Any]:
        return [method for method in self.table.methods if method in METHODS]

    def _basis(self, x: Tensor, target: Tensor, start: Tensor) -> xr.Dataset:
        assert self.plan is not None
        assert self.cuts is not None
        table = self.table
        return basis_gradients(
            self.module,
            x,
            self.cuts,
            self.plan,
            target=target,
            explain=table.explain,
            steps=table.steps if "integrated_gradients" in self._own else 0,
            rule=table.rule,
            baseline=start,
            batch_size=self.batch_size,
            budget_mib=self.room.free / 2**20,
            cotangents="same" if table.cotangents == "float32" else "bfloat16",
        )

    def _maps(
        self,
        basis: xr.Dataset | None,
        x: Tensor,
        start: Tensor,
        found: Answered,
        at: slice,
        rows: Array,
        ids: Sequence[str],
        together: int,
    ) -> None:
        """Make the maps of some samples, a few sets at a time, and keep what is asked for."""
        writing = _Writing(self, rows, ids, tuple(x.shape[2:]))
        if basis is not None:
            assert self.plan is not None
            parted = {(one.cut, one.clustering) for one in self.sets if one.kind in PARTED}
            whole = attributions(basis, self.plan, methods=self._own, maps=[WHOLE]) if parted else None
            for places in chunks(self.sets, self.room.maps(len(x), together)):
                made = attributions(basis, self.plan, methods=self._own, maps=[_planned(self.sets[i]) for i in places])
                for method in self._own:
                    maps = made[method].reset_coords(drop=True)
                    writing.each(maps, places, method)
                    if whole is not None and "maps" in self.parts:
                        writing.clusterings(maps, whole[method].isel(map=0, drop=True), places, method)
        everything = [place for place, one in enumerate(self.sets) if one.kind == "whole"]
        for method in self.table.methods if everything else ():
            if method.startswith(PREFIX):
                maps = self._captum(method, x, start, found.target[at])
                writing.each(maps, everything, method)
        if {"faithfulness", "curves"} & set(self.parts):
            writing.falls(x, found.scored[at], self.room.showing(len(x), together))

    def _captum(self, method: str, x: Tensor, start: Tensor, target: Tensor) -> xr.DataArray:
        maps = [
            captum_map(
                method,
                self.module,
                x[i : i + 1],
                target[i : i + 1],
                start=start if len(start) == 1 else start[i : i + 1],
                number=i,
                explain=self.table.explain,
                grid=self.table.grid,
                batch_size=self.batch_size,
            )
            for i in range(len(x))
        ]
        return xr.DataArray(np.stack(maps)[:, None], dims=("sample", "map", *PIXELS))


class _Writing:
    """Writes what is kept of the maps of some samples into the arrays of the block."""

    def __init__(self, measuring: Measuring, rows: Array, ids: Sequence[str], sides: tuple[int, ...]) -> None:
        self._of, self._rows, self._methods = measuring, rows, list(measuring.table.methods)
        self._chosen = [row for row, name in enumerate(ids) if name in measuring.chosen]
        lead = (len(rows), len(measuring.sets), len(self._methods))
        grid = measuring.table.grid
        self._scored = {
            "pixel": np.full((*lead, *sides), np.nan, np.float64 if measuring.table.compat is None else np.float32),
            "patch": np.full((*lead, grid, grid), np.nan),
        }

    def each(self, maps: xr.DataArray, places: Sequence[int], method: str) -> None:
        """Take in maps (sample, map, channel, y, x) of the sets at these places."""
        of, number = self._of, self._methods.index(method)
        ranked = entries(maps, of.table)
        for name, array in ranked.items():
            self._scored[name][:, places, number] = array.to_numpy()
        for name, values in map_values(maps, ranked["pixel"], of.table, parts=of.parts).items():
            self._put(name, places, number, values)
        if "full" in of.parts:
            for row in self._chosen:
                of.out["full_map"][self._rows[row], places, number] = maps.isel(sample=row).to_numpy()

    def clusterings(self, maps: xr.DataArray, whole: xr.DataArray, places: Sequence[int], method: str) -> None:
        """Relate the maps of the clusterings among them."""
        groups: dict[tuple[str, str], list[int]] = {}
        for at, place in enumerate(places):
            one = self._of.sets[place]
            if one.kind in PARTED:
                groups.setdefault((one.cut, one.clustering), []).append(at)
        for group in groups.values():
            inside = [places[at] for at in group]
            clusters = [self._of.sets[place].cluster for place in inside]
            values = clustering_values(maps.isel(map=group), whole, clusters, mates=self._of.mates)
            for name, value in values.items():
                self._put(name, inside, self._methods.index(method), value)

    def falls(self, x: Tensor, scored: Tensor, budget_mib: float) -> None:
        """Show the samples without what their maps choose."""
        of = self._of
        dims = {"pixel": ("y", "x"), "patch": ("patch_y", "patch_x")}
        maps = {name: (("sample", "map", "attribution", *dims[name]), array) for name, array in self._scored.items()}
        found = falls(
            of.module,
            x,
            xr.Dataset(maps),
            of.table,
            parts=of.parts,
            scored=scored,
            batch_size=of.batch_size,
            budget_mib=budget_mib,
        )
        for name, values in found.items():
            of.out[name][self._rows] = values

    def _put(self, name: str, places: Sequence[int], number: int, values: Array) -> None:
        self._of.out[name][self._rows[:, None], np.asarray(places), number] = values


def _planned(one: UnitSet) -> str:
    """Return the name that a plan has for the map of a set."""
    return WHOLE if one.kind == "whole" else one.name
