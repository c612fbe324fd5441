"""Store: the one way to read a run's ledger and to write its rows."""

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import icechunk
import numpy as np
import zarr

from neurolens import schema
from neurolens.errors import StoreError, nearest
from neurolens.store import commits, layout, locks, repository, s3, transactions
from neurolens.store.ledger import Ledger, array_in, group_in, read_ledger, readings, settings_of
from neurolens.store.locks import RowId
from neurolens.store.records import Axis, Layout, Prepared, SampleCoords, Snapshot


class Store:
    """The store of one run. Every read is at the tip of the history; every write is one commit.

    Opened by `open_store`. It can be pickled, and is then opened anew where it is unpickled.
    """

    def __init__(
        self,
        url: str,
        repo: icechunk.Repository,
        *,
        endpoint: str | None = None,
        region: str | None = None,
        readonly: bool = False,
    ) -> None:
        self.url = url
        self.endpoint = endpoint
        self.region = region
        self.readonly = readonly
        self.repository = repo
        self._prepared: dict[str, Prepared] = {}

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def __reduce__(self) -> tuple[Callable[..., "Store"], tuple[Any, ...]]:
        return _reopen, (self.url, self.endpoint, self.region, self.readonly, self._prepared)

    @property
    def snapshot_id(self) -> str:
        """The id of the tip."""
        with repository.explained(self.url):
            return str(self.repository.lookup_branch(repository.BRANCH))

    def root(self, *, snapshot: str | None = None, tag: str | None = None) -> tuple[zarr.Group, str]:
        """Return the root group, read-only, at the tip or at a snapshot or tag, and the id of its snapshot.

        Raises
        ------
        StoreError
            If there is no such snapshot or tag.
        """
        if tag is not None:
            known = self.tags()
            if tag not in known:
                raise StoreError(f"{self.url}: there is no tag {tag!r}; {nearest(tag, known)}")
            snapshot = known[tag]
        with repository.explained(self.url):
            branch = None if snapshot else repository.BRANCH
            session = self.repository.readonly_session(branch, snapshot_id=snapshot)
            try:
                root = zarr.open_group(session.store, mode="r", use_consolidated=False)
            except FileNotFoundError:
                raise StoreError(
                    f"{self.url}: this icechunk repository was not written by neurolens; name another place"
                ) from None
            return root, str(session.snapshot_id)

    def attributes(self) -> dict[str, Any]:
        """Return what the root says: format, run (None before any cube was prepared) and version.

        Raises
        ------
        StoreError
            If another program made this repository.
        """
        root, _ = self.root()
        own: Any = root.attrs.get("neurolens")
        if not isinstance(own, dict):
            raise StoreError(f"{self.url}: this icechunk repository was not written by neurolens; name another place")
        return dict(own)

    def check_writable(self) -> None:
        """Raise StoreError if this process may not write here."""
        if repository.is_s3(self.url):
            return
        path = repository.local_path(self.url)
        with repository.explained(self.url):
            for folder in (path, path / "refs", locks.side_folder(path)):
                tempfile.TemporaryFile(dir=folder).close()

    def layout(self, cube: str) -> Layout | None:
        """Return how a cube's samples lie at the tip, None if the store does not hold the cube."""
        root, _ = self.root()
        return layout.read_layout(root, cube)

    def propose(
        self,
        cube: schema.Cube,
        *,
        run: str,
        series: str,
        samples: SampleCoords | None = None,
        settings: Mapping[str, Any],
        exposure: Mapping[int, Sequence[int]] | None = None,
        variables: Iterable[str] | None = None,
        positions: Iterable[int] | None = None,
        axes: Mapping[str, Axis] = MappingProxyType({}),
        block_samples: int | None = None,
        fingerprint: str | None = None,
        encodings: Mapping[str, str] = MappingProxyType({}),
    ) -> Layout:
        """Return the layout that `prepare` would leave, writing nothing; its ``change`` says what would change."""
        wanted = layout.wanted(
            cube,
            run,
            series,
            samples,
            settings,
            exposure,
            variables,
            positions,
            axes,
            block_samples,
            fingerprint,
            encodings,
        )
        root, _ = self.root()
        return layout.propose(root, wanted)

    def prepare(
        self,
        cube: schema.Cube,
        *,
        run: str,
        series: str,
        samples: SampleCoords | None = None,
        settings: Mapping[str, Any],
        exposure: Mapping[int, Sequence[int]] | None = None,
        variables: Iterable[str] | None = None,
        positions: Iterable[int] | None = None,
        axes: Mapping[str, Axis] = MappingProxyType({}),
        block_samples: int | None = None,
        fingerprint: str | None = None,
        encodings: Mapping[str, str] = MappingProxyType({}),
    ) -> Layout:
        """Make the cube's group what the run wants, in one commit, or in none if it is so already.

        Samples that are new are appended as blocks; existing ones keep their place, whatever the order given.
        Removed samples, changed labels or classes, another main axis (one that the cube's first part lies along:
        ``unit``), or a changed dtype start a new generation of the group: the old one stays readable at
        ``previous_snapshot``. Where another axis changed, what lies along it is removed, and its parts are absent.
        Changed coordinates and settings are updated in place.

        Parameters
        ----------
        run
            Name of the run; a store holds one.
        series
            ``epoch`` or ``step``.
        samples
            Of a cube that has the dim ``sample``: its rows are kept in blocks of them. Others pass ``fingerprint``.
        settings
            JSON-able description, kept with the group; ``parts`` maps each measured part to its settings, and says
            which arrays are made.
        exposure
            Class schedule: first epoch → the classes that count as shown from there on.
        variables
            Make arrays for these only (an import may bring fewer than its parts declare).
        positions
            The series positions that the study names. At others, what is done under the settings of now stays; what
            failed, or was measured under other settings, is no longer shown, until the study names it again.
        axes
            The other dims of the measured variables: ids, and coordinates along them. Axes left out stay as they are.
        block_samples
            Cut samples into blocks of at most this many, at ends of chunks; absent: a block per growth. What is
            stored keeps its blocks.
        fingerprint
            Of the samples that rows without a dim ``sample`` are measured on.
        encodings
            Variable → ``float16`` or ``float32-bitround10``, where it is not stored as the schema declares.

        Raises
        ------
        StoreError
            If the store holds another run, or the cube's series is the other one.
        SchemaError
            If ids repeat, shapes or labels do not fit, an axis is missing, or a name is unknown.
        """
        wanted = layout.wanted(
            cube,
            run,
            series,
            samples,
            settings,
            exposure,
            variables,
            positions,
            axes,
            block_samples,
            fingerprint,
            encodings,
        )
        root, _ = self.root()
        proposed = layout.propose(root, wanted)
        changed = proposed.change
        if changed:
            self.transact(f"{cube.name}: {changed}", lambda root, tip: layout.apply(root, wanted, tip))
            root, _ = self.root()
        result = layout.read_layout(root, cube.name, changed)
        assert result is not None
        known = {**settings_of(group_in(root, cube.name)), **settings}
        self._prepared[cube.name] = Prepared(result.generation, readings(known))
        return result

    def ledger(self, cube: str) -> Ledger:
        """Return the ledger of a cube at the tip; empty if the store does not hold the cube. A pure read."""
        root, snapshot = self.root()
        with repository.explained(self.url):
            return read_ledger(root, cube, snapshot)

    def axis(self, cube: str, dim: str) -> np.ndarray:
        """Return the stored ids of a cube's axis; empty if the store does not hold it."""
        root, _ = self.root()
        group = root.get(cube)
        if not isinstance(group, zarr.Group) or dim not in group:
            return np.zeros(0, dtype=np.int64)
        return np.asarray(array_in(group, dim)[:])

    def read_row(self, cube: str, row: RowId, names: Iterable[str]) -> dict[str, np.ndarray]:
        """Return variables of one row as they are stored, whatever the ledger says, where there is an array."""
        root, _ = self.root()
        with repository.explained(self.url):
            return commits.read_row(group_in(root, cube), row, names)

    @contextlib.contextmanager
    def claim(self, cube: str, rows: Sequence[RowId]) -> Iterator[frozenset[RowId]]:
        """Claim rows without waiting, and yield those won; read the ledger again before computing them.

        Another process or thread cannot win them until the block is left; the kernel frees them if this process dies
        (on S3 they lapse some time after).
        """
        self._require_writable()
        if repository.is_s3(self.url):
            claims = s3.claim_rows(self.url, cube, rows, endpoint=self.endpoint, region=self.region)
        else:
            claims = locks.claim_rows(repository.local_path(self.url), cube, rows)
        with claims as won:
            yield won

    def write_row(
        self,
        cube: schema.Cube,
        row: RowId,
        *,
        positions: Mapping[str, int | None],
        values: Mapping[str, np.ndarray],
        keys: Mapping[str, str],
        seconds: float,
        provenance: Mapping[str, Any],
        generation: int | None = None,
    ) -> str:
        """Commit one row: data, sums per class and ledger entries at once; return the snapshot's id.

        Parameters
        ----------
        row
            (series position, block).
        positions
            ``{"epoch": e, "step": s}``; None where unknown, except in the series' own.
        values
            Variable → array of its dims but the series: the block's samples in its order, the axes in theirs.
            Of the parts in ``keys``, variables without a value are set to *not measured*; other parts are left as
            they are.
        keys
            Part → sha256 in hex.
        generation
            The generation the row was measured for; absent: the one this object prepared, if it did.

        Raises
        ------
        SchemaError
            If names, shapes, dtypes or keys do not fit.
        StoreError
            If the cube was not prepared, its samples were changed meanwhile, or the commit is not possible.
        """
        prepared = self._prepared.get(cube.name, Prepared())
        generation = prepared.generation if generation is None else generation
        entry = commits.Row(cube, row, positions, keys, provenance, values, seconds, generation, prepared.readings)
        commits.check(entry)
        return self.transact(entry.message, lambda root, _: commits.write_done(root, entry))

    def write_failure(
        self,
        cube: schema.Cube,
        row: RowId,
        *,
        positions: Mapping[str, int | None],
        keys: Mapping[str, str],
        error: str,
        provenance: Mapping[str, Any],
        generation: int | None = None,
    ) -> str:
        """Record that parts of a row failed, and why; return the snapshot's id.

        What is done under the same key stays done. What is done under another key is stale: it becomes failed and
        reads as not measured from now on (the history keeps it).
        """
        prepared = self._prepared.get(cube.name, Prepared())
        generation = prepared.generation if generation is None else generation
        given = prepared.readings
        entry = commits.Row(cube, row, positions, keys, provenance, {}, generation=generation, readings=given)
        commits.check(entry)
        return self.transact(f"{entry.message} failed", lambda root, _: commits.write_failed(root, entry, error))

    def transact(self, message: str, write: Callable[[zarr.Group, str], object]) -> str:
        """Run ``write(root, tip)`` on a session at the tip, commit it, and return the id of the new tip.

        Locally this holds the commit lock. On S3 other writers are met by rebasing; where both changed the same
        thing, ``write`` is called again on the new tip, so it must depend on nothing but its arguments.

        Raises
        ------
        StoreError
            If the store is read-only, or the commit does not succeed.
        """
        self._require_writable()
        return transactions.transact(self.repository, self.url, message, write)

    def tag(self, name: str, snapshot: str | None = None) -> str:
        """Name a snapshot (the tip, if none is given) for good, and return its id.

        Raises
        ------
        StoreError
            If the name is taken or is no name, or there is no such snapshot.
        """
        self._require_writable()
        if not name.strip() or "/" in name:
            raise StoreError(f"{self.url}: {name!r} cannot be a tag; give a name without '/', such as 'thesis-v1'")
        taken = self.tags()
        if name in taken:
            raise StoreError(f"{self.url}: tag {name!r} names snapshot {taken[name]} already; choose another name")
        _, snapshot = self.root(snapshot=snapshot)
        with repository.explained(self.url):
            self.repository.create_tag(name, snapshot)
        return snapshot

    def tags(self) -> dict[str, str]:
        """Return every tag and the id of its snapshot, by name."""
        with repository.explained(self.url):
            return {t: str(self.repository.lookup_tag(t)) for t in sorted(self.repository.list_tags())}

    def history(self) -> Iterator[Snapshot]:
        """Go through the committed snapshots, newest first."""
        with repository.explained(self.url):
            for info in self.repository.ancestry(branch=repository.BRANCH):
                yield Snapshot(info.id, info.written_at, info.message)

    def _require_writable(self) -> None:
        if self.readonly:
            raise StoreError(f"{self.url}: the store was opened with readonly=True; open it without to write")


def _reopen(url: str, endpoint: str | None, region: str | None, readonly: bool, prepared: dict[str, Prepared]) -> Store:
    from neurolens.store.opening import open_store

    store = open_store(url, endpoint=endpoint, region=region, readonly=readonly)
    store._prepared.update(prepared)
    return store
