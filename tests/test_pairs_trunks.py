"""From a study's checkpoint to maps, heat maps and labels for pixels, with nothing but the study and its store."""

import numpy as np
import pytest
import torch
import xarray as xr
from pairs_study import HEADS, TEXT, UNITS, filled, run, write_study

from neurolens import models
from neurolens.data import study_samples
from neurolens.errors import DataError, MissingCheckpointError, ModelMismatchError, SchemaError
from neurolens.pairs import (
    Trunk,
    at,
    class_pairs,
    head_similarity,
    pair_logits,
    pool_of,
    resampled,
    segment,
    segmenter,
    trunk_of,
    value_logits,
)
from neurolens.study import Preprocessing, load_study

TEXTS = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    written = write_study(tmp_path_factory.mktemp("trunk"))
    for cube in ("pools", "pairs"):
        assert {result.outcome for result in run(written, cube)} == {"computed"}
    return written


@pytest.fixture(scope="module")
def trunk(path):
    return trunk_of(path)


def by_hook(path, x, epoch=1):
    """What goes into the pool of a checkpoint's network, whatever comes behind it."""
    module, kept = filled(path, epoch).module.eval(), []
    hook = module.attnpool.register_forward_pre_hook(lambda pool, given: kept.append(given[0].numpy()) or 1 / 0)
    with hook, torch.no_grad(), pytest.raises(ZeroDivisionError):
        module.encode_image(torch.from_numpy(x))
    return kept[0]


@pytest.mark.parametrize("epoch", [0, 1])
def test_maps_of__are_those_that_were_measured(path, epoch):
    samples = study_samples(load_study(path))
    maps = trunk_of(load_study(path), epoch=epoch).maps_of(samples, [5, 2, 5])
    assert maps["sample"].values.tolist() == samples.ids[[5, 2, 5]].tolist()
    pixels = samples.images.load([5, 2, 5]).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(maps, by_hook(path, (pixels / 255).astype(np.float32), epoch), rtol=1e-5, atol=1e-6)


def test_heat_maps__of_a_run_add_up_to_the_dot_products(path, trunk):
    ds = at(load_study(path).store.url)
    samples = study_samples(load_study(path))
    found = ds.lens.heat_maps(trunk.maps_of(samples, [7, 0, 3]), TEXTS)
    lengths = np.linalg.norm(TEXTS, axis=1)
    logit = ds["embedding"].isel(sample=[7, 0, 3]).values @ (TEXTS / lengths[:, None]).T
    np.testing.assert_allclose(found["heat"].sum(["y", "x"]) + found["rest"], logit, rtol=1e-4, atol=1e-5)
    one = ds.isel(sample=[0]).lens.heat_maps(trunk.maps_of(samples, [0]).drop_vars("sample"), TEXTS)
    np.testing.assert_allclose(one["heat"][0], found["heat"][1], rtol=1e-5, atol=1e-6)
    with pytest.raises(SchemaError, match=r"of the maps was not measured"):
        ds.isel(sample=[1, 2]).lens.heat_maps(trunk.maps_of(samples, [0]), TEXTS)


def test_segmenter__labels_pixels_as_the_functions_do_one_by_one(path, trunk):
    ds = at(load_study(path).store.url)
    chosen = class_pairs(ds, TEXTS, k=9)
    rng = np.random.default_rng(1)
    image = trunk.normalised(rng.integers(0, 256, (20, 28, 1), dtype=np.uint8))
    large = resampled(pool_of(filled(path, 1).module), (8, 8))

    def by_pairs(crops):
        maps = by_hook(path, crops)
        assert maps.shape[1:] == (UNITS, 8, 8)
        return pair_logits(head_similarity(large, maps, TEXTS, repair=False), maps, chosen, repair=False)

    def by_values(crops):
        return value_logits(large, by_hook(path, crops), TEXTS, attention=("q", "k"))

    size = {"crop": 16, "stride": 4, "short": None, "scale": 1.0}
    ways = {
        by_pairs: segmenter(trunk, TEXTS, chosen, repair=False),
        by_values: segmenter(trunk, TEXTS, attention=("q", "k")),
    }
    for by_hand, made in ways.items():
        wanted, found = segment(image, by_hand, **size), segment(image, made, **size)
        assert float(np.ptp(wanted["probability"].values)) > 1e-4
        np.testing.assert_array_equal(found["label"], wanted["label"])
        np.testing.assert_allclose(found["probability"], wanted["probability"], rtol=1e-3)
    mended = segmenter(trunk, TEXTS, chosen)(image[None, :, :16, :16])
    plain = segmenter(trunk, TEXTS, chosen, repair=False)(image[None, :, :16, :16])
    assert not np.allclose(mended[..., -1, -1], plain[..., -1, -1])


