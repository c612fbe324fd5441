"""``ds.lens`` on a checkpoint's pairs: the functions of the same name, with what the Dataset holds."""

import dask
import numpy as np
import pytest
import xarray as xr
from pairs_cube_cases import LABELS, SETS, pairs_run

from neurolens import open_run, pairs, sparse_codes
from neurolens.errors import MissingMeasurementError, SchemaError


@pytest.fixture(scope="module")
def url():
    return pairs_run()


@pytest.fixture(scope="module")
def ds(url):
    return pairs.at(url).compute()


def same(found, exact):
    xr.testing.assert_identical(found, exact)


def test_lens__is_the_function_of_the_same_name(ds):
    lens, text = ds.lens, ds["text"]
    same(lens.directions(sign="majority", top=5)["sign"], pairs.directions(ds, sign="majority", top=5)["sign"])
    same(lens.pair_norms(top=4), pairs.pair_norms(ds, ds, top=4))
    same(lens.unit_norms(top=4), pairs.unit_norms(ds, ds, top=4))
    same(lens.pair_means().compute(), pairs.pair_means(ds, ds).compute())
    same(lens.dead_pairs(), pairs.dead_pairs(ds, ds))
    same(lens.strengths(level="unit"), pairs.strengths(ds, ds, level="unit"))
    same(lens.unit_components(k=2), pairs.unit_components(ds, ds, k=2))
    same(lens.head_components(k=1), pairs.head_components(ds, ds, k=1))
    directions = pairs.unit_components(ds, ds, k=1)["direction"]
    same(lens.head_contributions(), pairs.head_contributions(ds, ds))
    same(lens.describe_unit(3, heads=2, top=4), pairs.describe_unit(ds["scalar"], ds, 3, texts=text, heads=2, top=4))
    same(lens.reconstruct(directions), pairs.reconstruct(ds, ds, directions))
    same(lens.text_scores(scale="dot"), pairs.text_scores(ds, text, scale="dot"))
    same(lens.logit_attribution(), pairs.logit_attribution(ds, ds, text))
    same(lens.retrieve(unit=3, head=1, k=4), pairs.retrieve(ds, ds, unit=3, head=1, k=4))
    same(lens.top_images(k=2), pairs.top_images(pairs.strengths(ds, ds), k=2))
    same(lens.sinks(share=0.3), pairs.sinks(ds["attention"], share=0.3))
    same(lens.phrase_share(k=2), pairs.phrase_share(ds, ds, text, k=2, embedding=ds["embedding"]))
    strength = pairs.strengths(ds, ds, level="unit", kind="norm", bias=True)
    same(lens.inertia(top=3), pairs.inertia(strength, ds["embedding"], top=3))


def test_direction_change__of_one_checkpoint_asks_for_the_cube(ds):
    with pytest.raises(SchemaError, match="the cube `pools` of the run"):
        ds.lens.direction_change()


def test_reconstruct__takes_directions_a_rank_or_codes(ds, url):
    codes = pairs.codes_at(url)
    same(ds.lens.reconstruct(rank=2), pairs.reconstruct(ds, ds, pairs.unit_components(ds, ds, k=2)["direction"]))
    said = sparse_codes.reconstruct(codes, pairs.phrase_set(ds, "words"))
    same(ds.lens.reconstruct(codes=codes), pairs.reconstruct(ds, ds, said))
    with pytest.raises(SchemaError, match="one of directions, rank and codes"):
        ds.lens.reconstruct()
    with pytest.raises(SchemaError, match="one of directions, rank and codes"):
        ds.lens.reconstruct(rank=1, codes=codes)
    others = codes.assign_coords(phrase=[f"other {i}" for i in range(codes.sizes["phrase"])])
    with pytest.raises(SchemaError, match="no set of the phrases"):
        ds.lens.reconstruct(codes=others)


