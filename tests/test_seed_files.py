"""The reference's files: both naming schemes, what is reported, what is refused, and what is written."""

import json

import numpy as np
import pytest
import xarray as xr

from neurolens.errors import DataError, MissingMeasurementError, SchemaError, StoreError
from neurolens.samples import csl, export_csl, learning_time, read_samples

LOSS = np.array([[2, 2, 2, 2], [1, 2, 0.5, 2], [0.5, 1.5, 0.25, 2.5], [0.25, 0.5, 0.125, 3]], np.float32)
GRAD = np.array([[4, 4, 4, 4], [2, 4, 1, 5], [1, 2, 0.5, 6], [0, 2, 0.5, 7]], np.float32)


def write(folder, *, plain=False, run=1, noise="0.01", epochs=range(4), without=(), dataset="cifar100"):
    for row, e in enumerate(epochs):
        tail = f"epoch_{e}" if plain else f"run{run}_epoch_{e}_noise_{noise}"
        np.save(folder / f"loss_{dataset}_{tail}.npy", LOSS[row])
        if e not in without:
            np.save(folder / f"loss_grad_{dataset}_{tail}.npy", GRAD[row])


@pytest.mark.parametrize("plain", [False, True])
def test_read_samples__reads_both_schemes(tmp_path, plain):
    write(tmp_path, plain=plain)
    ds, notes = read_samples(tmp_path, dataset="cifar100")
    np.testing.assert_array_equal(ds["loss"], LOSS)
    np.testing.assert_array_equal(ds["grad_norm"], GRAD)
    assert ds["sample"].data.tolist() == [f"cifar100:{i}" for i in range(4)]
    assert ds["position"].data.tolist() == [0, 1, 2, 3]
    assert notes == ()


def test_read_samples__orders_epochs_as_numbers_and_selects(tmp_path):
    write(tmp_path, epochs=(2, 10, 0, 100))
    assert read_samples(tmp_path, dataset="cifar100")[0]["epoch"].data.tolist() == [0, 2, 10, 100]
    kept, _ = read_samples(tmp_path, dataset="cifar100", start=0, end=10, stride=10)
    assert kept["epoch"].data.tolist() == [0, 10]
    with pytest.raises(DataError, match="there are epochs 0, 2, 10, 100"):
        read_samples(tmp_path, dataset="cifar100", start=200)


def test_read_samples__reports_gaps_missing_gradients_and_other_runs(tmp_path):
    write(tmp_path, epochs=(0, 1, 3, 4), without=(3,))
    write(tmp_path, run=2)
    write(tmp_path, dataset="cifar10")
    np.save(tmp_path / "loss_curve.npy", LOSS)
    ds, notes = read_samples(tmp_path, dataset="cifar100")
    assert ds["grad_norm"].isnull().all("sample").data.tolist() == [False, False, True, False]
    text = "\n".join(notes)
    for part in (
        "no losses at epoch 2",
        "no gradients at epoch 3",
        "8 files of run 2",
        "data set 'cifar10'",
        "neither",
    ):
        assert part in text


def test_read_samples__refuses_to_guess_between_schemes(tmp_path):
    write(tmp_path)
    write(tmp_path, plain=True)
    with pytest.raises(DataError, match='scheme="run"'):
        read_samples(tmp_path, dataset="cifar100")
    assert read_samples(tmp_path, dataset="cifar100", scheme="plain")[0].sizes["epoch"] == 4


def test_read_samples__names_every_epoch_of_another_size(tmp_path):
    write(tmp_path)
    for e in (1, 3):
        np.save(tmp_path / f"loss_cifar100_run1_epoch_{e}_noise_0.01.npy", LOSS[e][:3])
    np.save(tmp_path / "loss_cifar100_run1_epoch_4_noise_0.01.npy", LOSS[0])
    with pytest.raises(DataError, match="most epochs have 4 samples, but epoch 1: 3, epoch 3: 3"):
        read_samples(tmp_path, dataset="cifar100")


