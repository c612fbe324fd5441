import csv

import numpy as np
import pytest
import xarray as xr

from neurolens.errors import DataError, MissingMeasurementError
from neurolens.units.seed_log import COLUMNS, export_dormancy, natural, read_log

H = np.array([[0, 2, 0, 0.05, 8], [0, 0, 0, 0.05, 4], [0, 2, -0.4, 0.05, 0], [0, 0, 0.4, 0.05, 4]])


def units_of(layers=("b.2", "b.10"), *, dim="step", positions=(7,), **coords):
    """H at every layer and checkpoint, as a units cube."""
    n = len(layers) * H.shape[1]
    per_unit = {
        "n": np.full(n, 4.0),
        "abs_sum": np.tile(np.abs(H).sum(0), len(layers)),
        "max": np.tile(H.max(0), len(layers)),
        "min": np.tile(H.min(0), len(layers)),
    }
    data = {name: ((dim, "unit"), np.tile(values, (len(positions), 1))) for name, values in per_unit.items()}
    at = {dim: list(positions), "unit": np.arange(n), "layer": ("unit", np.repeat(layers, H.shape[1]))}
    return xr.Dataset(data, at | {name: (dim, list(values)) for name, values in coords.items()})


def lines_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_export_dormancy__writes_the_golden_lines(tmp_path):
    path = export_dormancy(units_of(), tmp_path / "log.csv", model="m")
    raw = path.read_bytes()
    assert raw.startswith(",".join(COLUMNS).encode() + b"\r\n")
    assert raw.count(b"\r\n") == raw.count(b"\n") == 3
    lines = lines_of(path)
    assert [(line["layer_name"], line["layer_index"]) for line in lines] == [("b.2", "0"), ("b.10", "1")]
    for line in lines:
        assert [line[name] for name in COLUMNS[7:]] == ["5", "2", "40.0", "1.05", "4.0"]
        assert [line[name] for name in COLUMNS[1:5]] == ["m", "N/A", "7", "0.1"]


def test_export_dormancy__numbers_layers_as_the_reference_does_when_asked(tmp_path):
    path = export_dormancy(units_of(), tmp_path / "log.csv", model="m", compat="seed")
    assert [(line["layer_name"], line["layer_index"]) for line in lines_of(path)] == [("b.10", "0"), ("b.2", "1")]


def test_export_dormancy__follows_the_order_of_firing(tmp_path):
    units = units_of(("b.2", "a"))
    shuffled = units.isel(unit=[5, 6, 7, 8, 9, 0, 1, 2, 3, 4]).assign_coords(layer_index=("unit", [1] * 5 + [0] * 5))
    path = export_dormancy(shuffled, tmp_path / "log.csv", model="m")
    assert [line["layer_name"] for line in lines_of(path)] == ["b.2", "a"]


@pytest.mark.parametrize(("tau", "dormant"), [(0, 1), (0.025, 1), (0.1, 2), (0.5, 3), (1, 4)])
def test_export_dormancy__counts_at_the_threshold(tmp_path, tau, dormant):
    path = export_dormancy(units_of(("b",)), tmp_path / "log.csv", model="m", tau=tau)
    assert [line["num_dormant"] for line in lines_of(path)] == [str(dormant)]


def test_export_dormancy__replaces_lines_of_the_same_key_and_keeps_the_others(tmp_path):
    path = tmp_path / "log.csv"
    export_dormancy(units_of(positions=(7, 8)), path, model="m")
    export_dormancy(units_of(positions=(8, 9)), path, model="m")
    export_dormancy(units_of(positions=(8,)), path, model="other")
    export_dormancy(units_of(positions=(8,)), path, model="m", tau=0.5)
    lines = lines_of(path)
    keys = [(line["model"], line["step"], line["threshold"], line["layer_name"]) for line in lines]
    assert len(set(keys)) == len(keys) == 10
    export_dormancy(units_of(positions=(1,)), path, model="m", mode="write")
    assert [line["step"] for line in lines_of(path)] == ["1", "1"]


def test_export_dormancy__gives_an_empty_file_a_header(tmp_path):
    path = tmp_path / "log.csv"
    path.touch()
    export_dormancy(units_of(), path, model="m")
    assert len(lines_of(path)) == 2


def test_export_dormancy__by_epoch_never_passes_an_epoch_off_as_a_step(tmp_path):
    known = units_of(("b",), dim="epoch", positions=(3,), step=(900,))
    (line,) = lines_of(export_dormancy(known, tmp_path / "a.csv", model="m"))
    assert (line["step"], line["revision"]) == ("900", "epoch 3")
    (line,) = lines_of(export_dormancy(known.drop_vars("step"), tmp_path / "b.csv", model="m"))
    assert (line["step"], line["revision"]) == ("3", "epoch 3")
    (line,) = lines_of(export_dormancy(units_of(("b",)), tmp_path / "c.csv", model="m", revision="step{step}"))
    assert (line["step"], line["revision"]) == ("7", "step7")
    with pytest.raises(DataError, match="known here: 'step'"):
        export_dormancy(units_of(("b",)), tmp_path / "c.csv", model="m", revision="{epoch}")


