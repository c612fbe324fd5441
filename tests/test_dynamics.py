"""Forgetting, second-split forgetting, cartography and label quality: golden numbers, slow versions, laziness."""

from itertools import pairwise

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from neurolens.errors import MissingMeasurementError
from neurolens.samples import cartography, forgetting, normalized_margin, second_split_forgetting, self_confidence

LOGITS = np.array(
    [
        [[2, 1, 0], [0, 2, 1], [1, 1, 1]],
        [[3, 1, 0], [2, 1, 0], [0, 1, 2]],
        [[4, 0, 0], [0, 3, 1], [3, 0, 1]],
        [[5, 0, 0], [1, 2, 0], [2, 0, 0]],
    ],
    float,
)
CHUNKS = [{"epoch": 1}, {"sample": 2}, {"epoch": 3, "sample": 3}]


def cube(**variables):
    epochs, samples = next(iter(variables.values())).shape
    return xr.Dataset(
        {k: (("epoch", "sample"), v) for k, v in variables.items()},
        coords={"epoch": np.arange(epochs), "sample": [f"s{i}" for i in range(samples)]},
    )


def from_logits():
    labels = np.arange(3)
    of_label = LOGITS[:, labels, labels]
    others = np.where(np.eye(3, dtype=bool), -np.inf, LOGITS).max(axis=2)
    loss = np.log(np.exp(LOGITS).sum(axis=2)) - of_label
    correct = (LOGITS.argmax(axis=2) == labels).astype("f4")
    return cube(loss=loss, margin=of_label - others, p_true=np.exp(-loss), correct=correct)


def random_cube(epochs=9, samples=30, seed=0):
    rng = np.random.default_rng(seed)
    return cube(
        correct=(rng.random((epochs, samples)) < 0.6).astype("f4"),
        p_true=rng.random((epochs, samples), dtype=np.float32),
    )


def slow_forgetting(history):
    """Toneva et al., one sample's presentations at a time."""
    if not any(history):
        return np.nan, np.nan, 1.0, np.nan
    events = sum(before and not after for before, after in pairwise(history))
    wrong = [k for k, right in enumerate(history) if not right]
    return float(events), float(history.index(True)), 0.0, float(max(wrong, default=-1) + 1)


def slow_second_split(history):
    for k in range(len(history)):
        if not any(history[k:]):
            return float(k)
    return np.nan


def test_forgetting__matches_the_logits_worked_by_hand():
    result = forgetting(from_logits())
    assert result["forgetting_events"].data.tolist() == [0, 1, 1]
    assert result["first_learned"].data.tolist() == [0, 0, 1]
    assert result["presentations_needed"].data.tolist() == [0, 2, 4]
    assert result["never_learned"].data.tolist() == [0, 0, 0]


def test_forgetting__is_nan_for_a_sample_never_learned():
    result = forgetting(cube(correct=np.array([[0, 1], [0, 0], [0, 1]], "i1")))
    assert result["never_learned"].data.tolist() == [1, 0]
    for name in ("forgetting_events", "first_learned", "presentations_needed"):
        assert result[name].isnull().data.tolist() == [True, False]


@settings(max_examples=25, deadline=None)
@given(epochs=st.integers(1, 9), samples=st.integers(1, 15), seed=st.integers(0, 99))
def test_forgetting__matches_the_slow_definition(epochs, samples, seed):
    ds = random_cube(epochs, samples, seed)
    histories = [list(ds["correct"].data[:, i] > 0) for i in range(samples)]
    result = forgetting(ds)
    names = ("forgetting_events", "first_learned", "never_learned", "presentations_needed")
    np.testing.assert_array_equal(
        [result[n].data for n in names], np.transpose([slow_forgetting(h) for h in histories])
    )
    np.testing.assert_array_equal(second_split_forgetting(ds), [slow_second_split(h) for h in histories])


def test_forgetting__counts_only_presentations_of_exposed_classes():
    ds = random_cube().assign_coords(
        label=("sample", np.arange(30) % 2),
        **{"class": ["a", "b"], "exposed": (("epoch", "class"), np.arange(9)[:, None] >= [0, 4])},
    )
    result, later = forgetting(ds), forgetting(ds.isel(epoch=slice(4, None)), exposure="all")
    xr.testing.assert_identical(
        result.isel(sample=slice(1, None, 2)).drop_attrs(), later.isel(sample=slice(1, None, 2)).drop_attrs()
    )


def test_cartography__matches_the_logits_worked_by_hand():
    result = cartography(from_logits())
    golden = {
        "confidence": [0.865101, 0.604751, 0.304819],
        "variability": [0.127571, 0.220270, 0.227147],
        "variability_ci": [0.127917, 0.222044, 0.229091],
        "correctness": [4, 3, 1],
        "threshold_closeness": [0.116702, 0.239027, 0.211904],
    }
    for name, values in golden.items():
        np.testing.assert_allclose(result[name], values, atol=6e-7, err_msg=name)


def test_cartography__keeps_its_digits_far_from_zero():
    values = 1e6 + np.random.default_rng(0).random((50, 4))
    result = cartography(cube(p_true=values))
    np.testing.assert_allclose(result["variability"], values.std(axis=0), rtol=1e-6)
    assert "correctness" not in result


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("reduction", [forgetting, second_split_forgetting, cartography])
@pytest.mark.parametrize("missing", ["error", "drop"])
def test_dynamics__are_lazy_and_blind_to_chunks(chunks, reduction, missing):
    ds = random_cube()
    if missing == "drop":
        ds["correct"][3, :7] = ds["p_true"][3, :7] = np.nan
        ds["correct"][:, 0] = ds["p_true"][:, 0] = np.nan
    lazy, eager = reduction(ds.chunk(chunks), missing=missing), reduction(ds, missing=missing)
    arrays = lazy.data_vars.values() if isinstance(lazy, xr.Dataset) else [lazy]
    assert all(isinstance(a.data, da.Array) for a in arrays)
    xr.testing.assert_allclose(lazy.compute(), eager)


@pytest.mark.parametrize("reduction", [forgetting, cartography])
def test_dynamics__name_the_epochs_that_are_missing(reduction):
    ds = random_cube()
    ds["correct"][4] = np.nan
    with pytest.raises(MissingMeasurementError, match="'correct' at epoch 4"):
        reduction(ds)


def test_label_quality__matches_the_logits_worked_by_hand():
    ds = from_logits().isel(epoch=-1).expand_dims("epoch")
    np.testing.assert_allclose(self_confidence(ds)[0], [0.986703, 0.665241, 0.106507], atol=5e-7)
    np.testing.assert_allclose(normalized_margin(ds)[0], [0.990027, 0.710256, 0.159760], atol=5e-7)


def test_label_quality__stays_finite_where_the_probability_underflows():
    ds = cube(loss=np.array([[900.0]]), margin=np.array([[-900.0]]))
    assert normalized_margin(ds).item() == 0
    assert isinstance(normalized_margin(ds.chunk()).data, da.Array)
