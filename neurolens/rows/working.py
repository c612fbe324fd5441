"""How rows are claimed, measured and written, each in one commit. Safe to kill at any time."""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from neurolens import __version__, schema
from neurolens.errors import ModelMismatchError, NeurolensError, StoreError
from neurolens.rows.completing import Completing
from neurolens.rows.leaving_out import UNNAMED, filled_up
from neurolens.rows.materials import MEASURES, Materials, threads
from neurolens.rows.planning import Row, prepare
from neurolens.rows.reference import referred

if TYPE_CHECKING:
    from neurolens.data import SampleSet
    from neurolens.store import LedgerRow, Store

Outcome = Literal["computed", "shared", "failed", "io_error"]
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Result:
    """What became of one row: computed here, shared (done by another run meanwhile), failed, or hit an I/O error."""

    row: Row
    outcome: Outcome
    seconds: float = 0.0
    why: str = ""


def run_rows(
    materials: Materials,
    rows: Sequence[Row],
    store: "Store",
    *,
    report: Callable[[Result], None] = lambda result: None,
    record_io_errors: bool = True,
    workers: int | None = None,
) -> list[Result]:
    """Claim, measure and write rows, each in its own commit, and return what became of each.

    A row that another run holds is left for later; it is then found done, or taken over if that run died. A row whose
    input is bad fails with its reason in the ledger, and the others go on. It is safe to kill this at any time.

    Parameters
    ----------
    materials, store
        From `gather` and :func:`open_for_writing`. The store is prepared, if it is not yet.
    rows
        Rows of a plan.
    report
        Called with each result as it comes, from the thread that worked on it.
    record_io_errors
        Whether a row that met an I/O error fails in the ledger. False leaves it as it was, with outcome ``io_error``,
        for a caller that will try again.
    workers
        Rows measured at once; default ``compute.workers``.

    Raises
    ------
    StoreError
        If the store cannot be written: no row can be kept, so the run ends.
    """
    stop = materials.stop
    started = time.time()
    blocks = prepare(materials, store)
    bench = _Bench(materials, store, blocks, started, record_io_errors)
    results: list[Result] = []
    pending = list(rows)
    with ThreadPoolExecutor(workers or materials.study.compute.workers, "rows", bench.set_threads) as pool:
        try:
            while pending and not stop.is_set():
                busy: list[Row] = []
                running = {pool.submit(bench.work, row): row for row in pending}
                while running:
                    finished, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in finished:
                        row, result = running.pop(future), future.result()
                        if result is None:
                            busy.append(row)
                        else:
                            results.append(result)
                            report(result)
                pending = busy
                if pending and not stop.is_set():
                    time.sleep(POLL_SECONDS)
        except BaseException:
            stop.set()
            raise
    return results


@dataclass(frozen=True)
class _Bench:
    """Where workers measure rows; ``started`` tells this run's failures from older ones."""

    materials: Materials
    store: "Store"
    blocks: Sequence["SampleSet"]
    started: float
    record_io_errors: bool

    def set_threads(self) -> None:
        """Give this worker its share of the cores."""
        import torch

        torch.set_num_threads(threads(self.materials.study.compute))

    def work(self, row: Row) -> Result | None:
        """Bring one row up to date; None if another run holds it, or if it is time to stop."""
        if self.materials.stop.is_set():
            return None
        with self.store.claim(self.materials.cube, [row.id]) as won:
            if row.id not in won:
                return None
            ledger = self.store.ledger(self.materials.cube)
            entries = {part: ledger.entry(*row.id, part) for part in row.keys}
            missing = tuple(p for p, e in entries.items() if (e.state, e.key) != ("done", row.keys[p]))
            if not missing:
                return Result(row, "shared")
            for part in missing:
                entry = entries[part]
                if entry.state == "failed" and entry.key == row.keys[part] and entry.time >= self.started:
                    return Result(row, "failed", entry.seconds, entry.error)
            return self._measure(row, missing, entries)

    def _measure(self, row: Row, missing: tuple[str, ...], entries: Mapping[str, "LedgerRow"]) -> Result:
        materials, keeping = self.materials, frozenset(row.sets)
        cube = schema.CUBES[materials.cube]
        began = time.perf_counter()
        keys = {part: row.keys[part] for part in missing}
        positions = {dim: value for dim, value in (("epoch", row.epoch), ("step", row.step)) if value is not None}
        try:
            completing = Completing(materials, row, missing, entries, self.store)
            keeping = completing.keeping
            measured = measure_row(materials, row, missing, self.blocks[row.block], **completing.given)
            values = filled_up(cube, completing.whole(measured), row.unnamed)
        except (NeurolensError, OSError) as error:
            seconds, why = time.perf_counter() - began, str(error)
            if may_pass(error) and not self.record_io_errors:
                return Result(row, "io_error", seconds, why)
            keys = {part: wanted for part, wanted in keys.items() if part not in keeping}  # a failure would end those
            if {entries[part].error for part in keys} - {why}:  # the same failure again is no news for the history
                self.store.write_failure(
                    cube, row.id, positions=positions, keys=keys, error=why, provenance=provenance(materials, row)
                )
            return Result(row, "failed", seconds, why)
        seconds = time.perf_counter() - began
        self.store.write_row(
            cube,
            row.id,
            positions=positions,
            values=values,
            keys=keys,
            seconds=seconds,
            provenance={**provenance(materials, row), **completing.told},
        )
        return Result(row, "computed", seconds)


