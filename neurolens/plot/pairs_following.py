"""Pairs through training: when what they write stops turning, and which words they come to say."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from matplotlib.axes import Axes

from neurolens import schema
from neurolens.errors import MissingMeasurementError, SchemaError
from neurolens.pairs.following import direction_change, text_history
from neurolens.plot.style import COLOURS, GREY, MARKERS, cut, new_axes, series_axis, styled

Array = npt.NDArray[Any]
CHECKPOINTS, NUMBERS = 40, 2**28
"""Of how many checkpoints, evenly spaced, the report follows pairs: so many, or what so many numbers are read for."""
FOLLOWED = 3
"""How many of the strongest pairs are followed."""
TURNS = {
    "cosine": "cosine with what it writes at the end",
    "turn": "cosine with the checkpoint before",
    "norm": "length of what a pair writes",
}


def direction_turns(
    change: xr.Dataset, *, pairs: Sequence[tuple[Any, Any]] = (), name: str = "cosine", ax: Axes | None = None
) -> Axes:
    """Draw how what pairs write turns through training: the median of all with its 5 to 95 %, and some by name.

    Parameters
    ----------
    change : Dataset over (series, unit, head)
        What `neurolens.pairs.direction_change` returned. **Eager**.
    pairs : (unit, head), …
        Labels of the pairs that have a line each.
    name : {"cosine", "turn", "norm"}
        What is drawn of it.
    ax : Axes, optional

    Raises
    ------
    SchemaError
        If it is no such Dataset, or there is no such pair.
    """
    if name not in TURNS or name not in change or not {"unit", "head"} <= set(change[name].dims):
        raise SchemaError(f"found no {name!r} over units and heads; give direction_change(…), and one of {list(TURNS)}")
    series = schema.series_dim(change[name])
    array = change[name].transpose(series, "unit", "head").compute()
    at, values = np.asarray(array[series]), np.asarray(array, np.float64)
    flat = values.reshape(len(values), -1)
    known = np.isfinite(flat).any(axis=1)
    with styled():
        ax = new_axes(ax, size=(6.4, 4.0))
        if known.any():
            low, middle, high = np.nanpercentile(flat[known], (5, 50, 95), axis=1)
            ax.fill_between(at[known], low, high, color=GREY, alpha=0.2, linewidth=0, label="5 to 95 % of all pairs")
            ax.plot(at[known], middle, color=GREY, linestyle="--", linewidth=1.4, label=f"median of {flat.shape[1]:,}")
        for i, (unit, head) in enumerate(pairs):
            line = values[:, _place(array, "unit", unit), _place(array, "head", head)]
            look: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
            ax.plot(at, line, markersize=4, label=f"unit {unit}, head {head}", **look)
        series_axis(ax, at, series)
        ax.set_ylabel(TURNS[name])
        ax.set_title("Directions of pairs through training" if name != "norm" else "Vectors of pairs through training")
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3)
        return ax


def words_over_training(history: xr.Dataset, *, phrases: int = 5, ax: Axes | None = None) -> Axes:
    """Draw how near one pair is to its words at each checkpoint: the nearest at the end, and the nearest before.

    Parameters
    ----------
    history : Dataset over (series, phrase), of one unit and head
        What `neurolens.pairs.text_history` returned, ``isel(unit=0, head=0)`` of it. **Eager**.
    phrases : int
        How many of the nearest at the end; the one that was nearest at the first checkpoint is drawn too.
    ax : Axes, optional

    Raises
    ------
    SchemaError
        If it is no such Dataset, or of several pairs.
    """
    if "score" not in history or "phrase" not in history["score"].dims:
        raise SchemaError(f"found {sorted(map(str, history))}, and 'score' over phrases was needed: text_history(…)")
    score = history["score"]
    score = score.squeeze([dim for dim in ("unit", "head") if score.sizes.get(dim) == 1])
    series = schema.series_dim(score)
    if set(score.dims) != {series, "phrase"}:
        raise SchemaError(f"found scores over {dict(score.sizes)}, and those of one pair were needed; select it")
    values = np.asarray(score.transpose(series, "phrase").compute(), np.float64)
    at, names = np.asarray(score[series]), [str(name) for name in score["phrase"].to_numpy()]
    done = np.flatnonzero(np.isfinite(values).all(axis=1))
    with styled():
        ax = new_axes(ax, size=(5.2, 3.6))
        series_axis(ax, at, series)
        ax.set_ylabel("cosine with the phrase")
        if "unit" in score.coords and "head" in score.coords:
            ax.set_title(f"Unit {score['unit'].item()}, head {score['head'].item()}")
        if not len(done):
            return ax
        chosen = np.argsort(-values[done[-1]], kind="stable")[:phrases].tolist()
        first = int(values[done[0]].argmax())
        for i, place in enumerate(chosen):
            look: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
            ax.plot(at, values[:, place], markersize=4, label=cut(names[place], 24), **look)
        if first not in chosen:
            ax.plot(
                at, values[:, first], color=GREY, linestyle="--", label=f"{cut(names[first], 16)} (nearest at first)"
            )
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        return ax


def follow(tree: xr.DataTree, pairs: Sequence[tuple[Any, Any]]) -> tuple[xr.Dataset | None, xr.Dataset | None]:
    """Follow pairs through the checkpoints of a run, as many as are cheap to read. **Eager**.

    Parameters
    ----------
    tree : DataTree
        With the cube `pools`, and `texts` if there is one.
    pairs : (unit, head), …
        Labels.

    Returns
    -------
    What `direction_change` and `text_history` return, of all pairs and of the units and heads of these; None where
    there are no two checkpoints, or no phrases. Of several sets of phrases the largest is taken.
    """
    pools = tree["pools"].to_dataset()
    if not {*schema.SERIES_DIMS} & {*pools.dims}:
        return None, None
    pools = _spaced(pools, sum(int(np.prod(pools[name].shape[1:])) for name in ("value", "output")))
    series = schema.series_dim(pools)
    if pools.sizes[series] < 2:
        return None, None
    change = direction_change(pools)[["norm", "turn", "cosine"]].compute()
    if "texts" not in tree.children or not pairs:
        return change, None
    texts = tree["texts"].to_dataset()
    sets = [str(name) for name in texts["set"].to_numpy().tolist()]
    if not sets:
        return change, None
    texts = _spaced(texts, int(np.prod(texts["text"].shape[1:])))
    units, heads = (sorted(set(labels)) for labels in zip(*pairs))
    try:
        history = text_history(pools, unit=units, head=heads, words=largest_set(sets), texts=texts)
    except MissingMeasurementError:  # no checkpoint in common
        return change, None
    return change, history[["score"]].compute() if history.sizes[series] > 1 else None


def largest_set(sets: Sequence[str]) -> str:
    """Return the set that most phrases are of, the first of equals."""
    return Counter(sets).most_common(1)[0][0]


def _spaced(cube: xr.Dataset, numbers: int) -> xr.Dataset:
    """Return evenly spaced checkpoints of those that were measured, the first and the last among them."""
    series = schema.series_dim(cube)
    done = np.flatnonzero(cube["measured"].to_numpy()) if "measured" in cube.coords else np.arange(cube.sizes[series])
    some = max(2, min(len(done), CHECKPOINTS, NUMBERS // max(1, numbers)))
    places = np.linspace(0, max(0, len(done) - 1), min(some, len(done))).round().astype(int)
    return cube.isel({series: done[np.unique(places)]})


def _place(array: xr.DataArray, dim: str, label: Any) -> int:
    labels = array[dim].to_numpy().tolist() if dim in array.coords else list(range(array.sizes[dim]))
    if label not in labels:
        raise SchemaError(f"there is no {dim} {label!r} among {len(labels)}; name one that was measured")
    return labels.index(label)
