"""Ids, selection, label noise, exposure and batches."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from neurolens.data import (
    SampleSet,
    batches,
    class_schedule,
    draws,
    exposure_table,
    open_samples,
    sample_ids,
    validation_table,
)
from neurolens.data.arrays import ArrayImages
from neurolens.data.augmentation import training_batches
from neurolens.data.batching import resident
from neurolens.data.draws import keys as random_keys
from neurolens.data.folders import FileImages
from neurolens.data.samples import digest
from neurolens.data.selection import select as select_positions
from neurolens.errors import DataError
from neurolens.fingerprints import sample_fingerprint
from neurolens.study import Data, Exposure, LabelNoise, Preprocessing, Selection, Validation

GREY = Preprocessing(mean=(0.0,), std=(1.0,))
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def pictures(count=6, *, side=8, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, channels), dtype=np.uint8)


def sample_set(pixels, **more):
    ids = sample_ids(map(digest, pixels))
    labels = np.arange(len(pixels)) % 3
    return SampleSet(ids, labels, ("a", "b", "c"), ArrayImages(pixels), **more)


# -- ids ---------------------------------------------------------------------------------------------------------------


def test_sample_ids__number_exact_duplicates():
    assert list(sample_ids(["f", "a", "f", "f"])) == ["f", "a", "f-1", "f-2"]


def test_digest__knows_the_shape():
    assert digest(np.zeros((2, 8, 1), np.uint8)) != digest(np.zeros((4, 4, 1), np.uint8))


def test_ids__do_not_depend_on_order_label_or_subset():
    everything = open_samples(Data(split="all"))
    some = open_samples(Data(split="all", select=Selection(classes=(3, 5), count=40, how="random")))
    noisy = open_samples(Data(split="all", label_noise=LabelNoise(fraction=0.5)))
    assert set(some.ids) < set(everything.ids)
    np.testing.assert_array_equal(noisy.ids, everything.ids)
    backwards = sample_set(pictures()[::-1])
    np.testing.assert_array_equal(backwards.ids[::-1], sample_set(pictures()).ids)


def test_fingerprint__sees_order_and_labels():
    assert sample_fingerprint(["a", "b"], [0, 1]) == sample_fingerprint(
        np.array(["a", "b"]), np.array([0, 1], np.int32)
    )
    assert (
        len({sample_fingerprint(i, y) for i, y in ((["a", "b"], [0, 1]), (["b", "a"], [0, 1]), (["a", "b"], [1, 0]))})
        == 3
    )


def test_subset__keeps_ids_and_coords():
    samples = open_samples(Data())
    part = samples.subset([7, 2])
    assert list(part.ids) == [samples.ids[7], samples.ids[2]]
    np.testing.assert_array_equal(part.coords["position"], samples.coords["position"][[7, 2]])
    np.testing.assert_array_equal(part.images.load([1])[0], samples.images.load([2])[0])


def test_open_samples__does_not_import_torch():
    code = (
        "import sys; from neurolens.data import open_samples; from neurolens.study import Data;"
        "open_samples(Data()); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# -- selection ---------------------------------------------------------------------------------------------------------


def select(**table):
    return open_samples(Data(split="all", select=Selection(**table)))


def test_select__first_and_even_take_positions():
    assert list(select(count=4, how="first").coords["position"]) == [0, 1, 2, 3]
    assert list(select(count=3, how="even").coords["position"]) == [0, 599, 1198]


def positions(how, count, *, of):
    return select_positions(
        Selection(how=how, count=count), np.zeros(of, dtype=np.int64), ("all",), ids=list, keys=list
    )


def test_select__strided_is_the_references_evaluation_subset():
    """Spec of cluster attributions, section 2.1: i * max(1, N // n)."""
    assert list(positions("strided", 200, of=50_000)) == list(range(0, 50_000, 250))
    assert list(positions("strided", 3, of=11)) == [0, 3, 6]
    assert list(positions("even", 3, of=11)) == [0, 3, 7]


def test_select__spaced_are_the_images_of_the_references_figures():
    """Spec of cluster attributions, section 2.1: np.linspace(0, N - 1, n, dtype=int)."""
    assert list(positions("spaced", 20, of=50_000)) == [
        *(0, 2631, 5263, 7894, 10526, 13157, 15789, 18420, 21052, 23683),
        *(26315, 28946, 31578, 34209, 36841, 39472, 42104, 44735, 47367, 49999),
    ]
    assert list(positions("spaced", 1, of=9)) == [0]


@given(st.integers(1, 3000), st.data())
@settings(deadline=None)
def test_select__rules_of_equal_distances_take_as_many_as_asked_in_order(of, data):
    count = data.draw(st.integers(1, of))
    for how in ("even", "strided", "spaced"):
        kept = positions(how, count, of=of)
        assert len(kept) == count
        assert kept[0] == 0
        assert (np.diff(kept) > 0).all()
        assert kept[-1] < of
    np.testing.assert_array_equal(positions("strided", count, of=of), np.arange(count) * max(1, of // count))
    np.testing.assert_array_equal(positions("spaced", count, of=of), np.linspace(0, of - 1, count, dtype=int))
    if of % count == 0:
        np.testing.assert_array_equal(positions("even", count, of=of), positions("strided", count, of=of))


def test_select__a_name_of_two_classes_is_refused():
    table = Selection(classes=("crane",))
    with pytest.raises(DataError, match=r"'crane', the name of classes \[0, 2\]; name one by its number"):
        select_positions(table, np.arange(3), ("crane", "tench", "crane"), ids=list, keys=list)


def test_select__stratified_keeps_the_proportions():
    whole = np.bincount(open_samples(Data(split="all")).labels)
    part = np.bincount(select(fraction=0.1).labels)
    assert part.sum() == 180
    assert np.abs(part - whole / 10).max() < 1


def test_select__stratified_takes_few_of_many_classes_by_chance():
    labels = np.repeat(np.arange(100), 3)
    names = tuple(f"c{i}" for i in range(100))
    keys = random_keys(map(str, range(len(labels))))

    def chosen(seed, count):
        table = Selection(count=count, how="stratified", seed=seed)
        kept = select_positions(table, labels, names, ids=lambda: np.zeros(0, str), keys=lambda: keys)
        return labels[kept].tolist()

    few = chosen(0, 20)
    assert len(set(few)) == 20
    assert max(few) > 60
    assert few != chosen(1, 20)
    assert set(few) <= set(chosen(0, 50))
    assert sorted(chosen(0, 100)) == list(range(100))


@pytest.mark.parametrize("how", ["random", "stratified"])
def test_select__is_seeded_and_nested(how):
    few, many, other = (
        set(select(how=how, **table).ids) for table in ({"count": 50}, {"count": 100}, {"count": 50, "seed": 1})
    )
    assert few == set(select(how=how, count=50).ids)
    assert len(few & other) < 25
    if how == "random":
        assert few < many


def test_select__by_class_and_by_id(tmp_path):
    ids = select(count=5, how="even").ids
    (tmp_path / "ids.txt").write_text("\n".join(ids[::-1]) + "\n")
    assert list(select(ids=tmp_path / "ids.txt").ids) == list(ids)
    assert set(select(classes=(2, "7")).labels) == {2, 7}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"classes": ("77",)}, r"'77', which the data has not; did you mean '7'"),
        ({"classes": (10,)}, r"classes has 10; the data has classes 0 to 9"),
        ({"count": 2000}, r"count = 2000, and only 1797"),
    ],
)
def test_select__errors_name_what_is_wrong(table, message):
    with pytest.raises(DataError, match=message):
        select(**table)


