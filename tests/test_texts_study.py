"""Texts of a study: phrases of several sets, embedded at each checkpoint; what is new is measured, and no more."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from conftest import STUDY
from pairs_study import FEATURES, TEXT, filled, planned, write_checkpoint, write_study

import neurolens
from neurolens import pairs, rows
from neurolens.errors import DataError, NonFiniteError, SchemaError, StudyError
from neurolens.pairs import text_cube
from neurolens.report.ledger import ledger_table
from neurolens.study import load_study

WORDS = ("even", "odd", "prime", "square", "curved")
BASE = TEXT.partition("[pools]")[0]
FORMS = ("{}", " {} ")


CLASSES = '{known = "classes"}'


def phrases(words=WORDS, **more: object) -> str:
    return f"{{phrases = {list(words)}{''.join(f', {name} = {value!r}' for name, value in more.items())}}}"


def sets(path: Path, **tables: str) -> Path:
    """Make these the sets that the study names."""
    told = "".join(f"{name} = {table}\n" for name, table in tables.items())
    path.write_text(f"{BASE}[texts]\nblock = 4\n[texts.sets]\n{told}")
    return path


def run(path: Path, *overrides: str) -> list[tuple[int, int]]:
    """Bring the texts up to date, as a flow does, and return the rows that were computed."""
    study = load_study(path, overrides=overrides)
    materials = rows.gather(study, "texts")
    plan = rows.plan(materials, rows.open_for_reading(study))
    if plan.todo or plan.change:
        rows.prepare(materials, rows.open_for_writing(study))
    results = rows.run_rows(materials, plan.todo, rows.open_for_writing(study)) if plan.todo else []
    assert {result.outcome for result in results} <= {"computed"}, [result.why for result in results]
    return sorted(result.row.id for result in results)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A study of which the texts of both checkpoints are measured, and the results."""
    path = sets(write_study(tmp_path_factory.mktemp("texts") / "a", text=BASE), classes=CLASSES, words=phrases())
    return path, run(path)


@pytest.fixture
def study(measured, tmp_path):
    """A copy of it that a test may change."""
    shutil.copytree(measured[0].parent, tmp_path / "a")
    return tmp_path / "a" / "study.toml"


def opened(path: Path) -> xr.Dataset:
    return neurolens.open_run(load_study(path).store.url)["texts"].to_dataset()


def expected(path: Path, epoch: int, phrases, templates=None) -> np.ndarray:
    encode = pairs.encoder_of(filled(path, epoch))
    return pairs.embed_phrases(encode, list(phrases), templates).to_numpy()


def test_texts__are_the_unit_embeddings_of_each_checkpoint(measured):
    path, computed = measured
    assert computed == [(epoch, block) for epoch in range(2) for block in range(4)]
    ds = opened(path)
    assert ds["set"].values.tolist() == ["classes"] * 10 + ["words"] * 5
    assert ds.words.values.tolist() == [str(n) for n in range(10)] + list(WORDS)
    assert ds.phrase.values.tolist()[-1] == "words/curved"
    assert ds.text.dims == ("epoch", "phrase", "feature")
    for epoch in range(2):
        both = expected(path, epoch, [*map(str, range(10)), *WORDS])
        np.testing.assert_allclose(ds.text.sel(epoch=epoch), both, rtol=0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(ds.text, axis=2), 1, atol=1e-6)
    assert abs(ds.text.sel(epoch=0) - ds.text.sel(epoch=1)).max() > 0.1


def test_run__computes_nothing_the_second_time(measured):
    path, _ = measured
    plan = planned(path, "texts")
    assert not plan.todo
    assert not plan.change
    assert not run(path, "texts.block=1024", "compute.batch_size=3")


def test_run__measures_added_phrases_alone(study):
    more = [*WORDS[:2], "small", *WORDS[2:]]
    assert run(sets(study, classes=CLASSES, words=phrases(more))) == [(0, 4), (1, 4)]
    ds = opened(study)
    assert ds.words.values.tolist()[10:] == more
    np.testing.assert_allclose(ds.text.sel(epoch=1)[10:], expected(study, 1, more), atol=1e-6)
    assert run(sets(study, classes=CLASSES, words=phrases(more), others=phrases(["large"]))) == [(0, 5), (1, 5)]