def test_read_samples__refuses_what_it_cannot_read(tmp_path):
    with pytest.raises(DataError, match="no folder"):
        read_samples(tmp_path / "absent", dataset="cifar100")
    write(tmp_path)
    with pytest.raises(DataError, match="did you mean 'cifar100'"):
        read_samples(tmp_path, dataset="cifar10")
    with pytest.raises(DataError, match=r"run 7.*found 8 files of run 1, noise 0\.01"):
        read_samples(tmp_path, dataset="cifar100", run=7)
    with pytest.raises(SchemaError, match="did you mean 'grad_norm'"):
        read_samples(tmp_path, dataset="cifar100", gradient="gradnorm")
    np.save(tmp_path / "loss_cifar100_run1_epoch_2_noise_0.010.npy", LOSS[2])
    with pytest.raises(DataError, match="epoch 2 comes twice"):
        read_samples(tmp_path, dataset="cifar100")
    (tmp_path / "loss_cifar100_run1_epoch_2_noise_0.010.npy").unlink()
    (tmp_path / "loss_cifar100_run1_epoch_2_noise_0.01.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(DataError, match="cannot be read"):
        read_samples(tmp_path, dataset="cifar100")


def test_read_samples__keeps_parameter_gradients_apart(tmp_path):
    write(tmp_path)
    ds, _ = read_samples(tmp_path, dataset="cifar100", gradient="grand")
    assert "grad_norm" not in ds
    np.testing.assert_array_equal(ds["grand"], GRAD)


@pytest.mark.parametrize("compat", [None, "seed"])
@pytest.mark.parametrize("lazy", [False, True])
def test_export_csl__writes_what_the_reference_writes(tmp_path, compat, lazy):
    (tmp_path / "in").mkdir()
    write(tmp_path / "in")
    ds, _ = read_samples(tmp_path / "in", dataset="cifar100")
    paths = export_csl(ds.chunk(epoch=2) if lazy else ds, tmp_path / "out", dataset="cifar100", compat=compat)
    assert [p.name for p in paths] == [
        "csl_cifar100_run1_noise_0.01.npy",
        "lt_cifar100_run1_noise_0.01.npy",
        "metrics_cifar100_run1_noise_0.01.json",
    ]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(p.name for p in paths)
    total, learned = np.load(paths[0]), np.load(paths[1])
    assert total.dtype == learned.dtype == np.float32
    np.testing.assert_array_equal(total, [3.75, 6, 2.875, 9.5])
    np.testing.assert_array_equal(learned, [0.25, 0.5, 0.25, 1])
    metrics = json.loads(paths[2].read_text())
    assert metrics.pop("tau") == pytest.approx(3.390625)
    assert metrics == {
        "dataset": "cifar100",
        "run_idx": 1,
        "noise_level": 0.01,
        "kept_epochs": [0, 1, 2, 3],
        "num_epochs": 4,
        "losses_shape": [4, 4],
        "loss_grads_shape": [4, 4],
        "csl_path": str(paths[0]),
        "lt_path": str(paths[1]),
        "source": "neurolens",
    }


def test_export_csl__writes_no_learning_time_without_gradients(tmp_path):
    write(tmp_path)
    ds, _ = read_samples(tmp_path, dataset="cifar100")
    export_csl(ds, tmp_path / "out", dataset="cifar100")
    for bare in (ds.drop_vars("grad_norm"), ds.assign(grad_norm=ds["grad_norm"] * np.nan)):
        paths = export_csl(bare, tmp_path / "out", dataset="cifar100", compat="seed")
        assert len(paths) == 2
        assert not (tmp_path / "out" / "lt_cifar100_run1_noise_0.01.npy").exists()
        assert json.loads(paths[-1].read_text())["tau"] is None


def test_export_csl__stops_at_missing_gradients_unless_compatible(tmp_path):
    write(tmp_path, without=(1,))
    ds, _ = read_samples(tmp_path, dataset="cifar100")
    with pytest.raises(MissingMeasurementError, match="epoch 1"):
        export_csl(ds, tmp_path / "out", dataset="cifar100")
    paths = export_csl(ds, tmp_path / "out", dataset="cifar100", compat="seed")
    assert json.loads(paths[-1].read_text())["tau"] == pytest.approx(2.950521, abs=5e-7)


def test_read_and_reduce__equals_the_array_in_memory(tmp_path):
    write(tmp_path)
    ds, _ = read_samples(tmp_path, dataset="cifar100")
    np.testing.assert_array_equal(csl(ds)["csl"], LOSS.sum(axis=0))
    xr.testing.assert_allclose(learning_time(ds), learning_time(ds.chunk(sample=2)).compute())


def test_export_csl__to_a_place_that_is_taken_says_so(tmp_path):
    write(tmp_path)
    ds, _ = read_samples(tmp_path, dataset="cifar100")
    (tmp_path / "out").write_text("a file")
    with pytest.raises(StoreError, match=r"out: .*File exists"):
        export_csl(ds, tmp_path / "out", dataset="cifar100")


def test_export_csl_drop__leaves_epochs_out_and_says_which_it_kept(tmp_path):
    write(tmp_path, without=(1,))
    ds, _ = read_samples(tmp_path, dataset="cifar100")
    ds["loss"] = ds["loss"].where(ds["epoch"] != 2)
    with pytest.raises(MissingMeasurementError, match="'loss' at epoch 2"):
        export_csl(ds, tmp_path / "out", dataset="cifar100")
    csl_path, _, metrics = export_csl(ds, tmp_path / "out", dataset="cifar100", missing="drop")
    np.testing.assert_array_equal(np.load(csl_path), LOSS[[0, 1, 3]].sum(axis=0))
    found = json.loads(metrics.read_text())
    assert (found["kept_epochs"], found["losses_shape"], found["loss_grads_shape"]) == ([0, 1, 3], [3, 4], [2, 4])
    found = json.loads(
        export_csl(ds, tmp_path / "out", dataset="cifar100", missing="drop", compat="seed")[-1].read_text()
    )
    assert found["loss_grads_shape"] == [3, 4], "losses stand in"


def test_export_csl__goes_by_position_however_the_samples_lie(tmp_path):
    write(tmp_path)
    ds, _ = read_samples(tmp_path, dataset="cifar100")
    paths = export_csl(ds.isel(sample=[2, 0, 3, 1]), tmp_path / "out", dataset="cifar100")
    np.testing.assert_array_equal(np.load(paths[0]), [3.75, 6, 2.875, 9.5])
    np.testing.assert_array_equal(np.load(paths[1]), [0.25, 0.5, 0.25, 1])
