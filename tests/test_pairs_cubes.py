"""The cubes of pools and pairs: rows against the pure functions, what is measured anew, and what is refused."""

import json

import numpy as np
import pytest
import torch
import xarray as xr
from pairs_study import (
    FEATURES,
    HEADS,
    TEXT,
    TOKENS,
    UNITS,
    filled,
    planned,
    run,
    tensor,
    write_checkpoint,
    write_study,
)

import neurolens
from neurolens import rows
from neurolens.data import study_samples
from neurolens.pairs import (
    ScalarTotals,
    ablate,
    at,
    factors,
    pair_norms,
    pool_of,
    scalars,
    vector_norms,
)
from neurolens.study import load_study

ALL = ("scalars", "attention", "split")


def opened(path, cube):
    return neurolens.open_run(load_study(path).store.url)[cube].to_dataset()


def outcomes(results):
    return [
        (result.row.position, result.row.block, result.outcome) for result in sorted(results, key=lambda r: r.row.id)
    ]


def by_hand(path, epoch, **how):
    """Scalars of a checkpoint at the study's images, from maps taken by a hook, and its pool."""
    network, kept = filled(path, epoch), []
    network.module.eval().attnpool.register_forward_pre_hook(lambda pool, given: kept.append(given[0]))
    with torch.no_grad():
        embedding = network.module.encode_image(tensor(study_samples(load_study(path))))
    pool = pool_of(network.module)
    return pool, scalars(pool, kept[0], embedding=embedding, **how), embedding.numpy()


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A study whose pools and pairs were measured."""
    path = write_study(tmp_path_factory.mktemp("pairs"))
    for cube in ("pools", "pairs"):
        assert {result.outcome for result in run(path, cube)} == {"computed"}
    return path


def test_run_rows__hold_what_the_pure_functions_give(measured):
    found, pools = opened(measured, "pairs"), opened(measured, "pools")
    ids = study_samples(load_study(measured)).ids
    assert found["sample"].values.tolist() == ids.tolist() == pools["sample"].values.tolist()
    assert found["scalar"].dims == ("epoch", "sample", "head", "unit")
    for epoch in range(2):
        pool, wanted, embedding = by_hand(measured, epoch, split=True)
        row, of_pool = found.sel(epoch=epoch), pools.sel(epoch=epoch)
        for name in ("scalar", "patch", "mean_token", "positional", "attention", "embedding"):
            expected = wanted[name].transpose(*row[name].dims).values
            np.testing.assert_allclose(row[name], expected, rtol=1e-4, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(row["embedding"], embedding, rtol=1e-4, atol=1e-5)
        assert 0 < float(row["completeness"].max()) < 1e-5
        for name, array in factors(pool).data_vars.items():
            np.testing.assert_array_equal(of_pool[name], array.transpose(*of_pool[name].dims))
        totals = ScalarTotals(ranks=3)
        totals.add(row["scalar"].load())
        expected = totals.dataset()
        for name in ("mean", "std", "top", "bottom", "top_sample", "bottom_sample"):
            np.testing.assert_allclose(of_pool[name].transpose(*expected[name].dims), expected[name], rtol=1e-6)
        assert of_pool["count"].values.tolist() == [24] * HEADS
        np.testing.assert_array_equal(of_pool["worst_residual"], float(row["completeness"].max()))


def test_at__of_a_run_adds_up_to_the_embeddings(measured):
    ds = at(load_study(measured).store.url, epoch=1)
    everything = xr.ones_like(vector_norms(ds), dtype=bool)
    np.testing.assert_allclose(ablate(ds, ds, everything), ds["embedding"], rtol=1e-4, atol=1e-5)
    of_totals = pair_norms(ds[["mean", "std", "top", "bottom", "count"]], ds, top=3)
    np.testing.assert_allclose(of_totals, pair_norms(ds["scalar"], ds, top=3), rtol=1e-4)


def test_axes__count_units_heads_and_tokens_with_their_places(measured):
    found = opened(measured, "pairs")
    sizes = {"unit": UNITS, "head": HEADS, "token": TOKENS, "feature": FEATURES, "sample": 24, "epoch": 2}
    assert dict(found.sizes) == sizes | {"class": 10}
    assert found["y"].values.tolist() == [-1, *np.repeat(range(4), 4).tolist()]
    assert found["x"].values.tolist() == [-1, *list(range(4)) * 4]
    assert found["token_kind"].values.tolist() == ["mean", *["patch"] * 16]
    pools = opened(measured, "pools")
    assert dict(pools.sizes) == {"epoch": 2, "head": 4, "d": 4, "unit": 16, "feature": 6, "rank": 3, "sample": 24}
    assert found["unit"].values.tolist() == pools["unit"].values.tolist() == list(range(UNITS))


def test_run_rows__with_nothing_new_measure_nothing(measured):
    assert planned(measured, "pools").todo == planned(measured, "pairs").todo == ()
    assert planned(measured, "pairs", "pairs.memory_mib=2000", "pools.tolerance=1e-3").todo == ()
    assert planned(measured, "pools", "pools.tolerance=1e-3", "compute.batch_size=3").todo == ()


@pytest.mark.parametrize("override", ["pools.resample=true", "pools.module=attnpool"])
def test_plan__of_another_pool_or_size_is_stale(measured, override):
    assert [(row.state, row.missing) for row in planned(measured, "pairs", override).rows] == [("stale", ALL)] * 2
    missing = {row.missing for row in planned(measured, "pools", override).rows}
    assert missing == ({("totals",)} if "resample" in override else {("factors", "totals")})


def test_run_rows__of_a_part_asked_for_later_measure_that_part_alone(tmp_path):
    path = write_study(tmp_path, checkpoints=1)
    less = ("pairs.split=false", "pairs.attention=false", "pools.totals=false")
    for cube in ("pools", "pairs"):
        run(path, cube, *less)
    before = opened(path, "pairs").load(), opened(path, "pools").load()
    assert set(before[0].data_vars) == {"scalar", "embedding", "completeness"}
    assert set(before[1].data_vars) == {"value", "output", "constant"}
    assert [row.missing for row in planned(path, "pairs", "pairs.attention=false").rows] == [("split",)]
    assert [row.missing for row in planned(path, "pools").rows] == [("totals",)]
    assert outcomes(run(path, "pairs")) == outcomes(run(path, "pools")) == [(0, 0, "computed")]
    for cube, old in zip(("pairs", "pools"), before):
        xr.testing.assert_identical(
            opened(path, cube)[list(old.data_vars)].load().variables["epoch"], old["epoch"].variable
        )
        for name, array in old.data_vars.items():
            np.testing.assert_array_equal(opened(path, cube)[name], array)
    row = opened(path, "pairs").isel(epoch=0)
    parts = row["patch"] + row["mean_token"] + row["positional"]
    np.testing.assert_allclose(parts, row["scalar"], rtol=1e-4, atol=1e-5)


def test_run_rows__of_added_images_measure_their_block_alone(tmp_path, stores_equal):
    path = write_study(tmp_path / "grown", checkpoints=2, samples=10)
    for cube in ("pools", "pairs"):
        run(path, cube)
    before = opened(path, "pairs").load()
    write_study(tmp_path / "grown", checkpoints=0, samples=24)
    assert outcomes(run(path, "pairs")) == [(0, 1, "computed"), (1, 1, "computed")]
    after = opened(path, "pairs")
    assert after.sizes["sample"] == 24
    for name, array in before.data_vars.items():
        np.testing.assert_array_equal(after[name].sel(sample=before["sample"]), array)
    np.testing.assert_allclose(
        after["scalar"].sel(epoch=0),
        by_hand(path, 0)[1]["scalar"].transpose("sample", "head", "unit"),
        rtol=1e-4,
        atol=1e-5,
    )
    assert [row.missing for row in planned(path, "pools").rows] == [("totals",)] * 2  # of all images, measured anew
    run(path, "pools")
    assert (opened(path, "pools")["count"] == 24).all()
    whole = write_study(tmp_path / "whole", checkpoints=2)
    run(whole, "pools")
    stores_equal_of(path, whole)


def stores_equal_of(one, other):
    """Pools of two stores are equal, byte for byte."""
    first, second = (opened(path, "pools").load() for path in (one, other))
    xr.testing.assert_identical(first.drop_attrs(), second.drop_attrs())


def test_run_rows__of_a_pool_that_normalises_fail_and_others_go_on(tmp_path):
    path = write_study(tmp_path, checkpoints=3, factory="clip")
    write_checkpoint(path, 1, attnpool__normalises=1)
    for cube in ("pools", "pairs"):
        results = sorted(run(path, cube), key=lambda result: result.row.position)
        assert [result.outcome for result in results] == ["computed", "failed", "computed"]
        ids = study_samples(load_study(path)).ids
        assert any(f"image {str(name)!r} add up to something else" in results[1].why for name in ids)
        assert "they have length 1: give them before they are normalised" in results[1].why
    assert np.isnan(opened(path, "pairs")["scalar"].sel(epoch=1)).all()
    assert opened(path, "pairs")["measured"].values.tolist() == [True, False, True]
    write_checkpoint(path, 1)
    assert outcomes(run(path, "pairs")) == [(1, 0, "computed")]


def test_run_rows__in_float16(measured, tmp_path):
    path = write_study(tmp_path)
    run(path, "pairs", "pairs.dtype=float16")
    found, exact = opened(path, "pairs"), opened(measured, "pairs")
    for name in ("scalar", "patch", "mean_token", "positional"):
        assert found[name].dtype == np.float16
        np.testing.assert_allclose(found[name], exact[name].astype(np.float16), rtol=2e-3, atol=1e-6)
    for name in ("embedding", "attention", "completeness"):
        assert found[name].dtype == exact[name].dtype
        np.testing.assert_array_equal(found[name], exact[name])


def test_run_rows__beyond_float16_fail_with_the_mend(tmp_path):
    path = write_study(tmp_path, checkpoints=1)
    write_checkpoint(path, 0, bn3__bias=1e5)
    (result,) = run(path, "pairs", "pairs.dtype=float16")
    assert result.outcome == "failed"
    assert "float16 ends at 65504" in result.why
    assert 'set dtype = "float32" in [pairs]' in result.why
    assert outcomes(run(path, "pairs")) == [(0, 0, "computed")]


def test_run_rows__of_maps_that_are_not_finite_fail_with_the_image(tmp_path):
    path = write_study(tmp_path, checkpoints=1)
    write_checkpoint(path, 0, bn2__weight=1e10, bn3__weight=3e38)
    for cube in ("pools", "pairs"):
        (result,) = run(path, cube)
        assert result.outcome == "failed"
        name = str(study_samples(load_study(path)).ids[0])
        assert f"the maps that go into the pool 'attnpool' have NaN or infinity on sample {name!r}" in result.why


def test_provenance__and_keys_of_pairs_name_the_pool(measured):
    study = load_study(measured)
    ledger = rows.open_for_reading(study).ledger("pairs")
    told = json.loads(ledger.entry(0, 0, "scalars").provenance)
    assert told["dtype"] == "float32"
    assert told["checkpoint"].endswith("epoch_0.pt")
    settings = json.loads(opened(measured, "pairs").attrs["settings"])["parts"]["scalars"]
    assert (settings["module"], settings["resample"], settings["stored"]) == (None, False, "float32")


@pytest.mark.usefixtures("prefect_server")
def test_pools__and_pairs_run_as_flows(tmp_path):
    from neurolens.flows.pairs import pairs
    from neurolens.flows.pools import pools

    study = load_study(write_study(tmp_path, checkpoints=1, text=TEXT))
    for flow, cube in ((pools, "pools"), (pairs, "pairs")):
        assert flow(study) == study.store.url
        assert planned(tmp_path / "study.toml", cube).todo == ()