def test_run__measures_a_set_of_other_templates_alone(study):
    before = opened(study).text.load()
    changed = sets(study, classes=CLASSES, words=phrases(templates=list(FORMS)))
    assert planned(changed, "texts").change == "append 5 phrases; leave out 5 phrases"
    assert run(changed) == [(e, b) for e in range(2) for b in (4, 5)]
    ds = opened(study)
    assert ds.words.values.tolist()[10:] == list(WORDS)
    np.testing.assert_array_equal(ds.text[:, :10], before[:, :10])
    np.testing.assert_allclose(ds.text.sel(epoch=0)[10:], expected(study, 0, WORDS, FORMS), atol=1e-6)
    sets(study, classes=CLASSES, words=phrases())
    assert planned(study, "texts").change == "leave out 5 phrases; take in 5 phrases again"
    assert run(study) == []  # the embeddings by the former templates are there still
    np.testing.assert_array_equal(opened(study).text, before)


def test_run__costs_nothing_for_phrases_that_were_removed_and_come_back(study):
    before = opened(study).text.load()
    assert run(sets(study, words=phrases(["curved", "odd"]))) == []
    ds = opened(study)
    assert ds.phrase.values.tolist() == ["words/curved", "words/odd"]
    np.testing.assert_array_equal(ds.text, before[:, [14, 11]])
    # at a new checkpoint, what is named is measured, and what is not is not
    write_checkpoint(study, 2)
    assert run(study) == [(2, 2), (2, 3)]
    np.testing.assert_allclose(opened(study).text.sel(epoch=2), expected(study, 2, ["curved", "odd"]), atol=1e-6)
    assert opened(study).measured.all()
    # and what is named again is measured where it was not
    plan = planned(sets(study, classes=CLASSES, words=phrases()), "texts")
    assert [(row.id, row.state) for row in plan.todo] == [
        ((2, 0), "missing"),
        ((2, 1), "missing"),
        ((2, 2), "stale"),
        ((2, 3), "stale"),
    ]
    assert plan.todo[3].why == "phrases were named again"
    assert len(run(study)) == 4
    ds = opened(study)
    np.testing.assert_array_equal(ds.text.sel(epoch=[0, 1]), before)
    np.testing.assert_allclose(ds.text.sel(epoch=2), expected(study, 2, [*map(str, range(10)), *WORDS]), atol=1e-6)
    assert ds.measured.all()
    assert run(sets(study, words=phrases(["curved", "odd"]))) == []


def test_run__goes_on_without_a_phrase_that_cannot_be_embedded(study):
    materials = rows.gather(load_study(sets(study, words=phrases([*WORDS, "small", "a dog"]))), "texts")
    store = rows.open_for_writing(materials.study)
    failed = rows.run_rows(materials, rows.plan(materials, store).todo, store)
    assert [result.outcome for result in failed] == ["failed"] * 2
    assert "has no phrase 'a dog'" in failed[0].why
    assert run(sets(study, words=phrases([*WORDS, "small"]))) == [(0, 4), (1, 4)]
    ds = opened(study)
    assert ds.measured.all()
    np.testing.assert_allclose(ds.text.sel(epoch=0), expected(study, 0, [*WORDS, "small"]), atol=1e-6)


def test_ledger_table__leaves_out_blocks_that_are_not_named(study):
    run(sets(study, words=phrases(WORDS[1:])))
    write_checkpoint(study, 2)
    run(study)
    store = rows.open_for_reading(load_study(study))
    table = ledger_table(store.ledger("texts"))
    assert (table.blocks, table.blocks_of) == (2, "phrases")
    assert table.strips[0].counts == {"done": 3}


def test_run__keeps_embeddings_of_a_file_bit_for_bit(study, tmp_path):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, FEATURES)).astype(np.float32)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    file = pairs.write_embeddings(values, tmp_path / "given.pt")
    given = phrases(["a sky", "a tree", "a sea"], embeddings=str(file))
    assert run(sets(study, classes=CLASSES, words=phrases(), scenes=given)) == [(0, 4), (1, 4)]
    paths = pairs.write_text_files(load_study(study).store.url, tmp_path / "out", set="scenes", epoch=0)
    assert [path.name for path in paths] == ["text_embeddings_scenes.pt", "text_embeddings_scenes.txt"]
    torch.testing.assert_close(torch.load(paths[0], weights_only=True), torch.from_numpy(values), rtol=0, atol=0)
    assert paths[1].read_text() == "a sky\na tree\na sea\n"
    values[1] = values[0]
    np.save(tmp_path / "given.npy", values)
    other = phrases(["a sky", "a tree", "a sea"], embeddings=str(tmp_path / "given.npy"))
    assert run(sets(study, classes=CLASSES, words=phrases(), scenes=other)) == [(0, 5), (1, 5)]
    assert planned(study, "texts").todo == ()
    with pytest.raises(DataError, match="is there already"):
        pairs.write_text_files(load_study(study).store.url, tmp_path / "out", set="scenes")
    assert len(pairs.write_text_files(opened(study), tmp_path / "out", overwrite=True)) == 6
    read = pairs.read_embeddings(tmp_path / "out" / "text_embeddings_words.pt", WORDS)
    np.testing.assert_array_equal(read, opened(study).text.sel(epoch=1)[10:15])


