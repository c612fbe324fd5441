"""What opens as missing: rows that failed, and rows measured under other settings than the cube has now."""

import pickle

import conftest
import numpy as np
import pytest
import xarray as xr
from store_cases import PARTS, prepare, write
from typer.testing import CliRunner

import neurolens
from neurolens import rows
from neurolens.cli import app
from neurolens.errors import MissingMeasurementError
from neurolens.rows.adopting import adopt
from neurolens.samples import memorization_influence, second_split_forgetting
from neurolens.store import open_store
from neurolens.store.ledger import readings
from neurolens.store.tiles import build_tiles
from neurolens.study import load_study

OLD = {"parts": PARTS, "model": {"mean": 0.0}}
NEW = {"parts": PARTS, "model": {"mean": 0.5}}
REDUCTIONS = {
    "csl": lambda ds, **o: neurolens.csl(ds, **o),
    "csl as the reference": lambda ds, **o: neurolens.csl(ds, compat="seed", **o),
    "learning_time": lambda ds, **o: neurolens.learning_time(ds, **o),
    "learning_time, tau": lambda ds, **o: neurolens.learning_time(ds, tau=0.4, **o),
    "learning_time, per class": lambda ds, **o: neurolens.learning_time(ds, per_class=True, **o),
    "learning_time as the reference": lambda ds, **o: neurolens.learning_time(ds, compat="seed", **o),
    "csg": lambda ds, **o: neurolens.csg(ds, **o),
    "aum": lambda ds, **o: neurolens.aum(ds, **o),
    "curvature": lambda ds, **o: neurolens.curvature(ds, **o),
    "forgetting": lambda ds, **o: neurolens.forgetting(ds, **o),
    "second_split_forgetting": lambda ds, **o: second_split_forgetting(ds, **o),
    "cartography": lambda ds, **o: neurolens.cartography(ds, **o),
}


def opened(url, **options):
    return xr.open_dataset(url, group="samples", engine="neurolens", **options)


def shown(url, name="loss", **options):
    """The epochs at which a variable is measured."""
    ds = opened(url, **options)
    return ds.epoch.values[ds[name].notnull().all("sample").values].tolist()


@pytest.fixture
def store(tmp_path):
    made = open_store(tmp_path / "run", create=True)
    prepare(made, settings=OLD)
    for epoch in range(3):
        write(made, epoch)
    return made


@pytest.fixture(scope="module")
def holes(make_store, tmp_path_factory):
    """A store where all of epoch 2, and the second block of epoch 5, failed."""
    url = tmp_path_factory.mktemp("holes") / "store"
    parts = ("forward", "input_gradient", "curvature")
    failed = [(e, b, p) for e, b in ((2, 0), (2, 1), (5, 1)) for p in parts]
    make_store(url, positions=range(8), parts=parts, failed=failed)
    return url


def test_open_dataset__shows_failed_rows_as_nan_with_count_0(holes):
    ds = opened(holes)
    assert ds.epoch.values.tolist() == list(range(8))
    assert ds.loss.isnull().sum("sample").values.tolist() == [0, 0, 20, 0, 0, 8, 0, 0]
    assert ds.loss_count.sum("class").values.tolist() == [20, 20, 0, 20, 20, 12, 20, 20]
    assert not ds.loss_sum.sel(epoch=2).any()


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions__name_the_epochs_that_failed(holes, name, lazy):
    ds = opened(holes, chunks={}).chunk({"epoch": 3, "sample": 7}) if lazy else opened(holes).load()
    for sums in (ds, ds.drop_vars([c for c in ds.coords if str(c).endswith(("_sum", "_count"))])):
        with pytest.raises(MissingMeasurementError, match=r"at epochs? 2(, 5)? \(of 0–7\).*neurolens status"):
            REDUCTIONS[name](sums).compute()
        block = sums.drop_sel(epoch=2)
        with pytest.raises(MissingMeasurementError, match=r"at epoch 5 \(of 0–7\)"):
            REDUCTIONS[name](block).compute()


@pytest.mark.parametrize("name", ["csl", "learning_time", "csg", "aum", "forgetting", "cartography"])
def test_reductions__leave_failed_epochs_out_when_told(holes, name):
    ds = opened(holes, chunks={})
    found = REDUCTIONS[name](ds.drop_sel(epoch=5), missing="drop").compute()
    xr.testing.assert_allclose(found, REDUCTIONS[name](ds.drop_sel(epoch=[2, 5])).compute())


def test_memorization_influence__is_nan_where_a_run_was_not_measured():
    trained = xr.DataArray([[True, True], [False, False], [True, False]], dims=("run", "sample"))
    correct = xr.DataArray([[1, 1], [0, 1], [np.nan, 1]], dims=("run", "sample"))
    found = memorization_influence(trained, correct, correct.rename(sample="test_sample"))
    assert found.memorization.isnull().values.tolist() == [True, False]
    assert found.influence.isnull().values.tolist() == [[True, True], [False, False]]