def test_select__unknown_ids_are_named(tmp_path):
    (tmp_path / "ids.txt").write_text("nobody\n")
    with pytest.raises(DataError, match=r"names 1 ids that the data has not, first 'nobody'"):
        select(ids=tmp_path / "ids.txt")
    with pytest.raises(DataError, match=r"is not a file"):
        select(ids=tmp_path / "absent.txt")


# -- label noise -------------------------------------------------------------------------------------------------------


@given(st.floats(0, 0.99), st.integers(0, 5))
@settings(max_examples=15, deadline=None)
def test_label_noise__flips_exactly_the_fraction(fraction, seed):
    samples = open_samples(Data(label_noise=LabelNoise(fraction=fraction, seed=seed)))
    flipped = samples.coords["is_mislabelled"]
    assert flipped.sum() == round(fraction * len(samples))
    np.testing.assert_array_equal(samples.labels != samples.coords["true_label"], flipped)
    assert samples.labels.min() >= 0
    assert samples.labels.max() <= 9


def test_label_noise__is_uniform_over_the_other_classes():
    samples = open_samples(Data(split="all", label_noise=LabelNoise(fraction=0.9)))
    step = (samples.labels - samples.coords["true_label"])[samples.coords["is_mislabelled"]] % 10
    counts = np.bincount(step, minlength=10)[1:]
    assert counts.sum() == 1617
    assert ((counts - 1617 / 9) ** 2 / (1617 / 9)).sum() < 26.1  # chi-square, 8 degrees of freedom, p = 0.001


