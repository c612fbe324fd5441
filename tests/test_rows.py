import os
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import conftest
import numpy as np
import pytest
import torch
import xarray as xr

import neurolens
from neurolens import refilling, rows
from neurolens.errors import MissingCheckpointError, MissingMeasurementError, StoreError
from neurolens.rows import Plan, Result
from neurolens.samples import measure as sample_measure
from neurolens.store import open_store
from neurolens.study import Study, load_study

MakeStudy = Callable[..., Path]


def plan(study: Study) -> Plan:
    return rows.plan(rows.gather(study), rows.open_for_reading(study))


def run(path: Path | Study, *overrides: str) -> list[Result]:
    study = path if isinstance(path, Study) else load_study(path, overrides=overrides)
    materials, store = rows.gather(study), rows.open_for_reading(study)
    todo = rows.plan(materials, store).todo
    return rows.run_rows(materials, todo, rows.open_for_writing(study)) if todo else []


def outcomes(results: Sequence[Result]) -> dict[tuple[int, int], str]:
    return {result.row.id: result.outcome for result in results}


def opened(path: Path) -> xr.Dataset:
    return xr.open_dataset(load_study(path).store.url, group="samples", engine="neurolens", chunks={})


def test_plan__is_a_pure_read_of_a_store_that_is_not_there(make_study: MakeStudy) -> None:
    path = make_study()
    found = plan(load_study(path))
    assert [row.state for row in found.rows] == ["missing"] * 3
    assert found.rows[0].missing == ("forward", "input_gradient")
    assert found.change == "create 24 samples"
    assert not (path.parent / "store.icechunk").exists()


def test_run_rows__computes_each_row_once(make_study: MakeStudy) -> None:
    path = make_study()
    assert outcomes(run(path)) == {(0, 0): "computed", (1, 0): "computed", (2, 0): "computed"}
    assert run(path) == []
    found = opened(path)
    assert found.epoch.values.tolist() == [0, 1, 2]
    assert not found.loss.isnull().any()


def test_run_rows__computes_a_replaced_checkpoint_only(make_study: MakeStudy) -> None:
    path = make_study()
    run(path)
    before = opened(path).loss.load()
    conftest.write_checkpoint(path.parent, 1, seed=99)
    assert [(row.position, row.state) for row in plan(load_study(path)).todo] == [(1, "stale")]
    assert outcomes(run(path)) == {(1, 0): "computed"}
    changed = (opened(path).loss != before).any("sample").values
    assert changed.tolist() == [False, True, False]


def test_run_rows__computes_a_new_checkpoint_only(make_study: MakeStudy) -> None:
    path = make_study()
    run(path)
    conftest.write_checkpoint(path.parent, 7)
    assert outcomes(run(path)) == {(7, 0): "computed"}


@pytest.mark.parametrize("override", ["compute.batch_size=5", "compute.workers=2", "compute.threads=2"])
def test_plan__does_not_depend_on_how_it_is_computed(make_study: MakeStudy, override: str) -> None:
    path = make_study()
    run(path)
    assert plan(load_study(path, overrides=(override,))).todo == ()


def test_run_rows__computes_only_the_part_that_a_setting_changes(make_study: MakeStudy) -> None:
    path = make_study()
    curved = ("samples.curvature=true", "samples.curvature_draws=2")
    run(path)
    assert {row.missing for row in plan(load_study(path, overrides=curved)).todo} == {("curvature",)}
    run(path, *curved)
    before = opened(path).load()
    other = (*curved, "samples.curvature_seed=1")
    todo = plan(load_study(path, overrides=other)).todo
    assert {(row.state, row.missing) for row in todo} == {("stale", ("curvature",))}
    run(path, *other)
    after = opened(path).load()
    assert not after.curvature.equals(before.curvature)
    xr.testing.assert_identical(after.loss.drop_attrs(), before.loss.drop_attrs())


def test_run_rows__computes_the_new_block_only_where_samples_were_added(make_study: MakeStudy) -> None:
    path = make_study()
    run(path)
    before = opened(path).load()
    conftest.write_samples(path.parent, np.arange(30))
    assert plan(load_study(path)).change == "append 6 samples"
    assert outcomes(run(path)) == {(0, 1): "computed", (1, 1): "computed", (2, 1): "computed"}
    after = opened(path).load()
    assert after.sizes["sample"] == 30
    np.testing.assert_array_equal(after.loss.values[:, :24], before.loss.values)
    assert run(path) == []