def test_open_dataset__keeps_a_variable_that_failed_everywhere(make_store, tmp_path):
    make_store(tmp_path / "s", positions=(0, 1), blocks=(4,), failed=[(e, 0, "forward") for e in (0, 1)])
    with pytest.raises(MissingMeasurementError, match="at epochs 0, 1"):
        neurolens.csl(opened(tmp_path / "s"))


def test_open_dataset__never_mixes_two_settings_in_one_series(store):
    old = store.snapshot_id
    prepare(store, settings=NEW)
    assert shown(store.url) == []
    write(store, 1, version=2)
    assert shown(store.url) == shown(store.url, "grad_norm") == [1]
    with pytest.raises(MissingMeasurementError, match=r"'loss' at epochs 0, 2 \(of 0–2\); measure them"):
        neurolens.csl(opened(store.url))
    assert shown(store.url, snapshot=old) == [0, 1, 2]


def test_open_dataset__shows_old_rows_again_when_the_settings_are_switched_back(store):
    before = opened(store.url).load()
    prepare(store, settings=NEW)
    write(store, 1, version=2)
    prepare(store, settings=OLD)
    assert shown(store.url) == [0, 2]
    write(store, 1)
    xr.testing.assert_identical(opened(store.url).load().drop_attrs(), before.drop_attrs())


def test_open_dataset__hides_only_the_part_whose_settings_changed(store):
    prepare(store, settings={**OLD, "parts": {**PARTS, "input_gradient": {"version": 2}}})
    assert shown(store.url) == [0, 1, 2]
    assert shown(store.url, "grad_norm") == []


def test_open_dataset__shows_rows_whatever_the_data_is_called(store):
    prepare(store, settings={**OLD, "data": "another name for the same samples"})
    assert shown(store.url) == [0, 1, 2]


@pytest.mark.parametrize("pickled", [False, True])
def test_write_row__belongs_to_the_settings_its_writer_prepared(store, pickled):
    late = pickle.loads(pickle.dumps(store)) if pickled else store
    prepare(open_store(store.url), settings=NEW)
    write(late, 3)
    assert shown(store.url) == []
    prepare(store, settings=OLD)
    assert shown(store.url) == [0, 1, 2, 3]


def test_tiles__of_rows_under_other_settings_read_as_missing(store, monkeypatch):
    for target in ("store.tiles", "backend.cubes.tiles"):
        monkeypatch.setattr(f"neurolens.{target}.TILE", (2, 4))
    build_tiles(store)
    prepare(store, settings=NEW)
    write(store, 2, version=2)
    loss = opened(store.url).lens.trajectories("id0001", "loss").loss
    assert loss.isnull().values[:, 0].tolist() == [True, True, False]


def test_provenance__says_what_is_of_the_settings_now(store):
    prepare(store, settings=NEW)
    write(store, 1, version=2)
    found = opened(store.url).lens.provenance().current
    assert found.xs("forward", level="part").tolist() == [False, True, False]


def test_readings__are_of_the_model_and_the_part():
    both, other = readings(OLD), readings(NEW)
    assert both.keys() == PARTS.keys()
    assert all(0 < both[part] < 2**64 and both[part] != other[part] for part in PARTS)
    assert readings({**OLD, "data": "x", "generation": 3}) == both
    own = {"parts": {"forward": {"imported": True, "model": None}}}
    assert readings(own) == readings({**OLD, **own})


def run(path, *overrides):
    study = load_study(path, overrides=overrides)
    materials, store = rows.gather(study), rows.open_for_writing(study)
    plan = rows.plan(materials, store)
    rows.prepare(materials, store)
    return study, rows.run_rows(materials, plan.todo[:1], store) if plan.todo else []


def test_run_rows__half_way_through_other_settings_shows_only_the_new(make_study):
    path = make_study()
    for _ in range(3):
        study, _ = run(path)
    grey = ("model.preprocessing.mean=[0.5]", "model.preprocessing.std=[0.5]")
    run(path, *grey)
    assert shown(study.store.url) == [0]
    with pytest.raises(MissingMeasurementError, match="at epochs 1, 2"):
        neurolens.csl(opened(study.store.url))
    _, computed = run(path)
    assert [result.row.position for result in computed] == [0]
    assert shown(study.store.url) == [0, 1, 2]
    assert run(path)[1] == []


def test_plot__says_what_a_failed_checkpoint_leaves_out(make_study, tmp_path):
    path = make_study()
    (path.parent / "checkpoints" / "epoch_1.pt").write_text("nothing")
    study = load_study(path)
    materials, store = rows.gather(study), rows.open_for_writing(study)
    rows.run_rows(materials, rows.plan(materials, store).todo, store)
    result = CliRunner().invoke(app, ["plot", str(path), "--out", str(tmp_path / "plots")])
    assert result.exit_code == 0, result.output
    assert "Mean loss stands here instead of cumulative loss" in " ".join(result.output.split())
    result = CliRunner().invoke(app, ["show", str(path)])
    assert "failed epoch 1: " in " ".join(result.output.split())


