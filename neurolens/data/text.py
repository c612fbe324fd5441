"""Texts that are lines, JSONL, parquet, or a data set of the datasets library."""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from neurolens import hub
from neurolens.data.arrays import Found
from neurolens.data.folders import natural
from neurolens.data.texts import Texts
from neurolens.errors import DataError, nearest
from neurolens.study import Data

_SUFFIXES = {"text": (".txt",), "jsonl": (".jsonl", ".ndjson", ".json"), "parquet": (".parquet", ".pq")}


def text(table: Data) -> Found:
    """Open a text file, a text a line, or a folder of .txt files; blank lines are dropped.

    Of a folder, ``split`` names a file or a folder in it, if there is one; otherwise all its files are read, in
    natural order.

    Raises
    ------
    DataError
        If there is no such file, one is not UTF-8, or no line holds a text.
    """
    files = _files(table)
    rows, names, total = [], [], 0
    kept: list[str] = []
    for file in files:
        try:
            with open(file, encoding="utf-8-sig") as lines:
                read = [line.removesuffix("\n") for line in lines]
        except UnicodeDecodeError as error:
            raise DataError(
                f"{file} is not a text in UTF-8 (byte {error.start}: {error.reason}); save it as UTF-8, or set "
                "[data] source to what it is"
            ) from None
        except OSError as error:
            raise DataError(f"{file} cannot be read ({error.strerror}); mend its permissions") from None
        filled = [i for i, line in enumerate(read) if line.strip()]
        kept += [read[i] for i in filled]
        rows += [total + i for i in filled]
        names += [file.name] * len(filled)
        total += len(read)
    return _found(table, kept, rows, total, paths=names if len(files) > 1 else None)