def test_label_noise__belongs_to_the_sample():
    noise = LabelNoise(fraction=0.2, seed=3)
    whole = open_samples(Data(split="all", label_noise=noise))
    part = open_samples(Data(split="all", label_noise=noise, select=Selection(count=600, how="random")))
    of = {i: (y, f) for i, y, f in zip(whole.ids, whole.labels, whole.coords["is_mislabelled"])}
    same = [of[i] == (y, f) for i, y, f in zip(part.ids, part.labels, part.coords["is_mislabelled"])]
    assert all(same)


def test_label_noise__stays_among_the_selected_classes():
    noisy = open_samples(Data(select=Selection(classes=(1, 4)), label_noise=LabelNoise(fraction=0.5)))
    assert set(noisy.labels) == {1, 4}


def test_validation_table__has_clean_labels():
    data = Data(label_noise=LabelNoise(fraction=0.5), select=Selection(count=3))
    table = validation_table(data, Validation(split="test"))
    assert (table.split, table.label_noise, table.select.count) == ("test", None, None)


# -- exposure ----------------------------------------------------------------------------------------------------------


def test_exposure_table__a_task_is_exposed_after_its_first_epoch():
    table = exposure_table(Exposure(start=5, step=5, every=200), 100, [0, 1, 200, 201, 400, 4000])
    assert table.sum(axis=1).tolist() == [0, 5, 5, 10, 10, 100]
    assert table[2, :5].all()


def test_exposure_table__reads_the_references_class_order(tmp_path):
    order = np.random.default_rng(0).permutation(10)
    np.save(tmp_path / "index-0.npy", order)
    exposure = Exposure(start=4, step=4, every=3, order=tmp_path / "index-0.npy")
    table = exposure_table(exposure, 10, range(8))
    assert set(np.flatnonzero(table[3])) == set(order[:4].tolist())
    assert set(np.flatnonzero(table[4])) == set(order[:8].tolist())
    assert table[7].all()
    assert class_schedule(exposure, 10).starts == (0, 3, 6)


def test_exposure_table__a_schedule_may_drop_classes_and_they_stay_introduced():
    exposure = Exposure(schedule={0: (0, 1), 2: (2,)})
    schedule = class_schedule(exposure, 3)
    assert [schedule.trained_in(e) for e in (1, 2, 3)] == [(0, 1), (0, 1), (2,)]
    np.testing.assert_array_equal(exposure_table(schedule, 3, [2, 3]), [[True, True, False], [True, True, True]])


