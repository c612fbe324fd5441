"""A shift in a run whose images are files: metadata joined by file name, as Stanford Cars has it."""

import numpy as np
import pytest
from pairs_study import TEXT, run, write_study
from PIL import Image

from neurolens.data.stanford_cars import stanford_cars
from neurolens.errors import SchemaError
from neurolens.pairs import association, association_by_group, at
from neurolens.study import load_study


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Twelve cars in folders of their classes, measured; and their table, in another order."""
    home = tmp_path_factory.mktemp("cars")
    text = TEXT.replace('source = "arrays"\nroot = "data.npz"', 'source = "folder"\nroot = "images"')
    path = write_study(home, checkpoints=1, text=text.replace("[data]", "classes = 2\n[data]"), factory="clip")
    rng, rows = np.random.default_rng(0), []
    for number in range(12):
        folder = home / "images" / ("Audi TT 2012", "Audi TTS 1994")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / f"{number:05}.png")
        rows.append(f"{number:05}.png,{number % 2 + 1}_{9 if number % 3 else 0}")
    (home / "names.txt").write_text("Audi TT 2012\nAudi TTS 1994\n")
    (home / "refined.csv").write_text("\n".join(["image,Class", *rows[::-1]]) + "\n")
    for cube in ("pools", "pairs"):
        assert {result.outcome for result in run(path, cube)} == {"computed"}
    return home


def test_association__of_a_runs_images_with_year_and_colour(home):
    ds = at(load_study(home / "study.toml").store.url)
    files = [str(path).split("/")[-1] for path in ds["path"].values]
    table = stanford_cars(home / "refined.csv", home / "names.txt").sel(sample=files)
    share = ds.lens.phrase_share(np.eye(6)[:1], k=3).isel(phrase=0).compute()
    with pytest.raises(SchemaError, match="other samples"):
        association(share, table["year"])
    meta = table.assign_coords(sample=ds["sample"].values)
    assert meta["year"].values.tolist() == [2012 if int(name[:5]) % 2 == 0 else 1994 for name in files]
    assert meta["colour"].values.tolist() == ["yellow" if int(name[:5]) % 3 else "black" for name in files]
    found = association(share, meta["year"], permutations=50, bootstrap=50)
    assert float(found["r"]) == pytest.approx(np.corrcoef(share, meta["year"])[0, 1], abs=1e-6)
    yellow = meta["colour"] == "yellow"
    one = association(share, yellow, strata=meta["year"], permutations=50, bootstrap=50)
    assert 0 < float(one["p"]) <= 1
    years = association_by_group(share, yellow, meta["year"], permutations=20)
    of_1994 = share.values[meta["year"].values == 1994]
    np.testing.assert_allclose(years["mean"].values[0], of_1994.mean(), rtol=1e-5)
    np.testing.assert_allclose(years["rate"], [4 / 6, 4 / 6])
