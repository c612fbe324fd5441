"""Packed bitplanes: the same labels as the planes, decoded once, and never half."""

import pickle
import shutil
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from concept_cases import (
    CATEGORIES,
    CONCEPT_CATEGORY,
    CONCEPTS,
    MAPS,
    MASK_AREAS,
    TALLY,
    TRUTH,
    write_mini_broden,
    write_plane,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from neurolens.data import bitplanes
from neurolens.data.bitplanes import pack, packed_masks
from neurolens.data.broden import broden
from neurolens.data.concept_sets import ConceptSet
from neurolens.errors import DataError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path):
    return write_mini_broden(tmp_path / "mini")


def unpacked(words, size):
    bits = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")
    assert not bits[:, size[0] * size[1] :].any()
    return bits[:, : size[0] * size[1]].reshape(-1, *size).astype(bool)


@settings(deadline=None)
@given(
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    planes=st.integers(0, 3),
    scalars=st.lists(st.integers(0, 6), max_size=2),
    seed=st.integers(0, 99),
)
def test_pack__is_the_mask_of_every_concept(size, planes, scalars, seed):
    rng = np.random.default_rng(seed)
    index = np.array([-1, 2, 0, 4, -1, 1, 3], dtype=np.int32)
    labels = [rng.integers(0, 7, size).astype(np.uint16) for _ in range(planes)] + scalars
    concepts, words = pack(labels, index, size)
    slow = {}
    for plane in labels:
        for number in range(7):
            mask = np.broadcast_to(np.asarray(plane) == number, size)
            if index[number] >= 0 and mask.any():
                slow[index[number]] = slow.get(index[number], False) | mask
    assert concepts.tolist() == sorted(slow)
    for concept, mask in zip(concepts, unpacked(words, size), strict=True):
        np.testing.assert_array_equal(mask, slow[concept])


def test_packed__holds_what_the_planes_show(root):
    found = broden(root)
    masks = found.packed()
    assert (len(masks), masks.n_concepts, masks.n_categories) == (5, 7, 5)
    assert masks.indptr.tolist() == [0, 6, 8, 11, 14, 15]
    for image in range(5):
        concepts, bits = masks.present(image)
        assert bits.shape == (len(concepts), 2)
        slow = [
            np.any([np.broadcast_to(plane == found.labels[c], (4, 4)) for plane in found.planes(image)], axis=0)
            for c in concepts
        ]
        np.testing.assert_array_equal(masks.planes(image), slow)
        np.testing.assert_array_equal(masks.area[masks.image == image], np.sum(slow, axis=(1, 2)))


def test_packed__areas_are_of_the_images_asked_for(root):
    masks = broden(root).packed()
    np.testing.assert_array_equal(masks.concept_area(), list(TRUTH.values()))
    parts = masks.concept_area(slice(0, 2)) + masks.concept_area(np.array([4, 3, 2]))
    np.testing.assert_array_equal(parts, masks.concept_area())


def test_packed__gives_the_golden_tally(root):
    """The tally, slowly: the fixture's own numbers are right, and the bits are where they must be."""
    import torch

    masks = broden(root).packed()
    up = torch.nn.functional.interpolate(torch.tensor(MAPS), size=(4, 4), mode="bilinear", align_corners=False)
    fired = up.numpy() > 1
    np.testing.assert_array_equal(fired.sum((2, 3)), MASK_AREAS)
    shown = np.zeros((5, 7, 4, 4), dtype=bool)
    for image in range(5):
        shown[image, masks.present(image).concepts] = masks.planes(image)
    for (unit, name), (both, lite, paper, iou_lite, iou_paper) in TALLY.items():
        concept, of = CONCEPTS.index(name), fired[:, unit - 1]
        alike = [k for k, category in enumerate(CONCEPT_CATEGORY) if category == CONCEPT_CATEGORY[concept]]
        areas = of.sum((1, 2))
        touched = (of[:, None] & shown[:, alike]).any((1, 2, 3))
        anywhere = masks.image_categories()[:, CATEGORIES.index(CONCEPT_CATEGORY[concept])]
        assert (of & shown[:, concept]).sum() == both
        assert (areas @ touched, areas @ anywhere) == (lite, paper)
        truth = masks.concept_area()[concept]
        assert both / (lite + truth - both + 1e-10) == pytest.approx(iou_lite, abs=1e-6)
        assert both / (paper + truth - both + 1e-10) == pytest.approx(iou_paper, abs=1e-6)


def test_packed__decodes_once(root, tmp_path):
    told = []
    found = broden(root)
    first = found.packed(progress=lambda done, n: told.append((done, n)))
    assert told == [(5, 5)]
    moved = shutil.copytree(root, tmp_path / "moved")
    (moved / "images/mini/A_color.png").touch()
    again = broden(moved).packed(progress=lambda *_: told.append("decoded again"), threads=1)
    assert told == [(5, 5)]
    assert again.folder == first.folder
    assert isinstance(again.words, np.memmap)
    assert not again.words.flags.writeable


