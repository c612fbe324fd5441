"""What a classifier's logits say of each sample: golden numbers, ranges, and precision where float32 has none left."""

import math
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neurolens.samples.softmax import cotangent, full_precision, statistics

Z = torch.tensor(
    [
        [[2, 1, 0], [0, 2, 1], [1, 1, 1]],
        [[3, 1, 0], [2, 1, 0], [0, 1, 2]],
        [[4, 0, 0], [0, 3, 1], [3, 0, 1]],
        [[5, 0, 0], [1, 2, 0], [2, 0, 0]],
    ]
).float()


def test_statistics__gives_the_golden_numbers_of_the_logit_table():
    rows = [statistics(z, torch.tensor([0, 1, 2])) for z in Z]
    over = {name: np.array([r[name].numpy() for r in rows], dtype=np.float64) for name in rows[0]}
    np.testing.assert_allclose(over["loss"].sum(0), [0.626814, 2.392664, 5.915609], atol=1e-6)
    np.testing.assert_allclose(over["p_true"].mean(0), [0.865101, 0.604751, 0.304819], atol=1e-6)
    np.testing.assert_allclose(over["p_true"].std(0), [0.127571, 0.220270, 0.227147], atol=1e-6)
    np.testing.assert_array_equal(over["correct"].sum(0), [4, 3, 1])
    np.testing.assert_allclose(over["margin"].mean(0), [3, 0.75, -0.75])
    np.testing.assert_allclose(over["el2n"][0], [0.424336, 0.424336, 0.816497], atol=1e-6)
    np.testing.assert_allclose(over["p_true"][-1], [0.986703, 0.665241, 0.106507], atol=1e-6)
    np.testing.assert_allclose(over["entropy"][0, 2], math.log(3), rtol=1e-6)


def test_statistics__keeps_exact_zeros_and_predicts_the_first_of_equal_logits():
    values = statistics(torch.tensor([[200.0, 0.0], [1.0, 1.0]]), torch.tensor([0, 1]))
    assert values["loss"][0] == 0
    assert values["entropy"][0] == pytest.approx(0, abs=1e-30)
    assert values["predicted"].tolist() == [0, 0]
    assert values["correct"].tolist() == [1, 0]


def test_statistics__of_nan_logits_predict_nothing_rather_than_something_wrong():
    values = statistics(torch.tensor([[float("nan"), 0.0], [1.0, 0.0]]), torch.tensor([0, 0]))
    assert values["predicted"].tolist() == [-1, 0]
    assert values["correct"].tolist() == [-1, 1]
    assert math.isnan(values["loss"][0])


def test_cotangent__keeps_its_precision_where_float32_softmax_is_one():
    z = torch.tensor([[30.0, 0.0, 1.0]])
    exact = torch.softmax(z.double(), 1)
    expected = torch.stack([-exact[0, 1:].sum(), exact[0, 1], exact[0, 2]])
    np.testing.assert_allclose(cotangent(z, torch.tensor([0]))[0], expected, rtol=1e-6)


@given(
    z=hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(2, 6)), elements=st.floats(-50, 50, width=32)),
    data=st.data(),
)
@settings(deadline=None, max_examples=60)
def test_statistics__stay_in_their_ranges(z: np.ndarray, data: Any):
    n, classes = z.shape
    y = np.array(data.draw(st.lists(st.integers(0, classes - 1), min_size=n, max_size=n)))
    values = {k: v.numpy() for k, v in statistics(torch.from_numpy(z), torch.from_numpy(y)).items()}
    assert (values["loss"] >= 0).all()
    assert ((values["el2n"] >= 0) & (values["el2n"] <= math.sqrt(2) + 1e-6)).all()
    assert ((values["entropy"] >= 0) & (values["entropy"] <= math.log(classes) + 1e-6)).all()
    assert ((values["p_true"] >= 0) & (values["p_true"] <= 1)).all()
    assert (values["correct"][values["margin"] > 0] == 1).all()
    assert (values["correct"][values["margin"] < 0] == 0).all()
    order = np.array(data.draw(st.permutations(range(n))))
    again = statistics(torch.from_numpy(z[order]), torch.from_numpy(y[order]))
    for name, value in values.items():
        np.testing.assert_array_equal(again[name].numpy(), value[order])


def test_full_precision__restores_the_settings_after_the_last_pass():
    before = torch.backends.cudnn.allow_tf32
    with full_precision():
        with full_precision():
            assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before