@pytest.mark.parametrize(
    ("exposure", "message"),
    [
        (Exposure(order=(0, 1)), r"must hold each of the classes 0 to 9 once"),
        (Exposure(schedule={3: (0,)}), r"must begin at 0"),
        (Exposure(schedule={0: (10,)}), r"names \[10\] classes"),
        (Exposure(order="nowhere.npy"), r"is not there"),
    ],
)
def test_class_schedule__errors_name_what_is_wrong(exposure, message):
    with pytest.raises(DataError, match=message):
        class_schedule(exposure, 10)


def test_exposure_table__needs_epochs():
    with pytest.raises(DataError, match=r"has no epoch"):
        exposure_table(Exposure(), 10, [0, -1])


# -- batches -----------------------------------------------------------------------------------------------------------


def test_batches__normalise_pixels():
    samples = sample_set(pictures())
    table = Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    first, second = batches(samples, table, batch_size=4)
    x = torch.from_numpy(pictures()).permute(0, 3, 1, 2).double() / 255
    wanted = (x - torch.tensor(table.mean).view(1, 3, 1, 1)) / torch.tensor(table.std).view(1, 3, 1, 1)
    torch.testing.assert_close(torch.cat((first.x, second.x)), wanted.float(), rtol=1e-5, atol=1e-6)
    assert (len(first.x), len(second.x)) == (4, 2)
    np.testing.assert_array_equal(second.indices, [4, 5])
    np.testing.assert_array_equal(second.y, samples.labels[4:])
    assert first.x.is_contiguous()
    assert not first.x.requires_grad


@pytest.mark.parametrize("channels_last", [False, True])
def test_batches__decoded_equal_resident(channels_last):
    samples = sample_set(pictures(10))
    streamed = sample_set(pictures(10), resident_gib=1e-9)
    table = Preprocessing(mean=(0.1,) * 3, std=(0.2,) * 3, resize=6, crop=4)
    assert resident(streamed, table, CPU) is None
    for a, b in zip(*(batches(s, table, batch_size=3, channels_last=channels_last) for s in (samples, streamed))):
        torch.testing.assert_close(a.x, b.x, rtol=0, atol=0)
        assert a.x.shape[1:] == (3, 4, 4)
        assert a.x.is_contiguous(memory_format=torch.channels_last) == channels_last


def test_batches__follow_indices():
    (batch,) = batches(sample_set(pictures(channels=1)), GREY, batch_size=9, indices=[5, 0])
    np.testing.assert_allclose(batch.x[:, 0], pictures(channels=1)[[5, 0], :, :, 0] / 255, rtol=1e-6)
    assert list(batches(sample_set(pictures()), GREY, batch_size=9, indices=[])) == []


def test_batches__fit_channels_to_the_network():
    rgb = Preprocessing(mean=(0.0,) * 3, std=(1.0,) * 3)
    (grey_to_rgb,) = batches(sample_set(pictures(channels=1)), rgb, batch_size=9)
    np.testing.assert_array_equal(grey_to_rgb.x[:, 0], grey_to_rgb.x[:, 2])
    (rgb_to_grey,) = batches(sample_set(pictures()), GREY, batch_size=9)
    luma = pictures() @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(rgb_to_grey.x[:, 0] * 255, luma, atol=1.01)


def test_batches__of_files_match_torchvision(tmp_path):
    from torchvision import transforms

    sizes = [(40, 60), (64, 48), (50, 50)]
    for i, size in enumerate(sizes):
        smooth = np.linspace(0, 255, size[0] * size[1] * 3).reshape(*size, 3).astype(np.uint8)
        Image.fromarray(smooth).save(tmp_path / f"{i}.png")
    names = tuple(f"{i}.png" for i in range(3))
    samples = SampleSet(np.array(names), np.zeros(3, np.int64), ("a",), FileImages(tmp_path, names))
    table = Preprocessing(mean=(0.5,) * 3, std=(0.25,) * 3, resize=32, crop=24)
    (ours,) = batches(samples, table, batch_size=3)
    theirs = transforms.Compose(
        [
            transforms.Resize(32),
            transforms.CenterCrop(24),
            transforms.ToTensor(),
            transforms.Normalize(table.mean, table.std),
        ]
    )
    for x, name in zip(ours.x, names):
        torch.testing.assert_close(x, theirs(Image.open(tmp_path / name)), rtol=1e-5, atol=1e-6)


