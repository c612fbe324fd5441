"""Which pairs are told, and in which phrases at each checkpoint: from the pools and the texts in the store."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from neurolens import schema
from neurolens.errors import StudyError, nearest
from neurolens.rows.asked_phrases import AskedPhrases, digest_of
from neurolens.rows.keys import key
from neurolens.rows.opening import open_for_reading
from neurolens.rows.planning import plan, propose
from neurolens.rows.remembering import remembered
from neurolens.study import Study

if TYPE_CHECKING:
    import xarray as xr

    from neurolens.checkpoints import Series
    from neurolens.data import SampleSet
    from neurolens.pairs.pool import Pool
    from neurolens.rows.materials import Materials

Array = npt.NDArray[Any]

ASKED = ("codes",)
"""Cubes that are measured of pairs, in phrases."""

VERSION = 1
"""Raised when other pairs are asked for at the same percentile."""

TOP = 50
"""Of how many images the norm of a pair is the mean, where so many extremes are kept: the reference's."""


def by_norms(study: Study) -> bool:
    """Whether pairs are chosen by their norms, which pools hold."""
    return study.codes is not None and bool(study.codes.percentile)  # at or above 0 are all


def asked_phrases(texts: "Materials", pools: "Materials | None") -> AskedPhrases:
    """Return the pairs that a study tells, the phrases that it tells them in, and what they wait for, if they do.

    Embeddings, or norms, that the study would find otherwise now are waited for.

    Parameters
    ----------
    texts
        What texts of the study are measured from.
    pools
        What its pools are measured from, where pairs are chosen by their norms at one checkpoint.

    Raises
    ------
    StoreError
        If the store cannot be read.
    StudyError
        If codes have more atoms than there are phrases or dims, the network has no pool at pools.module, there is no
        checkpoint of codes.norms_from, or pools were totalled over too few images.
    SchemaError
        If the network has no attention pool.
    """
    from neurolens.pairs.code_cube import network_pool, require_atoms

    study, series = texts.study, texts.series
    table = study.codes
    assert table is not None
    assert study.pools is not None
    with (pools or texts).network() as network:
        pool = network_pool(network, study.pools.module)
    names = tuple(texts.samples.ids[texts.samples.coords["set"] == table.words].tolist())
    require_atoms(table, phrases=len(names), features=pool.features)
    pairs, waiting = _all_pairs(study, pool) if pools is None else _chosen_pairs(pools)
    store = open_for_reading(study)
    ledger = None if store is None or store.layout("texts") is None else store.ledger("texts")
    blocks = {at for at, ids in enumerate(propose(texts, store).blocks) if not set(names).isdisjoint(ids.tolist())}
    done: dict[int, int] = {}
    for row in () if ledger is None or not _shown(study, ledger.snapshot, names) else plan(texts, store).rows:
        if row.block in blocks and row.state == "done":
            done[row.position] = done.get(row.position, 0) + 1
    current = sorted(position for position, found in done.items() if found == len(blocks))
    if ledger is None or not current:
        notes = ("codes wait for texts: run texts first", waiting)
        return AskedPhrases(pairs, (), {}, _nothing, "; ".join(filter(None, notes)))
    snapshot = ledger.snapshot  # what is kept under the keys of rows is found in these, whatever is committed meanwhile

    def read(position: int) -> Array:
        return _embeddings(_opened(study, "texts", snapshot), position, names)

    rows = [row for row in ledger.rows() if row.block in blocks]
    digests = {}
    for position in () if waiting else current:
        decides = {
            "store": study.store.url,
            "names": names,
            "rows": [[r.block, r.key, r.time] for r in rows if r.position == position],
        }
        digests[position] = remembered(
            "phrases",
            f"{key(decides)}.json",
            lambda at=position: digest_of(read(at)),  # type: ignore[misc]
            read=_read_text,
            write=_write_text,
        )
    missing = len(series.checkpoints) - len(current)
    some = "1 checkpoint waits for its texts" if missing == 1 else f"{missing} checkpoints wait for their texts"
    notes = (f"{some}: run texts first" if missing else "", waiting)
    phrases = tuple(name.removeprefix(f"{table.words}/").rpartition("@")[0] for name in names)
    return AskedPhrases(pairs, phrases, digests, read, "; ".join(filter(None, notes)))


def restricted(series: "Series", wanted: AskedPhrases) -> "Series":
    """Return the checkpoints that have a row."""
    kept = tuple(c for c in series.checkpoints if c.position(series.dim) in wanted.digests)
    notes = (*series.notes, wanted.note) if wanted.note else series.notes
    return replace(series, checkpoints=kept, notes=notes)


