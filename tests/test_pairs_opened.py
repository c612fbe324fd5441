"""One checkpoint of a run, and every reduction on it."""

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from pairs_cases import random_maps
from pairs_cube_cases import (
    ATOMS,
    EPOCHS,
    IMAGES,
    LABELS,
    RANKS,
    SETS,
    codes,
    image_ids,
    measured,
    pairs_run,
    pools,
    text,
    totals,
    write_pairs_store,
)

from neurolens import open_run
from neurolens.errors import MissingCheckpointError, MissingMeasurementError, SchemaError, StoreError
from neurolens.pairs import (
    ablate,
    ablation_curve,
    along,
    at,
    class_pairs,
    codes_at,
    dead_pairs,
    describe_unit,
    directions,
    factors,
    head_components,
    head_contributions,
    heat_maps,
    inertia,
    logit_attribution,
    majority,
    pair_means,
    pair_norms,
    pair_vectors,
    percentile_mask,
    phrase_set,
    phrase_share,
    rank_curve,
    reconstruct,
    retrieve,
    sinks,
    strengths,
    text_scores,
    top_images,
    top_pairs,
    top_phrases,
    unit_components,
    unit_gram,
    unit_norms,
    vector_norms,
    zero_shot,
)
from neurolens.sparse_codes import describe, sparse_codes, text_span
from neurolens.store import open_store


@pytest.fixture(autouse=True)
def in_one_thread():
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.fixture(scope="module")
def url():
    return pairs_run()


@pytest.fixture(scope="module")
def opened(url):
    return at(url)


@pytest.fixture(scope="module")
def plain():
    """What `at` puts together, from the last pool itself."""
    pool = pools()[-1]
    found = measured(pool).merge(factors(pool)).assign(text=(("phrase", "feature"), text(EPOCHS[-1])))
    found = found.assign_coords(label=("sample", LABELS))
    return found.assign_coords(sample=image_ids(), unit=np.arange(6), head=np.arange(2))


def test_at__is_the_last_checkpoint_in_the_order_of_reductions(opened, plain):
    assert opened["scalar"].dims == ("sample", "unit", "head")
    assert opened["top"].dims == ("unit", "head", "rank")
    assert opened["text"].dims == ("phrase", "feature")
    assert int(opened["epoch"]) == 10
    names = ("scalar", "patch", "mean_token", "positional", "embedding", "completeness", "attention", "text")
    for name in (*names, "value", "output", "constant"):
        assert isinstance(opened[name].data, da.Array), name
        assert opened[name].dims == plain[name].dims
        np.testing.assert_array_equal(opened[name], plain[name])
    summed = totals(measured(pools()[-1]))
    for name in ("mean", "std", "top", "bottom", "top_sample", "bottom_sample", "count"):
        np.testing.assert_array_equal(opened[name], summed[name])
    assert float(opened["worst_residual"]) == float(plain["completeness"].max())
    np.testing.assert_array_equal(opened["label"], LABELS)


@pytest.mark.parametrize("take", ["tree", "pools", "pairs", "one"])
def test_at__takes_what_was_opened(url, opened, take):
    tree = open_run(url)
    run = tree if take == "tree" else tree["pools"].to_dataset().isel(epoch=-1) if take == "one" else tree[take]
    xr.testing.assert_identical(at(run).drop_attrs().load(), opened.drop_attrs().load())


def test_at__is_the_checkpoint_asked_for(url):
    pool = pools()[1]
    np.testing.assert_array_equal(at(url, epoch=5)["scalar"], measured(pool)["scalar"])
    chosen = open_run(url)["pairs"].to_dataset().sel(epoch=5)
    np.testing.assert_array_equal(at(chosen)["value"], factors(pool)["value"])


def test_at__keeps_the_images_selected(url, plain):
    few = open_run(url)["pairs"].to_dataset().isel(sample=[7, 2, 11])
    found = at(few)
    np.testing.assert_array_equal(found["scalar"], plain["scalar"][[7, 2, 11]])
    np.testing.assert_array_equal(
        pair_norms(found, found, top=2), pair_norms(plain["scalar"][[7, 2, 11]], plain, top=2)
    )
    counted = found["top_sample"].to_numpy()
    known = totals(measured(pools()[-1]))["top_sample"].to_numpy()
    for here, place in enumerate((7, 2, 11)):
        assert ((counted == here) == (known == place)).all()
    assert (counted[~np.isin(known, (7, 2, 11))] == -1).all()