def test_batches__errors_name_the_mend(tmp_path):
    names = ("0.png", "1.png")
    for name, side in zip(names, (8, 9)):
        Image.fromarray(pictures(1, side=side)[0]).save(tmp_path / name)
    samples = SampleSet(np.array(names), np.zeros(2, np.int64), ("a",), FileImages(tmp_path, names))
    rgb = Preprocessing(mean=(0.0,) * 3, std=(1.0,) * 3)
    with pytest.raises(DataError, match=r"differ in size: 8 x 8 and 9 x 9; set model.preprocessing.resize"):
        list(batches(samples, rgb, batch_size=2))
    with pytest.raises(DataError, match=r"smaller than the crop of 12"):
        list(batches(samples, rgb.model_copy(update={"crop": 12}), batch_size=2))
    with pytest.raises(DataError, match=r"need one per channel"):
        list(batches(samples, Preprocessing(), batch_size=2))


# -- augmentation ------------------------------------------------------------------------------------------------------


def augmented(samples, table, augment, *, chunks, epoch=1, seed=0):
    keys = draws.keys(samples.ids)
    shown = training_batches(
        samples, table, chunks, augment=augment, keys=keys, seed=seed, epoch=epoch, device=CPU, workers=2
    )
    return torch.cat([batch.x for batch in shown])


@pytest.mark.parametrize("augment", [("crop",), ("flip",), ("crop", "flip"), ("random_resized_crop", "flip")])
@pytest.mark.parametrize("crop", [None, 6])
def test_training_batches__depend_on_seed_epoch_and_sample_only(augment, crop):
    samples = sample_set(pictures(12))
    table = Preprocessing(mean=(0.0,) * 3, std=(1.0,) * 3, crop=crop)
    whole = augmented(samples, table, augment, chunks=[np.arange(12)])
    parts = augmented(samples, table, augment, chunks=[np.array([7, 3]), np.array([11])])
    torch.testing.assert_close(parts, whole[[7, 3, 11]], rtol=0, atol=0)
    again = augmented(samples.subset([3, 7]), table, augment, chunks=[np.arange(2)])
    torch.testing.assert_close(again, whole[[3, 7]], rtol=0, atol=0)
    assert not torch.equal(augmented(samples, table, augment, chunks=[np.arange(12)], epoch=2), whole)
    assert not torch.equal(augmented(samples, table, augment, chunks=[np.arange(12)], seed=1), whole)


def test_training_batches__flip_half_and_shift_up_to_the_padding():
    samples = sample_set(pictures(400, side=8, channels=1))
    plain = augmented(samples, GREY, (), chunks=[np.arange(400)])
    flipped = augmented(samples, GREY, ("flip",), chunks=[np.arange(400)])
    mirrored = (flipped == plain.flip(3)).flatten(1).all(1)
    assert torch.equal(flipped[~mirrored], plain[~mirrored])
    assert 150 < mirrored.sum() < 250
    cropped = augmented(samples, GREY, ("crop",), chunks=[np.arange(400)])
    assert 20 < (cropped == plain).flatten(1).all(1).sum() < 75  # 1 of 9 shifts by at most one pixel


# -- draws -------------------------------------------------------------------------------------------------------------


def test_uniform__is_uniform_and_independent_of_its_neighbours():
    keys = draws.keys(map(str, range(20_000)))
    a, b = draws.uniform(keys, 0, "a"), draws.uniform(keys, 0, "b")
    for values in (a, b):
        counts = np.histogram(values, bins=20, range=(0, 1))[0]
        assert ((counts - 1000) ** 2 / 1000).sum() < 43.8  # chi-square, 19 degrees of freedom, p = 0.001
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.025
    assert sorted(draws.order(keys, 1)) == list(range(20_000))
