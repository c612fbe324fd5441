"""Images with a label for every pixel, and the metadata of Stanford Cars."""

import numpy as np
import pytest
from PIL import Image

from neurolens.data.labelled_images import labelled_images, pascal_context
from neurolens.data.segmentation import Layout
from neurolens.data.stanford_cars import stanford_cars
from neurolens.errors import DataError
from neurolens.pairs import confusion, segmentation_scores


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, dtype=np.uint8)).save(path)


def voc(root, names=("2008_2", "2008_10"), split="val"):
    for i, name in enumerate(names):
        size = (4 + i, 6)
        write(root / "JPEGImages" / f"{name}.jpg", np.full((*size, 3), 40 * i))
        write(root / "SegmentationClassContext" / f"{name}.png", np.arange(np.prod(size)).reshape(size) % 60)
    lists = root / "ImageSets" / "SegmentationContext"
    lists.mkdir(parents=True)
    (lists / f"{split}.txt").write_text("\n".join(names) + "\n")
    return root


@pytest.mark.parametrize("where", ["", "VOC2010", "VOCdevkit/VOC2010"])
def test_pascal_context__reads_a_split_in_the_sizes_of_its_images(tmp_path, where):
    voc(tmp_path / where)
    found = pascal_context(tmp_path)
    assert found.images == ("JPEGImages/2008_2.jpg", "JPEGImages/2008_10.jpg")
    assert [found.image(i).shape for i in range(len(found))] == [(4, 6, 3), (5, 6, 3)]
    np.testing.assert_array_equal(found.label(1), np.arange(30).reshape(5, 6))
    told = np.maximum(found.label(1).astype(int) - 1, 0)
    counts = confusion(told, found.label(1), classes=59, reduce_zero_label=True)
    assert (int(counts.sum()), float(segmentation_scores(counts)["miou"])) == (29, 1.0)


def test_pascal_context__says_what_is_missing(tmp_path):
    with pytest.raises(DataError, match="has no JPEGImages"):
        pascal_context(tmp_path)
    voc(tmp_path)
    with pytest.raises(DataError, match=r"no split 'vall'.*'val'"):
        pascal_context(tmp_path, split="vall")
    (tmp_path / "SegmentationClassContext" / "2008_10.png").unlink()
    with pytest.raises(DataError, match=r"1 of 4 files .* SegmentationClassContext/2008_10.png"):
        pascal_context(tmp_path)
    (tmp_path / "ImageSets" / "SegmentationContext" / "val.txt").write_text("\n")
    with pytest.raises(DataError, match="names no image"):
        pascal_context(tmp_path)
    (tmp_path / "ImageSets" / "SegmentationContext" / "val.txt").unlink()
    with pytest.raises(DataError, match="unpack the lists"):
        pascal_context(tmp_path)


def test_labelled_images__reads_any_two_folders(tmp_path):
    write(tmp_path / "images" / "a" / "10.png", np.full((3, 4), 7))
    write(tmp_path / "images" / "a" / "2.png", np.zeros((2, 4, 3)))
    write(tmp_path / "masks" / "a" / "10.png", np.full((3, 4), 255))
    write(tmp_path / "masks" / "a" / "2.png", np.ones((2, 2)))
    found = labelled_images(tmp_path, Layout(labels=("masks",)))
    assert found.images == ("images/a/2.png", "images/a/10.png")
    np.testing.assert_array_equal(found.image(1), np.full((3, 4, 3), 7))
    np.testing.assert_array_equal(found.label(1), np.full((3, 4), 255))
    with pytest.raises(DataError, match="2 x 2 pixels and its image 2 x 4"):
        found.label(0)
    with pytest.raises(DataError, match="found 2 folders of labels"):
        labelled_images(tmp_path, Layout(labels=("masks", "more")))
    with pytest.raises(DataError, match="no folder 'labels'"):
        labelled_images(tmp_path)


def cars(tmp_path, rows, header="image,Class"):
    (tmp_path / "names.txt").write_text("AM General Hummer SUV 2000\nAudi TTS Coupe 2012\nAudi TT Convertible 1994\n")
    (tmp_path / "train.csv").write_text("\n".join([header, *rows]) + "\n")
    return tmp_path / "train.csv", tmp_path / "names.txt"


def test_stanford_cars__reads_classes_years_and_colours(tmp_path):
    found = stanford_cars(*cars(tmp_path, ["00001.jpg,3_9", "00002.jpg,1_red", "00003.jpg,2_0"]))
    assert found["sample"].to_numpy().tolist() == ["00001.jpg", "00002.jpg", "00003.jpg"]
    assert found["number"].to_numpy().tolist() == [3, 1, 2]
    assert found["year"].to_numpy().tolist() == [1994, 2000, 2012]
    assert found["colour"].to_numpy().tolist() == ["yellow", "red", "black"]
    assert found["make"].to_numpy().tolist() == ["Audi", "AM", "Audi"]
    assert found["name"].str.contains("Convertible").to_numpy().tolist() == [True, False, False]
    plain = stanford_cars(*cars(tmp_path, ["a.jpg,3,1", "b.jpg,1,1"], "file,number,x"), image="file", label="number")
    assert "colour" not in plain
    assert plain["number"].to_numpy().tolist() == [3, 1]


def test_stanford_cars__says_what_is_wrong(tmp_path):
    for rows, told in (
        (["a.jpg,4"], "'4' is no class from 1 to 3"),
        (["a.jpg,red"], "'red' is no class"),
        (["a.jpg,1_10"], "'10' is none of the colours"),
        (["a.jpg,1_9", "b.jpg,2"], "1 of 2 images have no colour, as 'b.jpg'"),
        (["a.jpg,1", "a.jpg,2"], "'a.jpg' and 0 other images twice"),
        ([], "has no row"),
    ):
        with pytest.raises(DataError, match=told):
            stanford_cars(*cars(tmp_path, rows))
    with pytest.raises(DataError, match="no column 'image'"):
        stanford_cars(*cars(tmp_path, ["a.jpg,1"], "images,Class"))
    table, names = cars(tmp_path, ["a.jpg,1"])
    names.write_text("AM General Hummer\n")
    with pytest.raises(DataError, match="does not end in a year"):
        stanford_cars(table, names)
    with pytest.raises(DataError, match="is not a text file of names"):
        stanford_cars(table, tmp_path / "none.txt")