def test_run_rows__starts_a_generation_where_a_sample_was_altered(make_study: MakeStudy) -> None:
    path = make_study()
    run(path)
    url = load_study(path).store.url
    snapshot = open_store(url, readonly=True).snapshot_id
    before = opened(path).load()
    conftest.write_samples(path.parent, np.arange(24), change=3)
    assert plan(load_study(path)).change.startswith("new generation")
    assert outcomes(run(path)) == {(0, 0): "computed", (1, 0): "computed", (2, 0): "computed"}
    after = opened(path).load()
    assert after.attrs["generation"] == 1
    old = xr.open_dataset(url, group="samples", engine="neurolens", snapshot=snapshot)
    np.testing.assert_array_equal(old.loss.values, before.loss.values)
    assert (after.loss.values != before.loss.values).any(0).sum() == 1


def test_run_rows__is_unaware_of_the_order_of_samples(make_study: MakeStudy) -> None:
    path = make_study()
    run(path)
    conftest.write_samples(path.parent, np.arange(24)[::-1])
    assert plan(load_study(path)).todo == ()


def test_run_rows__gives_the_same_numbers_with_several_workers(
    make_study: MakeStudy, stores_equal: Callable[..., None]
) -> None:
    one, two = make_study("one", checkpoints=5), make_study("two", checkpoints=5)
    run(one)
    run(two, "compute.workers=3")
    stores_equal(load_study(one).store.url, load_study(two).store.url)


def test_measure_row__refuses_a_file_that_changed_while_it_was_read(
    make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_study()
    refill = refilling.refill

    def replaced_after(module: Any, file: Path, **options: Any) -> None:
        refill(module, file, **options)
        if Path(file).name == "epoch_1.pt":
            conftest.write_checkpoint(path.parent, 1, seed=99)

    monkeypatch.setattr(refilling, "refill", replaced_after)
    results = run(path)
    assert outcomes(results) == {(0, 0): "computed", (1, 0): "failed", (2, 0): "computed"}
    assert "changed since it was discovered" in next(result.why for result in results if result.outcome == "failed")


def test_measure_row__refuses_a_file_that_changed_while_it_was_measured(
    make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_study()
    measure = sample_measure.measure
    seen = []

    def overwritten_meanwhile(*given: Any, **options: Any) -> Any:
        values = measure(*given, **options)
        seen.append(values)
        if len(seen) == 2:
            conftest.write_checkpoint(path.parent, 1, seed=99)
        return values

    monkeypatch.setattr(sample_measure, "measure", overwritten_meanwhile)
    results = run(path)
    assert outcomes(results) == {(0, 0): "computed", (1, 0): "failed", (2, 0): "computed"}
    assert "changed since it was discovered" in next(result.why for result in results if result.outcome == "failed")


class Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, ("exploded",)


def spoil(kind: str, path: Path) -> None:
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-400])
    elif kind == "bomb":
        path.write_bytes(pickle.dumps(Bomb()))
    elif kind == "bomb in an archive":
        torch.save({"state_dict": Bomb()}, path)
    elif kind == "classes":
        conftest.write_checkpoint(path.parent.parent, 1, classes=7)
    elif kind == "nan":
        state = torch.load(path, weights_only=True)
        next(iter(state.values())).view(-1)[0] = float("nan")
        torch.save(state, path)
    elif kind == "text":
        path.write_text("not a checkpoint")


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("truncated", "epoch_1.pt"),
        ("text", "epoch_1.pt"),
        ("bomb", "epoch_1.pt"),
        ("bomb in an archive", "trust"),
        ("classes", "7"),
        ("nan", "NaN or infinity"),
    ],
)
def test_run_rows__fails_the_row_of_bad_input_and_goes_on(
    make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch, kind: str, says: str
) -> None:
    path = make_study()
    monkeypatch.chdir(path.parent)
    spoil(kind, path.parent / "checkpoints" / "epoch_1.pt")
    results = run(path)
    assert outcomes(results) == {(0, 0): "computed", (1, 0): "failed", (2, 0): "computed"}
    (why,) = (result.why for result in results if result.outcome == "failed")
    assert says in why
    assert "\n" not in why or kind == "classes"
    assert not (path.parent / "exploded").exists()
    assert opened(path).loss.isnull().all("sample").values.tolist() == [False, True, False]
    with pytest.raises(MissingMeasurementError, match=r"'loss' at epoch 1 \(of 0–2\).*neurolens status"):
        neurolens.csl(opened(path))
    assert neurolens.csl(opened(path), missing="drop").n_epochs.values.tolist() == [2] * 24
    (failed,) = plan(load_study(path)).todo
    assert (failed.state, failed.why) == ("failed", why)


