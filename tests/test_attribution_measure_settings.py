"""Rows of the attributions cube: their axes and keys, what is refused, and what errors say."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from attribution_measure_cases import ALL, NETWORKS, close, measured, pictures, residual, sets_of
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from units_cases import SENTENCES, digits, reading

from neurolens import schema
from neurolens.attribution.captum_methods import require_methods
from neurolens.attribution.measure import axes, block_size, encodings, key_config, measure, measure_block, parts
from neurolens.attribution.memory import Room, chunks
from neurolens.attribution.paths import path_starts
from neurolens.attribution.sets import UnitSet, unit_sets
from neurolens.errors import CaptureError, DataError, ModelMismatchError, NonFiniteError, SchemaError, StudyError
from neurolens.store.encodings import stored_dtype
from neurolens.study import Attributions, Preprocessing

UNITS = NETWORKS["residual"][2]
PLAIN = Attributions(steps=3, grid=4)


def refused(error, match, *, network=None, samples=None, table=PLAIN, sets=None, **options):
    network, samples = network or residual(), pictures(3) if samples is None else samples
    sets = sets_of(table, UNITS) if sets is None else sets
    with pytest.raises(error, match=match):
        measured(network, samples, table, sets, **options)


def test_parts__are_those_of_the_options():
    assert parts(PLAIN) == ("answers", "maps", "faithfulness")
    assert parts(ALL) == ("answers", "maps", "faithfulness", "curves", "reduced", "full")
    assert parts(Attributions(faithfulness=False)) == ("answers", "maps")


def test_axes__are_those_that_the_parts_need_and_the_size_of_a_map():
    network, samples = residual(), pictures(3)
    found = {dim: axis.ids.tolist() for dim, axis in axes(network, samples, PLAIN).items()}
    patches = list(range(4))
    assert found == {
        "attribution": ["integrated_gradients", "saliency"],
        "patch_y": patches,
        "patch_x": patches,
        "level": ["pixel", "patch"],
        "channel": [0, 1, 2],
        "y": list(range(10)),
        "x": list(range(10)),
    }
    every = axes(network, samples, ALL)
    assert set(every) == {*found, "share"}
    assert len(every["share"]) == 11
    reduced = axes(network, samples, Attributions(grid=4, faithfulness=False, reduced=True))
    assert set(reduced) == {"attribution", "patch_y", "patch_x", "channel", "y", "x"}


def test_block_size__is_the_tables():
    assert block_size(Attributions(block=7), {}) == 7


def test_encodings__fit_their_variables():
    declared = {v.name: v for v in schema.ATTRIBUTIONS.variables}
    for name, encoding in encodings(ALL).items():
        assert stored_dtype(declared[name], encoding) == declared[name].dtype


MAPS = {"maps", "faithfulness", "curves", "reduced", "full"}
CHANGES = [
    ({"target": "label"}, {"answers", *MAPS}),
    ({"explain": "margin"}, {"answers", *MAPS}),
    ({"baseline": "black"}, {"answers", *MAPS}),
    ({"baseline": 0.5}, {"answers", *MAPS}),
    ({"scored": "predicted"}, {"answers", "faithfulness", "curves"}),
    ({"methods": ("saliency",)}, MAPS),
    ({"steps": 7}, MAPS),
    ({"rule": "riemann_left"}, MAPS),
    ({"cotangents": "bfloat16"}, MAPS),
    ({"grid": 5}, {"maps", "faithfulness", "curves"}),
    ({"mass": 0.8}, {"maps"}),
    ({"drop": 0.2}, {"faithfulness"}),
    ({"fill": "mean"}, {"faithfulness", "curves"}),
    ({"compat": "seed"}, {"maps", "faithfulness", "curves", "reduced"}),
    ({"memory_mib": 9, "block": 3, "controls": 5, "tolerance": 1.0, "sets": ("only",), "clusters_from": "each"}, set()),
    ({"full": 2}, set()),  # which samples are chosen is in the key of a block
]


@pytest.mark.parametrize(("change", "wanted"), CHANGES)
def test_key_config__changes_where_numbers_do(change, wanted):
    other = ALL.model_copy(update=change)
    assert {part for part in parts(ALL) if key_config(ALL, part) != key_config(other, part)} == wanted


def test_key_config__has_no_steps_without_an_integral():
    table = ALL.model_copy(update={"methods": ("saliency",)})
    other = table.model_copy(update={"steps": 9, "rule": "riemann_left", "baseline": "mean"})
    assert {part for part in parts(table) if key_config(table, part) != key_config(other, part)} == {"answers"}


def test_key_config__names_the_release_of_captum_where_it_measures():
    table = ALL.model_copy(update={"methods": ("saliency", "captum.DeepLift")})
    assert "captum" not in key_config(ALL, "maps")
    assert key_config(table, "maps")["captum"]
    assert "captum" not in key_config(table, "answers")
    with pytest.raises(SchemaError, match="no part 'map'; did you mean 'maps'"):
        key_config(ALL, "map")


@pytest.mark.parametrize(
    ("method", "match"),
    [
        ("saliencyy", "has no 'saliencyy'; did you mean 'saliency'"),
        ("captum.DeepLft", "captum.attr has no class 'DeepLft'; did you mean 'DeepLift'"),
        ("captum.LayerConductance", "cannot be measured by a study: it needs layer"),
        ("captum.NeuronGradient", "it needs layer, neuron_selector"),
        ("captum.Occlusion", "it needs sliding_window_shapes"),
        ("captum.DeepLiftShap", "it needs several baselines"),
        ("captum.FeaturePermutation", "other samples"),
        ("captum.NoiseTunnel", "it needs attribution_method"),
    ],
)
def test_require_methods__refuses_what_a_study_cannot_give(method, match):
    table = Attributions(methods=("saliency", method))
    for call in (
        lambda: require_methods(table.methods),
        lambda: key_config(table, "maps"),
        lambda: axes(residual(), pictures(2), table),
    ):
        with pytest.raises(StudyError, match=match):
            call()


def test_require_methods__names_each_once():
    with pytest.raises(StudyError, match="'saliency' more than once"):
        require_methods(("saliency", "saliency"))


def test_axes__refuses_texts_vectors_and_grids_beyond_the_image():
    network, texts = reading(SENTENCES)
    with pytest.raises(DataError, match="found texts, and images"):
        axes(network, texts, PLAIN)
    with pytest.raises(SchemaError, match=r"10 × 10 pixels, and a grid of 14 × 14 patches .*lower grid"):
        axes(residual(), pictures(2), Attributions())
    with pytest.raises(StudyError, match="set fill to zero, mean or blur"):
        axes(residual(), pictures(2), Attributions(grid=4, curves=True, fill="road"))
    maps = replace(residual(), module=nn.Conv2d(3, 4, 3))
    with pytest.raises(ModelMismatchError, match="a row of logits"):
        axes(maps, pictures(2), PLAIN)


def test_measure__refuses_a_layer_that_is_no_cut():
    sets = unit_sets({"stage1.second": {"k2": np.arange(6) % 2}})
    refused(CaptureError, r"'stage1.second' is no cut: .* differ from the whole gradient by \d", sets=sets)
    loose = PLAIN.model_copy(update={"tolerance": 10.0})
    assert measured(residual(), pictures(2), loose, sets)["total"].shape == (2, 5, 2)


def test_measure__refuses_clusters_of_another_layer():
    both = {"stage1": {"k2": np.arange(6) % 2, "file": np.arange(8) % 2}}
    refused(
        SchemaError,
        "'stage1/file/0' is of 8 units, and layer 'stage1' has 6: .*attributions.files",
        sets=[
            *unit_sets({"stage1": {"k2": both["stage1"]["k2"]}}),
            *unit_sets({"stage1": {"file": both["stage1"]["file"]}})[1:],
        ],
    )
    refused(CaptureError, "stage9", sets=unit_sets({"stage9": {"k2": np.arange(6) % 2}}))
    five = unit_sets({"stage1": {"k5": np.arange(6) % 5}})
    refused(SchemaError, "'stage1/k5/3' is of cluster 3, and dim 'mate' has 3 entries", sets=five)


def test_measure__refuses_labels_beyond_the_classes():
    samples = pictures(3)
    samples.labels[1] = 5
    refused(ModelMismatchError, "sample 's001' has label 5, and the network has classes 0 to 4", samples=samples)


class Broken(nn.Module):
    """A network that gives NaN, or a gradient of NaN, for dark images."""

    def __init__(self, module, gradient):
        super().__init__()
        self.module, self.gradient = module, gradient

    def forward(self, x):
        dark = (x.mean((1, 2, 3)) < -1.5)[:, None]
        logits = self.module(x)
        if not self.gradient:
            return torch.where(dark, torch.nan, logits)
        return logits + torch.sqrt((x.flatten(1)[:, :1] * 0).abs() + (~dark).float())


@pytest.mark.parametrize(("gradient", "match"), [(False, "'s002' has a logit"), (True, "'s002' has a gradient")])
def test_measure__names_the_sample_of_numbers_that_are_not_finite(gradient, match):
    network, samples = residual(), pictures(4)
    pixels = samples.images.load(np.arange(4)).copy()
    pixels[2] = 0
    samples = replace(samples, images=type(samples.images)(pixels))
    broken = replace(network, module=Broken(network.module, gradient))
    sets = unit_sets({f"module.{cut}": {"k2": np.arange(n) % 2} for cut, n in UNITS.items()})
    table = PLAIN.model_copy(update={"tolerance": 10.0, "baseline": 0.5, "faithfulness": False})
    refused(NonFiniteError, match, network=broken, samples=samples, table=table, sets=sets)


def test_measure__says_what_memory_it_needs():
    little = ALL.model_copy(update={"memory_mib": 1, "reduced": False, "full": 0})
    samples = pictures(1, side=96)
    refused(
        StudyError, r"attributions.memory_mib is 1, and one image .* raise it to \d+", samples=samples, table=little
    )
    large = pictures(40)
    table = ALL.model_copy(update={"memory_mib": 2, "full": 40, "block": 40})
    refused(StudyError, r"set block to \d+ or less, .*raise memory_mib to", samples=large, table=table, chosen=["s000"])


def test_measure__answers_need_no_sets():
    network, samples, seen = residual(), pictures(3), []
    values, cost = measure_block(
        network, samples, parts=("answers",), table=PLAIN, progress=lambda *done: seen.append(done)
    )
    assert list(values) == [v.name for v in schema.ATTRIBUTIONS.part("answers").variables]
    assert sum(cost) == 0
    assert seen[-1] == (3, 3)
    close(values["logit"], measured(network, samples, PLAIN, sets_of(PLAIN, UNITS))["logit"])


def test_measure_block__of_no_chosen_sample_makes_no_maps():
    network, samples = residual(), pictures(2)
    table = PLAIN.model_copy(update={"full": 1})
    sets = sets_of(table, UNITS)
    for chosen, free in (((), True), (samples.ids[1:].tolist(), False)):
        values, cost = measure_block(network, samples, parts=("full",), table=table, sets=sets, mates=3, chosen=chosen)
        assert values["full_map"].shape == (2, len(sets), 2, 3, 10, 10)
        assert (cost.forwards == 0) is free
        assert np.isnan(values["full_map"]).all() == free


def test_measure__whole_alone_takes_no_cut_and_captum_alone_no_gradients():
    network, samples = residual(), pictures(3)
    sets = [UnitSet("whole")]
    values = measured(network, samples, PLAIN, sets)
    close(values["patch"], measured(network, samples, PLAIN, sets_of(PLAIN, UNITS))["patch"][:, :1])
    table = PLAIN.model_copy(update={"methods": ("captum.Saliency",)})
    found, cost = measure_block(network, samples, parts=parts(table), table=table, sets=sets_of(table, UNITS), mates=3)
    assert sum(cost) == 0
    close(found["patch"][:, :1], values["patch"][:, :, 1:])


def test_measure__leaves_the_network_as_it_was_and_tells_how_far_it_is():
    network, samples, seen = residual(), pictures(3), []
    before = copy.deepcopy(network.module.state_dict())
    measured(network, samples, PLAIN, sets_of(PLAIN, UNITS), progress=lambda *done: seen.append(done))
    assert all(module.training for module in network.module.modules())
    assert all(parameter.requires_grad for parameter in network.module.parameters())
    for name, tensor in network.module.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    assert [count for count, _ in seen] == sorted({count for count, _ in seen})
    assert seen[-1] == (3, 3)


def test_measure__grey_images_and_modules_that_are_used_again():
    samples = pictures(3, side=8, classes=3)
    grey = replace(samples, images=type(samples.images)(samples.images.load(np.arange(3))[..., :1].copy()))
    sets = unit_sets({"relu#1": {"k2": np.arange(32) % 2}, "pool": {"k2": np.arange(32) % 2}})
    values = measured(digits(), grey, PLAIN, sets)
    names = [one.name for one in sets]
    for cut in ("relu#1", "pool"):
        parted = sum(values["total"][:, names.index(f"{cut}/k2/{c}"), 0] for c in range(2))
        close(parted, values["total"][:, 0, 0])


def test_measure__a_part_that_is_not_there_is_refused():
    with pytest.raises(SchemaError, match="no part 'map'"):
        measure(residual(), pictures(2), parts=("map",), table=PLAIN)
    none = pictures(2).subset([])
    with pytest.raises(DataError, match="no samples"):
        measure(residual(), none, parts=("answers",), table=PLAIN)


def test_chunks__keep_clusterings_together():
    sets = sets_of(ALL, UNITS)
    for most in (1, 4, 100):
        found = list(chunks(sets, most))
        assert sorted(place for places in found for place in places) == list(range(len(sets)))
        for places in found:
            groups = {(sets[at].cut, sets[at].clustering) for at in places if sets[at].kind == "only"}
            for group in groups:
                wanted = [
                    at for at, one in enumerate(sets) if one.kind == "only" and (one.cut, one.clustering) == group
                ]
                assert set(wanted) <= set(places)
            assert len(places) <= max(most, 3)


@given(
    st.integers(1, 2**34),
    st.integers(0, 60),
    st.integers(1, 2),
    st.integers(1, 300),
    st.sampled_from([64, 1024, 224 * 224]),
    st.integers(1, 64),
)
def test_room__takes_no_more_than_there_is_unless_one_sample_does(free, vectors, kinds, maps, pixels, most):
    room = Room.of(free, vectors=vectors, kinds=kinds, maps=maps, pixels=pixels, channels=3)
    samples = room.samples(most)
    assert 1 <= samples <= most
    assert samples == 1 or samples * room.basis <= free / 2
    slices = room.slices(samples)
    assert 1 <= slices <= samples
    left = free - samples * room.basis - slices * (room.scored + room.turning)
    assert slices == 1 or left >= 0
    made = room.maps(slices, samples)
    assert made == 1 or made * slices * room.picture <= left
    assert slices == 1 or room.showing(slices, samples) > 0


def test_path_starts__names_near_baselines():
    with pytest.raises(SchemaError, match="baseline='blak' is unknown; did you mean 'black'"):
        path_starts(torch.zeros(1, 3, 4, 4), "blak", Preprocessing(mean=(0.5,), std=(0.5,)))
