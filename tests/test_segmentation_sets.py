"""Segmentation data sets: a folder of images, label pictures in any usual form, and names."""

import numpy as np
import pytest
from concept_cases import write_plane, write_table
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from neurolens.data.concepts import open_concepts
from neurolens.data.fitting import fitted
from neurolens.data.planes import label_plane
from neurolens.data.segmentation import Layout, segmentation
from neurolens.errors import DataError

NUMBERS = np.array([[0, 1, 1, 2], [0, 1, 1, 2], [3, 3, 3, 255], [3, 3, 3, 255]])


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write_image(path, size, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)


def write_labels(path, numbers, form):
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = np.asarray(numbers)
    if form == "rg":
        write_plane(path, numbers)
    elif form == "palette":
        picture = Image.fromarray(numbers.astype(np.uint8)).convert("L")
        picture = Image.frombytes("P", picture.size, picture.tobytes())
        picture.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tolist())
        picture.save(path)
    else:
        Image.fromarray(numbers.astype(np.uint16 if form == "grey16" else np.uint8)).save(path)


@pytest.fixture
def root(tmp_path):
    """Two images of 8 x 8, the second of them in a folder, with labels of 4 x 4."""
    home = tmp_path / "set"
    for i, name in enumerate(("10", "more/2")):
        write_image(home / "images" / f"{name}.jpg", (8, 8), seed=i)
        write_labels(home / "labels" / f"{name}.png", NUMBERS, "palette")
    names = [(1, "wall", "object"), (2, "window", "part"), (3, "road", "object")]
    write_table(home / "names.csv", [{"number": n, "name": name, "category": c} for n, name, c in names])
    return home


@pytest.mark.parametrize("form", ["palette", "grey", "grey16", "rg"])
def test_label_plane__reads_every_usual_form(tmp_path, form):
    write_labels(tmp_path / "a.png", NUMBERS, form)
    plane = label_plane(tmp_path / "a.png")
    assert plane.dtype == np.uint16
    np.testing.assert_array_equal(plane, NUMBERS)


@pytest.mark.parametrize("form", ["grey16", "rg"])
def test_label_plane__reads_numbers_above_255(tmp_path, form):
    numbers = np.array([[256, 65535], [1197, 0]])
    write_labels(tmp_path / "a.png", numbers, form)
    np.testing.assert_array_equal(label_plane(tmp_path / "a.png"), numbers)