def test_lens__takes_phrases_of_the_store_by_name(ds):
    words = pairs.phrase_set(ds, "words")
    same(ds.lens.text_scores("words"), pairs.text_scores(ds, words))
    few = ds.lens.text_scores(["round", "a cat"])
    np.testing.assert_allclose(few, pairs.text_scores(ds, words.isel(phrase=[2, 1])), rtol=1e-6)
    assert few["phrase"].to_numpy().tolist() == ["round", "a cat"]
    best = ds.lens.top_pairs(["round"], k=3)
    np.testing.assert_allclose(best["score"], pairs.top_pairs(few[:1], k=3)["score"], rtol=1e-6)
    near = ds.lens.top_phrases(4, 1, "words", k=2)
    scores = pairs.text_scores(ds, words).sel(unit=4, head=1)
    assert near["phrase"].to_numpy().ravel().tolist() == [SETS["words"][i] for i in np.argsort(-scores.to_numpy())[:2]]
    images = ds.lens.retrieve(text="round", k=3)
    same(images, pairs.retrieve(ds, ds, text=words.isel(phrase=2, drop=True), k=3))
    np.testing.assert_allclose(ds.lens.text_scores(words.to_numpy()), pairs.text_scores(ds, words), rtol=1e-6)
    chosen = pairs.top_pairs(pairs.text_scores(ds.drop_vars(["unit", "head"]), words), k=2)
    same(ds.lens.phrase_share(pairs=chosen), ds.lens.phrase_share("words", k=2))
    with pytest.raises(SchemaError, match="did you mean 'round'"):
        ds.lens.text_scores(["rund"])
    with pytest.raises(MissingMeasurementError, match="texts"):
        ds.drop_vars("text").lens.text_scores()
    for wrong, said in (((400, 0), "no unit 400 among"), ((4, [0, 9]), "no head 9 among")):
        with pytest.raises(SchemaError, match=said):
            ds.lens.top_phrases(*wrong, "words")


@pytest.mark.parametrize("method", ["ablation_curve", "rank_curve", "describe_unit"])
def test_lens__of_totals_alone_asks_for_scalars(url, method):
    totals = pairs.at(url, cubes=("pools", "texts"))
    with pytest.raises(MissingMeasurementError, match=r"'scalar' was not measured.*--only pairs"):
        getattr(totals.lens, method)(*([1] if method == "describe_unit" else []))


def test_lens__classifies_with_the_labels_of_the_images(ds):
    classes = pairs.phrase_set(ds, "classes")
    exact = pairs.zero_shot(ds["embedding"], classes, LABELS)
    same(ds.lens.zero_shot(), exact)
    same(ds.lens.rank_curve(ranks=(2,)), pairs.rank_curve(ds["scalar"], ds, classes, LABELS, ranks=(2,)))
    same(ds.lens.zero_shot(classes.to_numpy()), exact)
    keep = pairs.percentile_mask(pairs.pair_norms(ds, ds, top=5), 50)
    left = ds.lens.ablate(percentile=50, top=5)
    same(left, pairs.ablate(ds, ds, keep))
    same(left, ds.lens.ablate(keep))
    same(ds.lens.zero_shot(embedding=left), pairs.zero_shot(left, classes, LABELS))
    options = {"shares": (0.5,), "bootstrap": 10, "baselines": 1}
    for level, score in (("pair", pairs.pair_norms(ds, ds, top=4)), ("unit", pairs.unit_norms(ds, ds, top=4))):
        curve = pairs.ablation_curve(ds, ds, classes, LABELS, score=score, **options)
        same(ds.lens.ablation_curve(level=level, top=4, **options), curve)
    with pytest.raises(SchemaError, match="labels count 3 classes, zero, one, two"):
        ds.lens.zero_shot("words")
    with pytest.raises(SchemaError, match="in their order"):
        ds.lens.zero_shot(["one", "zero", "two"])
    assert ds.lens.zero_shot("words", labels=LABELS)["count"] == len(LABELS)
    with pytest.raises(SchemaError, match="no label"):
        ds.drop_vars("label").lens.zero_shot()
    with pytest.raises(SchemaError, match="did you mean 'unit'"):
        ds.lens.ablation_curve(level="units")


def test_lens__of_checkpoints_follows_them_or_asks_for_one(url):
    tree = open_run(url)
    pools, scalars = (tree[name].to_dataset() for name in ("pools", "pairs"))
    with dask.config.set(scheduler="synchronous"):
        same(pools.lens.direction_change().compute(), pairs.direction_change(url).compute())
        options = {"unit": 1, "head": 0, "words": "words"}
        same(scalars.lens.text_history(**options).compute(), pairs.text_history(url, **options).compute())
    with pytest.raises(SchemaError, match=r"checkpoints along 'epoch'.*neurolens.pairs.at"):
        pools.lens.directions()
    with pytest.raises(SchemaError, match=r"no factors of a pool.*neurolens.pairs.at"):
        scalars.isel(epoch=0).lens.pair_norms()


def test_lens__knows_where_a_checkpoint_came_from(ds):
    assert ds.lens.snapshot == ds.attrs["snapshot"]
    assert set(ds.lens.settings()) == {"pools", "pairs", "texts"}
    assert set(ds.lens.provenance().index.get_level_values("epoch")) == {0, 5, 10}
