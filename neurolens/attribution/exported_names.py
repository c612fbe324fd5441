"""What the reference calls the sets whose maps it keeps: folders of filtered clusters and of random controls."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from neurolens.attribution.sets import UnitSet
from neurolens.errors import MissingMeasurementError, SchemaError, nearest

METHODS = {"ig": "integrated_gradients", "saliency": "saliency"}
"""The reference's methods, and ours."""

BASELINE = "baseline"
_DENSE = re.compile(r"denseblock(\d+)")
_NUMBERED = re.compile(r"k(\d+)")
_UNSAFE = re.compile(r"[^\w-]")


@dataclass(frozen=True)
class Filtered:
    """A cluster whose gradient is blocked: the map of all units of the layer without it."""

    map: str
    cut: str
    clustering: str
    cluster: int
    k: int

    @property
    def block(self) -> str:
        """The layer, as files call it."""
        return block_name(self.cut)

    @property
    def folder(self) -> str:
        """The folder of its files."""
        return f"filtered_{self.block}_cluster_{self.cluster}_k{self.k}"


@dataclass(frozen=True)
class Control:
    """A random set of units of one layer that the gradient goes through, the others being blocked."""

    map: str
    cut: str
    of: str
    draw: int
    kept: int
    total: int

    @property
    def filtered(self) -> int:
        """Units whose gradient is blocked."""
        return self.total - self.kept

    @property
    def summary(self) -> str:
        """The folder of its summary, shared by the draws of one size."""
        return f"control_random/{block_name(self.cut)}_n{self.filtered}"

    def seed(self, control_seed: int | None, compat: str | None) -> int | None:
        """Return the seed of the draw: each has its own in the reference's way, and one is shared in ours."""
        return None if control_seed is None else control_seed + (self.draw if compat == "seed" else 0)


def control_folders(controls: Sequence[Control], seed: int | None, compat: str | None) -> dict[str, str]:
    """Return the folder of each control's files, by name of the map.

    As the reference calls it where each draw has a seed of its own. Draws that share a seed, or whose seed is not
    known, have their number too; controls of several sets, of one size, are told apart by the later sets' names.
    """
    out: dict[str, str] = {}
    for one in controls:
        drawn = one.seed(seed, compat)
        name = f"control_random_{block_name(one.cut)}_{one.filtered}" + ("" if drawn is None else f"_seed{drawn}")
        if drawn is None or compat != "seed":
            name += f"_draw{one.draw}"
        if name in out.values():
            name += f"_of_{_UNSAFE.sub('_', one.of.removeprefix(f'{one.cut}/'))}"
        out[one.map] = name
    return out


def block_name(layer: str) -> str:
    """Return what files call a layer: ``block_1`` for features.denseblock1, else its path with underscores."""
    if dense := _DENSE.fullmatch(layer.rpartition(".")[2]):
        return f"block_{dense[1]}"
    return _UNSAFE.sub("_", layer)


def filtered_sets(data: xr.Dataset, clusterings: Sequence[str] | None = None) -> tuple[Filtered, ...]:
    """Return the clusters that are filtered, in the order of the cube.

    Parameters
    ----------
    data : the opened attributions cube
    clusterings : names of clusterings, as the coordinate `clustering` has them
        By default those called ``k<number>``, or all where none is.

    Raises
    ------
    MissingMeasurementError
        If no map is of all units without a cluster.
    SchemaError
        If a clustering is unknown, or files of two clusterings or layers would have the same names.
    """
    lines = _lines(data)
    found = [line for line in lines if line[4] == "without"]
    if not found:
        raise MissingMeasurementError(
            f"found maps of {sorted({line[4] for line in lines})}, and the reference's files are of all units without "
            "a cluster; put 'without' into sets of the study's [attributions] and run: `neurolens run STUDY --only "
            "attributions`"
        )
    known = list(dict.fromkeys(line[2] for line in found))
    if clusterings is None:
        wanted = {name for name in known if _NUMBERED.fullmatch(name)} or set(known)
    else:
        wanted = set(clusterings)
        for name in clusterings:
            if name not in known:
                raise SchemaError(f"there is no clustering {name!r}; {nearest(name, known)}")
    out = []
    for name, cut, clustering, cluster, _ in found:
        if clustering not in wanted:
            continue
        number = _NUMBERED.fullmatch(clustering)
        others = {line[3] for line in lines if line[1:3] == (cut, clustering) and line[3] >= 0}
        out.append(Filtered(name, cut, clustering, cluster, int(number[1]) if number else len(others)))
    folders: dict[str, str] = {}
    for one in out:
        if (first := folders.setdefault(one.folder, one.map)) != one.map:
            raise SchemaError(
                f"{first!r} and {one.map!r} would both be written to {one.folder}; name one of their clusterings "
                f"(--clustering), of {', '.join(known)}"
            )
    return tuple(out)