def imported(epochs, folder, n=24):
    loss = np.random.default_rng(0).random((3, n), np.float32)[list(epochs)]
    coords = {"epoch": list(epochs), "position": ("sample", np.arange(n))}
    return xr.Dataset({"loss": (("epoch", "sample"), loss)}, coords, {"imported_from": folder})


def test_adopt__of_two_folders_is_one_series(make_study):
    study = load_study(make_study())
    store = rows.open_for_writing(study)
    assert adopt(study, imported([0, 1], "a"), store) == (2, 0)
    assert adopt(study, imported([2], "moved to b"), store) == (1, 0)
    assert shown(study.store.url) == [0, 1, 2]
    np.testing.assert_array_equal(opened(study.store.url).loss, imported([0, 1, 2], "").loss)


def test_adopt__is_never_mixed_with_what_is_measured_here(make_study):
    path = make_study(checkpoints=2)
    study = load_study(path)
    store = rows.open_for_writing(study)
    adopt(study, imported([0, 1, 2], "a"), store)
    run(path)
    assert shown(study.store.url) == [0]
    with pytest.raises(MissingMeasurementError, match=r"at epoch 1 \(of 0–1\)"):
        neurolens.csl(opened(study.store.url))
    assert adopt(study, imported([0, 1, 2], "a"), store) == (1, 2)
    assert shown(study.store.url) == [0, 1, 2]


@pytest.mark.parametrize("suffix", ["", ".zarr"])
@pytest.mark.parametrize("opener", [xr.open_dataset, xr.open_datatree, xr.open_mfdataset])
def test_open_dataset__is_guessed_whatever_the_folder_is_called(make_store, tmp_path, suffix, opener):
    make_store(tmp_path / f"run{suffix}", positions=(0,), blocks=(4,))
    found = opener(str(tmp_path / f"run{suffix}"))
    assert "loss" in (found["samples"] if isinstance(found, xr.DataTree) else found)


GREY = ("model.preprocessing.mean=[0.5]", "model.preprocessing.std=[0.5]")


def plan_of(path, *overrides):
    study = load_study(path, overrides=overrides)
    return rows.plan(rows.gather(study), rows.open_for_reading(study))


def run_all(path, *overrides):
    """Run a study to the end, and return what became of each row."""
    study = load_study(path, overrides=overrides)
    materials, store = rows.gather(study), rows.open_for_writing(study)
    results = rows.run_rows(materials, rows.plan(materials, store).todo, store)
    return {result.row.position: result.outcome for result in results}


def test_run_rows__forgets_failures_that_the_study_no_longer_names(make_study):
    path = make_study()
    (path.parent / "checkpoints" / "epoch_2.pt").write_bytes(b"broken")
    assert run_all(path) == {0: "computed", 1: "computed", 2: "failed"}
    url = load_study(path).store.url
    with pytest.raises(MissingMeasurementError, match="epoch 2"):
        neurolens.csl(opened(url))
    before = open_store(url, readonly=True).snapshot_id
    assert "mark 1 epoch that the study no longer names" in plan_of(path, "checkpoints.end=1").change
    assert run_all(path, "checkpoints.end=1") == {}
    store = open_store(url, readonly=True)
    assert [s.id for s in store.history()][1] == before, "one commit"
    assert plan_of(path, "checkpoints.end=1").change == ""
    assert neurolens.csl(opened(url)).n_epochs.values.tolist() == [2] * 24
    assert {row.state for row in store.ledger("samples").rows()} == {"done"}
    assert plan_of(path, "checkpoints.end=1").kept == ()
    assert opened(url, snapshot=before).sizes["epoch"] == 3
    conftest.write_checkpoint(path.parent, 2)
    assert run_all(path) == {2: "computed"}
    assert opened(url).loss.notnull().all()


def test_run_rows__keeps_what_is_done_and_no_longer_named_until_the_settings_change(make_study):
    path = make_study()
    run_all(path)
    url = load_study(path).store.url
    assert run_all(path, "checkpoints.end=1") == {}
    assert plan_of(path, "checkpoints.end=1").kept == (2,)
    assert shown(url) == [0, 1, 2]
    assert run_all(path, "checkpoints.end=1", *GREY) == {0: "computed", 1: "computed"}
    assert opened(url).epoch.values.tolist() == [0, 1], "nothing would ever mend epoch 2"
    assert neurolens.csl(opened(url)).n_epochs.values.tolist() == [2] * 24
    assert run_all(path, "checkpoints.end=1") == {0: "computed", 1: "computed"}
    assert shown(url) == [0, 1, 2], "and its numbers are still there"


def test_reductions__of_a_part_switched_off_and_stale_say_what_to_switch_on(make_study):
    path = make_study()
    run_all(path, "samples.curvature=true")
    run_all(path, *GREY)
    ds = opened(load_study(path).store.url)
    with pytest.raises(MissingMeasurementError, match=r"with curvature = true in the study's \[samples\] table"):
        neurolens.curvature(ds)
    with pytest.raises(MissingMeasurementError, match=r"'grand' was not measured.*with grand = true in"):
        neurolens.learning_time(ds, variable="grand")