def _all_pairs(study: Study, pool: "Pool") -> tuple["SampleSet", str]:
    """Return all pairs of a pool, head by head; they wait for nothing."""
    from neurolens.data.pair_sets import pair_set

    head, unit = (at.ravel() for at in np.indices((pool.heads, pool.units)))
    return pair_set(unit, head, name=f"pairs of {study.model.name}"), ""


def _chosen_pairs(pools: "Materials") -> tuple["SampleSet", str]:
    """Return the pairs at or above the percentile, head by head; or none, and what they wait for."""
    from neurolens.data.pair_sets import pair_set

    study, series = pools.study, pools.series
    table, name = study.codes, f"pairs of {study.model.name}"
    assert table is not None
    of = series.checkpoints[-1].position(series.dim) if table.norms_from == "last" else table.norms_from
    if of not in series.positions:
        raise StudyError(
            f"codes.norms_from is {of}, and there is no checkpoint of that {series.dim}; "
            f"{nearest(str(of), map(str, series.positions))}"
        )
    store = open_for_reading(study)
    current = {row.position for row in plan(pools, store).rows if row.state == "done"}
    if store is None or of not in current:
        return pair_set([], [], name=name), f"codes wait for pools of {series.dim} {of}: run pools first"
    ledger = store.ledger("pools")
    decides = {
        "version": VERSION,
        "store": study.store.url,
        "percentile": table.percentile,
        "rows": [[r.part, r.key, r.time] for r in ledger.rows() if r.position == of],
    }
    snapshot = ledger.snapshot
    unit, head = remembered(
        "pairs",
        f"{key(decides)}.npy",
        lambda: _chosen(_opened(study, "pools", snapshot), of, float(table.percentile or 0), study),
        read=_read_array,
        write=_write_array,
    )
    return pair_set(unit, head, name=name), ""


def _opened(study: Study, cube: str, snapshot: str) -> "xr.Dataset":
    import xarray as xr

    place = {"endpoint": study.store.endpoint, "region": study.store.region}
    options: dict[str, Any] = {key: value for key, value in place.items() if value is not None}
    return xr.open_dataset(
        study.store.url, group=cube, engine="neurolens", chunks={}, snapshot=snapshot, cache=False, **options
    )


def _shown(study: Study, snapshot: str, names: Sequence[str]) -> bool:
    """Whether an opened store has all of these phrases: it leaves out those that the study did not name last."""
    return set(names) <= _places(_opened(study, "texts", snapshot)).keys()


def _places(texts: "xr.Dataset") -> dict[str, int]:
    """Return where the phrases of an opened store are, by their ids."""
    both = zip(texts["phrase"].to_numpy().tolist(), texts["digest"].to_numpy().tolist(), strict=True)
    return {f"{name}@{digest}": at for at, (name, digest) in enumerate(both)}


def _embeddings(texts: "xr.Dataset", position: int, names: Sequence[str]) -> Array:
    """Return the embeddings (phrase, feature) of some phrases, float32."""
    place = _places(texts)
    at = [place[name] for name in names]
    found = texts["text"].sel({schema.series_dim(texts): position}).isel(phrase=at)
    return np.ascontiguousarray(found.transpose("phrase", "feature").to_numpy(), dtype=np.float32)


def _chosen(pools: "xr.Dataset", position: int, percentile: float, study: Study) -> Array:
    """Return unit and head (2, pair) of the pairs whose mean norm is at or above a percentile, head by head."""
    from neurolens.pairs.ablation import percentile_mask
    from neurolens.pairs.norms import pair_norms

    table = study.pools
    assert table is not None
    top = min(TOP, table.ranks)
    names = ("value", "output", "constant", "count", "mean", "std", "top", "bottom")
    totals = pools[list(names)].sel({schema.series_dim(pools): position}).compute()
    count = int(totals["count"].max())
    if count < top:
        raise StudyError(
            f"pools were totalled over {count} images, and norms of pairs are means over {top}; set "
            "pools.ranks to no more than there are images, or leave codes.percentile out"
        )
    kept = percentile_mask(pair_norms(totals.assign(count=count), totals, top=top), percentile).transpose(
        "head", "unit"
    )
    head, unit = np.nonzero(kept.to_numpy())
    return np.stack([unit, head]).astype(np.int64)


def _nothing(position: int) -> Array:
    raise KeyError(position)


def _read_array(path: Path) -> Array:
    found: Array = np.load(path)
    return found


def _write_array(file: IO[bytes], values: Array) -> None:
    np.save(file, values)


def _read_text(path: Path) -> str:
    return str(json.loads(path.read_text()))


def _write_text(file: IO[bytes], text: str) -> None:
    file.write(json.dumps(text).encode())