def focus_of(sets: Sequence[Filtered], name: str | None = None) -> Filtered:
    """Return the cluster that files of a single one are about.

    Parameters
    ----------
    sets : from `filtered_sets`
    name : that of its map
        By default the reference's choice: the first cluster of the first layer, of three clusters where there are.

    Raises
    ------
    SchemaError
        If there is no such map among them.
    """
    if name is None:
        first = [one for one in sets if one.cut == sets[0].cut]
        of_three = [one for one in first if one.k == 3] or first
        return min((one for one in of_three if one.k == of_three[0].k), key=lambda one: one.cluster)
    by_name = {one.map: one for one in sets}
    if name not in by_name:
        raise SchemaError(f"there is no filtered cluster {name!r}; {nearest(name, by_name)}")
    return by_name[name]


def random_sets(data: xr.Dataset, sets: Sequence[UnitSet] = ()) -> tuple[Control, ...]:
    """Return the random controls, in the order of the cube.

    Parameters
    ----------
    data : the opened attributions cube
    sets
        Those that were measured at the checkpoint, where they are known: with them sizes are known in any case.

    Raises
    ------
    MissingMeasurementError
        If the cube does not tell how many units a control or its layer has.
    """
    lines, kept = _lines(data), data["kept"].to_numpy()
    of, draw = data["of"].to_numpy().tolist(), data["draw"].to_numpy()
    totals, known = _totals(data), {one.name: one for one in sets}
    out = []
    for at, (name, cut, _, _, kind) in enumerate(lines):
        if kind != "control":
            continue
        total, own = totals.get(cut), int(kept[at])
        if name in known and own in (-1, int(known[name].units.sum())):
            total, own = len(known[name].units), int(known[name].units.sum())
        if total is None or own < 0:
            raise MissingMeasurementError(
                f"the cube does not tell of how many units {name!r} is: sizes differ between checkpoints, or no "
                "cluster of the layer is measured; name the study's file in place of the store"
            )
        out.append(Control(name, cut, str(of[at]), int(draw[at]), own, total))
    return tuple(out)


def blocked_by_cluster(one: Control, sets: Sequence[UnitSet]) -> dict[int, int] | None:
    """Return how many units of each cluster a control blocks, the most first; None where the sets are not known."""
    known = {found.name: found for found in sets}
    if one.map not in known or one.of not in known or not known[one.of].basis:
        return None
    if int(known[one.map].units.sum()) != one.kept:  # the study asks for other clusters now
        return None
    labels = np.frombuffer(known[one.of].basis, dtype=np.int64)
    clusters, counts = np.unique(labels[~known[one.map].units], return_counts=True)
    return {int(clusters[at]): int(counts[at]) for at in np.argsort(-counts, kind="stable")}


def parts_of(data: xr.Dataset, one: Filtered) -> list[str]:
    """Return the maps of the clusters alone that a filtered cluster is one of, by cluster.

    Raises
    ------
    MissingMeasurementError
        If no cluster is measured alone.
    """
    found = [
        (cluster, name)
        for name, cut, clustering, cluster, kind in _lines(data)
        if kind == "only" and (cut, clustering) == (one.cut, one.clustering)
    ]
    if not found:
        raise MissingMeasurementError(
            f"no cluster of {one.cut}/{one.clustering} is measured alone; put 'only' into sets of the study's "
            "[attributions] and run: `neurolens run STUDY --only attributions`"
        )
    return [name for _, name in sorted(found)]


def _lines(data: xr.Dataset) -> list[tuple[str, str, str, int, str]]:
    columns = (data[name].to_numpy().tolist() for name in ("map", "cut", "clustering", "cluster", "kind"))
    return [(str(a), str(b), str(c), int(d), str(e)) for a, b, c, d, e in zip(*columns, strict=True)]


def _totals(data: xr.Dataset) -> dict[str, int]:
    """Return how many units each layer has: those of a cluster and those without it, or of all clusters of a kind."""
    kept = data["kept"].to_numpy()
    sizes: dict[tuple[str, str], dict[tuple[int, str], int]] = {}
    for at, (_, cut, clustering, cluster, kind) in enumerate(_lines(data)):
        if kind in ("only", "without"):
            sizes.setdefault((cut, clustering), {})[cluster, kind] = int(kept[at])
    totals: dict[str, int] = {}
    for (cut, _), found in sizes.items():
        only = [n for (_, kind), n in found.items() if kind == "only"]
        without = [n for (_, kind), n in found.items() if kind == "without"]
        if min(*found.values(), 0) < 0:  # they differ between checkpoints
            continue
        if only or len(without) > 1:  # a unit is in one cluster, and so in all but one of the sets without a cluster
            totals.setdefault(cut, sum(only) if only else sum(without) // (len(without) - 1))
    return totals