def test_run_rows__names_the_layer_of_non_finite_weights(make_study: MakeStudy) -> None:
    path = make_study()
    checkpoint = path.parent / "checkpoints" / "epoch_1.pt"
    spoil("nan", checkpoint)
    name = next(iter(torch.load(checkpoint, weights_only=True)))
    assert repr(name) in next(result.why for result in run(path) if result.outcome == "failed")
    allowed = run(path, "samples.allow_non_finite=true")
    assert outcomes(allowed) == {(1, 0): "computed"}


def test_run_rows__tries_a_failed_row_again_without_adding_to_the_history(make_study: MakeStudy) -> None:
    path = make_study()
    spoil("truncated", path.parent / "checkpoints" / "epoch_1.pt")
    run(path)
    store = open_store(load_study(path).store.url, readonly=True)
    snapshot = store.snapshot_id
    assert outcomes(run(path)) == {(1, 0): "failed"}
    assert store.snapshot_id == snapshot
    conftest.write_checkpoint(path.parent, 1)
    assert outcomes(run(path)) == {(1, 0): "computed"}
    assert plan(load_study(path)).todo == ()


def test_run_rows__leaves_io_errors_to_a_caller_that_tries_again(
    make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = load_study(make_study())
    materials, store = rows.gather(study), rows.open_for_writing(study)
    todo = rows.plan(materials, store).todo

    def broken(*args: Any, **options: Any) -> Any:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("neurolens.rows.working.measure_row", broken)
        results = rows.run_rows(materials, todo[:1], store, record_io_errors=False)
        assert [result.outcome for result in results] == ["io_error"]
        assert plan(study).todo[0].state == "missing"
        rows.run_rows(materials, todo[:1], store)
        assert plan(study).todo[0].state == "failed"
    assert outcomes(rows.run_rows(materials, todo, store))[0, 0] == "computed"


def test_run_rows__leaves_a_claimed_row_to_its_holder(make_study: MakeStudy) -> None:
    study = load_study(make_study())
    materials, store = rows.gather(study), rows.open_for_writing(study)
    todo = rows.plan(materials, store).todo
    rows.prepare(materials, store)
    other = open_store(study.store.url)
    with other.claim("samples", [(1, 0)]):
        seen: list[Result] = []

        def stop_after_two(result: Result) -> None:
            seen.append(result)
            if len(seen) == 2:
                materials.stop.set()

        rows.run_rows(materials, todo, store, report=stop_after_two)
    assert [row.position for row in plan(study).todo] == [1]


def test_gather__says_what_an_empty_folder_lacks(make_study: MakeStudy) -> None:
    path = make_study(checkpoints=0)
    (path.parent / "checkpoints").mkdir()
    with pytest.raises(MissingCheckpointError, match="checkpoints"):
        rows.gather(load_study(path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_open_for_writing__refuses_a_read_only_store(make_study: MakeStudy) -> None:
    path = make_study()
    run(path)
    store = path.parent / "store.icechunk"
    store.chmod(0o500)
    try:
        assert plan(load_study(path)).todo == ()
        with pytest.raises(StoreError, match="permission"):
            rows.open_for_writing(load_study(path))
    finally:
        store.chmod(0o700)


def test_threads__times_workers_is_at_most_the_cores() -> None:
    cores = len(os.sched_getaffinity(0))
    for workers in (1, 2, 3, 64):
        for asked in (None, 1, 64):
            compute = Study.model_validate({"compute": {"workers": workers, "threads": asked}}).compute
            assert rows.threads(compute) * workers <= max(cores, workers)
