"""Codes of a study: against the pure functions, what they wait for, and what is told anew."""

import re
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from codes_study import WORDS, words, write_study
from pairs_study import HEADS, UNITS, filled, planned, run, write_checkpoint

import neurolens
from neurolens import rows
from neurolens.errors import StoreError, StudyError
from neurolens.pairs import at, codes_at, directions, factors, pair_norms, percentile_mask, phrase_set, pool_of
from neurolens.rows.asked_phrases import AskedPhrases, digest_of
from neurolens.sparse_codes import describe, reconstruct, sparse_codes
from neurolens.study import load_study

PAIRS = UNITS * HEADS


def opened(path, cube="codes") -> xr.Dataset:
    return neurolens.open_run(load_study(path).store.url)[cube].to_dataset().compute()


def outcomes(results):
    return sorted((r.row.position, r.row.block, r.outcome, r.why) for r in results)


def run_both(path, *overrides):
    run(path, "texts", *overrides)
    return outcomes(run(path, "codes", *overrides))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache of this module's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def told(tmp_path_factory, cache):
    """A study whose texts, pools and codes were measured, with a dead pair at epoch 1: not to be changed."""
    path = write_study(tmp_path_factory.mktemp("told"))
    network = filled(path, 1)
    rows_of = slice(2 * UNITS // HEADS, 3 * UNITS // HEADS)
    network.module.attnpool.v_proj.weight.data[rows_of, 7] = 0  # what unit 7 gives to head 2
    import torch

    torch.save(network.module.state_dict(), path.parent / "checkpoints" / "epoch_1.pt")
    assert planned(path, "codes").notes[-1] == "codes wait for texts: run texts first"
    assert run(path, "codes") == []
    run(path, "pools")
    done = run_both(path)
    assert done == [(epoch, block, "computed", "") for epoch in range(2) for block in range(3)]
    return path


@pytest.fixture
def study(tmp_path, cache):
    """A fresh study."""
    return write_study(tmp_path / "study")


@pytest.fixture
def asked(monkeypatch):
    """The pairs of each measurement, in order."""
    import neurolens.pairs.code_cube as module

    seen, measure = [], module.measure

    def watched(network, samples, **options):
        seen.append(samples.ids.tolist())
        return measure(network, samples, **options)

    monkeypatch.setattr(module, "measure", watched)
    return seen


@pytest.mark.parametrize("epoch", [0, 1])
def test_run_rows__tell_all_pairs_as_the_pure_function_does(told, epoch):
    pool = pool_of(filled(told, epoch).module)
    phrases = phrase_set(at(told.parent / "store.icechunk", epoch=epoch, cubes=["texts"]), "words")
    assert phrases["phrase"].values.tolist() == list(WORDS)
    wanted = sparse_codes(directions(factors(pool))["direction"], phrases, atoms=3)
    found = codes_at(told.parent / "store.icechunk", epoch=epoch)
    np.testing.assert_array_equal(found["index"], wanted["index"])
    for name in ("value", "residual"):
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(reconstruct(found, phrases), reconstruct(wanted, phrases), rtol=1e-3, atol=1e-4)


def test_run_rows__name_pairs_and_phrases(told):
    found = opened(told)
    assert dict(found.sizes) == {"epoch": 2, "pair": PAIRS, "atom": 3, "phrase": len(WORDS)}
    assert found["pair"].values.tolist()[:2] == ["u0/h0", "u1/h0"]
    assert found["phrase"].values.tolist() == list(WORDS)
    said = describe(found.isel(epoch=0), top=1)
    assert set(said["phrase"].values.ravel()) <= set(WORDS)
    one = describe(codes_at(told.parent / "store.icechunk", epoch=0).sel(unit=[5]), top=1)
    np.testing.assert_array_equal(
        one["phrase"].sel(unit=5, head=3), said["phrase"].isel(pair=found["pair"].values.tolist().index("u5/h3"))
    )


def test_run_rows__of_a_dead_pair_tell_nothing(told):
    dead = opened(told).set_index(pair=["unit", "head"]).sel(unit=7, head=2)
    for name in ("index", "value", "residual"):
        assert dead[name].isnull().values.tolist() == [[False] * 3, [True] * 3]
    assert (codes_at(told.parent / "store.icechunk")["index"].sel(unit=7, head=2) == -1).all()


def test_run_rows__with_nothing_new_tell_nothing(told):
    assert planned(told, "codes").todo == ()
    more = ("compute.batch_size=3", "codes.block=7", 'texts.sets.more={phrases=["nine"]}', "codes.penalty=0.5")
    assert planned(told, "codes", *more).todo == ()
    assert planned(told, "codes", "codes.percentile=0").todo == ()  # all
    assert {row.state for row in planned(told, "codes", 'codes.norm="columns"').rows} == {"stale"}


def test_run_rows__tell_the_rest_when_they_were_stopped(told, study, asked, monkeypatch, stores_equal):
    import torch

    import neurolens.pairs.code_cube as module

    torch.save(torch.load(told.parent / "checkpoints" / "epoch_1.pt"), study.parent / "checkpoints" / "epoch_1.pt")
    run(study, "pools")
    run(study, "texts")
    watched = module.measure

    def stopped(network, samples, **options):
        if len(asked) == 4:
            raise KeyboardInterrupt
        return watched(network, samples, **options)

    monkeypatch.setattr(module, "measure", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(study, "codes")
    monkeypatch.setattr(module, "measure", watched)
    assert len(run(study, "codes")) == 2
    assert len(asked) == len({*map(tuple, asked)}) * 2 == 6
    stores_equal(load_study(study).store.url, load_study(told).store.url)


def test_run_rows__tell_all_anew_in_other_words_and_wait_for_these(study):
    run_both(study)
    before, more = opened(study), words(*WORDS, "straight")
    waiting = planned(study, "codes", more)
    assert waiting.rows == ()
    assert waiting.notes[-1] == "codes wait for texts: run texts first"
    assert len(run(study, "texts", more)) == 2  # the new word alone, at both checkpoints
    assert [row.state for row in planned(study, "codes", more).rows] == ["stale"] * 6
    assert {outcome for _, _, outcome, _ in outcomes(run(study, "codes", more))} == {"computed"}
    after = opened(study)
    assert after["phrase"].values.tolist() == [*WORDS, "straight"]
    assert not np.array_equal(after["value"], before["value"])


def test_run_rows__tell_anew_what_was_embedded_anew(study):
    run_both(study)
    write_checkpoint(study, 1, seed=9)
    plan = planned(study, "codes")
    assert [(row.position, row.state) for row in plan.rows] == [(0, "done")] * 3
    assert plan.notes[-1] == "1 checkpoint waits for its texts: run texts first"
    assert run_both(study) == [(1, block, "computed", "") for block in range(3)]


def test_run_rows__of_a_percentile_tell_the_same_pairs_at_all_checkpoints(study, asked):
    half = "codes.percentile=50"
    run(study, "texts", half)
    plan = planned(study, "codes", half)
    assert plan.rows == ()
    assert plan.notes[-1] == "codes wait for pools of epoch 1: run pools first"
    run(study, "pools", half)
    assert {outcome for _, _, outcome, _ in outcomes(run(study, "codes", half))} == {"computed"}
    pools = at(study.parent / "store.icechunk", epoch=1, cubes=["pools"])
    kept = percentile_mask(pair_norms(pools, pools, top=3), 50)
    found = opened(study)
    assert found.sizes["pair"] == PAIRS // 2
    assert found["index"].notnull().all()
    assert all(bool(kept.sel(unit=u, head=h)) for u, h in zip(found["unit"].values, found["head"].values, strict=True))
    asked.clear()
    lower = "codes.percentile=25"
    run(study, "codes", lower)
    new = {name for names in asked for name in names}
    assert len(new) == PAIRS // 4
    assert new.isdisjoint(found["pair"].values.tolist())
    after = opened(study)
    assert after.sizes["pair"] == 3 * PAIRS // 4
    np.testing.assert_array_equal(after["value"].sel(pair=found["pair"].values), found["value"])
    asked.clear()
    assert run(study, "codes", half) == []
    assert run(study, "codes", lower) == []
    assert asked == []
    first = run(study, "codes", half, "codes.norms_from=0")
    pools = at(study.parent / "store.icechunk", epoch=0, cubes=["pools"])
    kept = percentile_mask(pair_norms(pools, pools, top=3), 50)
    assert {result.outcome for result in first} == {"computed"}
    units, heads = (opened(study)[name].values for name in ("unit", "head"))
    assert len(units) == int(kept.sum())
    assert all(bool(kept.sel(unit=u, head=h)) for u, h in zip(units, heads, strict=True))
    with pytest.raises(StudyError, match=r"codes.norms_from is 7, and there is no checkpoint of that epoch"):
        planned(study, "codes", half, "codes.norms_from=7")


def test_gather__refuses_more_atoms_than_there_can_be_before_anything_is_there(study):
    for atoms, where in (("11", "10 phrases in 6 dimensions: more than 6"), ("7", "more than 6")):
        with pytest.raises(StudyError, match=f"codes.atoms is {atoms}, and texts.sets.words has .*{where}"):
            rows.gather(load_study(study, overrides=[f"codes.atoms={atoms}"]), "codes")


def test_gather__refuses_norms_of_too_few_images(study):
    few = ("codes.percentile=50", "pools.ranks=40")
    run(study, "texts", *few)
    run(study, "pools", *few)
    with pytest.raises(StudyError, match="totalled over 24 images, and norms of pairs are means over 40; set"):
        rows.gather(load_study(study, overrides=few), "codes")


def test_asked_phrases__are_those_that_a_row_was_planned_with():
    embeddings, reads = np.eye(3, dtype=np.float32), []

    def read(position):
        reads.append(position)
        return embeddings

    digests = {at: digest_of(embeddings) for at in range(2)}
    wanted = AskedPhrases(None, ("a", "b", "c"), digests, read)
    for position in (0, 0, 1):
        np.testing.assert_array_equal(wanted.given(position, digests[position])["phrases"], embeddings)
    assert reads == [0, 1]
    with pytest.raises(StoreError, match="embeddings of 1 are others than when the row was planned"):
        wanted.given(1, digest_of(embeddings + 1))
    assert wanted.axes()["phrase"].ids.tolist() == ["a", "b", "c"]
    assert wanted.settings != AskedPhrases(None, ("b", "a", "c"), digests, read).settings


def test_key_figures__say_what_phrases_leave_of_a_pair(told, study):
    from neurolens.flows.figures import key_figures

    def figures(path):
        return key_figures(load_study(path), planned(path, "codes"), "done")

    lines = figures(told).splitlines()
    left = opened(told)["residual"].min("atom").median("pair")
    assert lines[-2:] == [f"| 0 | {PAIRS} | {left[0]:.3f} |", f"| 1 | {PAIRS - 1} | {left[1]:.3f} |"]
    run(study, "pools")  # a store without codes
    assert "- codes wait for texts: run texts first" in figures(study)


@pytest.mark.parametrize("name", ["reference/sparse_codes.md", "how-to/codes.md"])
def test_pages__have_snippets_that_run_on_a_store(told, monkeypatch, name):
    page = (Path(__file__).parent.parent / "docs" / name).read_text()
    snippets = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    run(told, "pairs", "pairs={}")
    monkeypatch.chdir(told.parent)
    assert len(snippets) == 3
    names: dict[str, object] = {}
    for snippet in snippets:
        exec(snippet, names)
