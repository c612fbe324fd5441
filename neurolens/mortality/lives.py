"""Lives of one trajectory or many: when a score is alive, when it is born and dies. Plain numpy, no labels.

A life is a stretch of a trajectory from its birth to its death, or to where it is lost sight of.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

DEATH, ALIVE, UNCONFIRMED, ABSENT = range(4)
ENDS = ("death", "alive", "unconfirmed", "absent")
"""How a life ends: below the threshold for good; alive at the end of the record; below it, but the record ends before
that is confirmed; no score any more. All but the first are censored."""

FLAG_ALIVE, FLAG_BIRTH, FLAG_DEATH, FLAG_REBIRTH, FLAG_KNOWN = 1, 2, 4, 8, 16

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Rule:
    """What decides life and death: the arguments of `neurolens.concept_events` of the same names."""

    tau: float = 0.04
    k: int = 3
    hysteresis: float = 0.0
    smoothing_window: int = 1
    min_alive: int = 1
    compat: Literal["seed"] | None = None


@dataclass(frozen=True)
class Lives:
    """Lives of many trajectories, in order of the trajectory and the birth. All (life,).

    Positions are along the series; ``death`` and ``decline`` are −1 where there is none. ``life`` counts the lives of a
    trajectory from 0, ``gap`` the checkpoints since the death that a rebirth follows, −1 for no rebirth.
    """

    trajectory: Ints
    birth: Ints
    last: Ints
    death: Ints
    decline: Ints
    end: Ints
    n_alive: Ints
    life: Ints
    gap: Ints
    birth_seen: NDArray[np.bool_]
    score_birth: Floats
    score_death: Floats
    score_max: Floats


def lives_of(scores: Any, rule: Rule) -> Lives:
    """Find the lives in scores (trajectory, series), NaN where there is none."""
    scores = np.asarray(scores)
    floor = rule.tau if rule.smoothing_window == 1 else rule.tau * (1 - 1e-9)  # a mean may be an ulp above its values
    candidates = np.flatnonzero((scores >= floor).any(axis=1))
    values = scores[candidates].astype(np.float64)
    found = _by_reference(values, rule) if rule.compat == "seed" else _by_default(values, rule)
    return replace(found, trajectory=candidates[found.trajectory])


def flags_of(scores: Any, rule: Rule) -> NDArray[np.uint8]:
    """Return what holds at each checkpoint, (trajectory, series): a sum of the ``FLAG_`` constants."""
    scores = np.asarray(scores)
    flags: NDArray[np.uint8] = (~np.isnan(scores)).view(np.uint8)
    flags *= FLAG_KNOWN
    found = lives_of(scores, rule)
    rows, row = np.unique(found.trajectory, return_inverse=True)
    steps = np.zeros((len(rows), scores.shape[1] + 1), np.int8)  # up at a birth, down after the last alive checkpoint
    np.add.at(steps, (row, found.birth), 1)
    np.add.at(steps, (row, found.last + 1), -1)
    flags[rows] |= np.cumsum(steps[:, :-1], axis=1, dtype=np.int8).view(np.uint8) * np.uint8(FLAG_ALIVE)
    flags[found.trajectory, found.birth] |= FLAG_BIRTH
    again, dead = found.gap >= 0, found.end == DEATH
    flags[found.trajectory[again], found.birth[again]] |= FLAG_REBIRTH
    flags[found.trajectory[dead], found.death[dead]] |= FLAG_DEATH
    return flags


def smoothed(values: Floats, window: int) -> Floats:
    """Trailing mean over ``window`` checkpoints along the last axis, of those that are known; NaN stays NaN."""
    if window == 1:
        return values
    total, count = np.zeros_like(values), np.zeros_like(values)
    for lag in range(min(window, values.shape[-1]) - 1, -1, -1):  # oldest first, as a plain sum would add them
        past = values[..., : values.shape[-1] - lag]
        known = ~np.isnan(past)
        total[..., lag:] += np.where(known, past, 0.0)
        count[..., lag:] += known
    return np.where(np.isnan(values), np.nan, total / np.maximum(count, 1))


def _by_default(values: Floats, rule: Rule) -> Lives:
    values = smoothed(values, rule.smoothing_window)
    n, length = values.shape
    leaving = rule.tau * (1 - rule.hysteresis)
    birth, last, dip = (np.full(n, -1) for _ in range(3))
    n_alive, seen = np.zeros(n, np.int64), np.zeros(n, bool)
    out: list[tuple[Any, ...]] = []

    def close(who: Any, end: int, death: Any) -> None:
        out.append((who, birth[who], last[who], death, np.full(len(who), end), n_alive[who], seen[who]))
        birth[who] = -1

    for t in range(length):
        x = values[:, t]
        unknown, living = np.isnan(x), birth >= 0
        lost = np.flatnonzero(living & unknown)
        close(lost, ABSENT, np.full(len(lost), -1))
        hold, low = living & (x >= leaving), living & (x < leaving)
        last[hold], dip[hold] = t, -1
        n_alive += hold
        dip[low & (dip < 0)] = t
        dead = np.flatnonzero(low & (t - dip + 1 >= rule.k))
        close(dead, DEATH, dip[dead])
        born = ~living & (x >= rule.tau)
        birth[born], last[born], dip[born], n_alive[born] = t, t, -1, 1
        seen[born] = False if t == 0 else ~np.isnan(values[born, t - 1])
    rest = np.flatnonzero(birth >= 0)
    for who, end in ((rest[dip[rest] < 0], ALIVE), (rest[dip[rest] >= 0], UNCONFIRMED)):
        close(who, end, dip[who])
    columns = [np.concatenate(column) for column in zip(*out)]
    order = np.lexsort((columns[1], columns[0]))
    who, births, lasts, deaths, ends, alive, sight = (column[order] for column in columns)
    kept = alive >= rule.min_alive
    who, births, lasts, deaths, ends, alive, sight = (
        column[kept] for column in (who, births, lasts, deaths, ends, alive, sight)
    )
    return _described(values, who, births, lasts, deaths, ends, alive, sight, rule)


def _described(
    values: Floats,
    who: Ints,
    births: Ints,
    lasts: Ints,
    deaths: Ints,
    ends: Ints,
    alive: Ints,
    sight: Any,
    rule: Rule,
) -> Lives:
    fresh = np.diff(who, prepend=-1) != 0
    starts = np.flatnonzero(fresh)
    life = np.arange(len(who)) - np.repeat(starts, np.diff(np.append(starts, len(who))))
    after_death = ~fresh & (np.roll(ends, 1) == DEATH)
    gap = np.where(after_death, births - np.roll(deaths, 1), -1)
    inside = np.arange(values.shape[1])
    score_max = np.full(len(who), np.nan)
    decline = np.full(len(who), -1)
    falls = _falls(values, rule.k)
    for low in range(0, len(who), 4096):  # a life is a row here: memory stays that of a block
        part = slice(low, low + 4096)
        of = values[who[part]]
        held = (inside >= births[part, None]) & (inside <= lasts[part, None])
        score_max[part] = np.where(held, of, -np.inf).max(axis=1)
        dips = held & (of < rule.tau * (1 - rule.hysteresis))
        after = np.where(dips.any(axis=1), values.shape[1] - np.argmax(dips[:, ::-1], axis=1), births[part])
        eligible = held & falls[who[part]] & (inside >= after[:, None])
        decline[part] = np.where(eligible.any(axis=1), eligible.argmax(axis=1), -1)
    decline[ends != DEATH] = -1
    score_death = np.where(deaths >= 0, values[who, deaths], np.nan)
    return Lives(
        who, births, lasts, deaths, decline, ends, alive, life, gap, sight, values[who, births], score_death, score_max
    )


def _falls(values: Floats, k: int) -> NDArray[np.bool_]:
    """Say where k + 1 values in a row, from there on, do not rise: the reference's window. (trajectory, series)."""
    steady = np.diff(values, axis=1) <= 0
    out = np.zeros(values.shape, bool)
    if k < values.shape[1]:
        windows = (
            np.lib.stride_tricks.sliding_window_view(steady, k, axis=1) if k else np.ones((*values.shape, 1), bool)
        )
        out[:, : windows.shape[1]] = windows.all(axis=-1)
    return out


