"""``ds.lens``: the reductions, the settings and the provenance of an opened cube, as methods.

Registered when a store is opened; for a hand-made Dataset, import this module.
"""

import json
from typing import TYPE_CHECKING, Any

import xarray as xr

from neurolens.backend import open_at
from neurolens.errors import SchemaError

if TYPE_CHECKING:
    import pandas as pd

    from neurolens.store.ledger import Ledger


@xr.register_dataset_accessor("lens")  # type: ignore[no-untyped-call]
class Lens:
    """The methods behind ``ds.lens``; every reduction takes the options of the function of the same name."""

    def __init__(self, data: xr.Dataset) -> None:
        self._data = data

    def csl(self, **options: Any) -> Any:
        """Cumulative sample loss: `neurolens.csl`."""
        from neurolens import samples

        return samples.csl(self._data, **options)

    def learning_time(self, **options: Any) -> Any:
        """Learning time: `neurolens.learning_time`."""
        from neurolens import samples

        return samples.learning_time(self._data, **options)

    def aum(self, **options: Any) -> Any:
        """Area under the margin: `neurolens.aum`."""
        from neurolens import samples

        return samples.aum(self._data, **options)

    def forgetting(self, **options: Any) -> Any:
        """Forgetting events, first learned, never learned: `neurolens.forgetting`."""
        from neurolens import samples

        return samples.forgetting(self._data, **options)

    def cartography(self, **options: Any) -> Any:
        """Confidence, variability, correctness: `neurolens.cartography`."""
        from neurolens import samples

        return samples.cartography(self._data, **options)

    def csg(self, **options: Any) -> Any:
        """Cumulative squared gradient norm: `neurolens.csg`."""
        from neurolens import samples

        return samples.csg(self._data, **options)

    def agreement(self, *scores: Any, **options: Any) -> Any:
        """Rank correlations between scores per sample: `neurolens.agreement`."""
        from neurolens import samples

        return samples.agreement(*scores, **options)

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
            sha256 of all that the numbers depend on; ``seconds`` what the row took; ``time`` when it was written
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
                {ledger.series: row.position, "block": row.block, "part": row.part, "state": row.state, "key": row.key}
                | known
                | {"seconds": row.seconds, "time": row.time, "error": row.error}
            )
        index = [ledger.series, "block", "part"]
        frame = pd.DataFrame(lines, columns=None if lines else [*index, "state", "key", "seconds", "time", "error"])
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
