"""Adopt tallies that the reference's dissection wrote: into a cube of their own, under keys made from their content."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from neurolens import __version__, schema
from neurolens.dissection.adopted import concept_names, from_cube
from neurolens.errors import StoreError
from neurolens.rows.keys import key
from neurolens.store import Axis
from neurolens.units.inputs import listed

if TYPE_CHECKING:
    import xarray as xr

    from neurolens.store import Store

BEST, CATEGORIES = "best", "categories"
FIGURES = ("truth", "activation", "intersect", "best_iou")
IMPORT = (0, -1)
"""What an import claims: numbers of concepts are given out by one at a time."""

Pair = tuple[str, str]
Units = tuple[list[str], list[int]]


@dataclass(frozen=True)
class _Held:
    """What a store has of tallies: units, names, checkpoints; nothing where there are none yet."""

    series: str | None = None
    units: Units | None = None
    categories: tuple[str, ...] = ()
    pairs: tuple[Pair, ...] = ()
    checkpoints: dict[str, str] | None = None
    per_category: bool = False
    areas: dict[Pair, float] | None = None


def adopt_tallies(
    tallies: "xr.Dataset", store: "Store", *, run: str, report: Callable[[int], None] = lambda position: None
) -> tuple[int, int]:
    """Write tallies as rows of the `tallies` cube, one commit each, beside what was adopted before.

    A row's key is made from its content: adopting the same files again writes nothing, and a file that changed, its
    row only. Concepts keep their numbers; new ones come after them.

    Parameters
    ----------
    tallies : (series, unit[, category])
        As :func:`neurolens.mortality.read_tallies` returns them.
    run
        Name of the run; a store holds one.
    report
        Called with the position of each row that was written.

    Returns
    -------
    How many rows were written, and how many were there already.

    Raises
    ------
    StoreError
        If the store holds another run, tallies of other units or concepts or by the other series, or another import is
        under way.
    """
    cube, series = schema.TALLIES, schema.series_dim(tallies)
    with store.claim(cube.name, [IMPORT]) as won:
        if not won:
            raise StoreError(
                f"{store.url}: tallies are being imported by another process; import again when it is done"
            )
        held = _held(store)
        _require_alike(tallies, series, held, store.url)
        text = {
            name: _text(tallies[name].transpose(*dims))
            for name, dims in (
                ("label", (series, "unit")),
                ("label_category", (series, "unit")),
                ("best_label", (series, "unit", "category")),
            )
            if name in tallies
        }
        columns = _text(tallies["category"]).tolist() if "best_label" in text else []
        categories = held.categories or tuple(columns)
        found = {str(c) for c in text["label_category"].ravel() if c}
        categories += tuple(sorted(found - set(categories)))
        pairs = held.pairs + tuple(sorted(_pairs(text, columns) - set(held.pairs)))
        _prepare(store, tallies, run, series, held, categories, pairs)
        return _write(tallies, store, series, text, categories, pairs, report)


def _prepare(
    store: "Store",
    tallies: "xr.Dataset",
    run: str,
    series: str,
    held: _Held,
    categories: Sequence[str],
    pairs: Sequence[Pair],
) -> None:
    layer, index = _units(tallies)
    axes = {"unit": Axis(np.arange(len(layer)), {"layer": np.asarray(layer, str), "index": np.asarray(index)})}
    if categories:
        axes["category"] = Axis(np.asarray(categories, str), {"category_number": np.arange(len(categories))})
    if pairs:
        of, names = zip(*pairs)
        coords = {"concept_number": np.arange(len(pairs)), "name": np.asarray(names, str)}
        coords["concept_category"] = np.asarray(of, str)
        axes["concept"] = Axis(np.asarray(concept_names(pairs), str), coords)
    stamps = tallies[series].values.tolist()
    checkpoints = (held.checkpoints or {}) | {
        str(at): n for at, n in zip(stamps, _text(tallies["checkpoint"]).tolist())
    }
    parts = [BEST, CATEGORIES] if "best_label" in tallies else [BEST]
    store.prepare(
        schema.TALLIES,
        run=run,
        series=series,
        settings={
            "data": "adopted tallies",
            "parts": {part: {"imported": True, "model": None} for part in parts},
            "checkpoints": checkpoints,
        },
        axes=axes,
        fingerprint=hashlib.sha256(json.dumps([layer, index]).encode()).hexdigest(),
    )


def _write(
    tallies: "xr.Dataset",
    store: "Store",
    series: str,
    text: dict[str, Any],
    categories: Sequence[str],
    pairs: Sequence[Pair],
    report: Callable[[int], None],
) -> tuple[int, int]:
    cube = schema.TALLIES
    other = "epoch" if series == "step" else "step"
    written = known = 0
    for slot, position in enumerate(tallies[series].values.tolist()):
        here = {name: values[slot] for name, values in text.items()}
        row = tallies.isel({series: slot})
        wanted, values = _content(row, here, categories, pairs)
        ledger = store.ledger(cube.name)
        new = {part: k for part, k in wanted.items() if not ledger.is_done(position, 0, part, k)}
        if not new:
            known += 1
            continue
        store.write_row(
            cube,
            (position, 0),
            positions={series: position, other: int(row[other]) if other in row.coords else None},
            values={v.name: values[v.name] for part in new for v in cube.part(part).variables},
            keys=new,
            seconds=float("nan"),
            provenance={
                "imported_from": str(tallies.attrs.get("imported_from", "")),
                "versions": {"neurolens": __version__},
            },
        )
        written += 1
        report(position)
    return written, known


def _content(
    row: "xr.Dataset", text: dict[str, Any], categories: Sequence[str], pairs: Sequence[Pair]
) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Return the keys of a row by part, made of names and numbers, and the values as they are stored."""
    place = {pair: i for i, pair in enumerate(pairs)}
    at = {name: i for i, name in enumerate(categories)}
    best = list(zip(text["label_category"].tolist(), text["label"].tolist()))
    values: dict[str, np.ndarray] = {
        "score": np.asarray(row["score"].values, np.float64),
        "best_number": np.array([place.get(pair, -1) for pair in best], np.int32),
        "best_category": np.array([at.get(category, -1) for category, _ in best], np.int32),
    }
    keys = {BEST: key({"imported": {"names": _digest(best), "score": _digest(values["score"].tolist())}})}
    if "best_label" not in text:
        return keys, values
    columns = _text(row["category"]).tolist()
    order = [columns.index(name) for name in categories]
    labels = text["best_label"][:, order]
    cells = [[place.get((c, str(name)), -1) for c, name in zip(categories, line)] for line in labels]
    values["category_best"] = np.array(cells, np.int32).reshape(labels.shape)
    for name in FIGURES:
        values[name] = np.asarray(row[name].transpose("unit", "category").values, np.float64)[:, order]
    content = {name: _digest(values[name].tolist()) for name in FIGURES}
    content["names"] = _digest([list(categories), labels.tolist()])
    return keys | {CATEGORIES: key({"imported": content})}, values