def test_at__is_of_one_snapshot(tmp_path):
    store = write_pairs_store(tmp_path / "run", epochs=(0,), cubes=("texts", "pools"))
    before = open_run(tmp_path / "run")["pools"]
    write_pairs_store(tmp_path / "run", epochs=(0, 5), cubes=("texts", "pools"))
    assert store.snapshot_id != before.attrs["snapshot"]
    assert int(at(before)["epoch"]) == 0
    assert int(at(tmp_path / "run")["epoch"]) == 5


def test_at__without_the_cube_has_totals(tmp_path, url):
    write_pairs_store(tmp_path / "run", epochs=(0, 10), cubes=("pools",))
    for found in (at(tmp_path / "run"), at(url, cubes=("pools",))):
        assert "scalar" not in found
        assert found.sizes["sample"] == IMAGES
        assert int(found["count"]) == IMAGES


def test_at__without_totals_or_options_leaves_them_out(tmp_path):
    write_pairs_store(tmp_path / "run", epochs=(0,), cubes=("pools", "pairs"), with_totals=False, options=())
    found = at(tmp_path / "run")
    assert not {"mean", "top", "count", "attention", "patch", "text"} & {*found}
    pair_norms(found, found, top=3).load()


def test_at__says_what_is_not_there(tmp_path, url):
    with pytest.raises(MissingCheckpointError, match="no epoch 7; there is 0, 5, 10"):
        at(url, epoch=7)
    with pytest.raises(SchemaError, match="pass epoch="):
        at(url, step=5)
    with pytest.raises(SchemaError, match="epoch=5 and step=5"):
        at(url, epoch=5, step=5)
    with pytest.raises(SchemaError, match="did you mean 'pools'"):
        at(url, cubes=("pool",))
    with pytest.raises(SchemaError, match="found int"):
        at(3)
    with pytest.raises(SchemaError, match="without the name of its cube"):
        at(xr.Dataset({"scalar": 1}))
    with pytest.raises(StoreError, match="nowhere"):
        at(tmp_path / "nowhere")
    store = open_store(tmp_path / "empty", create=True)
    with pytest.raises(MissingMeasurementError, match="--only pools,pairs,texts"):
        at(store.url)
    with pytest.raises(MissingMeasurementError, match="--only codes"):
        codes_at(store.url)
    with pytest.raises(SchemaError, match="no set of phrases 'word'; did you mean 'words'"):
        phrase_set(at(url), "word")


def test_at__says_what_failed(tmp_path):
    failed = [("pairs", 10, 1), ("pools", 0, 0)]
    write_pairs_store(tmp_path / "run", epochs=(0, 5, 10), cubes=("pools", "pairs"), failed=failed)
    assert int(at(tmp_path / "run")["epoch"]) == 5
    assert int(at(tmp_path / "run", cubes=("pools",))["epoch"]) == 10
    with pytest.raises(MissingMeasurementError, match=r"pairs was not measured at epoch 10.*\(it is at 0, 5\).*--only"):
        at(tmp_path / "run", epoch=10)
    with pytest.raises(MissingMeasurementError, match=r"pools.*cubes=\('pairs',\)"):
        at(tmp_path / "run", epoch=0)


def test_at__of_float16_is_near(tmp_path, plain):
    write_pairs_store(tmp_path / "run", epochs=(10,), cubes=("pools", "pairs"), options=(), encoding="float16")
    found = at(tmp_path / "run")
    assert found["scalar"].dtype == np.float16
    np.testing.assert_allclose(pair_norms(found, found, top=5), pair_norms(plain, plain, top=5), rtol=1e-2, atol=1e-3)
    np.testing.assert_allclose(
        retrieve(found, found, unit=2, k=3)["strength"][0],
        retrieve(plain, plain, unit=2, k=3)["strength"][0],
        rtol=2e-3,
    )


def test_at__knows_checkpoints_by_step(tmp_path):
    write_pairs_store(tmp_path / "run", cubes=("pools",), series="step")
    assert int(at(tmp_path / "run", step=5)["step"]) == 5
    with pytest.raises(SchemaError, match="pass step="):
        at(tmp_path / "run", epoch=5)


