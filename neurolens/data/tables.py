"""Tables that come with a data set: CSV files, read strictly."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from neurolens.errors import DataError, nearest

Row = dict[str, str]


def rows_of(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, Row]]:
    """Yield (line, row) of a CSV file that must have these columns, and in each row a field for each column.

    Raises
    ------
    DataError
        If the file is not there, is no such table, lacks a column, or a row has too few or too many fields.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            header = [name.strip() for name in table.fieldnames or ()]
            table.fieldnames = header
            for name in columns:
                if name not in header:
                    raise DataError(f"{path} has no column {name!r}; {nearest(name, header)}")
            for row in table:
                if None in row or None in row.values():
                    raise DataError(
                        f"{path}, line {table.line_num} has not the {len(header)} fields of the header; mend that line"
                    )
                yield table.line_num, row
    except FileNotFoundError:
        raise DataError(f"{path} is not there; restore it, or give the folder that holds it") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a table of comma-separated text in UTF-8 ({error}); restore it") from None


def whole(path: Path, line: int, row: Row, name: str) -> int:
    """Return a field that must be a whole number, 0 or more; DataError where it is not."""
    text = row[name].strip()
    if not text.isdecimal():
        raise DataError(f"{path}, line {line}: {name} {text!r} is not a whole number; mend it")
    return int(text)
