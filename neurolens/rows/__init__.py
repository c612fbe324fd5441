"""Row engine: which rows of a cube are missing, and how one of them is measured and written. No Prefect here.

A row is (series position, sample block). What is done is decided by the store's ledger alone: a part of a row is done
when the ledger holds it as done under the key that the study wants now. A failed row is tried again by every run,
because what mended it may lie outside its key (a model factory, a library, a file system).
"""

from neurolens.rows.gathering import gather, gather_all
from neurolens.rows.keys import key
from neurolens.rows.materials import MEASURES, Materials, cubes, device, threads
from neurolens.rows.opening import open_for_reading, open_for_writing
from neurolens.rows.planning import Plan, Row, State, plan, prepare
from neurolens.rows.working import Outcome, Result, may_pass, measure_row, provenance, run_rows

__all__ = [
    "MEASURES",
    "Materials",
    "Outcome",
    "Plan",
    "Result",
    "Row",
    "State",
    "cubes",
    "device",
    "gather",
    "gather_all",
    "key",
    "may_pass",
    "measure_row",
    "open_for_reading",
    "open_for_writing",
    "plan",
    "prepare",
    "provenance",
    "run_rows",
    "threads",
]