def test_export_texts__writes_the_files_of_a_run(measured, tmp_path):
    from typer.testing import CliRunner

    from neurolens.cli import app

    url = load_study(measured[0]).store.url
    result = CliRunner().invoke(app, ["export", "texts", str(url), str(tmp_path), "--set", "words", "--epoch", "0"])
    assert result.exit_code == 0, result.output
    found = pairs.read_embeddings(tmp_path / "text_embeddings_words.pt", WORDS, features=FEATURES)
    np.testing.assert_array_equal(found, opened(measured[0]).text.sel(epoch=0)[10:])


@pytest.mark.parametrize(
    ("tables", "error", "said"),
    [
        ({"a": '{file = "empty.txt"}'}, DataError, "has no phrases; write one a line"),
        ({"a": '{file = "twice.txt"}'}, DataError, "has 'odd' in places 1 and 3.*set repeated = \"drop\""),
        ({"a": phrases(["odd", " "])}, DataError, "blank phrase, number 2"),
        ({"a": phrases(["odd"], templates=["a photo"])}, DataError, r"exactly one \{\}"),
        ({"a": phrases(["odd"], embeddings="wide.npy")}, DataError, "embeddings of the wrong width: .* has 7 .* has 6"),
        (
            {"a": phrases(["odd", "even"], embeddings="wide.npy")},
            DataError,
            "1 rows of 7 features, and texts.sets.a has 2 phrases",
        ),
        ({"a": phrases(["odd"], embeddings="zero.npy")}, NonFiniteError, "the embedding of 'odd' is 0"),
        ({"a": phrases(["a dog"])}, DataError, "has no phrase 'a dog'"),
    ],
)
def test_gather__refuses_what_cannot_be_embedded(study, tables, error, said):
    (study.parent / "empty.txt").write_text("\n \t\n")
    (study.parent / "twice.txt").write_text("odd\t\n even\nodd")
    np.save(study.parent / "wide.npy", np.eye(1, 7, dtype=np.float32))
    np.save(study.parent / "zero.npy", np.zeros((1, 6), np.float32))
    with pytest.raises(error, match=said):
        rows.gather(load_study(sets(study, **tables)), "texts")


def test_open_samples__strips_keeps_or_drops_what_comes_twice(study):
    (study.parent / "twice.txt").write_text("odd\t\n even\n\nodd")
    sets(study, a='{file = "twice.txt", repeated = "drop"}', b='{file = "twice.txt", repeated = "keep"}')
    samples = text_cube.open_samples(text_cube.table_of(load_study(study)))
    assert samples.coords["words"].tolist() == ["odd", "even", "odd", "even", "odd"]
    names = [name.partition("@")[0] for name in samples.ids.tolist()]
    assert names == ["a/odd", "a/even", "b/odd", "b/even", "b/odd-1"]
    assert len({name.partition("@")[2] for name in samples.ids.tolist()}) == 2  # of what is embedded, not of where


def test_load_study__refuses_an_empty_list_of_phrases(study):
    with pytest.raises(StudyError, match="no phrases given"):
        load_study(sets(study, a="{phrases = []}"))


def test_gather__refuses_networks_without_a_text_tower(tmp_path):
    text = STUDY.replace("[samples]\n", "") + f"[texts.sets]\nwords = {phrases()}\n"
    path = write_study(tmp_path / "a", text=text)
    with pytest.raises(SchemaError, match=r'no text tower.*embeddings = "file.pt"'):
        rows.gather(load_study(path), "texts")
    np.save(path.parent / "given.npy", np.eye(5, dtype=np.float32))
    path.write_text(text.replace(phrases(), phrases(embeddings="given.npy")))
    assert run(path) == [(0, 0), (1, 0)]
    np.testing.assert_array_equal(opened(path).text.sel(epoch=1), np.eye(5))
