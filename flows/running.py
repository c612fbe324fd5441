"""What every flow shares: groups of rows as tasks, retries, who is told of progress, and what the UI shows."""

import contextlib
import math
import queue
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import urlsplit

from prefect import task
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.concurrency.sync import concurrency
from prefect.futures import PrefectFuture
from prefect.runtime import task_run
from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings
from prefect.states import Completed, Failed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from prefect.tasks import exponential_backoff

from neurolens import rows
from neurolens.errors import DataError, MissingExtraError, StudyError
from neurolens.flows.figures import key_figures
from neurolens.study import Study

MAX_TASKS = 45  # with 100 task runs in a flow run, Prefect on SQLite answers 503; with 50 it does not
MAX_TABLE = 500
GPU_LIMIT = "neurolens-gpu"  # tasks on a GPU take one slot of this concurrency limit, where there is one
BACKOFF_SECONDS = 2.0
UPDATE_S = 1.0  # between two updates of the progress that the UI shows
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Listener(Protocol):
    """Who is told, in the process that runs the flow, of what it does."""

    def planned(self, plan: rows.Plan) -> None:
        """Hear of a cube's plan before its rows are measured."""

    def finished(self, result: rows.Result) -> None:
        """Hear of a row's result; called from the thread that worked on it."""

    def trained(self, epoch: int, epochs: int, figures: dict[str, float]) -> None:
        """Hear of a finished epoch of training."""


_listeners: list[Listener] = []


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Tell ``listener`` of what flows do in this process."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def listeners() -> tuple[Listener, ...]:
    """Return who is listening now."""
    return tuple(_listeners)


class _Tally:
    """Collects the results of one flow run: the first one of each row counts."""

    def __init__(self) -> None:
        self.results: dict[tuple[int, int], rows.Result] = {}

    def planned(self, plan: rows.Plan) -> None:
        """Nothing to collect."""

    def finished(self, result: rows.Result) -> None:
        """Keep the result of a row, unless it is known or will be tried again."""
        if result.outcome != "io_error":
            self.results.setdefault(result.row.id, result)

    def trained(self, epoch: int, epochs: int, figures: dict[str, float]) -> None:
        """Nothing to collect."""


_opened: dict[tuple[str, str, str], rows.Materials] = {}
_opening = threading.Lock()


def opened(study: Study, cube: str, fingerprint: str) -> rows.Materials:
    """Return the materials of a cube, opened once per process for a study and the content of its samples."""
    wanted = (study.model_dump_json(), cube, fingerprint)
    with _opening:
        if wanted not in _opened:
            keep(rows.gather(study, cube))
        if wanted not in _opened:
            raise DataError(f"the data of study {study.name!r} changed while the flow was starting; run it again")
        return _opened[wanted]


def keep(materials: rows.Materials) -> None:
    """Let the tasks of this process use materials that are open already; one set at a time is kept."""
    _opened.clear()
    _opened[materials.study.model_dump_json(), materials.cube, materials.samples.fingerprint] = materials


def task_runner(study: Study) -> TaskRunner[Any]:
    """Return the runner that a study asks for: threads here, or an existing dask cluster.

    Raises
    ------
    MissingExtraError
        If the study names a dask cluster and prefect-dask is absent.
    """
    if study.compute.dask is None:
        return ThreadPoolTaskRunner(max_workers=study.compute.workers)
    try:
        from prefect_dask.task_runners import DaskTaskRunner
    except ImportError as error:
        raise MissingExtraError.of("prefect-dask", "dask", "compute.dask") from error
    return DaskTaskRunner(address=study.compute.dask)


@contextlib.contextmanager
def server_for_workers(study: Study) -> Iterator[None]:
    """Have the workers of a dask cluster talk to the Prefect server of this run, and not start one each.

    Raises
    ------
    StudyError
        If that server is a temporary one, which only this machine reaches, and the cluster is elsewhere.
    """
    if study.compute.dask is None or get_current_settings().api.url is not None:
        yield
        return
    from prefect.server.api.server import SubprocessASGIServer

    address = urlsplit(study.compute.dask)
    if address.scheme != "inproc" and address.hostname not in LOOPBACK:
        raise StudyError(
            f"compute.dask is {study.compute.dask!r}, and its workers cannot reach the temporary Prefect server of "
            "this run; start one with `prefect server start --host 0.0.0.0` and set PREFECT_API_URL to its address"
        )
    with temporary_settings({PREFECT_API_URL: SubprocessASGIServer().api_url}):
        yield


