"""Units and heads looked at one by one: a folder of images, cards and galleries of a study, what is refused."""

import csv

import numpy as np
import pytest
from pair_picture_cases import pair_dataset, pictures_by_id
from pairs_cube_cases import write_pairs_store
from PIL import Image
from typer.testing import CliRunner

from neurolens import open_run, pairs
from neurolens.cli import app
from neurolens.errors import SchemaError, StoreError
from neurolens.report import write_images
from neurolens.report.next_steps import next_steps
from neurolens.report.pair_images import TABLE
from neurolens.study import load_study


@pytest.fixture(scope="module")
def ds():
    return pair_dataset(images=30, units=8)[0]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study of digits, and a store by it whose images are the first of them."""
    from neurolens.data import open_samples

    folder = tmp_path_factory.mktemp("run")
    path = folder / "study.toml"
    path.write_text(
        'name = "case"\n[model]\nname = "resnet18"\n[checkpoints]\nfolder = "checkpoints"\n'
        'pattern = "epoch_{epoch}.pt"\n[data]\nsource = "digits"\nselect = { count = 20, how = "first" }\n'
        '[store]\nurl = "store.icechunk"\n'
    )
    ids = open_samples(load_study(path).data).ids
    write_pairs_store(folder / "store.icechunk", ids=np.asarray(ids), epochs=(10,), options=())
    return path


def test_write_images__has_a_folder_per_unit_and_head_and_a_table(ds, tmp_path):
    images = pictures_by_id()
    paths = write_images(ds, images, tmp_path, units=[2, 5], top=3)
    assert len(paths) == 2 * (1 + ds.sizes["head"]) * 3 + 1
    assert paths[-1] == tmp_path / TABLE
    with paths[-1].open() as file:
        lines = list(csv.DictReader(file))
    for head, folder in ((None, "all-heads"), (2, "head-2")):
        found = pairs.retrieve(ds["scalar"], ds, unit=5, head=head, k=3)
        for rank, name in enumerate(found["sample"].to_numpy(), start=1):
            shown = pixels(tmp_path / "unit-5" / folder / f"{rank:02}.png")
            np.testing.assert_array_equal(shown, images([name])[0])
        told = [line for line in lines if line["unit"] == "5" and line["head"] == ("all" if head is None else "2")]
        assert [line["sample"] for line in told] == found["sample"].to_numpy().tolist()
        np.testing.assert_allclose([float(line["strength"]) for line in told], found["strength"], rtol=1e-5)
        assert told[0]["file"] == f"unit-5/{folder}/01.png"


def test_write_images__ranks_as_the_reference_does(ds, tmp_path):
    write_images(ds, pictures_by_id(), tmp_path, units=[1], heads=[3], top=2, kind="norm", bias=True)
    found = pairs.retrieve(ds["scalar"], ds, unit=1, head=3, k=2, kind="norm", bias=True)
    with (tmp_path / TABLE).open() as file:
        told = [line["sample"] for line in csv.DictReader(file) if line["head"] == "3"]
    assert told == found["sample"].to_numpy().tolist()
    assert sorted(path.name for path in (tmp_path / "unit-1").iterdir()) == ["all-heads", "head-3"]


def test_write_images__takes_grey_images_and_refuses_what_is_there(ds, tmp_path):
    def grey(ids):
        return [np.full((4, 4, 1), 0.5)] * len(ids)

    write_images(ds, grey, tmp_path, units=[0], heads=[0], top=1)
    assert pixels(tmp_path / "unit-0" / "head-0" / "01.png").tolist() == [[128] * 4] * 4
    with pytest.raises(StoreError, match=r"unit-0 is there already.*overwrite=True"):
        write_images(ds, grey, tmp_path, units=[0])
    write_images(ds, grey, tmp_path, units=[0], heads=[0], top=1, overwrite=True)
    with pytest.raises(SchemaError, match="there is no unit 99"):
        write_images(ds, grey, tmp_path, units=[99])


def size(path):
    with Image.open(path) as image:
        return image.size


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def run(*words):
    found = CliRunner().invoke(app, [str(word) for word in words])
    return found.exit_code, " ".join(found.output.split())


def test_card__is_drawn_of_a_study_and_of_a_store(study, tmp_path):
    code, said = run("card", study, "--unit", 3, "--heads", 1, "--images", 2, "--codes", "--out", tmp_path / "cards")
    assert code == 0, said
    assert size(tmp_path / "cards" / "pairs_card_3.png")[0] > 500
    code, said = run("card", study.parent / "store.icechunk", "--unit", 1, "--images", 1, "--out", tmp_path / "cards")
    assert code == 0, said
    assert (tmp_path / "cards" / "pairs_card_1.png").is_file()


def test_retrieve__draws_units_pairs_and_phrases(study, tmp_path):
    page = tmp_path / "found.png"
    code, said = run("retrieve", study, "--unit", 3, "--head", 1, "--phrase", "a dog", "--images", 3, "--out", page)
    assert code == 0, said
    assert size(page)[1] > 300
    for words, mend in (
        ((), "name what to look for"),
        (("--head", 1), "--head goes with a unit"),
        (("--phrase", "a dgo"), "did you mean 'a dog'"),
        (("--phrase", "a dog", "--norm"), "--norm is of units"),
    ):
        code, said = run("retrieve", study, *words, "--out", page)
        assert code == 2
        assert mend in said


def test_retrieve__takes_totals_for_single_pairs(study, tmp_path, monkeypatch):
    whole, page = pairs.at, tmp_path / "found.png"
    monkeypatch.setattr(pairs, "at", lambda tree, **position: whole(tree, cubes=("pools", "texts"), **position))
    code, said = run("retrieve", study, "--unit", 3, "--head", 1, "--images", 3, "--out", page)
    assert code == 0, said
    assert min(size(page)) > 200  # one row
    for words in (("--unit", 3), ("--unit", 3, "--head", 1, "--norm"), ("--phrase", "a dog")):
        code, said = run("retrieve", study, *words, "--out", page)
        assert code == 2
        assert "ranked by the scalars" in said


def test_export_images__writes_pictures_of_the_study(study, tmp_path):
    code, said = run("export", "images", study, tmp_path / "out", "--unit", 2, "--head", 0, "--top", 2, "--norm")
    assert code == 0, said
    assert "wrote 4 images" in said
    assert pixels(tmp_path / "out" / "unit-2" / "head-0" / "01.png").shape[:2] == (8, 8)
    code, said = run("export", "images", study, tmp_path / "out")
    assert code == 2
    assert "name the units" in said


def test_next_steps__look_at_units_and_phrases(study):
    loaded = load_study(study)
    run_of = open_run(loaded.store.url)
    cubes = {name: run_of[name].to_dataset() for name in run_of.children}
    told = [step.code for step in next_steps(loaded, loaded.store.url, "study.toml", [], cubes)]
    assert {"neurolens card study.toml", "neurolens retrieve study.toml --phrase right"} <= set(told)
    told = [step.code for step in next_steps(None, loaded.store.url, "study.toml", [], cubes)]
    assert not [code for code in told if "card" in code]