def _by_reference(values: Floats, rule: Rule) -> Lives:
    """The reference's single event per trajectory: the first start of a fall into a death without recovery."""
    length = values.shape[1]
    unknown = np.isnan(values)
    order = np.argsort(unknown, axis=1, kind="stable")  # rows that do not exist are no rows at all there
    values = smoothed(np.take_along_axis(values, order, axis=1), rule.smoothing_window)
    known = (~unknown).sum(axis=1)
    alive = values >= rule.tau
    enough = alive.sum(axis=1) >= rule.min_alive
    last = length - 1 - np.argmax(alive[:, ::-1], axis=1)
    inside = np.arange(length)
    before = ~alive & (inside <= last[:, None])
    after = np.where(before.any(axis=1), length - np.argmax(before[:, ::-1], axis=1), 0)
    windowed = _falls(values, rule.k) & (inside + rule.k < known[:, None])
    eligible = windowed & (inside >= after[:, None]) & (inside <= last[:, None])
    who = np.flatnonzero(enough & alive.any(axis=1) & eligible.any(axis=1) & (last + 1 < known))
    births, deaths = eligible[who].argmax(axis=1), last[who] + 1
    held = (inside >= births[:, None]) & (inside < deaths[:, None])
    zeros = np.zeros(len(who), np.int64)

    def placed(position: Ints) -> Ints:
        return order[who, position].astype(np.int64)

    found = Lives(
        who,
        placed(births),
        placed(last[who]),
        placed(deaths),
        placed(births),
        zeros + DEATH,
        alive[who].sum(axis=1),
        zeros,
        zeros - 1,
        np.ones(len(who), bool),
        values[who, births],
        values[who, deaths],
        np.where(held, values[who], -np.inf).max(axis=1, initial=-np.inf),
    )
    return found


def moved(found: Lives, positions: Ints) -> Lives:
    """Give trajectories the positions that they have among those of all blocks."""
    return replace(found, trajectory=positions[found.trajectory])


def joined(parts: list[Lives]) -> Lives:
    """Put lives of several blocks together, in order of the trajectory and the birth."""
    columns = {f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Lives)}
    order = np.lexsort((columns["birth"], columns["trajectory"]))
    return Lives(**{name: column[order] for name, column in columns.items()})
