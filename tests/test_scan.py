import os
import subprocess
import sys

import numpy as np
import pytest

from neurolens.samples.scan import share


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 3, 50])
def test_share__gives_the_results_in_order(workers, count):
    assert share(lambda i: i * i, range(count), workers) == [i * i for i in range(count)]


def test_share__raises_what_the_work_raises():
    def work(i: int) -> float:
        return float(np.float64(1) / [1, 2, 3, 4][i])

    with pytest.raises(IndexError):
        share(work, range(6), 3)
    assert share(work, range(4), 3) == [1.0, 1 / 2, 1 / 3, 1 / 4]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_share__works_in_a_fork_too():
    script = (
        "import os, warnings; from neurolens.samples.scan import share; warnings.simplefilter('ignore')\n"
        "share(str, range(9), 3); child = os.fork(); good = share(str, range(9), 3) == list('012345678')\n"
        "os._exit(not good) if child == 0 else None\n"
        "raise SystemExit(not good or os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0
