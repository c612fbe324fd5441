"""Golden numbers of other sources than the tables that the tests of each module hold."""

import numpy as np
import pytest
import xarray as xr
from dormancy_cases import statistics

from neurolens import spectrum_metrics


def test_spectrum_metrics__of_four_values_are_those_of_the_reference() -> None:
    found = spectrum_metrics(xr.DataArray([4.0, 3, 2, 1], dims="component"))
    assert float(found["effective_rank"]) == pytest.approx(3.596115, abs=5e-7)
    assert (int(found["srank99"]), int(found["approx99"])) == (4, 4)


def test_statistics__of_classes_are_the_means_worked_by_hand() -> None:
    responses = np.array([[4, 1, 0], [2, 1, 0], [0, 1, 0], [1, 1, 0]], dtype=float)
    ds = statistics(responses, classes=[0, 0, 1, 2])
    assert (ds["class_sum"] / ds["class_n"])[0].data.tolist() == [[3, 1, 0], [0, 1, 0], [1, 1, 0]]
