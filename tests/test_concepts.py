"""The guide to concept data: what it shows runs."""

import re
from pathlib import Path

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