def retryable(task: Any, run: Any, state: State[Any]) -> bool:
    """Tell whether a failed task is worth another try: after an I/O error, and never after bad input."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, BaseException) and rows.may_pass(error)


@task(name="up to date", task_run_name="up to date", cache_policy=NO_CACHE)
def up_to_date(count: int) -> State[Any]:
    """Show the rows that were done before this run as one Cached task."""
    return Completed(name="Cached", message=f"{count} rows are up to date")


@task(name="measure", task_run_name="{label}", cache_policy=NO_CACHE, retry_condition_fn=retryable)
def measure(study: Study, cube: str, fingerprint: str, group: tuple[rows.Row, ...], label: str) -> State[Any]:
    """Measure and write a group of rows; bad input fails its row only."""
    materials = opened(study, cube, fingerprint)

    def report(result: rows.Result) -> None:
        for listener in listeners():
            listener.finished(result)

    last_try = (task_run.run_count or 1) > study.compute.retries
    with concurrency(GPU_LIMIT, strict=False) if materials.device.startswith("cuda") else contextlib.nullcontext():
        results = rows.run_rows(
            materials,
            group,
            rows.open_for_writing(study),
            report=report,
            record_io_errors=last_try,
            workers=1,
        )
    troubled = [result for result in results if result.outcome == "io_error"]
    if troubled:
        raise OSError("; ".join(f"{result.row.path.name}: {result.why}" for result in troubled))
    failed = [result for result in results if result.outcome == "failed"]
    if failed:
        return Failed(message="; ".join(f"{r.row.path.name}: {r.why}" for r in failed), data=results)
    return Completed(message=f"{len(results)} rows", data=results)


def groups(todo: Sequence[rows.Row], dim: str) -> list[tuple[str, tuple[rows.Row, ...]]]:
    """Split rows into at most MAX_TASKS labelled groups of neighbours."""
    size = max(1, math.ceil(len(todo) / MAX_TASKS))
    parts = [tuple(todo[at : at + size]) for at in range(0, len(todo), size)]
    return [
        (f"{dim} {part[0].position}" + (f"–{part[-1].position}" if part[-1].id != part[0].id else ""), part)
        for part in parts
    ]


def run_cube(study: Study, cube: str) -> State[Any]:
    """Bring one cube up to date: plan, measure what is missing in groups, and show what was done.

    Returns
    -------
    Completed with the store's URL as its data; Failed with the list of rows that failed.
    """
    materials = rows.gather(study, cube)
    plan = rows.plan(materials, rows.open_for_reading(study))
    for listener in listeners():
        listener.planned(plan)
    tally = _Tally()
    with server_for_workers(study), listening(tally), task_runner(study) as runner:
        futures: list[PrefectFuture[Any]] = []
        if plan.count("done"):
            futures.append(runner.submit(up_to_date, parameters={"count": plan.count("done")}))
        if plan.todo or plan.change:  # changed settings alone decide which of the rows there are shown
            rows.prepare(materials, rows.open_for_writing(study))
        if plan.todo:
            keep(materials)
            job = measure.with_options(
                retries=study.compute.retries, retry_delay_seconds=exponential_backoff(backoff_factor=BACKOFF_SECONDS)
            )
            for label, group in groups(plan.todo, plan.series):
                parameters = {
                    "study": study,
                    "cube": cube,
                    "fingerprint": materials.samples.fingerprint,
                    "group": group,
                    "label": label,
                }
                futures.append(runner.submit(job, parameters=parameters))
        try:
            _follow(study, futures, plan, tally)
        except BaseException:
            materials.stop.set()
            raise
    return _conclude(study, plan, tally)


def artifact_key(study: Study, *names: str) -> str:
    """Return the key of an artifact: each study has its own, in the letters that Prefect allows."""
    return "-".join(filter(None, re.split("[^a-z0-9]+", "-".join((study.name, *names)).lower())))


def _follow(study: Study, futures: list[PrefectFuture[Any]], plan: rows.Plan, tally: _Tally) -> None:
    """Wait for the tasks, keep the progress artifact current, and raise what ended a task as a whole."""
    artifact: Any = create_progress_artifact(
        0.0, key=artifact_key(study, plan.cube, "progress"), description=f"rows of {plan.cube}"
    )
    ended: queue.SimpleQueue[PrefectFuture[Any]] = queue.SimpleQueue()
    for future in futures:
        future.add_done_callback(ended.put)
    pending, total = len(futures), max(1, len(plan.todo))
    while pending:
        for future in _ending(ended, pending):
            pending -= 1
            _tell(future, tally)
        update_progress_artifact(artifact, 100.0 * min(1.0, len(tally.results) / total))
    for future in futures:
        outcome = future.result(raise_on_failure=False)
        if isinstance(outcome, BaseException):
            raise outcome
    update_progress_artifact(artifact, 100.0)


def _ending(ended: "queue.SimpleQueue[PrefectFuture[Any]]", most: int) -> list[PrefectFuture[Any]]:
    """Return the tasks that end in the next second; sooner, if ``most`` of them do.

    Prefect's own `wait` with a timeout sets an alarm that raises wherever this thread is then, even in a handler of
    Ctrl-C or with a lock in hand, and takes what was raised for its own.
    """
    found: list[PrefectFuture[Any]] = []
    deadline = time.monotonic() + UPDATE_S
    with contextlib.suppress(queue.Empty):
        while len(found) < most:
            found.append(ended.get(timeout=max(0.0, deadline - time.monotonic())))
    return found


def _tell(future: PrefectFuture[Any], tally: _Tally) -> None:
    """Tell of the rows of a task that ended in another process: nobody heard of them there."""
    outcome = future.result(raise_on_failure=False)
    for result in outcome if isinstance(outcome, list) else ():
        if result.row.id not in tally.results:
            for listener in listeners():
                listener.finished(result)


def _conclude(study: Study, plan: rows.Plan, tally: _Tally) -> State[Any]:
    """Write the artifacts and return the final state."""
    results = list(tally.results.values())
    count = {outcome: sum(r.outcome == outcome for r in results) for outcome in ("computed", "shared", "failed")}
    reused = plan.count("done") + count["shared"]
    summary = f"{plan.cube}: {count['computed']} rows computed, {reused} up to date, {count['failed']} failed"
    table = [
        {
            plan.series: result.row.position,
            "block": result.row.block,
            "outcome": result.outcome,
            "parts": ", ".join(result.row.missing),
            "seconds": round(result.seconds, 3),
            "why": result.why,
        }
        for result in sorted(results, key=lambda r: r.row.id)[:MAX_TABLE]
    ]
    if table:
        create_table_artifact(table, key=artifact_key(study, plan.cube, "rows"), description=summary)
    create_markdown_artifact(
        key_figures(study, plan, summary), key=artifact_key(study, plan.cube, "figures"), description=summary
    )
    failed = [result for result in results if result.outcome == "failed"]
    if failed:
        listed = "; ".join(f"{plan.series} {r.row.position}: {r.why}" for r in failed)
        return Failed(message=f"{summary}: {listed}")
    name = "Completed" if count["computed"] else "Cached"
    return Completed(name=name, message=summary, data=study.store.url)


def link_report(study: Study) -> None:
    """Write the report of a local store beside it, and link to it."""
    if "://" in study.store.url:
        return
    from neurolens.report import write_report

    page = write_report(study.store.url, f"{study.store.url.rstrip('/')}.html", study=study)
    create_link_artifact(
        page.absolute().as_uri(),
        link_text=f"report of {study.name}",
        key=artifact_key(study, "report"),
        description=f"{page.absolute()} (a browser may refuse to follow the link: open the file itself)",
    )


def run_training(study: Study) -> State[Any]:
    """Train as the study says, telling of each epoch; the state is Cached where training was complete already."""
    from neurolens import training

    epochs = study.train.epochs if study.train is not None else 0
    artifact: Any = create_progress_artifact(
        0.0, key=artifact_key(study, "train", "progress"), description=f"epochs of {study.name}"
    )

    def tell(row: Mapping[str, float | int | None]) -> None:
        figures = {name: float(value) for name, value in row.items() if name != "epoch" and value is not None}
        for listener in listeners():
            listener.trained(int(row["epoch"] or 0), epochs, figures)
        update_progress_artifact(artifact, 100.0 * int(row["epoch"] or 0) / max(1, epochs))

    result = training.train(study, progress=tell)
    update_progress_artifact(artifact, 100.0)
    name = "Cached" if result.trained_epochs == 0 else "Completed"
    return Completed(name=name, message=result.message, data=str(study.checkpoints.folder))
