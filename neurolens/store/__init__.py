"""The only package that writes to a store: create from the schema, claim, commit a row with its ledger, tag."""

from neurolens.store.doctor import Check, doctor
from neurolens.store.ledger import Ledger, LedgerRow
from neurolens.store.locks import RowId
from neurolens.store.opening import open_store
from neurolens.store.records import Axis, Layout, SampleCoords, Snapshot
from neurolens.store.repository import open_repository
from neurolens.store.run_store import Store

__all__ = [
    "Axis",
    "Check",
    "Layout",
    "Ledger",
    "LedgerRow",
    "RowId",
    "SampleCoords",
    "Snapshot",
    "Store",
    "doctor",
    "open_repository",
    "open_store",
]
