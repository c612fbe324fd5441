"""Pairs through training: against the vectors of all pairs, built whole."""

from dataclasses import replace

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs_cases import random_pool
from pairs_cube_cases import EPOCHS, SETS, pools, text, write_pairs_store

from neurolens import open_run
from neurolens.errors import MissingCheckpointError, MissingMeasurementError, SchemaError
from neurolens.pairs import direction_change, factors, pair_vectors, text_history, text_scores, top_phrases


def series(made, epochs=None):
    """The cube of some pools, made by hand."""
    epochs = list(range(len(made))) if epochs is None else epochs
    return xr.concat([factors(pool) for pool in made], "epoch").assign_coords(epoch=epochs)


def vectors(pool):
    return pair_vectors(factors(pool)).to_numpy().astype(np.float64)


def cosines(one, other):
    with np.errstate(invalid="ignore"):
        return (one * other).sum(-1) / np.linalg.norm(one, axis=-1) / np.linalg.norm(other, axis=-1)


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    place = tmp_path_factory.mktemp("followed") / "run"
    write_pairs_store(place, cubes=("texts", "pools"), failed=[("pools", 3, 0)], epochs=(0, 3, 5, 10))
    return str(place)


@given(seed=st.integers(0, 99), heads=st.integers(1, 3), dim=st.integers(1, 3), reference=st.integers(0, 2))
@settings(max_examples=5, deadline=None)
def test_direction_change__is_that_of_whole_vectors(seed, heads, dim, reference):
    made = [random_pool(4, heads, dim, 5, seed=seed + i) for i in range(3)]
    u = [vectors(pool) for pool in made]
    found = direction_change(series(made), reference=reference)
    np.testing.assert_allclose(found["norm"], np.linalg.norm(u, axis=-1), rtol=1e-9)
    np.testing.assert_allclose(found["turn"][1:], [cosines(u[1], u[0]), cosines(u[2], u[1])], atol=1e-9)
    np.testing.assert_allclose(found["cosine"], [cosines(each, u[reference]) for each in u], atol=1e-9)
    np.testing.assert_allclose(found["growth"][1:] * found["norm"][:-1].to_numpy(), found["norm"][1:])
    assert np.isnan(found["turn"][0]).all()
    assert np.isnan(found["growth"][0]).all()
    assert found.attrs["reference"] == reference


def test_direction_change__of_dead_pairs_is_not_known():
    made = [random_pool(3, 2, 2, 5, seed=i) for i in range(2)]
    made[1] = replace(made[1], W_v=made[1].W_v * [1, 0, 1])
    found = direction_change(series(made))
    dead = (found["norm"] == 0).to_numpy()
    assert dead[1, 1].all()
    assert dead.sum() == 2
    assert np.isnan(found["turn"][1].to_numpy()[dead[1]]).all()
    assert (found["growth"][1].to_numpy()[dead[1]] == 0).all()


@pytest.mark.parametrize("chunks", [None, {}])
def test_direction_change__of_one_checkpoint_has_nothing_before_it(chunks):
    one = series([random_pool(3, 2, 2, 5)])
    found = direction_change(one if chunks is None else one.chunk(chunks)).compute()
    np.testing.assert_allclose(found["cosine"], 1)
    assert np.isnan(found["turn"]).all()
    assert np.isnan(found["growth"]).all()
    assert (found["norm"] > 0).all()


def test_direction_change__of_a_run_is_lazy_and_knows_what_failed(url):
    found = direction_change(url)
    assert isinstance(found["turn"].data, da.Array)
    assert found["epoch"].to_numpy().tolist() == [0, 3, 5, 10]
    assert found.attrs["reference"] == 10
    known = np.isfinite(found.compute()).all(("unit", "head"))
    assert known["norm"].to_numpy().tolist() == [True, False, True, True]
    assert known["turn"].to_numpy().tolist() == [False, False, False, True]
    u = {epoch: vectors(pool) for epoch, pool in zip((0, 5, 10), pools((0, 5, 10)))}
    np.testing.assert_allclose(found["turn"].sel(epoch=10), cosines(u[10], u[5]), atol=1e-6)
    np.testing.assert_allclose(found["cosine"].sel(epoch=0), cosines(u[0], u[10]), atol=1e-6)
    std = open_run(url)["pools"]["std"].sel(epoch=5).transpose("unit", "head")
    np.testing.assert_allclose(found["spread"].sel(epoch=5), std * np.linalg.norm(u[5], axis=-1), rtol=1e-6)


