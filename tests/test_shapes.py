"""Generated concept data: what is labelled is what is drawn, and a network can be trained on it."""

import json
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from neurolens.cli import app
from neurolens.data import open_samples
from neurolens.data.broden import broden
from neurolens.data.shape_pictures import COLORS, NAMES, NUMBERS, SCENES, SHAPES, outline, pattern, picture
from neurolens.data.shapes import make_concepts
from neurolens.errors import DataError
from neurolens.study import Data

N = 60


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_concepts(tmp_path_factory.mktemp("shapes") / "set", n=N, seed=3, size=48)


def contents(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.*"))}


def cells(pixels):
    """Mean over the 2 x 2 pixels of every cell."""
    side = len(pixels) // 2
    return pixels.reshape(side, 2, side, 2, 3).mean(axis=(1, 3))


def test_make_concepts__is_a_sound_concept_set(made):
    found = broden(made)
    assert len(found) == N
    assert (found.image_size, found.label_size) == ((48, 48), (24, 24))
    assert {name: category for category, names in NAMES.items() for name in names} == dict(
        zip(found.concepts, found.concept_category, strict=True)
    )
    masks = found.packed()
    assert (masks.concept_area() > 0).all()
    assert set(found.coords["split"]) == {"train", "val"}


def test_make_concepts__tables_tell_frequency_and_coverage(made):
    masks = broden(made).packed()
    images = np.bincount(masks.concept, minlength=masks.n_concepts)
    lines = [line.split(",") for line in (made / "label.csv").read_text().splitlines()[1:]]
    assert [int(line[3]) for line in lines] == images.tolist()
    assert [line[2] for line in lines][:2] == [f"color({images[0]})", f"color({images[1]})"]
    np.testing.assert_allclose([float(line[4]) for line in lines], masks.concept_area() / 24**2, atol=1e-6)
    categories = [line.split(",") for line in (made / "category.csv").read_text().splitlines()[1:]]
    shown = masks.image_categories().sum(axis=0)
    assert [int(line[4]) for line in categories] == shown.tolist()
    assert shown[broden(made).categories.index("texture")] < N, "some pictures show no texture"


def test_make_concepts__cells_may_hold_several_planes(made):
    both = [cell for cell in broden(made).cells if sum("/part/" in str(one) for one in cell) == 2]
    assert both


def test_make_concepts__is_fixed_by_its_seed(made, tmp_path):
    again = make_concepts(tmp_path / "again", n=N, seed=3, size=48)
    assert contents(again) == contents(made)
    other = make_concepts(tmp_path / "other", n=N, seed=4, size=48)
    assert contents(other) != contents(made)
    assert json.loads((made / "made.json").read_text()) == {
        "kind": "shapes",
        "n": N,
        "seed": 3,
        "size": 48,
        "version": 1,
    }


def test_make_concepts__the_picture_of_a_number_is_the_same_for_every_n(made, tmp_path):
    fewer = contents(make_concepts(tmp_path / "fewer", n=30, seed=3, size=48))
    whole = contents(made)
    assert {name: content for name, content in fewer.items() if ".png" in name}.items() <= whole.items()


def test_make_concepts__pictures_are_a_task_of_telling_scenes_apart(made):
    train, val = (open_samples(Data(source="folder", root=made / "images", split=split)) for split in ("train", "val"))
    assert train.classes == val.classes == tuple(sorted(scene.name for scene in SCENES))
    assert (len(train), len(val)) == (48, 12)
    assert np.bincount(train.labels).tolist() == [8] * 6
    assert not set(train.ids) & set(val.ids)
    found = broden(made)
    ids = dict(zip(train.ids, train.labels, strict=True)) | dict(zip(val.ids, val.labels, strict=True))
    masks, scenes = found.packed(), [NUMBERS[f"{name}-s"] for name in train.classes]
    for image, name in enumerate(found.ids):
        shown = found.labels[masks.present(image).concepts]
        assert scenes[ids[name]] in shown


def test_picture__colours_are_exact_up_to_noise_and_shade():
    """A unit that is linear in a cell's colour can be exactly "red": the truth that detectors are tested on."""
    for number in range(24):
        drawn = picture(number, seed=0, size=64)
        red = drawn.planes["color"][0] == NUMBERS["red-c"]
        level = cells(drawn.pixels) @ [1, -0.9, -0.9]
        np.testing.assert_array_equal(level > 95, red)
        ratio = cells(drawn.pixels) / np.array(list(COLORS.values()))[drawn.planes["color"][0] - 1]
        assert 0.6 < ratio.min() < ratio.max() < 1.2


def test_picture__parts_lie_in_their_objects():
    owners = {part: shape for shape, part in SHAPES.items()}
    for number in range(24):
        planes = picture(number, seed=1, size=64).planes
        objects, (parts, rims) = planes["object"][0], planes["part"]
        for label in np.unique(parts[parts > 0]):
            name = next(name for name, of in NUMBERS.items() if of == label)
            assert (objects[parts == label] == NUMBERS[owners[name]]).all()
        assert (objects[rims > 0] > 0).all()
        assert set(np.unique(rims)) == {0, NUMBERS["rim"]}
        assert (planes["color"][0] > 0).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_outline__has_the_area_of_its_shape(shape):
    mask, part = outline(shape, 200, 200, 100, 400)
    areas = {"circle": np.pi, "square": 1.7**2, "triangle": 1.8, "cross": 20 / 9, "diamond": 2}
    assert mask.sum() / 100**2 == pytest.approx(areas[shape], rel=0.02)
    assert part.any() == (SHAPES[shape] is not None)
    assert not (part & ~mask).any()


def test_pattern__textures_differ_and_show_two_colours():
    drawn = [pattern(name, 32) for name in NAMES["texture"]]
    assert all(0.2 < mask.mean() < 0.7 for mask in drawn)
    assert len({mask.tobytes() for mask in drawn}) == 4


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"kind": "shape"}, r"no kind 'shape' of generated concepts; did you mean 'shapes'"),
        ({"n": 12}, r"n = 12 pictures .* make 30 or more"),
        ({"size": 33}, r"size = 33 is odd"),
        ({"size": 16}, r"size = 16 is odd or below 32"),
        ({"seed": -1}, r"seed = -1 is negative"),
    ],
)
def test_make_concepts__says_what_cannot_be(tmp_path, wrong, told):
    with pytest.raises(DataError, match=told):
        make_concepts(tmp_path / "set", **wrong)
    assert not list(tmp_path.iterdir())


def test_make_concepts__overwrites_nothing_and_leaves_nothing_half_done(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="is there and not empty"):
        make_concepts(tmp_path / "set")

    def stop(done, n):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_concepts(tmp_path / "other", n=30, size=32, progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_make_command__writes_and_says_what_to_do_next(tmp_path):
    result = CliRunner().invoke(app, ["make", "concepts", str(tmp_path / "set"), "--n", "30", "--size", "32"])
    assert result.exit_code == 0
    assert "wrote 30 pictures of 32 x 32 pixels with 28 concepts" in result.output
    assert f"root = '{tmp_path / 'set' / 'images'}'" in result.output
    assert broden(tmp_path / "set").image_size == (32, 32)
    again = CliRunner().invoke(app, ["make", "concepts", str(tmp_path / "set")])
    assert again.exit_code == 2
    shutil.rmtree(tmp_path / "set")