def test_label_plane__ignores_opacity(tmp_path):
    Image.new("RGBA", (2, 2), (3, 1, 0, 255)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(label_plane(tmp_path / "a.png"), np.full((2, 2), 259))


def test_label_plane__refuses_pictures_that_are_no_labels(tmp_path):
    Image.new("RGB", (2, 2), (0, 0, 1)).save(tmp_path / "colours.png")
    Image.new("LA", (2, 2)).save(tmp_path / "la.png")
    Image.fromarray(np.full((2, 2), 0.5, dtype=np.float32)).save(tmp_path / "float.tiff")
    (tmp_path / "text.png").write_text("no picture")
    for name, told in {
        "colours.png": r"is a picture in colours \(some pixels have blue\), and the number of a label is R \+ 256 G",
        "la.png": "is a picture of mode LA",
        "float.tiff": "holds float32 values, and labels are whole numbers from 0 to 65535",
        "text.png": "cannot be decoded",
        "none.png": "is not there; unpack",
    }.items():
        with pytest.raises(DataError, match=told):
            label_plane(tmp_path / name)


def test_open_concepts__opens_a_segmentation_set(root):
    with pytest.raises(DataError, match=r"2 of 2 images have wrong labels: .*10.png has label 255, which has no name"):
        open_concepts(root).packed()
    found = open_concepts(root, layout=Layout(ignored=(255,)))
    assert found.coords["path"].tolist() == ["images/10.jpg", "images/more/2.jpg"]
    assert (found.image_size, found.label_size) == ((8, 8), (4, 4))
    assert found.concepts == ("wall", "window", "road")
    assert found.concept_category == ("object", "part", "object")
    assert found.categories == ("object", "part")
    np.testing.assert_array_equal(found.planes(0)[0], np.where(NUMBERS == 255, 0, NUMBERS))
    assert found.packed().concept_area().tolist() == [8, 4, 12]
    assert found.images.load([1, 0]).shape == (2, 8, 8, 3)
    assert len(found.samples()) == len(set(found.ids)) == 2


def test_segmentation__labels_of_other_categories_are_no_concepts(root):
    found = segmentation(root, Layout(ignored=(255,)), categories=("part",))
    assert (found.concepts, found.categories) == (("window",), ("part",))
    assert found.packed().concept_area().tolist() == [4]


def test_segmentation__several_folders_are_several_planes(root):
    for name in ("10", "more/2"):
        write_labels(root / "parts" / f"{name}.png", np.full((4, 4), 2), "grey")
    found = segmentation(root, Layout(labels=("labels", "parts"), ignored=(255,)))
    assert found.packed().concept_area().tolist() == [8, 32, 12]


def test_segmentation__a_text_of_names_numbers_from_1(root):
    (root / "names.txt").write_text("wall\nwindow\nroad\n")
    found = segmentation(root, Layout(names="names.txt", category="thing", ignored=(255,)))
    assert dict(zip(found.labels.tolist(), found.concepts, strict=True)) == {1: "wall", 2: "window", 3: "road"}
    assert found.categories == ("thing",)


def test_segmentation__images_and_labels_are_cut_alike(tmp_path):
    pixels = np.zeros((40, 80, 3), dtype=np.uint8)
    pixels[:, 20:60] = 200  # the centred square
    for folder, picture in (("images", pixels), ("labels", (pixels[..., 0] > 0).astype(np.uint8))):
        (tmp_path / folder).mkdir()
        Image.fromarray(picture).save(tmp_path / folder / "a.png")
    (tmp_path / "names.csv").write_text("number,name\n1,square\n")
    cut = segmentation(tmp_path, size=20)
    assert (cut.images.load([0])[0, :, 1:-1] == 200).all()
    assert cut.images.load([0]).min() > 150  # a pixel at the border reads a little beyond it, as a resized photo does
    assert (cut.planes(0)[0] == 1).all()
    assert cut.planes(0)[0].shape == (10, 10)
    whole = segmentation(tmp_path, Layout(fit="squash"), size=20, label_size=20)
    np.testing.assert_array_equal(whole.planes(0)[0], whole.images.load([0])[0, ..., 0] > 100)
    assert (whole.planes(0)[0] == 1).mean() == 0.5
    assert cut.ids[0] != whole.ids[0]
    assert cut.key != whole.key


@given(st.integers(1, 9), st.integers(1, 9))
def test_fitted__of_the_nearest_pixel_keeps_numbers(factor, width):
    numbers = np.arange(1, 4 * width + 1, dtype=np.uint16).reshape(4, width) * 1000
    large = Image.fromarray(np.kron(numbers, np.ones((factor, factor), dtype=np.uint16)))
    for fit in ("crop", "squash"):
        small = fitted(large, (4, width), fit, Image.Resampling.NEAREST)
        np.testing.assert_array_equal(np.asarray(small), numbers)


def break_size(root):
    write_image(root / "images/10.jpg", (8, 12))


def break_folder(root):
    (root / "images").rename(root / "image")


def break_labels(root):
    (root / "labels/10.png").unlink()


def break_twins(root):
    write_image(root / "images/10.png", (8, 8))


def break_name(root):
    (root / "names.csv").write_text("number,name\n1,wall\n2,wall\n")


def break_names(root):
    (root / "names.csv").write_text("number,name\n0,background\n")


def break_column(root):
    (root / "names.csv").write_text("number,names\n1,wall\n")


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (break_size, r"images of .* differ in size: images/10.jpg is 8 x 12 and images/more/2.jpg 8 x 8 .* size = 224"),
        (break_folder, r"has no folder 'images'; did you mean 'image'"),
        (break_labels, r"1 of 2 images have no label picture in labels of .*: images/10.jpg; .*unlabelled = 'drop'"),
        (break_twins, r"have one name; remove or rename one"),
        (break_name, r"names.csv, line 3: 2 'wall' must have a number up to 65535 and a name that no other has"),
        (break_names, r"names.csv names no label"),
        (break_column, r"names.csv has no column 'name'; did you mean 'names'"),
    ],
)
def test_segmentation__names_what_is_wrong(root, broken, told):
    broken(root)
    with pytest.raises(DataError, match=told):
        segmentation(root)


def test_segmentation__leaves_out_images_without_labels_where_asked(root):
    break_labels(root)
    assert segmentation(root, Layout(unlabelled="drop")).coords["path"].tolist() == ["images/more/2.jpg"]


def test_segmentation__labels_of_another_shape_are_named(root):
    write_labels(root / "labels/10.png", np.ones((4, 9)), "grey")
    with pytest.raises(DataError, match=r"labels/10.png is 4 x 9 pixels, and its image 8 x 8"):
        segmentation(root, Layout(ignored=(255,))).packed()


def test_segmentation__has_no_splits_and_says_how_to_name_one(root):
    with pytest.raises(DataError, match=r"split = 'val' goes with Broden.*images = 'images/val'"):
        open_concepts(root, split="val")
    with pytest.raises(DataError, match=r"no category 'parts'; did you mean 'part'"):
        open_concepts(root, categories=("parts",))