def test_direction_change__is_blind_to_chunks_and_takes_a_few_pairs(url):
    cube = open_run(url)["pools"].to_dataset()
    whole = direction_change(cube).compute()
    with dask.config.set(scheduler="synchronous"):
        cut = direction_change(cube.chunk({"epoch": 2, "unit": 4, "d": 1}))
        xr.testing.assert_allclose(cut.compute(), whole)
        few = direction_change(cube.isel(unit=[4, 1], head=[1]))
        xr.testing.assert_allclose(few.compute(), whole.isel(unit=[4, 1], head=[1]))


def test_text_history__is_text_scores_at_each_checkpoint(url):
    found = text_history(url, unit=[4, 1], head=1, words="words", phrases=["round", "a dog"])
    assert isinstance(found["score"].data, da.Array)
    assert found["score"].dims == ("epoch", "phrase", "unit", "head")
    for epoch, pool in zip(EPOCHS, pools()):
        exact = text_scores(factors(pool).isel(unit=[4, 1], head=[1]), text(epoch)[3:]).to_numpy()
        at = [SETS["words"].index(phrase) for phrase in ("round", "a dog")]
        np.testing.assert_allclose(found["score"].sel(epoch=epoch), exact[at], atol=1e-6)
        ranks = 1 + (exact[None] > exact[at][:, None]).sum(axis=1)
        np.testing.assert_array_equal(found["rank"].sel(epoch=epoch), ranks)
    assert np.isnan(found["score"].sel(epoch=3)).all()
    assert np.isnan(found["rank"].sel(epoch=3)).all()


def test_text_history__gives_the_words_of_each_checkpoint(url):
    found = text_history(url, unit=2, head=[0, 1], words="classes")
    best = top_phrases(found["score"], k=2)
    assert best["phrase"].dims == ("epoch", "unit", "head", "rank")
    for epoch, pool in zip(EPOCHS, pools()):
        exact = text_scores(factors(pool).isel(unit=[2]), text(epoch)[:3]).to_numpy()[:, 0, 0]
        named = [SETS["classes"][i] for i in np.argsort(-exact)[:2]]
        assert best["phrase"].sel(epoch=epoch, unit=2, head=0).to_numpy().tolist() == named
        nearest = found["rank"].sel(epoch=epoch, unit=2, head=0).argmin("phrase").compute().item()
        assert SETS["classes"][nearest] == named[0]


def test_following__says_what_is_wrong(tmp_path, url):
    with pytest.raises(MissingCheckpointError, match="epoch 3; there is 0, 5, 10"):
        direction_change(url, reference=3)
    with pytest.raises(SchemaError, match="several sets of phrases; pass words= one of classes, words"):
        text_history(url, unit=0, head=0)
    with pytest.raises(SchemaError, match="did you mean 'round'"):
        text_history(url, unit=0, head=0, words="words", phrases=["rund"])
    with pytest.raises(SchemaError, match="no unit 6 among 6"):
        text_history(url, unit=6, head=0, words="words")
    with pytest.raises(SchemaError, match="select by lists"):
        direction_change(open_run(url)["pools"].to_dataset().isel(unit=2))
    write_pairs_store(tmp_path / "run", epochs=(0,), cubes=("pools",))
    with pytest.raises(MissingMeasurementError, match="--only texts"):
        text_history(tmp_path / "run", unit=0, head=0)
    with pytest.raises(MissingMeasurementError, match="--only pools"):
        direction_change(open_run(url)["texts"].to_dataset().drop_attrs().assign_attrs(cube="texts"))
