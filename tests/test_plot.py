"""Pictures: what is drawn, from what, and that nothing is kept alive."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import xarray as xr

import neurolens
from neurolens import plot
from neurolens.errors import MissingMeasurementError, SchemaError

EPOCHS, SAMPLES = 6, 80


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture
def ds():
    rng = np.random.default_rng(0)
    hard = rng.random(SAMPLES) ** 3
    loss = (2 * np.exp(-np.arange(EPOCHS)[:, None] * (1 - hard)) * rng.uniform(0.8, 1.2, (EPOCHS, SAMPLES))).astype(
        "f4"
    )
    loss[-1, :5] = 0
    return xr.Dataset(
        {
            "loss": (("epoch", "sample"), loss, {"units": "nat"}),
            "grad_norm": (("epoch", "sample"), loss * 2),
            "predicted": (("epoch", "sample"), rng.integers(0, 3, (EPOCHS, SAMPLES)).astype("f4")),
        },
        coords={
            "epoch": np.arange(EPOCHS),
            "sample": [f"s{i}" for i in range(SAMPLES)],
            "label": ("sample", rng.integers(0, 3, SAMPLES)),
            "class": ["cat", "dog", "a very long class name indeed"],
            "is_mislabelled": ("sample", rng.random(SAMPLES) < 0.1),
        },
    )


@pytest.fixture
def metrics():
    epochs = np.arange(EPOCHS)
    return pd.DataFrame(
        {"epoch": epochs, "train_loss": 2.0 / (1 + epochs), "train_acc": epochs / 6, "val_loss": np.nan, "lr": 0.1}
    )


def counts(ax):
    return [sum(bar.get_height() for bar in group.patches) for group in ax.containers]


def test_csl_histogram__counts_every_finite_sample_and_marks_some(ds):
    csl = neurolens.csl(ds)["csl"]
    csl[0] = np.nan
    ax = plot.csl_histogram(csl, marked=ds["is_mislabelled"])
    assert counts(ax) == [SAMPLES - 1, int(ds["is_mislabelled"][1:].sum())]
    assert ax.get_xlabel() == "csl [nat]"
    assert ax.get_ylabel() == "samples"


def test_csl_histogram__takes_the_whole_result(ds):
    assert counts(plot.csl_histogram(neurolens.csl(ds))) == [SAMPLES]
    with pytest.raises(SchemaError, match=r"neurolens\.csl"):
        plot.csl_histogram(ds)


def test_csl_histogram__is_logarithmic_only_where_that_is_possible():
    wide = xr.DataArray(np.geomspace(0.1, 100, 50), dims="sample", name="csl")
    assert plot.csl_histogram(wide).get_xscale() == "log"
    assert plot.csl_histogram(xr.concat([wide, wide[:1] * 0], "sample")).get_xscale() == "linear"


def test_csl_histogram__says_so_when_there_is_nothing():
    ax = plot.csl_histogram(xr.DataArray([np.nan, np.nan], dims="sample", name="csl"))
    assert "no sample" in ax.texts[0].get_text()


def test_learning_time_histogram__has_one_bin_per_value_and_names_tau(ds):
    time = neurolens.learning_time(ds)
    ax = plot.learning_time_histogram(time)
    assert counts(ax) == [SAMPLES]
    assert len(ax.containers[0].patches) == EPOCHS + 1
    assert f"tau = {float(time['learning_tau']):.3g}" in ax.get_title(loc="left")
    assert len(plot.learning_time_histogram(time["learning_time"]).containers[0].patches) == 25


def test_csl_against_learning_time__holds_every_sample_once(ds):
    csl, time = neurolens.csl(ds), neurolens.learning_time(ds)
    shuffled = time.isel(sample=np.random.default_rng(1).permutation(SAMPLES))
    ax = plot.csl_against_learning_time(csl, shuffled)
    assert ax.collections[0].get_array().sum() == SAMPLES
    assert "learning time" in ax.get_xlabel()
    assert ax.get_ylabel() == "csl [nat]"


def test_trajectories__draws_the_ends_of_the_ranking(ds):
    csl = neurolens.csl(ds)["csl"]
    ax = plot.trajectories(ds, csl, count=2)
    lines = ax.lines[1:]  # the first is the median
    order = np.argsort(csl.values)
    assert len(lines) == 4
    lowest = {tuple(np.round(line.get_ydata(), 6)) for line in lines[:2]}
    assert lowest == {tuple(np.round(ds["loss"].values[:, i].astype(float), 6)) for i in order[:2]}
    assert ax.get_xlabel() == "epoch"
    assert ax.get_ylim()[0] == 0


def test_trajectories__takes_lazy_cubes_with_steps_and_gaps(ds):
    steps = ds.rename(epoch="step").chunk(step=2)
    steps["loss"] = steps["loss"].where(steps["step"] != 3)
    ax = plot.trajectories(steps, neurolens.csl(ds))
    assert ax.get_xlabel() == "step"
    assert np.isnan(ax.lines[1].get_ydata()).sum() == 1


def test_trajectories__says_what_was_not_measured(ds):
    with pytest.raises(MissingMeasurementError, match="grand"):
        plot.trajectories(ds, neurolens.csl(ds), variable="grand")


def test_training_curves__draws_the_columns_that_hold_something(metrics):
    assert len(plot.training_curves(metrics).lines) == 1
    assert plot.training_curves(metrics, quantity="lr").get_ylabel() == "learning rate"
    metrics["val_acc"] = metrics["train_acc"] / 2
    assert [t.get_text() for t in plot.training_curves(metrics, quantity="acc").get_legend().get_texts()] == [
        "training",
        "validation",
    ]


def test_training_curves__names_what_it_needs(metrics):
    with pytest.raises(SchemaError, match="did you mean 'loss'"):
        plot.training_curves(metrics, quantity="los")
    with pytest.raises(SchemaError, match="needed"):
        plot.training_curves(metrics[["epoch", "lr"]])


def test_binned_curves__draws_the_mean_of_each_bin():
    reference = xr.DataArray([0.0, 0.1, 0.9, 1.0], dims="sample", coords={"sample": list("abcd")}, name="memorisation")
    score = xr.DataArray([1.0, 3.0, 10.0, 30.0], dims="sample", coords={"sample": list("abcd")}, name="csl")
    ax = plot.binned_curves(score, reference.isel(sample=[3, 1, 0, 2]), bins=2)
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[0.25, 2], [0.75, 20]])
    assert ax.get_xlabel() == "memorisation"
    several = plot.binned_curves({"one": score, "two": -score}, reference, bins=2)
    np.testing.assert_allclose(several.containers[1].lines[0].get_ydata(), [1, 0])
    assert [t.get_text() for t in several.get_legend().get_texts()] == ["one", "two"]


def test_hardest__orders_by_score_and_never_chooses_nan(ds):
    csl = neurolens.csl(ds)["csl"]
    csl[int(np.argmax(csl.values))] = np.nan
    chosen = plot.hardest(ds, csl, count=7)
    assert list(chosen["sample"].values) == list(csl.sortby(-csl)["sample"].values[:7])
    assert np.all(np.diff(chosen["score"]) <= 0)
    assert plot.hardest(ds, csl, count=1000).sizes["sample"] == SAMPLES - 1


@pytest.mark.parametrize("shape", [(8, 8, 1), (8, 8, 3), (100, 80, 3)])
def test_gallery__names_label_and_last_prediction(ds, shape):
    ds["predicted"][-1] = np.nan  # the last checkpoint was not measured
    chosen = plot.hardest(ds, neurolens.csl(ds), count=3)
    axes = plot.gallery(np.zeros((3, *shape), np.uint8), chosen)
    assert len(axes) == 3
    for i, ax in enumerate(axes):
        label, said, score = (text.get_text() for text in ax.texts)
        names = ds["class"].values
        assert label == f"label: {names[int(chosen['label'][i])]}"[:22] + ("…" if int(chosen["label"][i]) == 2 else "")
        assert said.startswith(f"said: {names[int(chosen['predicted'][-2, i])][:15]}")
        assert score.startswith("csl ")


def test_gallery__needs_one_image_per_sample(ds):
    with pytest.raises(SchemaError, match="2 images for 3 samples"):
        plot.gallery(np.zeros((2, 8, 8)), plot.hardest(ds, neurolens.csl(ds), count=3))


def test_pictures__draws_what_there_is_and_leaves_no_figure_behind(ds, metrics):
    external = {
        "memorisation": xr.DataArray(np.linspace(0, 1, SAMPLES), dims="sample", coords={"sample": ds["sample"]})
    }
    asked = []

    def images(ids):
        asked.extend(ids)
        return np.zeros((len(ids), 8, 8, 1), np.uint8)

    drawn = plot.pictures(ds.chunk(epoch=2), metrics=metrics, images=images, external=external)
    assert [p.name for p in drawn] == [
        "training",
        "distributions",
        "csl_against_learning_time",
        "trajectories",
        "gallery",
        "binned_memorisation",
    ]
    assert len(asked) == 12
    assert all(p.alt and p.caption and p.title for p in drawn)
    assert not plt.get_fignums()


def test_pictures__do_without_gradients_and_with_missing_rows(ds):
    ds["loss"][1] = np.nan
    given = plot.scores(ds.drop_vars("grad_norm"))
    assert given.csl.name == "csl_mean"
    assert given.learning_time is None
    assert len(given.notes) == 2
    assert [p.name for p in plot.pictures(ds, given=given)] == ["distributions", "trajectories"]


def test_pictures__leave_the_settings_of_matplotlib_alone(ds):
    before = dict(plt.rcParams)
    plot.pictures(ds)
    assert dict(plt.rcParams) == before
