"""``ds.lens`` on the attributions cube: each method is the function of its name, with its options."""

import pytest
import xarray as xr
from attribution_cube_cases import attributions_cube

import neurolens.accessor
from neurolens import attribution
from neurolens.errors import SchemaError

OPTIONS = {
    "map_scores": {"level": "pixel"},
    "accuracy": {"top": [2]},
    "filtered_summary": {"kinds": "only", "classes": "label"},
    "compare": {"score": "sparsity", "bootstrap": 10, "flips": 10},
    "held_out": {"choose": "smaller", "bootstrap": 10},
    "control": {"alternative": "two-sided"},
    "per_class": {"only": [1]},
    "decompose": {"entries": 192},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_lens__reads_attributions_as_the_functions_do(name):
    ds = attributions_cube(samples=8)
    assert set(OPTIONS) == {key for key in vars(neurolens.accessor.AttributionMethods) if not key.startswith("_")}
    xr.testing.assert_identical(
        getattr(ds.lens, name)(**OPTIONS[name]), getattr(attribution, name)(ds, **OPTIONS[name])
    )


@pytest.mark.parametrize("name", sorted(set(OPTIONS) - {"accuracy"}))
def test_lens__of_another_cube_says_which_is_needed(name):
    with pytest.raises(SchemaError, match=r"run\['attributions'\]"):
        getattr(xr.Dataset({"loss": (("epoch", "sample"), [[1.0]])}).lens, name)()
