import xarray as xr
from test_seed_log import units_of
from typer.testing import CliRunner

from neurolens.cli import app
from neurolens.units.seed_log import export_dormancy


def invoke(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_import_dormancy__adopts_a_log_into_a_store_of_its_own(tmp_path):
    log = export_dormancy(units_of(positions=(7, 8)), tmp_path / "pythia.csv", model="m")
    done = invoke("import", "dormancy", log, "--store", tmp_path / "store.icechunk")
    assert done.exit_code == 0, done.output
    assert "2 rows adopted, 0 there already" in done.output
    ds = xr.open_dataset(str(tmp_path / "store.icechunk"), group="dormancy", engine="neurolens")
    assert ds.attrs["run"] == "pythia"
    assert (
        "0 rows adopted, 2 there already"
        in invoke("import", "dormancy", log, "--store", tmp_path / "store.icechunk").output
    )


def test_import_dormancy__refuses_what_is_no_log(tmp_path):
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    failed = invoke("import", "dormancy", tmp_path / "x.csv", "--store", tmp_path / "store.icechunk")
    assert failed.exit_code == 2
    assert not (tmp_path / "store.icechunk").exists()


def test_export_dormancy__names_what_an_option_can_be(tmp_path):
    failed = invoke("export", "dormancy", tmp_path / "store.icechunk", tmp_path / "x.csv", "--mode", "add")
    assert failed.exit_code == 2
    assert "append" in failed.stderr
    assert "write" in failed.stderr
