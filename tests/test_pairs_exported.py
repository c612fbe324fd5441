"""The reference's files of pairs, and the command that writes them."""

import json

import numpy as np
import pytest
import torch
import xarray as xr
from pairs_cases import golden_maps, golden_pool
from pairs_cube_cases import (
    EPOCHS,
    FEATURES,
    HEADS,
    SETS,
    UNITS,
    codes,
    measured,
    pairs_run,
    pools,
    text,
    write_pairs_store,
)
from scipy.sparse import load_npz
from typer.testing import CliRunner

from neurolens.cli import app
from neurolens.errors import DataError, MissingMeasurementError, NonFiniteError, SchemaError
from neurolens.pairs import export_pairs, factors, majority, pair_means, pair_norms, pair_vectors, scalars


@pytest.fixture(scope="module")
def url():
    return pairs_run()


def cubes(pool, scalar):
    """The tree of one checkpoint's pools and pairs, made by hand."""
    stored = xr.Dataset({"scalar": scalar.transpose("sample", "head", "unit")})
    return xr.DataTree.from_dict(
        {name: each.expand_dims(epoch=[3]) for name, each in (("pools", factors(pool)), ("pairs", stored))}
    )


def load(folder, name):
    return np.load(folder / f"{name}.npy", allow_pickle=False)


def test_export_pairs__of_the_golden_pool(tmp_path):
    pool = golden_pool()
    done = export_pairs(cubes(pool, scalars(pool, golden_maps())["scalar"]), tmp_path / "out", top=3, percentile=50)
    directions = load(done.folder, "pc0")
    assert directions.dtype == np.float32
    np.testing.assert_allclose(directions[0], [[1, 0], [1, 0]])
    np.testing.assert_allclose(directions[1], [[0.8944271910, 0.4472135955], [0, 0]], rtol=1e-7)
    norms = load(done.folder, "norms")
    np.testing.assert_allclose(norms[0], [[1.5, 1.5, 2.5], [3, 3, 5]], rtol=1e-6)
    np.testing.assert_allclose(norms[1], [[10.0623058987, 10.0623058987, 16.7705098312], [0, 0, 0]], rtol=1e-6)
    means = load(done.folder, "means")
    np.testing.assert_allclose(means, [[[4.5, 2], [7.5, 2]], [[18.5, 10.75], [-1, 1]]], rtol=1e-6)
    mask = load(done.folder, "mask")
    assert mask.dtype == bool
    assert mask.tolist() == [[False, True], [True, False]]
    told = json.loads((done.folder / "export.json").read_text())
    assert told["dead"] == {"count": 1, "first": ["u1/h1"]}
    assert told["tied"]["count"] == told["negative"] == 0
    assert (told["epoch"], told["kept"], told["images"]) == (3, 2, 4)
    assert len(done.notes) == 1
    assert "u1/h1" in done.notes[0]


def test_export_pairs__reports_ties_and_follows_the_rule(tmp_path):
    """Golden signs: one positive of four, a tie, three positive."""
    pool = golden_pool()
    scalar = np.zeros((6, 2, 2))
    scalar[:, 0, 0] = [0, 0, 0, 0, 10, 1]
    scalar[:4, 1, 0] = [-3, -1, 1, 3]
    scalar[:, 0, 1] = [10, 10, 10, 10, 0, 9]
    given = xr.DataArray(scalar, dims=("sample", "unit", "head"))
    done = export_pairs(cubes(pool, given), tmp_path / "out", top=4)
    directions = load(done.folder, "pc0")
    np.testing.assert_allclose(directions[0], [[-1, 0], [1, 0]])
    np.testing.assert_allclose(directions[1, 0], [0.8944271910, 0.4472135955], rtol=1e-6)
    told = json.loads((done.folder / "export.json").read_text())
    assert told["tied"] == {"count": 1, "first": ["u1/h0"]}
    assert told["negative"] == 1
    assert "LAPACK" in done.notes[0]
    plain = export_pairs(cubes(pool, given), tmp_path / "plain", top=4, sign="u")
    np.testing.assert_allclose(load(plain.folder, "pc0")[0], [[1, 0], [1, 0]])


