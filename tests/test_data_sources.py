"""Sources: digits, CIFAR, class folders, Places365, arrays; each built small in its real on-disk format."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from neurolens.data import open_samples, study_samples
from neurolens.errors import DataError
from neurolens.study import Data, Model, Selection, Study


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def pictures(count, *, side=32, channels=3, seed=0):
    shape = (count, side, side) if channels == 1 else (count, side, side, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_cifar10(root: Path, per_batch=4):
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for i, name in enumerate(names):
        pixels = pictures(per_batch, seed=i).transpose(0, 3, 1, 2).reshape(per_batch, 3072)
        labels = [(i + j) % 10 for j in range(per_batch)]
        batch = {"batch_label": name, "labels": labels, "data": pixels, "filenames": [f"{j}.png" for j in labels]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    meta = {"label_names": [f"thing{i}" for i in range(10)], "num_vis": 3072}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))
    return folder


def write_cifar100(root: Path, count=6):
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    for i, name in enumerate(("train", "test")):
        pixels = pictures(count, seed=i).transpose(0, 3, 1, 2).reshape(count, 3072)
        batch = {"data": pixels, "fine_labels": list(range(count)), "coarse_labels": [0] * count, "filenames": []}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    meta = {"fine_label_names": [f"fine{i}" for i in range(100)], "coarse_label_names": []}
    (folder / "meta").write_bytes(pickle.dumps(meta, protocol=2))
    return folder


def write_folder(root: Path, classes=("ant", "bee"), count=3, split="train"):
    base = root if split is None else root / split
    for c, name in enumerate(classes):
        (base / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(pictures(1, side=12 + i, seed=10 * c + i)[0]).save(base / name / f"{i + 8}.png")
    return root


def write_places(root: Path):
    classes = ("/a/airfield", "/a/airplane_cabin", "/b/beach")
    root.mkdir(parents=True, exist_ok=True)
    (root / "categories_places365.txt").write_text("".join(f"{c} {i}\n" for i, c in enumerate(classes)))
    train, val = [], []
    for i, name in enumerate(classes):
        path = root / "data_256_standard" / name[1:] / "00000001.jpg"
        path.parent.mkdir(parents=True)
        Image.fromarray(pictures(1, seed=i)[0]).save(path)
        train.append(f"{name}/00000001.jpg {i}\n")
        path = root / "val_256" / f"Places365_val_{i:08d}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pictures(1, seed=20 + i)[0]).save(path)
        val.append(f"{path.name} {2 - i}\n")
    (root / "places365_train_standard.txt").write_text("".join(train))
    (root / "places365_val.txt").write_text("".join(val))
    return root


def test_digits__every_fifth_sample_is_test():
    train, test, everything = (open_samples(Data(split=split)) for split in ("train", "test", "all"))
    assert (len(train), len(test), len(everything)) == (1437, 360, 1797)
    assert (test.coords["position"] % 5 == 0).all()
    assert set(test.ids) == set(everything.ids[::5])
    assert not set(train.ids) & set(test.ids)
    assert list(everything.coords["split"][:6]) == ["test", "train", "train", "train", "train", "test"]


def test_digits__are_scaled_to_bytes():
    from sklearn.datasets import load_digits

    pixels = open_samples(Data(split="all")).images.load(np.arange(1797))
    assert pixels.dtype == np.uint8
    assert pixels.shape == (1797, 8, 8, 1)
    np.testing.assert_array_equal(pixels[..., 0], np.rint(load_digits().images * 255 / 16))


def test_digits__unknown_split_is_named():
    with pytest.raises(DataError, match=r"no split 'tset'; did you mean 'test'"):
        open_samples(Data(split="tset"))


def test_cifar__reads_the_published_format(tmp_path):
    write_cifar10(tmp_path)
    samples = open_samples(Data(source="cifar10", root=tmp_path))
    assert len(samples) == 20
    assert samples.classes[3] == "thing3"
    np.testing.assert_array_equal(samples.labels[:5], [0, 1, 2, 3, 1])
    np.testing.assert_array_equal(samples.images.load([4, 0])[0], pictures(4, seed=1)[0])
    inside = open_samples(Data(source="cifar10", root=tmp_path / "cifar-10-batches-py"))
    np.testing.assert_array_equal(inside.ids, samples.ids)


def test_cifar__matches_torchvision(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR100

    write_cifar100(tmp_path)
    monkeypatch.setattr(CIFAR100, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    theirs = CIFAR100(str(tmp_path), train=False)
    ours = open_samples(Data(source="cifar100", root=tmp_path, split="test"))
    np.testing.assert_array_equal(ours.images.load(np.arange(6)), theirs.data)
    np.testing.assert_array_equal(ours.labels, theirs.targets)
    assert list(ours.classes) == theirs.classes


def test_cifar__all_joins_train_and_test(tmp_path):
    write_cifar100(tmp_path)
    both = open_samples(Data(source="cifar100", root=tmp_path, split="all"))
    assert list(both.coords["split"]) == ["train"] * 6 + ["test"] * 6
    assert list(both.coords["position"]) == [*range(6)] * 2


def test_cifar__absent_says_how_to_get_it(tmp_path):
    with pytest.raises(DataError, match=r"download = true"):
        open_samples(Data(source="cifar10", root=tmp_path))
    write_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(DataError, match=r"lacks data_batch_3"):
        open_samples(Data(source="cifar10", root=tmp_path))


def test_cifar__does_not_run_what_a_pickle_names(tmp_path):
    folder = write_cifar10(tmp_path)
    mark = tmp_path / "ran"

    class Bomb:
        def __reduce__(self):
            return Path.touch, (mark,)

    (folder / "data_batch_2").write_bytes(pickle.dumps({"labels": Bomb()}, protocol=2))
    with pytest.raises(DataError, match=r"data_batch_2 is not a CIFAR batch"):
        open_samples(Data(source="cifar10", root=tmp_path))
    assert not mark.exists()
    (folder / "data_batch_2").write_bytes(b"\x80\x02}q")
    with pytest.raises(DataError, match=r"data_batch_2 is not a CIFAR batch"):
        open_samples(Data(source="cifar10", root=tmp_path))


def test_folder__classes_as_torchvision_files_in_natural_order(tmp_path):
    from torchvision.datasets import ImageFolder

    write_folder(tmp_path, classes=("10", "9", "ant"))
    samples = open_samples(Data(source="folder", root=tmp_path))
    theirs = ImageFolder(str(tmp_path / "train"))
    assert list(samples.classes) == theirs.classes
    assert {Path(p).as_posix(): c for p, c in theirs.samples} == {
        (tmp_path / p).as_posix(): c for p, c in zip(samples.coords["path"], samples.labels)
    }
    assert list(samples.coords["path"][:3]) == ["train/10/8.png", "train/10/9.png", "train/10/10.png"]


def test_study_samples__as_many_folders_as_the_network_has_classes(tmp_path):
    write_folder(tmp_path, classes=("cat",))
    data = Data(source="folder", root=tmp_path)
    assert study_samples(Study(data=data, model=Model(classes=1))).classes == ("cat",)
    with pytest.raises(DataError, match=r"1 class folders and the network 10.*'cat' here.*set model\.classes = 1"):
        study_samples(Study(data=data))


def test_folder__all_has_no_split_level(tmp_path):
    write_folder(tmp_path, split=None)
    assert len(open_samples(Data(source="folder", root=tmp_path, split="all"))) == 6
    with pytest.raises(DataError, match=r"no split 'train'"):
        open_samples(Data(source="folder", root=tmp_path))


def test_folder__ids_are_of_the_decoded_content(tmp_path):
    write_folder(tmp_path / "one")
    write_folder(tmp_path / "two", classes=("cat", "dog"))
    for path in (tmp_path / "two").rglob("*.png"):
        with Image.open(path) as image:
            image.save(path.with_suffix(".bmp"))
        path.unlink()
    first, second = (open_samples(Data(source="folder", root=tmp_path / name)) for name in ("one", "two"))
    np.testing.assert_array_equal(first.ids, second.ids)


def test_folder__an_altered_file_gets_another_id(tmp_path):
    write_folder(tmp_path)
    before = open_samples(Data(source="folder", root=tmp_path)).ids
    Image.fromarray(pictures(1, side=12, seed=99)[0]).save(tmp_path / "train" / "ant" / "8.png")
    after = open_samples(Data(source="folder", root=tmp_path)).ids
    np.testing.assert_array_equal(before != after, [True, *[False] * 5])


def test_folder__a_broken_image_is_named(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "train" / "bee" / "9.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"bee.9\.png cannot be decoded"):
        open_samples(Data(source="folder", root=tmp_path))


def test_places365__reads_torchvisions_layout(tmp_path):
    write_places(tmp_path)
    train = open_samples(Data(source="places365", root=tmp_path))
    assert train.classes == ("/a/airfield", "/a/airplane_cabin", "/b/beach")
    assert train.coords["path"][0] == "data_256_standard/a/airfield/00000001.jpg"
    val = open_samples(Data(source="places365", root=tmp_path, split="val"))
    np.testing.assert_array_equal(val.labels, [2, 1, 0])
    assert (
        open_samples(Data(source="places365", root=tmp_path, split="train-standard")).fingerprint == train.fingerprint
    )


@pytest.mark.parametrize("split", ["train-standard", "val"])
def test_places365__matches_torchvision(tmp_path, monkeypatch, split):
    from torchvision.datasets import Places365

    write_places(tmp_path)
    monkeypatch.setattr(Places365, "_check_integrity", lambda *_: True)
    theirs = Places365(str(tmp_path), split=split, small=True)
    ours = open_samples(Data(source="places365", root=tmp_path, split=split))
    assert [str(tmp_path / path) for path in ours.coords["path"]] == [path for path, _ in theirs.imgs]
    assert list(ours.labels) == theirs.targets
    assert {name: i for i, name in enumerate(ours.classes)} == theirs.class_to_idx


def test_places365__absent_lists_are_named(tmp_path):
    write_places(tmp_path)
    (tmp_path / "places365_val.txt").unlink()
    with pytest.raises(DataError, match=r"places365_val\.txt is not there"):
        open_samples(Data(source="places365", root=tmp_path, split="val"))


@pytest.mark.parametrize(("image_key", "label_key"), [("images", "labels"), ("x", "y")])
def test_arrays__npz(tmp_path, image_key, label_key):
    x, y = pictures(5, channels=1), np.array([0, 1, 2, 1, 0])
    np.savez(tmp_path / "set.npz", **{f"train_{image_key}": x, f"train_{label_key}": y, f"test_{image_key}": x})
    samples = open_samples(Data(source="arrays", root=tmp_path / "set.npz"))
    np.testing.assert_array_equal(samples.images.load(np.arange(5))[..., 0], x)
    np.testing.assert_array_equal(samples.labels, y)
    with pytest.raises(DataError, match=r"no array 'val_images'; its splits are test, train"):
        open_samples(Data(source="arrays", root=tmp_path / "set.npz", split="val"))


def test_arrays__folder_of_npy(tmp_path):
    x, y = pictures(4), np.array([0, 1, 1, 0], dtype=np.uint8)
    np.save(tmp_path / "images.npy", x)
    np.save(tmp_path / "labels.npy", y)
    samples = open_samples(Data(source="arrays", root=tmp_path, split="all"))
    np.testing.assert_array_equal(samples.images.load([3, 1]), x[[3, 1]])
    with pytest.raises(DataError, match=r"set \[data\] split = 'all'"):
        open_samples(Data(source="arrays", root=tmp_path, split="train"))


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((3, 4, 4)), np.zeros(3, int), r"must be uint8"),
        (np.zeros((3, 3, 4, 4), np.uint8), np.zeros(3, int), r"transpose\(0, 2, 3, 1\)"),
        (np.zeros((3, 4, 4), np.uint8), np.zeros(2, int), r"must pair up"),
        (np.zeros((3, 4, 4), np.uint8), np.zeros(3), r"must be integers"),
        (np.zeros((3, 4, 4), np.uint8), np.array([0, -1, 1]), r"must be 0 up"),
    ],
)
def test_arrays__wrong_arrays_are_described(tmp_path, x, y, message):
    np.savez(tmp_path / "set.npz", images=x, labels=y)
    with pytest.raises(DataError, match=message):
        open_samples(Data(source="arrays", root=tmp_path / "set.npz", split="all"))


def test_samples__pickle_as_a_recipe_and_notice_a_changed_file(tmp_path):
    write_cifar10(tmp_path, per_batch=40)
    samples = open_samples(Data(source="cifar10", root=tmp_path, select=Selection(count=30)))
    content = pickle.dumps(samples)
    assert len(content) < 20_000
    again = pickle.loads(content)
    np.testing.assert_array_equal(again.images.load(np.arange(30)), samples.images.load(np.arange(30)))
    assert again.fingerprint == samples.fingerprint
    del samples, again
    file = tmp_path / "cifar-10-batches-py" / "data_batch_1"
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(DataError, match=r"changed while in use"):
        pickle.loads(content)
