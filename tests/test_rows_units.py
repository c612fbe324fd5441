import pytest
from conftest import STUDY

import neurolens
from neurolens import rows
from neurolens.errors import StudyError
from neurolens.study import load_study


def run(path, cube, *overrides):
    study = load_study(path, overrides=overrides)
    materials = rows.gather(study, cube)
    plan = rows.plan(materials, rows.open_for_reading(study))
    return rows.run_rows(materials, plan.todo, rows.open_for_writing(study))


def test_plan__refuses_blocks_that_no_longer_fit_the_memory(make_study, monkeypatch):
    path = make_study(text=STUDY + "[activations]\n")
    run(path, "activations")
    monkeypatch.setattr("neurolens.units.activations.block_size", lambda table, axes: 10)
    with pytest.raises(StudyError, match=r"activations\.memory_mib = 512 has room for 10; set it to \d+"):
        run(path, "activations")


def test_run_rows__keeps_samples_units_and_activations_side_by_side(make_study):
    path = make_study(text=STUDY + "[units]\n[activations]\n")
    for cube in ("samples", "units", "activations"):
        assert {result.outcome for result in run(path, cube)} == {"computed"}
        assert run(path, cube) == []
    tree = neurolens.open_run(load_study(path).store.url)
    units, activations = tree["units"].ds, tree["activations"].ds
    positive = (activations["activation"] > 0).sum("sample").compute()
    flat = units["layer"].values == units["layer"].values[-1]
    assert (units["n_pos"].values[:, flat] >= positive.values[:, flat]).all()
