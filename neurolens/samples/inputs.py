"""What every reduction asks of a Dataset: the series, who was exposed when, what is missing, where it came from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import dask.array
import numpy as np
import xarray as xr

from neurolens import schema
from neurolens.errors import SchemaError, nearest
from neurolens.samples.scan import Missing, Rule, fold

Exposure = Literal["respect", "all"]
OnMissing = Literal["error", "drop"]


@dataclass(frozen=True)
class Inputs:
    """A checked Dataset: its series dim, and per-class exposure and per-sample class codes where they matter."""

    ds: xr.Dataset
    dim: str
    variable: str
    missing: Missing
    exposed: xr.DataArray | None
    codes: xr.DataArray | None
    attrs: dict[str, Any]

    @property
    def array(self) -> xr.DataArray:
        """The variable to reduce."""
        return self.ds[self.variable]

    @property
    def plain(self) -> bool:
        """Every sample counts at every position, and a missing value is an error."""
        return self.exposed is None and not self.missing.allowed

    def fold(self, rule: Rule, outputs: int, *, given: Sequence[Any] = (), more: Sequence[str] = ()) -> list[Any]:
        """Fold the variable, and ``more`` beside it."""
        return fold(
            rule,
            [self.array, *(self.ds[name] for name in more)],
            self.dim,
            outputs,
            missing=self.missing,
            codes=self.codes,
            exposed=self.exposed,
            given=given,
        )

    def dataset(self, **results: Any) -> xr.Dataset:
        """Label results over the samples, with the sample coordinates of the input and the provenance."""
        variables = {name: (("sample",), data, schema.RESULTS[name].attrs) for name, data in results.items()}
        return xr.Dataset(variables, coords=self._coords(), attrs=self.attrs)

    def result(self, data: Any, name: str) -> xr.DataArray:
        """The same for a single result."""
        attrs = schema.RESULTS[name].attrs | self.attrs
        return xr.DataArray(data, dims=("sample",), coords=self._coords(), name=name, attrs=attrs)

    def _coords(self) -> dict[Any, xr.DataArray]:
        kept = [name for name, variable in self.ds.variables.items() if variable.dims == ("sample",)]
        return {name: self.ds.coords[name] for name in kept if name in self.ds.coords}


def inputs(
    ds: xr.Dataset,
    variable: str,
    *,
    dim: str | None,
    exposure: Exposure,
    missing: OnMissing,
    per_class: bool = False,
) -> Inputs:
    """Check ``ds`` for a reduction of ``variable``.

    Raises
    ------
    SchemaError
        If the variable, the series dim, `sample` or (where classes matter) `label` and `class` are missing.
    MissingMeasurementError
        If the variable was not measured at all, or its stored counts show positions without it.
    """
    choice("exposure", exposure, "respect", "all")
    choice("missing", missing, "error", "drop")
    series = schema.require(ds, variable, dim=dim)
    if "sample" not in ds[variable].dims:
        raise SchemaError(f"{variable!r} has dims {ds[variable].dims}; it needs 'sample' among them")
    labels = tuple(ds.indexes[series]) if series in ds.indexes else tuple(range(ds.sizes[series]))
    if not labels:
        raise SchemaError(f"the Dataset has no {series} left to reduce {variable!r} over; select at least one")
    report = Missing(variable, series, labels, str(ds.attrs.get("run", "")), missing == "drop")
    _unmeasured(ds, variable, series, report)
    exposed = ds.coords["exposed"] if exposure == "respect" and "exposed" in ds.coords else None
    if exposed is not None and series not in exposed.dims:
        exposed = None
    if per_class and exposed is None:
        exposed = _all_exposed(ds, series)
    codes = None
    if exposed is not None:
        if exposed.dtype.kind not in "biu":
            raise SchemaError(
                f"`exposed` is {exposed.dtype}, and True or False is needed (reindexing turns it into NaN); "
                'take it from the store anew, or pass exposure="all"'
            )
        if "label" not in ds.coords:
            raise SchemaError(
                'classes matter here but ds has no `label` coordinate on `sample`; add it, or pass exposure="all"'
            )
        codes = ds.coords["label"]
    attrs = {k: ds.attrs[k] for k in schema.PROVENANCE if k in ds.attrs}
    attrs |= {"series": series, "exposure": exposure if "exposed" in ds.coords else "all", "missing": missing}
    return Inputs(ds, series, variable, report, exposed, codes, attrs)


def choice(name: str, value: str, *known: str) -> None:
    """Raise SchemaError unless an option has one of the values it may have."""
    if value not in known:
        raise SchemaError(f"{name}={value!r} is unknown; {nearest(str(value), known)}")


def _all_exposed(ds: xr.Dataset, series: str) -> xr.DataArray:
    if "class" not in ds.sizes:
        raise SchemaError("a threshold per class needs a `class` coordinate that names the classes; add it to ds")
    return xr.DataArray(np.ones((ds.sizes[series], ds.sizes["class"]), bool), dims=(series, "class"))


def stored_counts(ds: xr.Dataset, variable: str, series: str) -> xr.DataArray | None:
    """Return the (series, class) counts that the store keeps beside a variable, if they are there and in memory."""
    if f"{variable}_count" not in ds.coords:
        return None
    counts = ds.coords[f"{variable}_count"]
    if set(counts.dims) != {series, "class"} or isinstance(counts.data, dask.array.Array):
        return None
    return counts if counts.dims[0] == series else counts.transpose(series, "class")


def _unmeasured(ds: xr.Dataset, variable: str, series: str, report: Missing) -> None:
    counts = stored_counts(ds, variable, series)
    if counts is None:
        return
    empty = np.flatnonzero(counts.sum("class").data == 0)
    report.check(empty)
    if len(empty) == len(report.labels):
        raise report.error(empty)
