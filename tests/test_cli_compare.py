"""``neurolens compare``: runs side by side, as the reductions tell of each."""

from collections.abc import Callable
from pathlib import Path

import conftest
import numpy as np
import pandas as pd
import pytest
from concept_store_cases import write_concepts
from mortality_cases import drawn
from scipy import stats
from tally_cases import tree
from typer.testing import CliRunner, Result

from neurolens import open_run
from neurolens.cli import app
from neurolens.cli.comparing import cubes_of
from neurolens.dissection import iou
from neurolens.inference import bootstrap_counts
from neurolens.mortality import concept_events, event_counts, logrank, read_tallies, survival
from neurolens.rows.adopting_tallies import adopt_tallies
from neurolens.store import open_store
from neurolens.study import load_study
from neurolens.study.seeds import each_seed


def call(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200", "TERM": "dumb"})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three runs: two of one network, and one of another with fewer units, more concepts and fewer checkpoints."""
    folder = tmp_path_factory.mktemp("runs")
    made = {"one": drawn(9, 8, 4, 0), "two": drawn(9, 8, 4, 1), "other": drawn(7, 5, 6, 2)}
    for seed, (name, scores) in enumerate(made.items()):
        write_concepts(folder / name, scores, run=name, seed=seed, spread=0.3, layers=("a", "b"))
    return {name: folder / name for name in made}


def scores_of(path: Path, **options):
    return iou(open_run(path)["concepts"].to_dataset(), **options).compute()


def table_of(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, keep_default_na=False, na_values=[""])


def line_of(table: pd.DataFrame, run: str, quantity: str) -> pd.DataFrame:
    return table[(table["run"] == run) & (table["quantity"] == quantity)]


def test_compare__is_what_the_reductions_tell_of_each_run(runs: dict[str, Path], tmp_path: Path) -> None:
    result = call("compare", *runs.values(), "--k", 1, "--draws", 25, "--csv", tmp_path / "out" / "table.csv")
    assert result.exit_code == 0, result.output
    table = table_of(tmp_path / "out" / "table.csv")
    deaths = []
    for name, path in runs.items():
        events = concept_events(scores_of(path), k=1)
        found, curve = (line_of(table, name, quantity) for quantity in ("deaths", "survival"))
        assert found["value"].item() == (~events["censored"]).sum()
        weights = list(bootstrap_counts(4, 25, 0))
        counts = event_counts(lambda i, p=path, w=weights: scores_of(p, weights=w[i]), n_draws=25, k=1)
        bounds = found[["low", "high"]].to_numpy()[0]
        np.testing.assert_array_equal(bounds, np.quantile(counts["deaths"], [0.025, 0.975]))
        np.testing.assert_allclose(curve["value"].dropna(), survival(events)["survival"][0])
        deaths.append(found["value"].item())
    interval = stats.t.interval(0.95, 2, np.mean(deaths), stats.sem(deaths))
    mean = line_of(table, "mean", "deaths")[["value", "low", "high"]].to_numpy()[0]
    np.testing.assert_allclose(mean, [np.mean(deaths), *interval])
    assert f"{deaths[0]:.0f} [" in result.output


def test_compare__tests_runs_by_log_rank(runs: dict[str, Path], tmp_path: Path) -> None:
    result = call("compare", *runs.values(), "--k", 1, "--draws", 0, "--csv", tmp_path / "table.csv")
    events = [concept_events(scores_of(path), k=1).assign(run=name) for name, path in runs.items()]
    expected = logrank(pd.concat(events), by="run")
    table = table_of(tmp_path / "table.csv")
    found = table[table["quantity"] == "logrank"]
    np.testing.assert_allclose(found["p_value"], expected["p_value"])
    np.testing.assert_allclose(found["p_adjusted"], expected["p_adjusted"])
    assert f"chi-squared {expected['statistic'].iloc[0]:.2f}" in result.output
    assert "log-rank, pair by pair" in result.output
    assert "the runs have other checkpoints" in result.output


@pytest.mark.parametrize(
    ("words", "options", "reading"),
    [
        (("--by", "unit", "--k", 2), {"by": "unit", "k": 2}, "paper"),
        (("--compat", "seed", "--k", 1), {"compat": "seed", "k": 1}, "paper"),
        (("--reading", "lite", "--k", 1, "--tau", 0.05), {"tau": 0.05, "k": 1}, "lite"),
        (("--hysteresis", 0.2, "--k", 1), {"hysteresis": 0.2, "k": 1}, "paper"),
    ],
)
def test_compare__passes_options_on(runs, tmp_path, words, options, reading) -> None:
    result = call("compare", runs["one"], "--draws", 2, "--csv", tmp_path / "table.csv", *words)
    assert result.exit_code == 0, result.output
    table = table_of(tmp_path / "table.csv").set_index("quantity")
    assert table.loc["lives", "value"] == len(concept_events(scores_of(runs["one"], reading=reading), **options))
    assert "mean" not in table["run"].values


def test_compare__takes_a_study_with_seeds(make_study: Callable[..., Path], tmp_path: Path) -> None:
    path = make_study(checkpoints=0, text=conftest.STUDY.replace('"tiny"\n', '"tiny"\nseeds = [0, 1, 2]\n'))
    for seed, one in enumerate(each_seed(load_study(path))):
        write_concepts(one.store.url, drawn(8, 6, 3, seed), run=one.name)
    result = call("compare", path, "--draws", 3, "--k", 1, "--plot", tmp_path / "new" / "survival.png")
    assert result.exit_code == 0, result.output
    for seed in range(3):
        assert f"tiny-seed{seed}" in result.output
    assert (tmp_path / "new" / "survival.png").stat().st_size > 1000
    assert list(cubes_of([str(path)], None)) == ["tiny-seed0", "tiny-seed1", "tiny-seed2"]


def test_compare__keeps_runs_of_one_name_apart(tmp_path: Path) -> None:
    for place in ("a/x", "a/y", "b/x"):
        write_concepts(tmp_path / place, drawn(4, 3, 2, 0))
    assert list(cubes_of([str(tmp_path / "a/x"), str(tmp_path / "a/y")], None)) == ["r (x)", "r (y)"]
    places = [str(tmp_path / "a/x"), str(tmp_path / "b/x")]
    assert list(cubes_of(places, None)) == places


def test_compare__takes_adopted_tallies_beside_measured_runs(runs: dict[str, Path], tmp_path: Path) -> None:
    target = open_store(tmp_path / "published", create=True)
    adopt_tallies(read_tallies(tree(tmp_path / "tree")), target, run="published")
    result = call("compare", runs["one"], target.url, "--k", 1, "--draws", 2, "--csv", tmp_path / "table.csv")
    assert result.exit_code == 0, result.output
    assert "counts of published have no intervals: adopted tallies" in result.output
    events = concept_events(open_run(target.url)["tallies"].to_dataset(), k=1)
    found = line_of(table_of(tmp_path / "table.csv"), "published", "lives")
    assert found["value"].item() == len(events)
    assert found["low"].isna().all()
    assert "by tau = 0.04, k = 1; reading: paper" in result.output
    assert "reading: as adopted" in call("compare", target.url, "--k", 1).output


def test_compare__follows_concepts_as_the_studies_say(make_study: Callable[..., Path], tmp_path: Path) -> None:
    effects = '\n[concepts]\nroot = "shapes"\n[effects]\ntau = 0.05\nk = 1\n'
    path = make_study(checkpoints=0, text=conftest.STUDY + effects)
    store = write_concepts(load_study(path).store.url, drawn(8, 6, 3, 0))
    said = call("compare", path, "--draws", 0, "--csv", tmp_path / "a.csv")
    assert "by tau = 0.05, k = 1; reading: paper" in said.output
    lives = line_of(table_of(tmp_path / "a.csv"), "r", "lives")["value"].item()
    assert lives == len(concept_events(scores_of(Path(store.url)), tau=0.05, k=1))
    other = path.with_name("other.toml")
    text = path.read_text().replace("tau = 0.05", "tau = 0.06")
    other.write_text(text + '[store]\nurl = "other.icechunk"\n')
    write_concepts(load_study(other).store.url, drawn(8, 6, 3, 1))
    refused = call("compare", path, other)
    assert refused.exit_code == 2
    assert "follow concepts by other rules, tau = 0.05, 0.06; compare by one: --tau" in refused.stderr
    assert "by tau = 0.07, k = 1" in call("compare", path, other, "--tau", 0.07, "--draws", 0).output


def test_compare__says_what_is_wrong(runs: dict[str, Path], tmp_path: Path) -> None:
    open_store(tmp_path / "empty", create=True)
    conftest._make_store(tmp_path / "samples")
    for words, message in (
        ((runs["one"], runs["one"]), "is named twice"),
        ((runs["one"], "--by", "units"), "did you mean 'unit'"),
        ((runs["one"], "--reading", "papr"), "did you mean 'paper'"),
        (
            (runs["one"], "--plot", tmp_path / "curves.foo"),
            "curves.foo is no file of a picture; name one, e.g. curves.png",
        ),
        ((runs["one"], "--missing", "dropp"), "did you mean 'drop'"),
        ((runs["one"], "--draws", -1), "no number of resamples"),
        ((runs["one"], "--tau", 0.9), "run 'one' has no life to look at; lower tau"),
        ((tmp_path / "samples",), "no concepts were measured in this run, it holds samples; measure them"),
        ((tmp_path / "empty",), "it is empty"),
        ((tmp_path / "nothing",), "nothing"),
    ):
        result = call("compare", *words)
        assert result.exit_code == 2, (words, result.output)
        assert message in result.stderr
