"""ImageNet in its on-disk formats, built small: class folders, the flat validation folder, the lists beside them."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from neurolens.data import batches, open_samples, study_samples
from neurolens.data.folders import decode
from neurolens.data.imagenet import imagenet
from neurolens.data.imagenet_lists import class_names, ground_truth, ilsvrc_wnids
from neurolens.errors import DataError, StudyError
from neurolens.models import IMAGENET
from neurolens.study import Data, ImageNet, Model, Study, load_study

SORTED = [f"n{1440764 + 7919 * i:08d}" for i in range(1000)]
BY_ID = [SORTED[i] for i in np.random.default_rng(0).permutation(1000)]
"""The wnid of each ILSVRC id, in an order that is not that of their text, as the real one."""
TRUTH = [490, 361, 171, 822, 297, 171]
"""The first five lines of the real ground truth, and a class that comes twice."""
TRUTH_FILE = "ILSVRC2012_validation_ground_truth.txt"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def picture(seed: int, height: int = 24, width: int = 20) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def flat_name(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}.JPEG"


def write_flat(root: Path, truth=TRUTH, wnids=(*BY_ID, *(f"n{9 * 10**7 + i:08d}" for i in range(859)))) -> Path:
    root.mkdir(parents=True)
    for number in range(1, len(truth) + 1):
        picture(number).save(root / flat_name(number))
    (root.parent / TRUTH_FILE).write_text("".join(f"{i}\n" for i in truth))
    (root.parent / "imagenet_classes.txt").write_text("".join(f"{wnid}\n" for wnid in wnids))
    return root


def write_moved(flat: Path, root: Path, truth=TRUTH) -> Path:
    """Do what the reference does: sort the flat images into a folder for each of the 1000 classes."""
    for number, i in enumerate(truth, 1):
        top = root / BY_ID[i - 1]
        top.mkdir(parents=True, exist_ok=True)
        (top / flat_name(number)).write_bytes((flat / flat_name(number)).read_bytes())
    return root


def write_folders(root: Path, wnids, count=2) -> Path:
    for c, wnid in enumerate(wnids):
        (root / wnid).mkdir(parents=True)
        for i in range(count):
            picture(10 * c + i).save(root / wnid / f"{wnid}_{8 + 3 * i}.JPEG")  # _11 is before _8 as text
    return root


def write_index(path: Path, wnids) -> Path:
    path.write_text(json.dumps({str(i): [wnid, f"thing_{wnid[-3:]}"] for i, wnid in enumerate(wnids)}))
    return path


def table(root: Path, split: str = "all", **lists) -> Data:
    return Data(source="imagenet", root=root, split=split, imagenet=ImageNet(**lists))


# -- class folders -----------------------------------------------------------------------------------------------------


def test_imagenet__class_folders_are_those_of_torchvision(tmp_path):
    from torchvision.datasets import ImageFolder

    write_folders(tmp_path / "val", [SORTED[i] for i in (7, 3, 5)], count=2)
    samples, theirs = open_samples(table(tmp_path, "val")), ImageFolder(str(tmp_path / "val"))
    assert [str(tmp_path / path) for path in samples.coords["path"]] == [path for path, _ in theirs.samples]
    np.testing.assert_array_equal(samples.labels, theirs.targets)
    assert list(samples.classes) == theirs.classes == sorted(theirs.classes)
    same = open_samples(table(tmp_path / "val"))
    np.testing.assert_array_equal(same.ids, samples.ids)


@pytest.mark.parametrize("name", ["imagenet_class_index.json", "class_index.json"])
@pytest.mark.parametrize("place", ["root", "parent", "split"])
def test_imagenet__class_index_is_found_and_names_the_classes(tmp_path, name, place):
    root = tmp_path / "data"
    write_folders(root / "val", SORTED[:3])
    write_index({"root": root, "parent": tmp_path, "split": root / "val"}[place] / name, SORTED[:3])
    assert open_samples(table(root, "val")).classes == tuple(f"thing_{wnid[-3:]}" for wnid in SORTED[:3])


@pytest.mark.parametrize("name", ["LOC_synset_mapping.txt", "synset_words.txt"])
def test_imagenet__a_mapping_names_the_classes_by_the_first_of_their_names(tmp_path, name):
    write_folders(tmp_path / "train", SORTED[:2])
    (tmp_path / name).write_text(f"{SORTED[1]} great white shark, white shark\n{SORTED[0]} tench, Tinca tinca\n\n")
    assert open_samples(table(tmp_path, "train")).classes == ("tench", "great white shark")


def test_imagenet__a_list_that_is_given_goes_before_one_that_is_found(tmp_path):
    write_folders(tmp_path / "val", SORTED[:2])
    write_index(tmp_path / "imagenet_class_index.json", SORTED)
    other = tmp_path / "mine.txt"
    other.write_text("".join(f"{wnid} my {i}\n" for i, wnid in enumerate(SORTED[:2])))
    assert open_samples(table(tmp_path, "val", class_index=other)).classes == ("my 0", "my 1")


def test_imagenet__a_missing_class_folder_is_named(tmp_path):
    for wnid in SORTED:
        if wnid != SORTED[417]:
            (tmp_path / "val" / wnid).mkdir(parents=True)
    write_index(tmp_path / "imagenet_class_index.json", SORTED)
    missing = rf"has 999 of the 1000 class folders that .*json names; missing: {SORTED[417]} \(thing_\d+\)\. Put"
    with pytest.raises(DataError, match=missing):
        open_samples(table(tmp_path, "val"))


def test_imagenet__a_class_folder_too_many_is_named(tmp_path):
    write_folders(tmp_path, SORTED[:3])
    write_index(tmp_path / "class_index.json", SORTED[:2])
    with pytest.raises(DataError, match=rf"class folder {SORTED[2]}, which .*class_index\.json does not name.*Remove"):
        open_samples(table(tmp_path))


def test_imagenet__a_folder_of_another_name_is_refused_but_the_devkit(tmp_path):
    write_folders(tmp_path, SORTED[:2])
    (tmp_path / "ILSVRC2012_devkit_t12" / "data").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    assert len(open_samples(table(tmp_path)).classes) == 2
    (tmp_path / "n123").mkdir()
    with pytest.raises(DataError, match=r"folder 'n123' among its class folders.*source = 'folder'"):
        open_samples(table(tmp_path))


def test_imagenet__no_image_is_said(tmp_path):
    with pytest.raises(DataError, match=r"neither class folders such as n01440764 nor images"):
        open_samples(table(tmp_path))
    (tmp_path / "val").mkdir()
    with pytest.raises(DataError, match=r"its folders are val: set \[data\] split"):
        open_samples(table(tmp_path))
    with pytest.raises(DataError, match=r"no split 'vla'; did you mean 'val'.*split = 'all'"):
        open_samples(table(tmp_path, "vla"))
    (tmp_path / "val" / SORTED[0]).mkdir()
    with pytest.raises(DataError, match=rf"{SORTED[0]} holds no image"):
        open_samples(table(tmp_path, "val"))


# -- the flat validation folder ----------------------------------------------------------------------------------------


def test_imagenet__flat_images_have_torchvisions_index(tmp_path):
    samples = open_samples(table(write_flat(tmp_path / "val")))
    labels = dict(zip(samples.coords["path"], samples.labels))
    assert labels == {flat_name(k): SORTED.index(BY_ID[i - 1]) for k, i in enumerate(TRUTH, 1)}
    assert samples.classes == tuple(SORTED)


def test_imagenet__flat_is_what_moving_into_class_folders_gives(tmp_path):
    from torchvision.datasets import ImageFolder

    flat = write_flat(tmp_path / "flat")
    for wnid in SORTED:
        (tmp_path / "moved" / wnid).mkdir(parents=True)
    moved = write_moved(flat, tmp_path / "moved")
    theirs = ImageFolder(str(moved), allow_empty=True)
    ours = open_samples(table(flat))
    np.testing.assert_array_equal(ours.labels, theirs.targets)
    assert list(ours.coords["path"]) == [Path(path).name for path, _ in theirs.samples]
    np.testing.assert_array_equal(ours.coords["position"], np.arange(len(TRUTH)))


@settings(max_examples=20, deadline=None)
@given(truth=st.lists(st.integers(1, 1000), min_size=1, max_size=30))
def test_imagenet__any_ground_truth_is_read_in_the_order_of_class_folders(tmp_path_factory, truth):
    root = tmp_path_factory.mktemp("imagenet")
    (root / "val").mkdir()
    for number in range(1, len(truth) + 1):
        (root / "val" / flat_name(number)).touch()  # nothing is decoded here
    (root / TRUTH_FILE).write_text("\n".join(map(str, truth)))
    (root / "wnids.txt").write_text("\n".join(BY_ID))
    found = imagenet(table(root, "val"))
    expected = sorted((SORTED.index(BY_ID[i - 1]), f"val/{flat_name(k)}") for k, i in enumerate(truth, 1))
    assert list(zip(found.labels, found.images.names)) == expected


def test_imagenet__nothing_is_moved_or_written(tmp_path):
    flat = write_flat(tmp_path / "set" / "val")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*")}
    samples = open_samples(table(flat))
    samples.images.load([0, 1])
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*")} == before


def test_imagenet__reads_the_devkits_own_files(tmp_path):
    flat = write_flat(tmp_path / "val")
    expected = open_samples(table(flat))
    data = tmp_path / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    (tmp_path / TRUTH_FILE).rename(data / TRUTH_FILE)
    (tmp_path / "imagenet_classes.txt").unlink()
    kinds = [("ILSVRC2012_ID", "f8"), ("WNID", "O"), ("words", "O"), ("num_children", "f8")]
    rows = [(i, wnid, f"thing {i}", 0) for i, wnid in enumerate(BY_ID, 1)] + [(1001, "n00001740", "entity", 3)]
    savemat(data / "meta.mat", {"synsets": np.array(rows[::-1], dtype=kinds)[:, None]})
    found = open_samples(table(tmp_path, "val"))
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_array_equal(found.ids, expected.ids)


def test_imagenet__flat_images_have_the_names_of_the_class_list(tmp_path):
    flat = write_flat(tmp_path / "val")
    write_index(tmp_path / "imagenet_class_index.json", SORTED)
    assert open_samples(table(flat)).classes[3] == f"thing_{SORTED[3][-3:]}"
    write_index(tmp_path / "imagenet_class_index.json", [*SORTED[:-1], "n99999999"])
    with pytest.raises(DataError, match=rf"do not name the same classes: {SORTED[-1]}, n99999999 in one of them"):
        open_samples(table(flat))


def test_imagenet__a_list_that_is_missing_is_named(tmp_path):
    flat = write_flat(tmp_path / "val")
    (tmp_path / "imagenet_classes.txt").unlink()
    with pytest.raises(DataError, match=r"no imagenet_classes\.txt or wnids\.txt or meta\.mat.*data\.imagenet\.wnids"):
        open_samples(table(flat))
    (tmp_path / TRUTH_FILE).unlink()
    with pytest.raises(DataError, match=rf"no {TRUTH_FILE} beside .*devkit, or set data\.imagenet\.ground_truth"):
        open_samples(table(flat))
    with pytest.raises(DataError, match=r"data\.imagenet\.ground_truth = .*absent\.txt is not a file"):
        open_samples(table(flat, ground_truth=tmp_path / "absent.txt"))


def test_imagenet__ground_truth_must_have_a_line_for_each_image(tmp_path):
    flat = write_flat(tmp_path / "val")
    picture(7).save(flat / flat_name(7))
    with pytest.raises(DataError, match=r"has 6 lines and .* 7 images; 'ILSVRC2012_val_00000007\.JPEG' has no line"):
        open_samples(table(flat))
    (flat / flat_name(7)).unlink()
    (flat / flat_name(2)).unlink()
    with pytest.raises(DataError, match=r"has 6 lines and .* 5 images; ILSVRC2012_val_00000002\.JPEG is not there"):
        open_samples(table(flat))
    picture(2).save(flat / flat_name(0))
    with pytest.raises(DataError, match=r"has 6 lines and .* 6 images; ILSVRC2012_val_00000002\.JPEG is not there"):
        open_samples(table(flat))


def test_imagenet__images_that_do_not_belong_are_named(tmp_path):
    flat = write_flat(tmp_path / "val")
    picture(1).save(flat / "cat.png")
    with pytest.raises(DataError, match=r"has an image 'cat\.png'.*source = 'folder'"):
        open_samples(table(flat))
    (flat / "cat.png").rename(flat / "ILSVRC2012_val_00000003.jpg")
    with pytest.raises(DataError, match=r"has image 3 twice"):
        open_samples(table(flat))
    (flat / "ILSVRC2012_val_00000003.jpg").unlink()
    write_folders(flat, SORTED[:1])
    with pytest.raises(DataError, match=r"both class folders .* and images beside them .*interrupted"):
        open_samples(table(flat))


# -- the lists ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", ["0", "1001", "n01440764", "-3", "", "4.0"])
def test_ground_truth__a_line_that_is_no_id_is_named(tmp_path, line):
    (tmp_path / "t.txt").write_text(f"7\n{line}\n9\n")
    with pytest.raises(DataError, match=r"t\.txt, line 2: .* is not an ILSVRC id, 1 to 1000"):
        ground_truth(tmp_path / "t.txt")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (BY_ID[:999], r"has 999 wnids, and there are 1000 ILSVRC ids"),
        ([*BY_ID[:999], BY_ID[4]], rf"has {BY_ID[4]} more than once"),
        (["tench", *BY_ID], r"line 1: 'tench' is not a wnid"),
        (SORTED, r"in the order of their text.*meta\.mat"),
    ],
)
def test_ilsvrc_wnids__a_wrong_list_is_refused(tmp_path, lines, message):
    (tmp_path / "wnids.txt").write_text("\n".join(lines))
    with pytest.raises(DataError, match=message):
        ilsvrc_wnids(tmp_path / "wnids.txt")


def test_ilsvrc_wnids__a_file_that_is_no_devkits_is_refused(tmp_path):
    (tmp_path / "meta.mat").write_bytes(b"not a matrix")
    with pytest.raises(DataError, match=r"meta\.mat is not the meta\.mat of the ILSVRC2012 devkit"):
        ilsvrc_wnids(tmp_path / "meta.mat")
    savemat(tmp_path / "meta.mat", {"synsets": np.arange(3)})
    with pytest.raises(DataError, match=r"meta\.mat is not the meta\.mat of the ILSVRC2012 devkit"):
        ilsvrc_wnids(tmp_path / "meta.mat")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"is not a class index"),
        ("{}", r"has 0 classes"),
        ('["tench"]', r"is not a class index"),
        ('{"1": ["n01440764", "tench"]}', r"is not a class index.*KeyError"),
        ('{"0": ["tench", "n01440764"]}', r"class 0 has 'tench' where a wnid"),
        ('{"0": ["n01443537", "goldfish"], "1": ["n01440764", "tench"]}', r"numbers n01440764 1, behind n01443537"),
        ('{"0": ["n01440764", "tench"], "1": ["n01440764", "tench"]}', r"has 1 classes in 2 entries"),
    ],
)
def test_class_names__a_wrong_class_index_is_refused(tmp_path, content, message):
    (tmp_path / "index.json").write_text(content)
    with pytest.raises(DataError, match=message):
        class_names(tmp_path / "index.json")


def test_class_names__a_line_without_a_name_is_refused(tmp_path):
    (tmp_path / "words.txt").write_text("n01440764 tench\nn01443537\n")
    with pytest.raises(DataError, match=r"line 2: 'n01443537' is not a wnid and a name"):
        class_names(tmp_path / "words.txt")
    (tmp_path / "words.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"cannot be read as text"):
        class_names(tmp_path / "words.txt")


# -- the study ---------------------------------------------------------------------------------------------------------


def test_data__imagenet_needs_a_root_and_its_lists_are_relative_to_the_file(tmp_path):
    file = tmp_path / "study.toml"
    file.write_text('[data]\nsource = "imagenet"\n')
    with pytest.raises(StudyError, match=r"source 'imagenet' needs a root"):
        load_study(file)
    file.write_text('[data]\nsource = "imagenet"\nroot = "val"\n[data.imagenet]\nwnids = "lists/ids.txt"\n')
    assert load_study(file).data.imagenet.wnids == tmp_path / "lists" / "ids.txt"
    file.write_text('[data]\nsource = "imagenet"\nroot = "val"\n[data.imagenet]\ngroundtruth = "t.txt"\n')
    with pytest.raises(StudyError, match=r"data\.imagenet.*groundtruth.*ground_truth"):
        load_study(file)


def test_study_samples__the_network_must_have_as_many_classes_as_imagenet(tmp_path):
    data = table(write_flat(tmp_path / "val"))
    assert len(study_samples(Study(data=data, model=Model(name="densenet121", classes=1000)))) == 6
    with pytest.raises(DataError, match=r"has 1000 classes and the network 10 .*set model\.classes = 1000"):
        study_samples(Study(data=data))


# -- images of other kinds than RGB ------------------------------------------------------------------------------------


def kinds(folder: Path) -> dict[str, Path]:
    """Write one image of each kind that ImageNet and folders like it hold, all as .JPEG whatever they are."""
    rgb, paths = picture(0, 40, 30), {}
    grey, palette = rgb.convert("L"), rgb.convert("P")
    wild = rgb.copy()
    wild.putalpha(grey)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    see_through = {"transparency": bytes(range(256))}
    for name, image, kind, options in (
        ("rgb", rgb, "JPEG", {}),
        ("grey", grey, "JPEG", {}),
        ("cmyk", rgb.convert("CMYK"), "JPEG", {}),
        ("turned", rgb, "JPEG", {"exif": exif}),
        ("grey_png", grey, "PNG", {}),  # a PNG by the name of JPEG, as one of ImageNet
        ("palette", palette, "PNG", {}),
        ("palette_alpha", palette, "PNG", see_through),
        ("gif", palette, "GIF", {"transparency": 3}),
        ("alpha", wild, "PNG", {}),
        ("grey_alpha", wild.convert("LA"), "PNG", {}),
        ("bits", grey.convert("1"), "PNG", {}),
    ):
        paths[name] = folder / f"{name}.JPEG"
        image.save(paths[name], format=kind, **options)
    return paths


def test_decode__gives_the_pixels_of_torchvisions_loader(tmp_path):
    from torchvision.datasets.folder import pil_loader

    for name, path in kinds(tmp_path).items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of transparency in palettes: ours says nothing
            theirs = np.asarray(pil_loader(str(path)))
        ours = decode(path)
        assert ours.shape[2] == (1 if name in ("grey", "grey_png", "bits") else 3)
        np.testing.assert_array_equal(np.broadcast_to(ours, theirs.shape), theirs, err_msg=name)


def test_batches__of_every_kind_of_image_match_torchvision(tmp_path):
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    (tmp_path / SORTED[0]).mkdir()
    kinds(tmp_path / SORTED[0])
    small = IMAGENET.model_copy(update={"resize": 32, "crop": 28})
    steps = [transforms.Resize(32), transforms.CenterCrop(28), transforms.ToTensor()]
    theirs = ImageFolder(str(tmp_path), transforms.Compose([*steps, transforms.Normalize(small.mean, small.std)]))
    (batch,) = batches(open_samples(table(tmp_path)), small, batch_size=20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for ours, (x, _) in zip(batch.x, theirs, strict=True):
            np.testing.assert_allclose(ours, x, atol=2e-6)


@pytest.mark.parametrize("kind", ["u2", "i4", "f4"])
def test_decode__more_than_8_bits_are_not_clipped_but_refused(tmp_path, kind):
    values = (np.arange(16).reshape(4, 4) * 4096).astype(kind)
    path = tmp_path / ("deep.png" if kind == "u2" else "deep.tiff")
    Image.fromarray(values).save(path)
    with pytest.raises(DataError, match=r"deep\.\w+ has more than 8 bits per value \(Pillow's mode '[IF].*8 bits"):
        decode(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM"])
def test_decode__a_file_cut_short_is_named(tmp_path, kind):
    path = tmp_path / "cut.JPEG"
    picture(0, 60, 60).save(path, format=kind)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"cut\.JPEG cannot be decoded \(.+\); repair or remove the file"):
        decode(path)


def test_decode__an_image_too_large_to_be_one_is_named(tmp_path, monkeypatch):
    picture(0, 60, 60).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=r"large\.png cannot be decoded .*decompression bomb"):
        decode(tmp_path / "large.png")


def test_imagenet__a_broken_image_is_named(tmp_path):
    flat = write_flat(tmp_path / "val")
    (flat / flat_name(4)).write_bytes(b"")
    with pytest.raises(DataError, match=r"ILSVRC2012_val_00000004\.JPEG cannot be decoded .*repair or remove"):
        open_samples(table(flat))
