"""``ds.lens``: the reductions, the settings and the provenance of an opened cube, as methods.

Registered when a store is opened; for a hand-made Dataset, import this module.
"""

import json
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

import neurolens
from neurolens import schema
from neurolens.accessor_attributions import AttributionMethods
from neurolens.accessor_concepts import ConceptMethods
from neurolens.accessor_pairs import PairMethods
from neurolens.backend import open_at
from neurolens.errors import SchemaError, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from neurolens.store.ledger import Ledger


SCORES = {
    "csl": ("csl", "loss"),
    "learning_time": ("learning_time", "grad_norm"),
    "csg": ("csg", "grad_norm"),
    "aum": ("aum", "margin"),
    "confidence": ("cartography", "p_true"),
    "variability": ("cartography", "p_true"),
    "forgetting_events": ("forgetting", "correct"),
    "curvature": ("curvature", "curvature"),
}
"""Scores per sample by name: the reduction that gives each, and the variable it needs."""


@xr.register_dataset_accessor("lens")  # type: ignore[no-untyped-call]
class Lens(ConceptMethods, AttributionMethods, PairMethods):
    """The methods behind ``ds.lens``; every reduction takes the options of the function of the same name."""

    def __init__(self, data: xr.Dataset) -> None:
        self._data = data

    def csl(self, **options: Any) -> xr.Dataset:
        """Cumulative sample loss: `neurolens.csl`."""
        return neurolens.csl(self._data, **options)

    def learning_time(self, **options: Any) -> xr.Dataset:
        """Share of the series with a gradient norm above the threshold: `neurolens.learning_time`."""
        return neurolens.learning_time(self._data, **options)

    def aum(self, **options: Any) -> xr.DataArray:
        """Area under the margin: `neurolens.aum`."""
        return neurolens.aum(self._data, **options)

    def forgetting(self, **options: Any) -> xr.Dataset:
        """Forgetting events, and when each sample is learned: `neurolens.forgetting`."""
        return neurolens.forgetting(self._data, **options)

    def cartography(self, **options: Any) -> xr.Dataset:
        """Confidence, variability, correctness: `neurolens.cartography`."""
        return neurolens.cartography(self._data, **options)

    def csg(self, **options: Any) -> xr.DataArray:
        """Cumulative squared gradient norm: `neurolens.csg`."""
        return neurolens.csg(self._data, **options)

    def curvature(self, **options: Any) -> xr.DataArray:
        """Input-loss curvature: `neurolens.curvature`."""
        return neurolens.curvature(self._data, **options)

    def dormancy(self, definition: "str | Sequence[str]" = "redo", **options: Any) -> xr.DataArray:
        """How dormant each unit is: `neurolens.dormancy`."""
        return neurolens.dormancy(self._data, definition, **options)

    def dormant(self, definition: "str | Sequence[str]" = "redo", tau: Any = None, **options: Any) -> xr.DataArray:
        """Which units are dormant: `neurolens.dormant`."""
        return neurolens.dormant(self._data, definition, tau, **options)

    def transitions(
        self,
        definition: "str | Sequence[str]" = "redo",
        tau: Any = None,
        *,
        by: 'Literal["layer"] | None' = None,
        **options: Any,
    ) -> xr.Dataset:
        """What becomes of dormant units: `neurolens.transitions` of :meth:`dormant`."""
        mask = self.dormant(definition, tau, **options)
        return neurolens.transitions(mask, by=by, dim=options.get("dim"))

    def dormancy_summary(self, definition: Any = None, tau: Any = None, **options: Any) -> xr.Dataset:
        """How many units are dormant, per layer and in all: `neurolens.dormancy_summary`."""
        return neurolens.dormancy_summary(self._data, definition, tau, **options)

    def class_selectivity(self, **options: Any) -> xr.DataArray:
        """How much more a unit responds to one class than to the others: `neurolens.class_selectivity`."""
        return neurolens.class_selectivity(self._data, **options)

    def lifetime_sparseness(self, **options: Any) -> xr.DataArray:
        """Whether activity is concentrated in few observations: `neurolens.lifetime_sparseness`."""
        return neurolens.lifetime_sparseness(self._data, **options)

    def positional_information(self, **options: Any) -> xr.DataArray:
        """Mutual information of firing and the token's position: `neurolens.positional_information`."""
        return neurolens.positional_information(self._data, **options)

    def spectra(self, **options: Any) -> xr.Dataset:
        """Singular values and ranks of each layer's activations: `neurolens.spectra`."""
        return neurolens.spectra(self._data, **options)

    def agreement(self, *scores: "str | xr.DataArray", **options: Any) -> xr.Dataset:
        """Correlations between scores per sample: `neurolens.agreement`.

        Parameters
        ----------
        scores : names of scores of this Dataset (``SCORES``), or named arrays over `sample`, e.g. an external score
            Absent: every score of ``SCORES`` that the measured quantities allow.
        """
        if not scores:
            scores = tuple(name for name, (_, needed) in SCORES.items() if needed in self._data)
        arrays = [self._score(score) if isinstance(score, str) else score for score in scores]
        unnamed = [array.dims for array in arrays if array.name is None]
        if unnamed:
            raise SchemaError(f"found a score without a name, over {unnamed[0]}; give it one: score.rename('mine')")
        plain = [array.reset_coords(drop=True) for array in arrays]
        return neurolens.agreement(xr.merge(plain, join="exact", compat="equals"), **options)

    def _score(self, name: str) -> xr.DataArray:
        if name not in SCORES:
            raise SchemaError(f"there is no score {name!r}; {nearest(name, SCORES)}")
        found = getattr(self, SCORES[name][0])()
        score: xr.DataArray = found[name] if isinstance(found, xr.Dataset) else found
        return score.rename(name)

    def trajectories(self, samples: Any, *variables: str) -> xr.Dataset:
        """Return the whole series of a few samples, read from the tiles where there are any. **Eager**.

        The same as selecting them, which with dask reads every sample of every row when they are given as a list.

        Parameters
        ----------
        samples : ids of samples.
        variables : names of variables; absent: all of them.

        Raises
        ------
        KeyError
            If an id or a name is unknown.
        """
        series = schema.series_dim(self._data)
        opened = xr.open_dataset(
            self._origin("url"),
            engine="neurolens",
            group=self._origin("cube"),
            snapshot=self.snapshot,
            cache=False,
            **self._server(),
        )
        wanted = list(variables) or [str(name) for name in self._data.data_vars if name in opened]
        rows = opened[wanted].sel({series: self._data[series].values})
        return rows.sel(sample=np.atleast_1d(np.asarray(samples))).load()

    @property
    def snapshot(self) -> str:
        """The snapshot id that the Dataset was opened at."""
        return self._origin("snapshot")

    def settings(self) -> dict[str, Any]:
        """Return what the cube was measured with: parts and their settings, model, data, class schedule."""
        found: dict[str, Any] = json.loads(self._origin("settings"))
        return found

    def provenance(self) -> "pd.DataFrame":
        """Return the ledger: one line per (series position, block, part), in order of the series. **Eager**.

        Returns
        -------
        DataFrame
            Indexed by the series (epoch or step), ``block`` and ``part``. ``state`` is done or failed; ``key`` the
            sha256 of all that the numbers depend on; ``current`` whether the settings are those of the cube now (else
            the entry opens as NaN); ``seconds`` what the row took; ``time`` when it was written
            (UTC); ``error`` why it failed; and what is known of checkpoint, versions and device, one column each.

        Raises
        ------
        StoreError
            If the store, or the snapshot that the Dataset was opened at, is no longer there.
        """
        import pandas as pd

        ledger = self._ledger()
        lines = []
        for row in ledger.rows():
            known = json.loads(row.provenance) if row.provenance else {}
            lines.append(
                {ledger.series: row.position, "block": row.block, "part": row.part, "state": row.state}
                | {"key": row.key, "current": row.current}
                | known
                | {"seconds": row.seconds, "time": row.time, "error": row.error}
            )
        index = [ledger.series, "block", "part"]
        frame = pd.DataFrame(
            lines, columns=None if lines else [*index, "state", "key", "current", "seconds", "time", "error"]
        )
        frame["time"] = pd.to_datetime(frame["time"], unit="s", utc=True)
        return frame.set_index(index)

    @property
    def history(self) -> "pd.DataFrame":
        """The commits that led to the snapshot, newest first: snapshot, time (UTC), message. **Eager**."""
        import pandas as pd

        from neurolens.store.repository import explained, open_repository

        url = self._origin("url")
        repository = open_repository(url, **self._server())
        with explained(url):
            infos = list(repository.ancestry(snapshot_id=self.snapshot))
        lines = [{"snapshot": i.id, "time": i.written_at, "message": i.message} for i in infos]
        return pd.DataFrame(lines, columns=["snapshot", "time", "message"])

    def _ledger(self) -> "Ledger":
        from neurolens.store.ledger import read_ledger
        from neurolens.store.repository import explained

        url = self._origin("url")
        opened = open_at(url, snapshot=self.snapshot, **self._server())
        with explained(url):
            return read_ledger(opened.root, self._origin("cube"), self.snapshot)

    def _server(self) -> dict[str, Any]:
        return {key: self._data.attrs[key] for key in ("endpoint", "region") if key in self._data.attrs}

    def _origin(self, key: str) -> str:
        try:
            return str(self._data.attrs[key])
        except KeyError:
            raise SchemaError(
                f"this Dataset has no attribute {key!r}, so its store is not known; take one that neurolens.open_run "
                "opened, and keep its attributes (xarray.set_options(keep_attrs=True))"
            ) from None