def test_normalised__is_as_the_network_takes_it():
    network = models.Network(torch.nn.Identity(), Preprocessing(mean=(0.5,) * 3, std=(0.25, 0.5, 1.0)), 3, 8, {})
    trunk = Trunk.__new__(Trunk)
    trunk._network = network
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 1), dtype=np.uint8)
    wanted = (np.repeat(pixels, 3, axis=2).transpose(2, 0, 1) / 255 - 0.5) / np.array([0.25, 0.5, 1.0])[:, None, None]
    np.testing.assert_allclose(trunk.normalised(pixels), wanted, rtol=1e-5, atol=1e-6)


def test_trunk__of_timms_pool_has_positions_for_any_size(tmp_path):
    pytest.importorskip("timm", reason="the extra 'clip' is not installed")
    made = trunk_of(write_study(tmp_path, checkpoints=1, factory="timm"))
    assert made.pool_for((8, 6)).grid == (8, 6)
    assert made.maps(np.zeros((2, 1, 16, 12), np.float32)).shape == (2, UNITS, 8, 6)
    assert made.pool.heads == HEADS


def test_trunk_of__takes_the_pool_that_the_study_names(tmp_path):
    text = TEXT.replace("[pools]\n", '[pools]\nmodule = "attnpool"\n')
    path = write_study(tmp_path, checkpoints=1, text=text, factory="two")
    assert trunk_of(path).maps(np.zeros((1, 1, 8, 8), np.float32)).shape == (1, UNITS, 4, 4)
    never = Trunk(filled(path, 0), module="other")
    with pytest.raises(ModelMismatchError, match="is given nothing"):
        never.maps(np.zeros((1, 1, 8, 8), np.float32))


def test_trunk__leaves_the_network_as_it_was(path):
    network = filled(path, 1)
    before = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}
    network.module.train()
    Trunk(network).maps(np.ones((3, 1, 8, 8), np.float32))
    assert all(module.training for module in network.module.modules())
    assert not network.module.attnpool._forward_pre_hooks
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.module.state_dict().items())


@pytest.mark.parametrize(
    ("call", "error", "why"),
    [
        (lambda path, made: trunk_of(path, epoch=7), MissingCheckpointError, r"no epoch 7 .* there is \[0, 1\]"),
        (lambda path, made: trunk_of(path, epoch=1, step=1), SchemaError, "pass one of them"),
        (lambda path, made: made.maps(np.zeros((1, 3, 8, 8))), SchemaError, r"shape \(1, 3, 8, 8\).*\(sample, 1, y, x"),
        (lambda path, made: made.maps(np.zeros((0, 1, 8, 8))), SchemaError, "shape"),
        (lambda path, made: made.normalised(np.zeros((8, 8, 1))), DataError, "float64 of shape"),
        (lambda path, made: made.maps_of(study_samples(load_study(path)), [24]), DataError, r"\[24\] of 24 images"),
        (lambda path, made: made.maps_of(study_samples(load_study(path)), []), DataError, "of 24 images"),
        (lambda path, made: segmenter(made, TEXTS, xr.DataArray(True), attention="q"), SchemaError, "of baselines"),
        (lambda path, made: segmenter(made, TEXTS, bias=False), SchemaError, "class_pairs"),
    ],
)
def test_trunk__says_what_was_needed(path, trunk, call, error, why):
    with pytest.raises(error, match=why):
        call(path, trunk)
