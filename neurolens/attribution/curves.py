"""How an answer goes as ever more entries of a map are taken away, or put in."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import xarray as xr
from torch import Tensor, nn

from neurolens.attribution.fills import Fill
from neurolens.attribution.masked import Array, Target, answers
from neurolens.attribution.scores import count_of, order
from neurolens.errors import SchemaError, nearest

SHARES = tuple(step / 10 for step in range(11))


def perturbation_curves(
    module: nn.Module,
    x: Tensor,
    maps: xr.DataArray,
    *,
    kind: Literal["deletion", "insertion"] = "deletion",
    first: Literal["most", "least"] = "most",
    shares: Sequence[float] = SHARES,
    grid: int | None = None,
    fill: Fill = "zero",
    target: Target = "predicted",
    batch_size: int = 64,
    budget_mib: float = 2048,
) -> xr.Dataset:
    """Follow the explained class as entries of a map are taken from a sample, or put into what fills it.

    **Eager.** What is the same sample is shown once: where nothing is taken away, where everything is, and wherever
    maps choose the same entries. All maps of a sample belong in one call.

    Parameters
    ----------
    module, x, maps, grid, target, batch_size, budget_mib
        As for `faithfulness`.
    kind : {"deletion", "insertion"}
        Take entries away, from the whole sample on; or show them alone, everything else filled. Pixels outside of the
        cells of a grid stay.
    first : {"most", "least"}
        Start with the highest entries, or with the lowest; the lowest number first of equal ones.
    shares : rising, from 0 to 1
        How many entries were taken away or put in: these shares of them, rounded, halves to even.
    fill
        What is where nothing is, see `filled`. "road" interpolates from what is left: it needs shares below 1 to
        delete, above 0 to insert.

    Returns
    -------
    Dataset
        Over (sample, …, share), float64: ``probability`` of the class, ``log_prob`` in nats, ``logit``; over
        (sample, …): ``area`` under the probability by the trapezoid rule, divided by the range of shares. NaN where a
        map is zero everywhere or not finite. Over (sample,): ``target``. Attributes as `faithfulness` gives them.

    Raises
    ------
    SchemaError
        If shares do not rise from 0 to 1 or are fewer than two, and as `faithfulness` does.
    DataError, ModelMismatchError, NonFiniteError
        As `faithfulness` does.

    References
    ----------
    Petsiuk et al. 2018, "RISE", section 4.1 (deletion and insertion); Samek et al. 2017, section III (orders).
    """
    for value, known, name in ((kind, ("deletion", "insertion"), "kind"), (first, ("most", "least"), "first")):
        if value not in known:
            raise SchemaError(f"{name}={value!r} is unknown; {nearest(str(value), known)}")
    steps = np.asarray(shares, dtype=np.float64)
    if steps.ndim != 1 or len(steps) < 2 or not (np.diff(steps) > 0).all() or steps[0] < 0 or steps[-1] > 1:
        raise SchemaError(f"shares={list(shares)} do not rise within 0 and 1; give two or more, e.g. (0, 0.1, 0.2)")

    found = answers(
        module,
        x,
        maps,
        lambda row: steps_away(row, steps, kind=kind, first=first),
        times=len(steps),
        grid=grid,
        fill=fill,
        target=target,
        batch_size=batch_size,
        budget_mib=budget_mib,
    )
    curves = found[["masked_logit", "masked_log_prob"]].rename(
        time="share", masked_logit="logit", masked_log_prob="log_prob"
    )
    curves = curves.assign_coords(share=steps).assign(probability=np.exp(curves["log_prob"]))
    area = curves["probability"].integrate("share") / (steps[-1] - steps[0])
    return curves.assign(area=area, target=found["target"]).assign_attrs(found.attrs)


def steps_away(
    row: Array,
    shares: Sequence[float] | Array = SHARES,
    *,
    kind: Literal["deletion", "insertion"],
    first: Literal["most", "least"] = "most",
) -> list[Array]:
    """Return the entries that are not shown at each step, from the mass of each entry of a map, (n,)."""
    entries = order(row if first == "most" else -row)
    counts = [round(float(share) * len(row)) for share in shares]
    return [entries[:count] if kind == "deletion" else entries[count:] for count in counts]


def highest(row: Array, share: float) -> Array:
    """Return the entries that are taken away, from the mass of each entry of a map, (n,) finite; in no order."""
    count = count_of(share, len(row))
    least = np.partition(row, -count)[-count]  # a third of the time of sorting
    above, equal = (row > least).nonzero()[0], (row == least).nonzero()[0]
    return np.append(above, equal[: count - len(above)])
