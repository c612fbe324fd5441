"""What is added up over the batches of a pass, per layer."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from neurolens.errors import DataError
from neurolens.layers import Layer
from neurolens.units import histogram, kernels, observing, per_sample
from neurolens.units.observing import Groups, Kept
from neurolens.units.statistics import FIELDS, empty_table

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Wanted:
    """What a pass adds up besides the statistics: histograms, sums of so many classes, …; 0 and False: it does not."""

    histogram: bool = False
    classes: int = 0
    positions: int = 0
    top: int = 0


class Observed(NamedTuple):
    """What one batch shows of a layer."""

    groups: Groups
    bins: Array | None
    fired: Array | None


@dataclass
class Totals:
    """What all batches yet have shown of a layer."""

    layer: Layer
    wanted: Wanted
    table: Array = field(init=False)
    bins: Array = field(init=False)
    fired: Array = field(init=False)
    tokens: bool = False
    class_n: Array = field(init=False)
    class_sums: tuple[Array, Array, Array, Array] = field(init=False)
    top_value: Array = field(init=False)
    top_sample: Array = field(init=False)

    def __post_init__(self) -> None:
        units, wanted = self.layer.units, self.wanted
        self.table = empty_table(units)
        self.bins = np.zeros((units if wanted.histogram else 0, histogram.BINS), dtype=np.int64)
        self.fired = np.zeros((wanted.positions, units), dtype=np.int64)
        self.class_n = np.zeros(wanted.classes)
        of_class = (wanted.classes, units)
        self.class_sums = (np.zeros(of_class), np.zeros(of_class), np.full(of_class, -np.inf), np.zeros(of_class))
        self.top_value = np.full((units, wanted.top), np.nan, dtype=np.float32)
        self.top_sample = np.full((units, wanted.top), -1, dtype=np.int32)

    def observe(self, tensor: Tensor, kept: Kept | None, real: Kept | None) -> Observed:
        """Read a live tensor; ``real`` are all tokens of the texts, whichever count. Nothing is added yet."""
        wanted, axis = self.wanted, self.layer.axis
        return Observed(
            observing.groups(tensor, axis, kept),
            observing.bins(tensor, axis, kept) if wanted.histogram else None,
            observing.fired(tensor, real) if wanted.positions and real is not None else None,
        )

    def add(self, seen: Observed, labels: Array, indices: Array) -> None:
        """Add what a batch has shown, now that its forward has returned."""
        groups = seen.groups
        kernels.merge_groups(self.table, *groups)
        if seen.bins is not None:
            self.bins += seen.bins
        if seen.fired is not None:
            self.fired[: len(seen.fired)] += seen.fired
            self.tokens = True
        if self.wanted.classes:
            of_group = (groups.abs_sum, groups.mean, groups.high, groups.positive)
            per_sample.add_classes(labels, groups.counts, groups.scales, *of_group, self.class_n, *self.class_sums)
        if self.wanted.top:
            per_sample.keep_top(groups.high, groups.counts, indices, self.top_value, self.top_sample)

    def statistics(self) -> dict[str, Array]:
        """Return the statistics by name, (U,) each; a NaN that was met spreads to the extremes of its unit.

        Raises
        ------
        DataError
            If there was no observation.
        """
        if not self.table[0].all():
            raise DataError(
                f"layer {self.layer.name!r} has no observation: no token of any text is left; lower skip_first"
            )
        found = dict(zip(FIELDS, self.table, strict=True))
        for name in ("min", "max"):
            found[name] = np.where(np.isnan(found["abs_sum"]), np.nan, found[name])
        return found

    def of_parts(self) -> dict[str, Array]:
        """Return the variables of the other parts by name, shaped as the units cube has them.

        Raises
        ------
        DataError
            If a bin holds more than the cube can.
        """
        wanted = self.wanted
        found: dict[str, Array] = {}
        if wanted.histogram:
            if self.bins.max() > histogram.LIMIT:
                raise DataError(
                    f"layer {self.layer.name!r} has {self.bins.max()} observations in one bin of a histogram, which "
                    f"holds {histogram.LIMIT}; measure fewer samples, or set histogram = false"
                )
            found["histogram"] = self.bins.astype(np.uint32)
        if wanted.classes:
            n = np.broadcast_to(self.class_n[:, None], (wanted.classes, self.layer.units))
            abs_sum, total, largest, positive = self.class_sums
            found |= {"class_n": n, "class_abs_sum": abs_sum, "class_sum": total, "class_n_pos": positive}
            found["class_max"] = np.where(n > 0, largest, np.nan)
        if wanted.positions:
            fired = self.fired.T.astype(np.float64)
            found["position_n_pos"] = fired if self.tokens else np.full_like(fired, np.nan)
        if wanted.top:
            found |= {"top_value": self.top_value, "top_sample": self.top_sample}
        return found
