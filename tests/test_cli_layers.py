"""The command ``layers``."""

from pathlib import Path

import pytest
from click.testing import Result
from language_models import LanguageRun, tiny_neox, tokenizer_of_bytes
from typer.testing import CliRunner

from neurolens.cli import app

DIGITS = """name = "small"
[data]
source = "digits"
"""


def call(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200", "TERM": "dumb"})


def rows(result: Result) -> list[list[str]]:
    """Return the rows of the printed table, split where two spaces are."""
    lines = result.output.splitlines()
    start = next(i for i, line in enumerate(lines) if set(line.strip()) == {"─"})
    table = lines[start + 1 :]
    end = next(i for i, line in enumerate(table) if not line.strip())
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in table[:end]]


@pytest.fixture
def study(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "study.toml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def pythia(tmp_path):
    """A folder with a tiny GPT-NeoX that no run has filled, and a study of its units."""
    run = LanguageRun(tmp_path, ())
    tiny_neox().config.save_pretrained(run.model)
    tokenizer_of_bytes().save_pretrained(run.model)
    (tmp_path / "tides.txt").write_text("the tide comes in\n\nand goes out again, twice a day\n")
    (tmp_path / "study.toml").write_text(run.study())
    return run


def test_layers__lists_the_units_of_the_digits_network(study):
    result = call("layers", study(DIGITS + "[units]\n"))
    assert result.exit_code == 0, result.output
    assert rows(result) == [
        ["relu", "ReLU", "output", "3", "16", "16 × 8 × 8", "units"],
        ["relu#1", "ReLU", "output", "3", "32", "32 × 8 × 8", "units"],
        ["relu#2", "ReLU", "output", "3", "32", "32 × 4 × 4", "units"],
    ]
    assert "3 layers, 80 units" in result.output
    assert "[units] takes 3 layers, 80 units" in result.output


def test_layers__marks_what_each_table_takes(study):
    text = DIGITS + '[units]\nlayers = ["relu#1", "conv3"]\n[activations]\nlayers = ["fc:input", "relu"]\n'
    result = call("layers", study(text))
    assert result.exit_code == 0, result.output
    assert [(row[0], row[6] if len(row) > 6 else "") for row in rows(result)] == [
        ("relu", "activations"),
        ("relu#1", "units, activations"),
        ("conv3", "units"),
        ("relu#2", "activations"),
        ("fc:input", "activations"),
    ]
    assert "[units] takes 2 layers, 64 units" in result.output
    assert "[activations] takes 4 layers, 208 units" in result.output


def test_layers__tells_that_a_study_measures_none(study):
    result = call("layers", study(DIGITS))
    assert result.exit_code == 0, result.output
    assert {len(row) for row in rows(result)} == {6}
    assert "the study measures none of them; add a [units] or [activations] table" in result.output


def test_layers__lists_every_module_that_fires(study):
    result = call("layers", study(DIGITS), "--all")
    assert result.exit_code == 0, result.output
    table = rows(result)
    assert len(table) == 12
    assert table[0] == ["conv1", "Conv2d", "1", "(2, 16, 8, 8)"]
    assert table[-1] == ["fc", "Linear", "1", "(2, 10)"]
    assert [row[0] for row in table if row[1] == "ReLU"] == ["relu", "relu#1", "relu#2"]


def test_layers__lists_the_hidden_units_of_a_language_model(pythia):
    result = call("layers", pythia.folder / "study.toml")
    assert result.exit_code == 0, result.output
    assert rows(result) == [
        [f"layers.{i}.mlp.dense_4h_to_h:input", "Linear", "input", "1", "96", "T × 96", "units"] for i in range(3)
    ]
    assert "[units] takes 3 layers, 288 units" in result.output


@pytest.mark.parametrize("columns", ["40", "80"])
def test_layers__cuts_no_name_where_there_is_little_room(pythia, columns):
    environment = {"COLUMNS": columns, "TERM": "dumb"}
    result = CliRunner().invoke(app, ["layers", str(pythia.folder / "study.toml")], env=environment)
    row = ["layers.2.mlp.dense_4h_to_h:input", "Linear", "input", "1", "96", "T", "×", "96", "units"]
    assert row in [line.split() for line in result.output.splitlines()]


def test_layers__names_near_layers(study, pythia):
    result = call("layers", study(DIGITS + '[units]\nlayers = ["relo"]\n'))
    assert result.exit_code == 2
    assert "'relo' matches none of the 9 modules" in result.stderr
    assert "did you mean 'relu'?" in result.stderr
    (pythia.folder / "study.toml").write_text(pythia.study('[units]\nlayers = ["h.*.mlp.act"]\n'))
    result = call("layers", pythia.folder / "study.toml")
    assert result.exit_code == 2
    assert "did you mean 'layers.*.mlp.act'" in result.stderr


def test_layers__takes_named_layers_where_none_is_found_by_itself(study, tmp_path):
    (tmp_path / "own.py").write_text(
        "from torch import nn\n"
        "def linear(classes):\n"
        "    network = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))\n"
        "    network.preprocessing = {'mean': (0.0,), 'std': (1.0,)}\n"
        "    return network\n"
    )
    model = '[model]\nname = "own.py:linear"\n'
    result = call("layers", study(DIGITS + model + '[units]\nlayers = ["1"]\n'))
    assert result.exit_code == 0, result.output
    assert rows(result) == [["1", "Linear", "output", "1", "10", "10", "units"]]
    result = call("layers", study(DIGITS + model + "[units]\n"))
    assert result.exit_code == 2
    assert "no layers of units were found" in result.stderr
    assert "--all" in result.stderr


def test_layers__writes_nothing(study, tmp_path):
    assert call("layers", study(DIGITS + "[units]\n")).exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["study.toml"]