def measure_row(
    materials: Materials, row: Row, parts: Sequence[str], samples: "SampleSet", **more: Any
) -> dict[str, np.ndarray]:
    """Measure some parts of one row: the checkpoint on the samples of its block.

    Parameters
    ----------
    more
        What the measuring module is told besides.

    Returns
    -------
    variable name -> (sample of the block,) array in the schema's dtype.

    Raises
    ------
    CheckpointError, ModelMismatchError
        If the file changed since the plan, cannot be read safely, or does not fit the network.
    NonFiniteError
        If a weight, or a measured number, is NaN or infinite.
    """
    from neurolens import checkpoints

    table, measure = materials.study.checkpoints, import_module(MEASURES[materials.cube])
    allowed = getattr(materials.table, "allow_non_finite", False)
    given: dict[str, Any] = {} if materials.asked is None else {"layers": materials.layers, "units": row.asked}
    given |= {} if materials.phrases is None else materials.phrases.given(row.position, row.phrases)
    given |= more
    with materials.network() as network:
        try:
            reference = referred(materials, network)
            given |= {} if reference is None else {"reference": reference}
            left_out = checkpoints.load(network.module, row.path, table, digest=row.digest, allow_non_finite=allowed)
            materials.left_out[row.path] = left_out
            numbers: dict[str, np.ndarray] = measure.measure(
                network,
                samples,
                parts=tuple(parts),
                table=materials.table,
                batch_size=materials.study.compute.batch_size,
                device=materials.device,
                **given,
            )
            checkpoints.require_unchanged(row.path, row.digest)  # the network's tensors may be the file's memory
        except RuntimeError as error:  # what torch raises for wrong shapes and for too little memory
            reason = str(error).strip().partition("\n")[0]
            raise ModelMismatchError(
                f"{row.path}: {materials.study.model.name!r} could not be run on {materials.samples.name!r} "
                f"({reason}); check [model.preprocessing] against the network's input, and compute.batch_size against "
                "the memory there is"
            ) from error
    return numbers


def may_pass(error: BaseException) -> bool:
    """Tell whether an error is of input or output, and so may be gone at another try."""
    cause = error.__cause__ if isinstance(error, NeurolensError) else error
    lasting = FileNotFoundError | PermissionError | IsADirectoryError | NeurolensError
    return isinstance(cause, OSError) and not isinstance(error, StoreError) and not isinstance(cause, lasting)


def provenance(materials: Materials, row: Row) -> dict[str, Any]:
    """Return where and with what a row was measured."""
    import torch

    transformer = materials.study.model.transformers
    held = "float32" if transformer is None else transformer.dtype
    return {
        "checkpoint": str(row.path),
        "digest": row.digest,
        "device": materials.device,
        "dtype": "bfloat16" if getattr(materials.table, "bf16", False) else held,
        **({"cotangents": cotangents} if (cotangents := getattr(materials.table, "cotangents", None)) else {}),
        **({"reference": str(materials.reference.path)} if materials.reference is not None else {}),
        "threads": torch.get_num_threads(),
        **({UNNAMED: list(row.unnamed)} if row.unnamed else {}),
        **({"left_out": list(left_out)} if (left_out := materials.left_out.get(row.path)) else {}),
        "versions": {"neurolens": __version__, "torch": torch.__version__, "numpy": np.__version__},
    }
