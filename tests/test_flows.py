import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import conftest
import pytest
from distributed import LocalCluster
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_API_URL, temporary_settings

from neurolens import rows
from neurolens.errors import StudyError
from neurolens.flows import registry, running
from neurolens.flows.refresh import refresh
from neurolens.flows.samples import samples
from neurolens.flows.train import train
from neurolens.study import Study, load_study

MakeStudy = Callable[..., Path]


class Ear:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.plans: list[rows.Plan] = []
        self.results: list[rows.Result] = []
        self.epochs: list[int] = []

    def planned(self, plan: rows.Plan) -> None:
        self.plans.append(plan)

    def finished(self, result: rows.Result) -> None:
        self.results.append(result)

    def trained(self, epoch: int, epochs: int, figures: dict[str, float]) -> None:
        self.epochs.append(epoch)


def run(study: Study) -> tuple[State[Any], Ear]:
    ear = Ear()
    with running.listening(ear):
        state: State[Any] = samples(study, return_state=True)
    return state, ear


def task_states(state: State[Any]) -> list[tuple[str, str, str]]:
    """Return the name, state and message of each task run of a flow run."""
    flow_run = state.state_details.flow_run_id
    assert flow_run is not None
    with get_client(sync_client=True) as client:
        wanted = FlowRunFilter(id=FlowRunFilterId(any_=[UUID(str(flow_run))]))
        found = client.read_task_runs(flow_run_filter=wanted)
    return sorted((run.name, run.state.name, run.state.message or "") for run in found if run.state is not None)