def test_phrase_set__is_named_by_its_phrases(opened):
    found = phrase_set(opened, "classes")
    assert found["phrase"].to_numpy().tolist() == list(SETS["classes"])
    np.testing.assert_array_equal(found, text(10)[:3])


def test_codes_at__of_some_pairs_leave_the_others_out(tmp_path):
    write_pairs_store(tmp_path / "run", epochs=(10,), cubes=("pools", "codes"), coded=[(0, 1), (4, 0)])
    found = codes_at(tmp_path / "run")
    assert dict(found.sizes) == {"unit": 6, "head": 2, "atom": ATOMS, "phrase": 8}
    known = np.zeros((6, 2), bool)
    known[[0, 4], [1, 0]] = True
    exact = codes(pools()[-1], text(10)[3:]).where(known[..., None])
    np.testing.assert_array_equal(found["value"], exact["value"])
    assert (found["index"].to_numpy()[~known] == -1).all()


def test_codes_at__are_those_of_sparse_codes(url):
    found = codes_at(url)
    exact = codes(pools()[-1], text(10)[3:])
    assert isinstance(found["value"].data, da.Array)
    for name in ("index", "value", "residual"):
        np.testing.assert_array_equal(found[name], exact[name])
    assert found["index"].dtype == np.int32
    told = describe(found, found["phrase"], top=2)
    np.testing.assert_array_equal(told["phrase"], describe(exact, SETS["words"], top=2)["phrase"])


def scored(ds):
    """Every reduction that has numbers for its result, by name, of a Dataset as it is."""
    texts, scalar = ds["text"], ds
    keep = percentile_mask(pair_norms(ds, ds, top=5), 50)
    score = strengths(scalar, ds, level="unit", kind="norm", bias=True)
    components = unit_components(scalar, ds, k=2)
    yield "directions", directions(ds)["direction"]
    yield "majority", directions(ds, sign="majority", top=5)["direction"]
    yield "sign", majority(scalar, ds, top=5)
    yield "vectors", pair_vectors(ds)
    yield "vector_norms", vector_norms(ds)
    yield "gram", unit_gram(ds)
    yield "along", along(ds, texts)
    yield "norms", pair_norms(scalar, ds, top=5)
    yield "means", pair_means(scalar, ds)
    yield "dead", dead_pairs(scalar, ds)
    yield "strengths", strengths(scalar, ds)
    yield "unit strengths", score
    yield "unit norms", unit_norms(scalar, ds, top=4)
    yield "ablate", ablate(scalar, ds, keep)
    yield "unit components", components["singular_value"]
    yield "head components", head_components(scalar, ds, k=2)["singular_value"]
    yield "reconstruct", reconstruct(scalar, ds, components["direction"])
    yield "reconstruct pairs", reconstruct(scalar, ds, directions(ds)["direction"])
    yield "zero shot", zero_shot(ds["embedding"], texts[:3], ds["label"])["accuracy"]
    curve = ablation_curve(
        scalar, ds, texts[:3], ds["label"], score=pair_norms(ds, ds, top=5), shares=(0.5, 0.2), baselines=1, bootstrap=9
    )
    yield "curve", curve["low"]
    yield "text scores", text_scores(ds, texts)
    yield "top pairs", top_pairs(text_scores(ds, texts), k=3)["unit"]
    yield "top phrases", top_phrases(text_scores(ds, texts), k=3)["score"]
    yield "logits", logit_attribution(scalar, ds, texts[:2])["contribution"]
    yield "class pairs", class_pairs(ds, texts[:3], k=4)
    yield "retrieve", retrieve(scalar, ds, unit=3, head=1, k=4)["strength"]
    yield "retrieve unit", retrieve(scalar, ds, unit=3, k=4, kind="norm", bias=True)["position"]
    yield "retrieve text", retrieve(scalar, ds, text=texts[4], k=4)["strength"]
    yield "top images", top_images(strengths(scalar, ds), k=2)["position"]
    yield "inertia", inertia(score, ds["embedding"], top=4)
    yield "sinks", sinks(ds["attention"])["entropy"]
    yield "share", phrase_share(scalar, ds, texts, k=3, bias=True)
    yield "share of stored", phrase_share(scalar, ds, texts, k=3, embedding=ds["embedding"])
    yield "heads", head_contributions(scalar, ds)
    yield "span", text_span(head_contributions(scalar, ds)[:, 1], texts, atoms=2)["captured"]
    yield "ranks", rank_curve(scalar, ds, texts[:3], ds["label"], ranks=(1, 2))["share"]
    yield "unit", describe_unit(scalar, ds, 3, texts=texts, heads=2, phrases=2, images=3, top=5)["strength"]
    yield "codes", sparse_codes(directions(ds)["direction"], texts, atoms=2)["value"]