def jsonl(table: Data) -> Found:
    """Open JSON objects, one a line: the text under ``text.column``, the class under ``text.label`` if that is set.

    Raises
    ------
    DataError
        If there is no such file, a line is not a JSON object, it lacks a column, or no row holds a text.
    """
    columns = _columns(table)
    values: list[list[Any]] = [[] for _ in columns]
    paths: list[str] = []
    files = _files(table)
    for file in files:
        for number, line in enumerate(_json_lines(file), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{file}, line {number} is not JSON ({error}); write one JSON object a line") from None
            if not isinstance(row, dict):
                raise DataError(f"{file}, line {number} is a {type(row).__name__}; write one JSON object a line")
            for column, found in zip(columns, values):
                if column not in row:
                    raise _no_column(f"{file}, line {number}", column, row, table)
                found.append(row[column])
            paths.append(file.name)
    wrong = next((i for i, v in enumerate(values[0]) if v is not None and not isinstance(v, str)), None)
    if wrong is not None:
        raise DataError(
            f"{columns[0]!r} of row {wrong} in {_place(table)} is a {type(values[0][wrong]).__name__}, and a text was "
            "needed; set data.text.column"
        )
    rows = [i for i, value in enumerate(values[0]) if value is not None and value.strip()]
    labels = [values[1][i] for i in rows] if len(columns) > 1 else None
    kept = [values[0][i] for i in rows]
    named = [paths[i] for i in rows] if len(files) > 1 else None
    return _found(table, kept, rows, len(values[0]), labels=labels, paths=named)


def parquet(table: Data) -> Found:
    """Open a parquet file, or a folder of them: columns as for `jsonl`.

    Raises
    ------
    DataError
        If there is no such file, it is no parquet file, it lacks a column, or no row holds a text.
    """
    arrow = hub.library("pyarrow", "parquet")
    files = hub.library("pyarrow.parquet", "parquet")
    tables = []
    for file in _files(table):
        try:
            names = files.read_schema(file).names
            for column in _columns(table):
                if column not in names:
                    raise _no_column(str(file), column, names, table)
            tables.append(files.read_table(file, columns=_columns(table)))
        except (arrow.ArrowException, OSError) as error:
            raise DataError(f"{file} is not a whole parquet file ({error}); write it again") from None
    return _of_arrow(table, arrow.concat_tables(tables, promote_options="permissive"))


def datasets(table: Data) -> Found:
    """Open a data set by its name on the hub, from this machine unless ``data.download``; or what save_to_disk wrote.

    Raises
    ------
    DataError
        If it is not on this machine and may not be downloaded, has no such configuration, split or column, or no row
        holds a text.
    MissingExtraError
        If the datasets library is absent.
    """
    library = hub.library("datasets", "[data] source = 'datasets'")
    with _quiet(library):
        found = _saved(library, table) if table.root is not None else _by_name(library, table)
        for column in _columns(table):
            if column not in found.column_names:
                raise _no_column(_place(table), column, found.column_names, table)
        classes = getattr(found.features.get(table.text.label), "names", None) if table.text.label else None
        rows = found.select_columns(_columns(table)).with_format("arrow")[:]
    return _of_arrow(table, rows, classes)


def _by_name(library: Any, table: Data) -> Any:
    name, config = table.text.dataset, table.text.config
    if table.download and not hub.is_offline():
        failures: tuple[type[BaseException], ...] = (ValueError, KeyError, RuntimeError, *hub.failures())
        try:
            return library.load_dataset(name, config, split=table.split)
        except failures as error:
            first = str(error).strip().partition("\n")[0]
            raise DataError(
                f"data set {name!r} could not be opened ({type(error).__name__}: {first}); correct data.text.dataset, "
                "data.text.config or data.split"
            ) from error
    builder = hub.library("datasets.packaged_modules.cache.cache", "[data] source = 'datasets'").Cache
    try:
        cached = builder(repo_id=name, dataset_name=str(name).split("/")[-1], config_name=config, **_LATEST)
    except (OSError, ValueError) as error:
        found = " ".join(str(error).split())
        mend = "HF_HUB_OFFLINE is set: unset it" if table.download else "set data.download = true to fetch it"
        raise DataError(
            f"data set {name!r}{f', {config!r},' if config else ''} is not on this machine ({found}); {mend}, or set "
            "data.root to a folder that save_to_disk wrote"
        ) from None
    splits = list(cached.info.splits or {})
    if table.split not in splits:
        raise DataError(f"data set {name!r} has no split {table.split!r}; {nearest(table.split, splits)}")
    return cached.as_dataset(split=table.split)


_LATEST = {"version": "auto", "hash": "auto"}  # how the datasets library asks for what its cache holds


def _saved(library: Any, table: Data) -> Any:
    try:
        found = library.load_from_disk(str(table.root))
    except (OSError, ValueError) as error:
        raise DataError(
            f"[data] root = {table.root} is not a folder that save_to_disk wrote ({error}); name one, or leave root "
            "out and set data.text.dataset"
        ) from None
    if isinstance(found, library.DatasetDict):
        if table.split not in found:
            raise DataError(f"{table.root} has no split {table.split!r}; {nearest(table.split, found)}")
        found = found[table.split]
    return found


@contextlib.contextmanager
def _quiet(library: Any) -> Iterator[None]:
    """Keep the datasets library from writing to the terminal."""
    logging = library.utils.logging
    verbosity, bars = logging.get_verbosity(), library.utils.are_progress_bars_disabled()
    logging.set_verbosity(logging.CRITICAL)
    library.utils.disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if not bars:
            library.utils.enable_progress_bars()


def _of_arrow(table: Data, rows: Any, classes: Sequence[str] | None = None) -> Found:
    """Return the rows of a pyarrow table whose text is not blank; the texts stay where they lie."""
    arrow = hub.library("pyarrow", "texts")
    compute: Any = hub.library("pyarrow.compute", "texts")
    column = rows.column(_columns(table)[0])
    if arrow.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not (arrow.types.is_string(column.type) or arrow.types.is_large_string(column.type)):
        raise DataError(
            f"column {_columns(table)[0]!r} of {_place(table)} holds {column.type}, and texts were needed; "
            f"set data.text.column to one of {', '.join(map(repr, rows.column_names))}"
        )
    column = column.cast(arrow.large_string())  # the offsets of a string column end at 2 GiB
    lengths = compute.utf8_length(compute.utf8_trim_whitespace(column))
    kept = np.flatnonzero(np.asarray(compute.fill_null(lengths, 0)))
    labels = rows.column(table.text.label).take(kept).to_pylist() if table.text.label else None
    return _found(table, column.take(kept), kept, len(column), labels=labels, classes=classes)


def _found(
    table: Data,
    kept: Any,
    rows: npt.ArrayLike,
    total: int,
    *,
    labels: list[Any] | None = None,
    classes: Sequence[str] | None = None,
    paths: list[str] | None = None,
) -> Found:
    if not len(kept):
        raise DataError(
            f"{_place(table)} holds no text: "
            + ("it is empty" if not total else f"all {total} lines or rows are blank")
            + "; texts were needed: correct [data] root, split or text.column"
        )
    coords: dict[str, npt.NDArray[Any]] = {"position": np.asarray(rows, dtype=np.int64)}
    if paths is not None:
        coords["path"] = np.array(paths, dtype=np.str_)
    numbers, names = _classes(table, labels, classes) if labels is not None else (np.zeros(len(kept)), ("text",))
    return Found(Texts(kept), np.asarray(numbers, dtype=np.int64), names, coords)


def _classes(
    table: Data, labels: list[Any], classes: Sequence[str] | None
) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """Return labels as integers, and the names of their classes: as declared, as text in order, or as numbers."""
    column = table.text.label
    if any(isinstance(label, bool) for label in labels):
        labels = [int(label) if isinstance(label, bool) else label for label in labels]
    kinds = {type(label).__name__ for label in labels}
    if kinds == {"str"}:
        names = tuple(sorted(set(labels)))
        at = {name: i for i, name in enumerate(names)}
        return np.array([at[label] for label in labels]), names
    if kinds != {"int"}:
        raise DataError(
            f"column {column!r} of {_place(table)} holds {', '.join(sorted(kinds))}, and a label is an integer or a "
            "text in every row; correct data.text.label, or fill the gaps"
        )
    numbers = np.array(labels, dtype=np.int64)
    names = tuple(classes) if classes is not None else tuple(map(str, range(int(numbers.max()) + 1)))
    if numbers.min() < 0 or numbers.max() >= len(names):
        raise DataError(
            f"column {column!r} of {_place(table)} spans {numbers.min()} to {numbers.max()}; with {len(names)} classes "
            "labels count from 0: give every row a label"
        )
    return numbers, names


def named(table: Data) -> str:
    """Return the name of a set of texts: its source, what it was read from, and the split."""
    what = table.root.name if table.root is not None else table.text.dataset
    config = f" {table.text.config}" if table.root is None and table.text.config else ""
    return f"{table.source}:{what}{config}:{table.split}"


def _columns(table: Data) -> list[str]:
    return [table.text.column, *([table.text.label] if table.text.label else [])]


def _no_column(where: str, column: str, known: Any, table: Data) -> DataError:
    key = "column" if column == table.text.column else "label"
    return DataError(f"{where} has no column {column!r}; {nearest(column, map(str, known))} Set data.text.{key}")


def _place(table: Data) -> str:
    return str(table.root) if table.root is not None else f"data set {table.text.dataset!r}"


def _json_lines(file: Path) -> Iterator[str]:
    try:
        with open(file, encoding="utf-8-sig") as lines:
            yield from lines
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not a text in UTF-8 (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}); mend its permissions") from None


