"""The names of `neurolens.pairs`."""

import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

import neurolens.pairs


@pytest.mark.parametrize("name", neurolens.pairs.__all__)
def test_names__are_no_modules(name):
    for path in Path(neurolens.pairs.__file__).parent.glob("[a-z]*.py"):
        __import__(f"neurolens.pairs.{path.stem}")
    assert not isinstance(getattr(neurolens.pairs, name), types.ModuleType)


def test_reductions__need_no_torch():
    code = (
        "import sys, numpy as np, xarray as xr; sys.path.insert(0, 'tests');"
        "from pairs_cases import golden_pool, golden_maps; from neurolens.pairs import *;"
        "fixed = factors(golden_pool()); found = scalars(golden_pool(), golden_maps());"
        "ablate(found['scalar'], fixed, percentile_mask(pair_norms(found['scalar'], fixed, top=3), 50));"
        "retrieve(found['scalar'], fixed, unit=0, k=1); pool_of(golden_pool()); unit_components(found, fixed, k=1);"
        "assert 'torch' not in sys.modules, 'torch'"
    )
    home = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=home, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_reference__runs():
    pytest.importorskip("open_clip", reason="the extra 'clip' is not installed")
    page = Path(__file__).parent.parent / "docs" / "reference" / "pairs.md"
    (snippet,) = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)
    names = {}
    exec(compile(snippet, page, "exec"), names)
    assert float(names["found"]["completeness"].max()) < 1e-5
    assert names["norms"].dims == ("unit", "head")
