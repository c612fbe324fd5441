"""Concept data in Broden's layout: what is read, and what is wrong is named. Five images, see concept_cases."""

import csv
import re
import shutil

import numpy as np
import pytest
from concept_cases import (
    CATEGORIES,
    CONCEPT_CATEGORY,
    CONCEPTS,
    IMAGE_CATEGORIES,
    IMAGES,
    LABELS,
    TRUTH,
    label_planes,
    write_mini_broden,
    write_plane,
    write_table,
)
from PIL import Image

from neurolens.data.broden import broden
from neurolens.data.concepts import open_concepts
from neurolens.errors import DataError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path):
    return write_mini_broden(tmp_path / "mini")


def edit(path, change):
    """Rewrite a table: ``change`` is given its rows."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    change(rows)
    write_table(path, rows)


def set_cell(root, image, **cells):
    edit(root / "index.csv", lambda rows: next(r for r in rows if r["image"] == f"mini/{image}.png").update(cells))


def add_label(root, number, name, **coverage):
    """Add a label to label.csv and to the tables of categories, with its coverage there."""
    row = {"number": number, "name": name, "category": "", "frequency": 1, "coverage": 1, "syns": ""}
    edit(root / "label.csv", lambda rows: rows.append(row))
    for category, covers in coverage.items():
        row = {"code": 9, "number": number, "name": name, "frequency": 1, "coverage": covers}
        edit(root / f"c_{category}.csv", lambda rows, row=row: rows.append(row))


def test_broden__reads_tables_and_labels(root):
    found = broden(root)
    assert len(found) == 5
    assert found.concepts == CONCEPTS
    assert found.concept_category == CONCEPT_CATEGORY
    assert found.categories == CATEGORIES
    assert (found.image_size, found.label_size) == ((8, 8), (4, 4))
    np.testing.assert_array_equal(found.labels, LABELS)
    np.testing.assert_array_equal(found.coords["split"], ["train"] * 3 + ["val"] * 2)
    for image, name in enumerate(IMAGES):
        for got, want in zip(found.planes(image), label_planes()[name].values(), strict=True):
            np.testing.assert_array_equal(got, want)


def test_broden__truth_areas_and_categories_are_the_golden_ones(root):
    masks = broden(root).packed()
    np.testing.assert_array_equal(masks.concept_area(), [TRUTH[name] for name in CONCEPTS])
    shown = {
        name: {CATEGORIES[c] for c in np.flatnonzero(row)}
        for name, row in zip(IMAGES, masks.image_categories(), strict=True)
    }
    assert shown == IMAGE_CATEGORIES


def test_broden__label_0_is_no_concept(root):
    found = broden(root)
    assert found.planes(4)[1] == 0
    assert found.packed().present(4).concepts.tolist() == [CONCEPTS.index("blue-c")]
    edit(root / "label.csv", lambda rows: rows.insert(0, rows[0] | {"number": 0, "name": "-"}))
    edit(root / "c_color.csv", lambda rows: rows.insert(0, rows[0] | {"number": 0, "name": "-"}))
    assert broden(root).concepts == CONCEPTS


def test_broden__images_are_samples_with_content_ids(root, tmp_path):
    samples = broden(root).samples()
    assert samples.images.load([1])[0].shape == (8, 8, 3)
    assert len(set(samples.ids)) == 5
    moved = shutil.copytree(root, tmp_path / "moved")
    np.testing.assert_array_equal(broden(moved).samples().ids, samples.ids)


def test_broden__takes_a_split_and_leaves_out_images_without_labels(root):
    train = broden(root, split="train", categories=("color", "object"))
    assert (len(train), train.coords["position"].tolist()) == (3, [0, 1, 2])
    objects = broden(root, categories=("object",))
    assert objects.coords["path"].tolist() == ["mini/A.png", "mini/B.png", "mini/D.png"]
    assert objects.coords["position"].tolist() == [0, 1, 3]
    assert objects.concepts == ("dog", "cat")


def test_broden__a_scene_of_label_0_keeps_its_image(root):
    assert broden(root, categories=("scene",)).coords["path"].tolist() == ["mini/A.png", "mini/D.png", "mini/E.png"]


def test_broden__several_planes_and_numbers_share_a_cell(root):
    add_label(root, 300, "paw", part=1)
    paws = np.zeros((4, 4), dtype=int)
    paws[0, :2] = 300
    write_plane(root / "images/mini/A_paws.png", paws)
    set_cell(root, "A", part="mini/A_part.png;mini/A_paws.png", scene="6;7")
    found = broden(root)
    masks = found.packed()
    shown = dict(zip(masks.present(0).concepts.tolist(), masks.planes(0), strict=True))
    assert shown[found.concepts.index("leg")].sum() == 2
    np.testing.assert_array_equal(shown[found.concepts.index("paw")], paws == 300)
    assert shown[found.concepts.index("dotted")].all()


def test_broden__a_concept_in_two_planes_is_counted_once_a_pixel(root):
    legs = np.full((4, 4), 5)
    write_plane(root / "images/mini/A_more.png", legs)
    set_cell(root, "A", part="mini/A_part.png;mini/A_more.png")
    assert broden(root).packed().concept_area()[CONCEPTS.index("leg")] == 16


@pytest.mark.parametrize(
    ("object_", "part", "primary"), [(2.0, 1.0, "object"), (1.0, 2.0, "part"), (1.5, 1.5, "part"), (0.0, 0.0, "part")]
)
def test_broden__the_primary_category_covers_most_and_is_the_last_of_equals(root, object_, part, primary):
    add_label(root, 8, "door", object=object_, part=part)
    assert broden(root).concept_category[-1] == primary
    assert broden(root, categories=("object", "scene")).concept_category[-2:] == ("scene", "object")


@pytest.mark.parametrize(("size", "labels"), [(224, 112), (227, 113), (384, 192)])
def test_open_concepts__finds_the_variant(tmp_path, size, labels):
    for name in (f"broden1_{size}", "broden1_100"):
        root = write_mini_broden(tmp_path / "data" / name)
        (root / "images/mini/A_color.png").unlink()
        plane, empty = np.full((labels, labels), 2), dict.fromkeys(CATEGORIES, "")
        write_plane(root / "images/mini/plane.png", plane)
        Image.fromarray(np.zeros((size, size, 3), dtype=np.uint8)).save(root / "images/mini/A.png")
        sizes = {"ih": size, "iw": size, "sh": labels, "sw": labels}

        def change(rows, sizes=sizes, empty=empty):
            rows[:] = [rows[0] | sizes | empty | {"color": "mini/plane.png"}]

        edit(root / "index.csv", change)
    found = open_concepts(tmp_path / "data", size=size, categories=["color"])
    assert (found.image_size, found.label_size) == ((size, size), (labels, labels))
    assert found.packed().concept_area().tolist() == [0, labels**2]
    with pytest.raises(DataError, match=r"holds broden1_100, broden1_\d+, and no size was asked for"):
        open_concepts(tmp_path / "data")
    with pytest.raises(DataError, match=rf"are {size} x {size} pixels, and size = 100 was asked for"):
        open_concepts(tmp_path / "data", size=100, categories=["color"])


def test_open_concepts__says_what_it_looked_for(tmp_path):
    with pytest.raises(DataError, match=r"neither index.csv \(Broden\), nor broden1_224 .* download = true"):
        open_concepts(tmp_path)


def break_missing_mask(root):
    (root / "images/mini/B_object.png").unlink()


def break_missing_image(root):
    (root / "images/mini/E.png").unlink()


def break_scalar(root):
    set_cell(root, "D", scene="66")


def break_empty_category(root):
    set_cell(root, "C", texture="")


def break_zero_category(root):
    set_cell(root, "C", texture="0")


def break_images(root):
    (root / "index.csv").write_text((root / "index.csv").read_text().splitlines()[0] + "\n")


def break_cells(root):
    edit(root / "index.csv", lambda rows: [row.update(dict.fromkeys(CATEGORIES, "")) for row in rows])


def break_unlisted_category(root):
    write_table(root / "c_texture.csv", [{"code": 0, "number": 0, "name": "-", "frequency": 0, "coverage": 0}])


def break_sizes(root):
    set_cell(root, "C", sh="5")


def break_aspect(root):
    edit(root / "index.csv", lambda rows: [row.update(sw="1", iw="80") for row in rows])


def break_number(root):
    edit(root / "index.csv", lambda rows: rows[2].update(ih="eight"))


def break_column(root):
    (root / "index.csv").write_text((root / "index.csv").read_text().replace("object", "objects"))


def break_line(root):
    (root / "index.csv").write_text((root / "index.csv").read_text() + "mini/F.png,train\n")


def break_table(root):
    (root / "c_part.csv").unlink()


def break_name(root):
    add_label(root, 8, "dog", object=1)


def break_label(root):
    add_label(root, 3, "wolf", object=1)


def break_listed(root):
    edit(root / "c_part.csv", lambda rows: rows[0].update(number="77"))


def break_coverage(root):
    edit(root / "c_part.csv", lambda rows: rows[0].update(coverage="much"))


def break_encoding(root):
    (root / "label.csv").write_bytes(b"number,name\n1,caf\xe9\n")


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (break_missing_mask, r"1 of 9 label files are not in .*images: mini/B_object.png; unpack"),
        (break_missing_image, r"1 of 5 images are not in .*images: mini/E.png; unpack"),
        (break_scalar, r"index.csv, line 5: scene 66 of mini/D.png is not in label.csv"),
        (
            break_empty_category,
            r"no image .* in 'texture'; leave it out: categories = \['color', 'object', 'part', 'scene'\]",
        ),
        (break_unlisted_category, r"no image .* in 'texture'; leave it out"),
        (break_zero_category, r"no image .* in 'texture'; leave it out"),
        (break_images, r"index.csv lists no image; restore it"),
        (break_cells, r"no image .* in 'color', .*, 'texture'; restore it"),
        (break_sizes, r"line 4: mini/C.png has ih,iw,sh,sw = 8,8,5,4, and the images before it have 8,8,4,4"),
        (break_aspect, r"images of 8 x 80 and labels of 4 x 1, which cannot cover them"),
        (break_number, r"index.csv, line 4: ih 'eight' is not a whole number"),
        (break_column, r"index.csv has no column 'object'; did you mean 'objects'"),
        (break_line, r"index.csv, line 7 has not the 12 fields of the header"),
        (break_table, r"c_part.csv is not there"),
        (break_name, r"label.csv calls both 3 and 8 'dog'"),
        (break_label, r"label.csv, line 9: number 3 of 'wolf' is that of 'dog' too"),
        (break_listed, r"c_part.csv, line 2: label 77 is not in label.csv"),
        (break_coverage, r"c_part.csv, line 2: coverage 'much' is not a number"),
        (break_encoding, r"label.csv is not a table of comma-separated text in UTF-8"),
    ],
)
def test_broden__names_what_is_wrong_with_the_tables(root, broken, told):
    broken(root)
    with pytest.raises(DataError, match=told):
        broden(root)


def test_broden__unknown_categories_and_splits_are_named(root):
    with pytest.raises(DataError, match=r"no category 'colour'; did you mean 'color'"):
        broden(root, categories=("colour",))
    with pytest.raises(DataError, match=r"no split 'vla'; did you mean 'val'"):
        broden(root, split="vla")
    with pytest.raises(DataError, match=r"no image .* in 'texture' in the split 'val'"):
        broden(root, split="val", categories=("texture",))


def spoil_size(root):
    write_plane(root / "images/mini/A_part.png", np.zeros((4, 5)))


def spoil_number(root):
    write_plane(root / "images/mini/A_part.png", np.full((4, 4), 600))


def spoil_category(root):
    write_plane(root / "images/mini/A_part.png", np.full((4, 4), 8))
    add_label(root, 8, "orphan")


def spoil_colours(root):
    Image.new("RGB", (4, 4), (1, 0, 9)).save(root / "images/mini/A_part.png")


def spoil_file(root):
    (root / "images/mini/A_part.png").write_bytes((root / "images/mini/A_part.png").read_bytes()[:45])


def spoil_image(root):
    Image.new("RGB", (16, 16)).save(root / "images/mini/A.png")


@pytest.mark.parametrize(
    ("spoiled", "told"),
    [
        (spoil_size, r"mini/A_part.png is 4 x 5 pixels, and labels of 4 x 4 were needed"),
        (spoil_number, r"mini/A_part.png has label 600, which has no name \(7 labels from 1 to 7 have\)"),
        (spoil_category, r"mini/A_part.png has label 8 \(orphan\), which belongs to none of the categories color, "),
        (spoil_colours, r"mini/A_part.png is a picture in colours"),
        (spoil_file, r"mini/A_part.png cannot be decoded"),
        (spoil_image, r"mini/A.png is 16 x 16 pixels, and 8 x 8 were announced"),
    ],
)
def test_packed__names_what_is_wrong_with_the_files(root, spoiled, told):
    spoiled(root)
    found = broden(root)
    with pytest.raises(DataError, match=told):
        found.packed()
    assert not list((root.parent / "cache").rglob("masks.json"))


def test_packed__counts_all_that_is_wrong(root):
    for name in "ABCDE":
        write_plane(root / f"images/mini/{name}_color.png", np.full((4, 4), 600))
    with pytest.raises(DataError, match=r"5 of 5 images have wrong labels: ") as caught:
        broden(root).packed()
    assert len(re.findall("has label 600", str(caught.value))) == 5