LAZY = ("directions", "majority", "sign", "vectors", "norms", "means", "dead", "strengths", "unit strengths")
LAZY = (*LAZY, "heads", "unit norms", "ablate", "text scores", "logits", "sinks", "share", "share of stored", "along")


@pytest.fixture(scope="module")
def exact(plain):
    return dict(scored(plain))


def test_reductions__take_a_checkpoint_as_it_is(opened, exact):
    for name, found in scored(opened):
        if name in LAZY:
            assert isinstance(found.data, da.Array), name
        assert set(found.dims) == set(exact[name].dims), name
        np.testing.assert_allclose(found.transpose(*exact[name].dims), exact[name], rtol=2e-5, atol=1e-6, err_msg=name)


def test_reductions__of_a_checkpoint_are_blind_to_chunks(opened, exact):
    cut = opened.chunk({"sample": 11, "unit": 4, "head": 1, "feature": 3, "phrase": 6, "token": 3, "d": 1})
    for name, found in scored(cut):
        np.testing.assert_allclose(found, exact[name].transpose(*found.dims), rtol=2e-5, atol=1e-6, err_msg=name)


def test_heat_maps__take_a_checkpoint_as_it_is(opened, plain):
    pool = pools()[-1]
    maps = random_maps(pool, IMAGES, seed=2)
    assert opened.attrs["token"] == plain.attrs["token"] == "mean"
    assert opened.attrs["grid"] == plain.attrs["grid"] == list(pool.grid)
    found = heat_maps(maps, opened, opened, opened["text"][:2])
    exact = heat_maps(maps, plain, plain, plain["text"][:2])
    np.testing.assert_allclose(found["heat"], exact["heat"], rtol=1e-5, atol=1e-6)


def test_reductions__of_totals_are_those_of_the_scalars(url, plain):
    found = at(url, cubes=("pools",))
    scalar = plain["scalar"]
    np.testing.assert_allclose(pair_norms(found, found, top=5), pair_norms(scalar, plain, top=5), rtol=1e-5)
    assert isinstance(pair_norms(found, found, top=5).data, da.Array)
    np.testing.assert_allclose(pair_means(found, found), pair_means(scalar, plain), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(dead_pairs(found, found), dead_pairs(scalar, plain))
    for top in (4, RANKS):
        signs = directions(found, sign="majority", top=top)["sign"]
        np.testing.assert_array_equal(signs, majority(scalar, plain, top=top))
    images, exact = (retrieve(ds, ds, unit=4, head=0, k=6) for ds in (found, plain))
    np.testing.assert_allclose(images["strength"], exact["strength"], rtol=1e-6)
    np.testing.assert_array_equal(images["position"], exact["position"])
    assert images["sample"].to_numpy().tolist() == exact["sample"].to_numpy().tolist()
    images, exact = found.lens.top_images(k=6), top_images(strengths(plain, plain), k=6)
    np.testing.assert_allclose(images["strength"], exact["strength"], rtol=1e-5)
    np.testing.assert_array_equal(images["position"], exact["position"])
    np.testing.assert_array_equal(images["sample"], exact["sample"])
    with pytest.raises(SchemaError, match="totals with factors="):
        top_images(found, k=6)
    with pytest.raises(SchemaError, match="signed strength alone"):
        retrieve(found, found, unit=4)
    with pytest.raises(SchemaError, match=f"know {RANKS} images"):
        retrieve(found, found, unit=4, head=0, k=RANKS + 1)
    with pytest.raises(SchemaError, match="--only pairs"):
        strengths(found, found)