def test_export_dormancy__adds_the_true_maximum_on_request(tmp_path):
    path = tmp_path / "log.csv"
    (line,) = lines_of(export_dormancy(units_of(("b",)), path, model="m", true_max=True))
    assert (line["max_activation"], line["true_max_activation"]) == ("4.0", "8.0")
    with pytest.raises(DataError, match="has the column 'true_max_activation'"):
        export_dormancy(units_of(("b",)), path, model="m")
    export_dormancy(units_of(("b",)), path, model="m", mode="write")
    with pytest.raises(DataError, match="lacks the column"):
        export_dormancy(units_of(("b",)), path, model="m", true_max=True)


def test_export_dormancy__counts_a_silent_layer_as_dormant(tmp_path):
    units = units_of(("b",))
    silent = units.assign({name: units[name] * 0 for name in ("abs_sum", "max", "min")})
    (line,) = lines_of(export_dormancy(silent, tmp_path / "y.csv", model="m"))
    assert (line["num_dormant"], line["pct_dormant"], line["avg_activation"]) == ("5", "100.0", "0.0")


def test_export_dormancy__leaves_foreign_files_alone(tmp_path):
    path = tmp_path / "other.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="no dormancy log"):
        export_dormancy(units_of(), path, model="m")
    assert path.read_text() == "a,b\n1,2\n"
    unmeasured = units_of(positions=(7, 8)).assign_coords(measured=("step", [True, False]))
    with pytest.raises(MissingMeasurementError, match="8"):
        export_dormancy(unmeasured, tmp_path / "new.csv", model="m")
    assert not (tmp_path / "new.csv").exists()
    path = export_dormancy(unmeasured, tmp_path / "new.csv", model="m", missing="drop")
    assert {line["step"] for line in lines_of(path)} == {"7"}


def test_read_log__returns_what_was_written_apart_by_model_and_threshold(tmp_path):
    path = tmp_path / "log.csv"
    export_dormancy(units_of(positions=(7, 8)), path, model="m")
    export_dormancy(units_of(positions=(8,)), path, model="other", tau=0.5)
    log, notes = read_log(path)
    assert notes == ()
    assert dict(log.sizes) == {"step": 2, "log": 2, "layer": 2}
    assert log["model"].values.tolist() == ["m", "other"]
    assert log["threshold"].values.tolist() == [0.1, 0.5]
    assert log["layer"].values.tolist() == ["b.2", "b.10"]
    assert np.isnan(log["num_dormant"].sel(step=7).isel(log=1)).all()
    assert (log["num_dormant"].isel(log=0) == 2).all()
    assert (log["num_dormant"].sel(step=8).isel(log=1) == 3).all()
    assert (log["avg_activation"].isel(log=0) == 1.05).all()


def test_read_log__says_what_it_passes_over(tmp_path):
    path = export_dormancy(units_of(("b",)), tmp_path / "log.csv", model="m")
    text = path.read_text().splitlines()
    path.write_text("\n".join([*text, text[1].replace(",7,", ",N/A,"), text[1].replace("40.0", "60.0")]) + "\n")
    log, notes = read_log(path)
    assert log["pct_dormant"].item() == 60
    assert "1 line without a number" in notes[0]
    assert "1 line logged again" in notes[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.replace("40.0", "many"), "pct_dormant of layer 'b' at step 7 is 'many'"),
        (lambda t: t.replace(",7,", ",last,"), "no line with a number as its step"),
        (lambda t: t.replace("num_dormant", "dormant"), "lacking: num_dormant"),
        (lambda t: t.replace(",4.0", ""), "another length"),
    ],
)
def test_read_log__refuses_what_is_no_log(tmp_path, change, message):
    path = export_dormancy(units_of(("b",)), tmp_path / "log.csv", model="m")
    path.write_text(change(path.read_text()))
    with pytest.raises(DataError, match=message):
        read_log(path)
    with pytest.raises(DataError, match=r"did you mean 'log\.csv'"):
        read_log(tmp_path / "logs.csv")


def test_natural__sorts_numbers_as_numbers():
    assert sorted(["h.10.a", "h.2.a", "h.2.10", "h.a", "h"], key=natural) == ["h", "h.2.10", "h.2.a", "h.10.a", "h.a"]


def test_read_log__reads_what_a_spreadsheet_saved(tmp_path):
    path = export_dormancy(units_of(), tmp_path / "log.csv", model="m")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    log, notes = read_log(path)
    assert notes == ()
    np.testing.assert_array_equal(log["num_dormant"], np.full((1, 1, 2), 2))
    assert len(lines_of(export_dormancy(units_of(), path, model="m"))) == 2


def test_read_log__says_that_the_reference_counts_no_unit_of_a_silent_layer(tmp_path):
    path = export_dormancy(units_of(), tmp_path / "log.csv", model="m")
    lines = lines_of(path)
    lines[0] |= {"num_dormant": "0", "pct_dormant": "0.0", "avg_activation": "0.0", "max_activation": "0.0"}
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(lines)
    log, notes = read_log(path)
    assert log["num_dormant"].sel(layer="b.2").item() == 0
    (note,) = notes
    assert note.startswith("1 line of layers that are silent as a whole")


@pytest.mark.parametrize("text", ["", "\r\n", ",".join(COLUMNS) + "\r\n"])
def test_read_log__names_a_log_without_lines(tmp_path, text):
    (tmp_path / "log.csv").write_text(text)
    with pytest.raises(DataError, match=r"log\.csv holds no line of a log"):
        read_log(tmp_path / "log.csv")
