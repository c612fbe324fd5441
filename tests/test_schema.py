"""The declarations of cubes and variables, and the helpers that hold data to them."""

import json

import numpy as np
import pytest
import xarray as xr

from neurolens import schema
from neurolens.errors import MissingMeasurementError, SchemaError
from neurolens.study_files import SCHEMA


def small(dim="epoch"):
    return xr.Dataset({"loss": ((dim, "sample"), np.ones((2, 3), np.float32))})


@pytest.mark.parametrize("name", schema.CUBES)
def test_template__is_what_is_committed(name, tmp_path):
    schema.write_templates(tmp_path)
    fresh = (tmp_path / f"{name}.json").read_text(encoding="utf-8")
    assert (SCHEMA.parent / f"{name}.json").read_text(encoding="utf-8") == fresh, (
        f"schemas/{name}.json is stale; run: python -c "
        "'from neurolens import schema, study_files; schema.write_templates(study_files.SCHEMA.parent)'"
    )


@pytest.mark.parametrize("cube", schema.CUBES.values(), ids=list(schema.CUBES))
def test_template__is_json_and_names_every_variable(cube):
    parts = json.loads(json.dumps(schema.template(cube)))["parts"]
    assert [name for part in parts.values() for name in part] == [v.name for v in cube.variables]


@pytest.mark.parametrize("cube", schema.CUBES.values(), ids=list(schema.CUBES))
def test_cube__declares_each_variable_once_with_units_and_meaning(cube):
    names = [v.name for v in (*cube.variables, *cube.coords)]
    assert len(set(names)) == len(names)
    for variable in cube.variables:
        assert variable.units
        assert variable.description
        assert set(variable.dims) <= set(cube.dims)
        fill = np.asarray(variable.fill_value).astype(variable.dtype)
        assert np.isnan(fill) if np.dtype(variable.dtype).kind == "f" else fill == variable.fill_value


def test_part_of__finds_the_part_or_names_the_nearest():
    assert schema.SAMPLES.part_of("grad_norm").name == "input_gradient"
    with pytest.raises(SchemaError, match="did you mean 'grad_norm'"):
        schema.SAMPLES.part_of("gradnorm")
    with pytest.raises(SchemaError, match="did you mean 'forward'"):
        schema.SAMPLES.part("foward")


@pytest.mark.parametrize("dim", ["epoch", "step"])
def test_series_dim__finds_epoch_or_step(dim):
    assert schema.series_dim(small(dim)) == dim
    assert schema.series_dim(small(dim), "sample") == "sample"


def test_series_dim__refuses_to_guess():
    both = small().expand_dims(step=2)
    for data in (both, small("time")):
        with pytest.raises(SchemaError, match="pass it as dim="):
            schema.series_dim(data)
    with pytest.raises(SchemaError, match="pass one of them"):
        schema.series_dim(small(), "step")


def test_require__tells_what_was_not_measured_from_what_does_not_exist():
    assert schema.require(small(), "loss") == "epoch"
    with pytest.raises(MissingMeasurementError, match=r"part 'grand'.*\[samples\]"):
        schema.require(small(), "grand")
    with pytest.raises(SchemaError, match="did you mean 'loss'"):
        schema.require(small(), "los")
    with pytest.raises(SchemaError, match="needs 'epoch'"):
        schema.require(small().assign(margin=("sample", np.ones(3))), "loss", "margin")


def test_label__names_and_describes():
    array = schema.label(small()["loss"], schema.LOSS)
    assert array.name == "loss"
    assert array.attrs == {"long_name": schema.LOSS.description, "units": "nat"}
