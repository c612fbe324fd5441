"""What a run that failed in part tells: every row counted, every reason once."""

from collections.abc import Callable
from pathlib import Path

import conftest
from typer.testing import CliRunner, Result

from neurolens.cli import app

MakeStudy = Callable[..., Path]
TWO_CUBES = conftest.STUDY.replace("[samples]\n", "[units]\n[activations]\npool = 'full'\n")


def run(path: Path, *words: str) -> Result:
    return CliRunner().invoke(app, ["run", str(path), *words], env={"COLUMNS": "200", "TERM": "dumb"})


def broken(make_study: MakeStudy) -> Path:
    path = make_study(checkpoints=3, text=TWO_CUBES)
    (path.parent / "checkpoints" / "epoch_1.pt").write_text("nothing")
    return path


def test_run__counts_the_failed_rows_of_every_cube_and_says_their_reason_once(
    make_study: MakeStudy, prefect_server: None
) -> None:
    result = run(broken(make_study))
    assert result.exit_code == 1
    assert "4 rows computed, 0 up to date, 2 failed" in result.output
    assert result.stderr.count("epoch_1.pt: ") == 1


def test_run__says_why_a_flow_failed_even_where_rows_of_another_failed_before(
    make_study: MakeStudy, prefect_server: None
) -> None:
    result = run(broken(make_study), "--set", "activations.layers=['nothing']")
    assert result.exit_code == 1
    assert "2 rows computed, 0 up to date, 2 failed" in result.output
    assert result.stderr.count("epoch_1.pt: ") == 1
    assert "activations: layers: 'nothing' matches none of the" in result.stderr