@pytest.mark.parametrize("cached", [False, True])
def test_masks__look_for_wrong_labels_once(root, monkeypatch, cached):
    write_plane(root / "images/mini/A_part.png", np.full((4, 4), 600))
    found, decoded = broden(root), []
    packed = ConceptSet.packed
    monkeypatch.setattr(ConceptSet, "packed", lambda self: decoded.append(1) or packed(self))
    if cached:  # a cache that cannot be written may be mended meanwhile
        monkeypatch.setenv("XDG_CACHE_HOME", str(root / "index.csv"))
    for _ in range(3):
        with pytest.raises(DataError):
            assert found.masks
    assert len(decoded) == (3 if cached else 1)


def test_packed__knows_labels_by_their_content(root):
    key = broden(root).key
    assert broden(root, split="train").key != key
    assert broden(root, categories=("color", "object", "part", "texture")).key != key
    (root / "label.csv").write_text((root / "label.csv").read_text().replace("dog", "wolf"))
    assert broden(root).key == key
    write_plane(root / "images/mini/B_color.png", np.full((4, 4), 2))
    changed = broden(root)
    assert changed.key != key
    assert changed.packed().concept_area()[:2].tolist() == [16, 64]


def test_packed__a_damaged_cache_is_made_anew(root):
    first = broden(root).packed()
    words = np.array(first.words)
    with open(first.folder / "bits.u64", "r+b") as file:
        file.truncate(8)
    np.testing.assert_array_equal(broden(root).packed().words, words)
    for name, content in {"masks.json": "{", "area.npy": "", "concept.npy": "half"}.items():
        (first.folder / name).write_text(content)
        again = broden(root).packed()
        assert again.area.sum() == sum(TRUTH.values())
        np.testing.assert_array_equal(again.words, words)


def test_packed__stopped_midway_leaves_nothing(root, monkeypatch):
    found = broden(root)

    def stop(done, images):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        found.packed(progress=stop)
    home = root.parent / "cache" / "neurolens" / "concepts"
    assert [path for path in home.iterdir() if path.is_dir()] == []
    assert found.packed().concept_area().sum() == sum(TRUTH.values())


def test_packed__what_a_killed_process_left_is_removed(root):
    found = broden(root)
    left = root.parent / "cache" / "neurolens" / "concepts" / f".{bitplanes.PACKING_VERSION}-{found.key}-killed"
    left.mkdir(parents=True)
    (left / "bits.u64").write_bytes(b"half")
    assert found.packed().concept_area().sum() == sum(TRUTH.values())
    assert not left.exists()


def test_packed__asked_for_at_once_are_decoded_once(root):
    decoded = []
    sets = [broden(root) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        every = list(pool.map(lambda found: found.packed(progress=lambda *done: decoded.append(done)), sets))
    assert decoded == [(5, 5)]
    assert {masks.folder for masks in every} == {every[0].folder}


@pytest.mark.parametrize("chunk", [1, 2, 256])
@pytest.mark.parametrize("threads", [1, 3])
def test_packed__is_blind_to_chunks_and_threads(root, tmp_path, monkeypatch, chunk, threads):
    want = broden(root).packed()
    monkeypatch.setattr(bitplanes, "_CHUNK", chunk)
    got = broden(root).packed(cache=tmp_path / "other", threads=threads)
    for name in ("indptr", "concept", "area", "words"):
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name))


def test_packed__pickles_as_a_place(root):
    masks = broden(root).packed()
    sent = pickle.dumps(masks)
    assert len(sent) < 2000
    np.testing.assert_array_equal(pickle.loads(sent).words, masks.words)
    np.testing.assert_array_equal(pickle.loads(sent).category, masks.category)


def test_packed_masks__of_images_without_any_concept_are_empty(tmp_path):
    masks = packed_masks(
        "none",
        3,
        lambda image: [0],
        index=np.full(9, -1, dtype=np.int32),
        category=np.zeros(2, dtype=np.int64),
        n_categories=1,
        label_size=(3, 3),
        cache=tmp_path,
    )
    assert masks.planes(1).shape == (0, 3, 3)
    assert masks.concept_area().tolist() == [0, 0]
    assert not masks.image_categories().any()


def test_packed__a_cache_that_cannot_be_written_is_named(root, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"decoded labels are kept in .*file/below, which cannot be written"):
        broden(root).packed(cache=tmp_path / "file" / "below")


def test_packed_masks__need_memory_for_a_few_images_only(tmp_path):
    """Whatever the number of images: 20 bytes a row of a concept, and one chunk of bits."""
    plane = np.repeat(np.arange(1, 9, dtype=np.uint16), 1568).reshape(112, 112)
    index = np.arange(-1, 8, dtype=np.int32)
    of = {"index": index, "category": np.zeros(8, dtype=np.int64), "n_categories": 1, "label_size": (112, 112)}
    peaks = []
    for images in (600, 2400):
        tracemalloc.start()
        masks = packed_masks(str(images), images, lambda image: [plane], cache=tmp_path, threads=1, **of)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert masks.words.nbytes == images * 8 * 1568
        assert masks.concept_area().tolist() == [1568 * images] * 8
    assert peaks[1] - peaks[0] < 1_500_000  # their bits are 22.6 MB more
