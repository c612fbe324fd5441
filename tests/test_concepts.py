"""What a network may be shown of concept data; and the guide to them: what it shows runs."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from concept_cases import write_mini_broden

from neurolens.data.broden import broden
from neurolens.errors import DataError
from neurolens.study import Preprocessing

PAGE = Path(__file__).parent.parent / "docs" / "how-to" / "concept-data.md"


def test_concept_data_page__its_snippets_run_and_give_what_it_says(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    names: dict[str, object] = {}
    told = 0
    for snippet in snippets:
        exec(compile(snippet, str(PAGE), "exec"), names)
        for expression, value in re.findall(r"^(\S.*?)  # (\(.*\))$", snippet, re.M):
            if value.startswith("('"):
                assert repr(eval(expression, names)) == value
                told += 1
    assert told == 2
    assert names["masks"].concept_area().all()  # type: ignore[attr-defined]


def test_require_whole__takes_what_shows_all_of_an_image(tmp_path):
    found = broden(write_mini_broden(tmp_path / "mini"))
    for given in ({}, {"resize": 32}, {"crop": 8}, {"resize": 16, "crop": 16}):
        found.require_whole(Preprocessing(**given))
    wide = replace(found, image_size=(8, 12))
    wide.require_whole(Preprocessing(resize=16))


@pytest.mark.parametrize(
    ("size", "given", "told"),
    [
        (
            (8, 8),
            {"resize": 256, "crop": 224},
            r"shown 224 x 224 of the 256 x 256 pixels .*resize = 224, so that none is cut",
        ),
        ((8, 8), {"crop": 4}, r"shown 4 x 4 of the 8 x 8"),
        ((8, 8), {"crop": 64}, r"needs 64 x 64, more than the 8 x 8 pixels .*whole = true .*resize = 64, so"),
        ((8, 12), {"resize": 16, "crop": 16}, r"shown 16 x 16 of the 16 x 24 .*resize = 8 and no crop, so"),
        ((12, 8), {"resize": 16, "crop": 16}, r"shown 16 x 16 of the 24 x 16"),
    ],
)
def test_require_whole__refuses_a_crop_that_cuts(tmp_path, size, given, told):
    found = replace(broden(write_mini_broden(tmp_path / "mini")), image_size=size)
    with pytest.raises(DataError, match=told):
        found.require_whole(Preprocessing(**given))