def _files(table: Data) -> list[Path]:
    """Return the files of a source: the root itself, or those of the folder, or of its split, in natural order."""
    root, suffixes = table.root, _SUFFIXES[table.source]
    if root is None or not root.exists():
        near = nearest(root.name, [p.name for p in root.parent.iterdir()]) if root and root.parent.is_dir() else ""
        raise DataError(
            f"[data] root = {root} is not there; {near or 'nor is its folder;'} name a file, or a folder of "
            f"{suffixes[0]} files"
        )
    if root.is_file():
        return [root]
    inside = [p for p in root.rglob("*") if p.is_file() and p.suffix.lower() in suffixes]
    of_split = [p for p in inside if p.relative_to(root).parts[0].removesuffix(p.suffix) == table.split]
    if not of_split and table.split not in ("train", "all"):
        known = {p.relative_to(root).parts[0].removesuffix(p.suffix) for p in inside}
        raise DataError(f"{root} has no split {table.split!r}; {nearest(table.split, known)} Set [data] split = 'all'")
    files = inside if table.split == "all" else of_split or inside
    if not files:
        found = sorted({p.suffix for p in root.rglob("*") if p.is_file()})
        raise DataError(
            f"{root} holds no {' or '.join(suffixes)} file; found {', '.join(found) or 'nothing'}; correct [data] root "
            "or source"
        )
    return sorted(files, key=lambda p: natural(p.relative_to(root).as_posix()))


OPENERS: dict[str, Callable[[Data], Found]] = {"text": text, "jsonl": jsonl, "parquet": parquet, "datasets": datasets}
