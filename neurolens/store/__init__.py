"""The only package that writes to a store: create from the schema, claim, commit a row with its ledger, tag."""

from neurolens.store.doctor import Check, doctor
from neurolens.store.layout import Layout, SampleCoords
from neurolens.store.ledger import Ledger, LedgerRow
from neurolens.store.locks import RowId
from neurolens.store.repository import open_repository
from neurolens.store.run_store import Snapshot, Store, open_store

__all__ = [
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