def test_export_pairs__of_a_run_are_whole_arrays(tmp_path, url):
    done = export_pairs(url, tmp_path / "out", top=6, percentile=80)
    pool = pools((10,))[0]
    scalar, fixed = measured(pool)["scalar"], factors(pool)
    u = pair_vectors(fixed).transpose("head", "unit", "feature").to_numpy()
    sign = majority(scalar, fixed, top=6).transpose("head", "unit").to_numpy()
    assert (sign != 0).any()
    turned = np.where(sign == 0, 1, sign)[..., None]
    np.testing.assert_allclose(load(done.folder, "pc0"), turned * u / np.linalg.norm(u, axis=-1)[..., None], rtol=1e-4)
    norms = pair_norms(scalar, fixed, top=6).transpose("head", "unit", "rank")
    np.testing.assert_allclose(load(done.folder, "norms"), norms, rtol=1e-4)
    means = pair_means(scalar, fixed).transpose("head", "unit", "feature")
    np.testing.assert_allclose(load(done.folder, "means"), means, rtol=1e-4, atol=1e-5)
    score = norms.mean("rank").to_numpy()
    np.testing.assert_array_equal(load(done.folder, "mask"), score >= np.percentile(score, 80))
    for name, rows in (("classes", text(10)[:3]), ("words", text(10)[3:])):
        held = torch.load(done.folder / f"text_embeddings_{name}.pt", weights_only=True)
        np.testing.assert_array_equal(held, rows)
        assert (done.folder / f"text_embeddings_{name}.txt").read_text().splitlines() == list(SETS[name])
    found = load_npz(done.folder / "decomposition.npz").toarray()
    exact = codes(pool, text(10)[3:]).transpose("head", "unit", "atom")
    index, value = (exact[name].to_numpy().reshape(HEADS * UNITS, -1) for name in ("index", "value"))
    dense = np.zeros((HEADS * UNITS, len(SETS["words"])))
    np.put_along_axis(dense, index, value, axis=1)
    np.testing.assert_allclose(found, dense * np.where(sign < 0, -1, 1).reshape(-1, 1), rtol=1e-5, atol=1e-7)
    assert "u0/h0" in json.loads((done.folder / "text_descs.json").read_text())
    assert {*done.files} == {path.name for path in done.folder.iterdir()}


def test_export_pairs__of_totals_are_those_of_the_scalars(tmp_path, url):
    write_pairs_store(tmp_path / "run", epochs=(10,), cubes=("pools",))
    done = export_pairs(tmp_path / "run", tmp_path / "out", top=6)
    whole = export_pairs(url, tmp_path / "whole", top=6)
    for name in ("pc0", "norms", "means", "mask"):
        np.testing.assert_allclose(load(done.folder, name), load(whole.folder, name), rtol=1e-4, atol=1e-5)
    assert [name for name in done.files if name.startswith(("text", "deco"))] == []


def test_export_pairs__keeps_to_its_folder(tmp_path, url):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "pc0.npy").write_text("mine")
    with pytest.raises(DataError, match="something here already"):
        export_pairs(url, tmp_path / "mine")
    with pytest.raises(DataError, match="not written by this export"):
        export_pairs(url, tmp_path / "mine", overwrite=True)
    with pytest.raises(SchemaError, match="top=50 of 20 images"):
        export_pairs(url, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]
    first = export_pairs(url, tmp_path / "out", top=5)
    again = export_pairs(url, tmp_path / "out", top=4, epoch=0, overwrite=True)
    assert first.folder == again.folder
    assert load(again.folder, "norms").shape == (HEADS, UNITS, 4)
    assert json.loads((again.folder / "export.json").read_text())["epoch"] == 0


def test_export_pairs__says_what_is_missing(tmp_path):
    write_pairs_store(tmp_path / "run", epochs=(0,), cubes=("pools",), with_totals=False)
    with pytest.raises(MissingMeasurementError, match="neither scalars nor totals"):
        export_pairs(tmp_path / "run", tmp_path / "out")
    pool = golden_pool()
    scalar = scalars(pool, golden_maps())["scalar"]
    with pytest.raises(NonFiniteError, match="norms of NaN"):
        export_pairs(cubes(pool, scalar.where(scalar["sample"] > 0)), tmp_path / "out", top=2)


def test_command__writes_the_files(tmp_path, url):
    def invoke(*words):
        found = CliRunner().invoke(app, ["export", "pairs", *map(str, words)])
        return found.exit_code, " ".join(found.output.split())

    code, said = invoke(url, tmp_path / "out", "--top", 5, "--epoch", EPOCHS[0], "--percentile", 50, "--sign", "u")
    assert code == 0, said
    assert f"wrote 11 files: {tmp_path / 'out'}" in said.replace("\n", "")
    assert load(tmp_path / "out", "pc0").shape == (HEADS, UNITS, FEATURES)
    assert load(tmp_path / "out", "mask").sum() == UNITS * HEADS / 2
    code, said = invoke(url, tmp_path / "other", "--sign", "most")
    assert code == 2
    assert "--sign 'most' is unknown" in said
    code, said = invoke(url, tmp_path / "other", "--epoch", 3)
    assert code == 2
    assert "no epoch 3; there is 0, 5, 10" in said