@pytest.mark.usefixtures("prefect_server")
def test_samples__waits_for_its_tasks_without_an_alarm(make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    """One would raise wherever the main thread is then: in a handler of Ctrl-C too, or with a lock in hand."""
    alarms = []
    monkeypatch.setattr(signal, "setitimer", lambda *args: alarms.append(args) or (0.0, 0.0))
    monkeypatch.setattr(running, "UPDATE_S", 0.0)
    state, ear = run(load_study(make_study(checkpoints=2)))
    assert state.is_completed()
    assert len(ear.results) == 2
    assert alarms == []


@pytest.mark.usefixtures("prefect_server")
def test_samples__measures_and_then_shows_cached(make_study: MakeStudy) -> None:
    study = load_study(make_study(checkpoints=3))
    state, ear = run(study)
    assert state.is_completed()
    assert state.result() == study.store.url
    assert sorted(result.row.position for result in ear.results) == [0, 1, 2]
    conftest.write_checkpoint(study.checkpoints.folder.parent, 3)
    state, ear = run(study)
    assert [result.row.position for result in ear.results] == [3]
    assert [(name, found) for name, found, _ in task_states(state)][-1][1] == "Cached"
    state, ear = run(study)
    assert ear.results == []
    ((_, name, message),) = task_states(state)
    assert (name, message) == ("Cached", "4 rows are up to date")


@pytest.mark.usefixtures("prefect_server")
def test_samples__fails_with_the_list_where_a_row_failed(make_study: MakeStudy) -> None:
    path = make_study(checkpoints=3)
    (path.parent / "checkpoints" / "epoch_1.pt").write_text("nothing")
    state, ear = run(load_study(path))
    assert state.is_failed()
    assert state.message is not None
    assert "2 rows computed" in state.message
    assert "epoch 1:" in state.message
    assert sorted(result.outcome for result in ear.results) == ["computed", "computed", "failed"]


@pytest.mark.usefixtures("prefect_server")
def test_samples__tries_again_after_an_io_error(make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    study = load_study(make_study(checkpoints=2))
    measure, tries = rows.measure_row, []

    def flaky(materials: rows.Materials, row: rows.Row, *rest: Any) -> Any:
        tries.append(row.position)
        if tries.count(row.position) == 1 and row.position == 1:
            raise OSError(5, "Input/output error")
        return measure(materials, row, *rest)

    monkeypatch.setattr("neurolens.rows.working.measure_row", flaky)
    monkeypatch.setattr(running, "BACKOFF_SECONDS", 0.05)
    state, _ = run(study)
    assert state.is_completed()
    assert sorted(tries) == [0, 1, 1]


@pytest.mark.usefixtures("prefect_server")
def test_samples__records_an_io_error_that_stays(make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    study = load_study(make_study(checkpoints=1), overrides=("compute.retries=1",))
    tries = []

    def broken(*args: Any) -> Any:
        tries.append(args)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("neurolens.rows.working.measure_row", broken)
    monkeypatch.setattr(running, "BACKOFF_SECONDS", 0.05)
    state, _ = run(study)
    assert state.is_failed()
    assert len(tries) == 2
    (row,) = rows.plan(rows.gather(study), rows.open_for_reading(study)).todo
    assert (row.state, row.why) == ("failed", "[Errno 5] Input/output error")


@pytest.mark.usefixtures("prefect_server")
def test_refresh__reads_the_study_file_at_every_run(make_study: MakeStudy) -> None:
    path = make_study(checkpoints=2)
    assert refresh(file=str(path)) == load_study(path).store.url
    path.write_text(path.read_text() + "curvature = true\ncurvature_draws = 1\n")
    refresh(file=str(path))
    ledger = rows.open_for_writing(load_study(path)).ledger("samples")
    assert ledger.entry(1, 0, "curvature").state == "done"


@pytest.mark.usefixtures("prefect_server")
def test_refresh__fails_where_a_flow_failed(make_study: MakeStudy) -> None:
    path = make_study(checkpoints=2)
    (path.parent / "checkpoints" / "epoch_1.pt").write_text("nothing")
    state: State[Any] = refresh(study=load_study(path), return_state=True)
    assert state.is_failed()
    assert state.message is not None
    assert "epoch 1" in state.message


@pytest.mark.usefixtures("prefect_server")
def test_samples__runs_on_a_dask_cluster_and_tells_of_its_rows_here(make_study: MakeStudy) -> None:
    path = make_study(checkpoints=3)
    (path.parent / "checkpoints" / "epoch_1.pt").write_text("nothing")
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
        state, ear = run(load_study(path, overrides=(f"compute.dask={cluster.scheduler_address}",)))
    assert state.is_failed()
    assert sorted((r.row.position, r.outcome) for r in ear.results) == [(0, "computed"), (1, "failed"), (2, "computed")]


def test_server_for_workers__is_not_a_temporary_one_for_a_cluster_elsewhere(make_study: MakeStudy) -> None:
    study = load_study(make_study(), overrides=("compute.dask=tcp://cluster.example:8786",))
    with (
        temporary_settings(restore_defaults={PREFECT_API_URL}),
        pytest.raises(StudyError, match="PREFECT_API_URL"),
        running.server_for_workers(study),
    ):
        pass


def test_refresh__needs_one_study() -> None:
    with pytest.raises(StudyError, match="exactly one"):
        refresh.fn()


@pytest.mark.usefixtures("prefect_server")
def test_train__tells_of_epochs_and_is_then_cached(make_study: MakeStudy) -> None:
    text = conftest.STUDY + "[train]\nepochs = 2\nbatch_size = 16\nlr = 0.01\n"
    study = load_study(make_study(checkpoints=0, text=text))
    ear = Ear()
    with running.listening(ear):
        first: State[Any] = train(study, return_state=True)
        second: State[Any] = train(study, return_state=True)
    assert ear.epochs == [1, 2]
    assert (first.name, second.name) == ("Completed", "Cached")
    assert sorted(p.name for p in study.checkpoints.folder.glob("*.pt") if not p.name.startswith(".")) == [
        "epoch_0.pt",
        "epoch_1.pt",
        "epoch_2.pt",
    ]


@pytest.mark.parametrize("count", [1, 7, 45, 46, 50, 4000])
def test_groups__are_few_enough_for_prefect_and_cover_each_row_once(count: int) -> None:
    todo = [rows.Row(i, 0, i, None, Path(f"epoch_{i}.pt"), "", {}, ("forward",), "missing") for i in range(count)]
    found = running.groups(todo, "epoch")
    assert len(found) <= 45
    members: Sequence[rows.Row] = [row for _, group in found for row in group]
    assert list(members) == todo


@pytest.mark.parametrize("name", ["train", "samples", "refresh"])
def test_load__finds_flows_by_entry_point(name: str) -> None:
    assert registry.load([name])[name].name == name


def test_find__names_the_nearest_flow() -> None:
    with pytest.raises(StudyError, match="'samples'"):
        registry.find(["sample"])


def test_refresh__tells_in_the_form_what_each_parameter_is() -> None:
    properties = refresh.parameters.model_dump()["properties"]
    assert next(iter(properties)) == "file"
    assert all(shown.get("description") for shown in properties.values())


@pytest.mark.usefixtures("prefect_server")
def test_refresh__is_named_by_its_study_and_keeps_artifacts_apart(make_study: MakeStudy) -> None:
    found = []
    for name in ("one", "Other run"):
        path = make_study(name.split()[0], checkpoints=1)
        path.write_text(path.read_text().replace('name = "tiny"', f'name = "{name}"'))
        state: State[Any] = refresh(file=str(path), return_state=True)
        assert str(state.message) == "samples: 1 rows computed, 0 up to date, 0 failed"
        with get_client(sync_client=True) as client:
            run_id = state.state_details.flow_run_id
            assert run_id is not None
            assert client.read_flow_run(run_id).name == f"refresh of {path}"
            found.append({artifact.key for artifact in client.read_latest_artifacts()})
    assert found[0] >= {"one-samples-rows", "one-samples-figures", "one-samples-progress", "one-report"}
    assert found[1] - found[0] >= {"other-run-samples-rows", "other-run-samples-figures", "other-run-report"}


def test_refresh__needs_something_to_measure(make_study: MakeStudy) -> None:
    path = make_study()
    path.write_text(path.read_text().replace("[samples]\n", ""))
    with pytest.raises(StudyError, match=r"add a \[samples\] table"):
        refresh.fn(file=str(path))


@pytest.mark.parametrize("flow", [samples, train, refresh])
def test_flows__describe_their_parameters(flow: Any) -> None:
    schema = flow.parameters.model_dump_for_openapi() if hasattr(flow.parameters, "model_dump_for_openapi") else {}
    assert "study" in (schema or flow.parameters.model_dump())["properties"]