def _held(store: "Store") -> _Held:
    import xarray as xr

    ledger = store.ledger(schema.TALLIES.name)
    if not ledger.exists:
        return _Held()
    options: dict[str, Any] = {"endpoint": store.endpoint, "region": store.region}
    ds = xr.open_dataset(store.url, group=schema.TALLIES.name, engine="neurolens", backend_kwargs=options)
    names, of, categories = (
        _text(ds[c]).tolist() if c in ds.coords else [] for c in ("name", "concept_category", "category")
    )
    return _Held(
        ledger.series,
        _units(ds),
        tuple(categories),
        tuple(zip(of, names)),
        dict(ledger.settings.get("checkpoints", {})),
        CATEGORIES in ledger.settings.get("parts", {}),
        _areas(from_cube(ds)),
    )


def _require_alike(tallies: "xr.Dataset", series: str, held: _Held, url: str) -> None:
    if held.series is None or held.units is None:
        return
    mend = "give these a store of their own"
    if held.series != series:
        raise StoreError(f"{url} holds tallies by {held.series}, and these are by {series}; read them so, or {mend}")
    units = _units(tallies)
    if held.units != units:
        before, now = (
            f"{len(layers)} units of {listed(list(dict.fromkeys(layers)))}" for layers, _ in (held.units, units)
        )
        raise StoreError(f"{url} holds tallies of {before}, and these are of {now}, or number them otherwise; {mend}")
    columns = _text(tallies["category"]).tolist() if "best_label" in tallies else []
    stored = held.categories if held.per_category else ()
    if set(columns) != set(stored):
        before, now = (f"columns for {listed(sorted(c)) or 'no category'}" for c in (stored, columns))
        raise StoreError(f"{url} holds tallies with {before}, and these have {now}; {mend}")
    now_held = _areas(tallies) if tallies.attrs.get("differing") != "keep" else {}
    for (category, name), area in now_held.items():
        known = (held.areas or {}).get((category, name), area)
        if known != area:
            raise StoreError(
                f"{url} holds tallies in which the {category} {name!r} has an area (truth) of {known:.10g}, and in "
                f"these it has {area:.10g}: they were dissected with other concepts or images; {mend}"
            )


def _areas(tallies: "xr.Dataset") -> dict[Pair, float]:
    """Return the area of each concept that has one and the same in all rows."""
    if "best_label" not in tallies:
        return {}
    dims = (schema.series_dim(tallies), "unit", "category")
    label, truth, iou = (tallies[name].transpose(*dims).values for name in ("best_label", "truth", "best_iou"))
    categories = _text(tallies["category"]).tolist()
    found: dict[Pair, set[float]] = {}
    for t, u, c in zip(*np.nonzero(iou > 0), strict=True):
        found.setdefault((categories[c], str(label[t, u, c])), set()).add(float(truth[t, u, c]))
    return {pair: areas.pop() for pair, areas in found.items() if len(areas) == 1 and pair[1]}


def _units(data: "xr.Dataset") -> Units:
    return _text(data["layer"]).tolist(), [int(i) for i in data["index"].values]


def _pairs(text: dict[str, Any], columns: Sequence[str]) -> set[Pair]:
    """Return the (category, name) of every concept that is named."""
    found = set(zip(text["label_category"].ravel().tolist(), text["label"].ravel().tolist()))
    for i, category in enumerate(columns):
        found |= {(category, name) for name in text["best_label"][..., i].ravel().tolist()}
    return {pair for pair in found if pair[1]}


def _text(array: "xr.DataArray") -> np.ndarray:
    return np.asarray(array.values.tolist(), object)


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()
