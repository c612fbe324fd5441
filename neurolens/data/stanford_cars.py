"""What is known of the images of Stanford Cars: class, make, body, year, and colours from a table of the user's."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from neurolens.data.tables import rows_of
from neurolens.errors import DataError

COLOURS = ("black", "blue", "brown", "green", "grey", "orange", "red", "silver", "white", "yellow")
"""The colours of the refined table, in the order of its numbers."""
_CELL = re.compile(r"(\d+)(?:_(\d+|[A-Za-z]+))?")


def stanford_cars(
    table: str | Path,
    names: str | Path,
    *,
    image: str = "image",
    label: str = "Class",
    colours: Sequence[str] = COLOURS,
) -> xr.Dataset:
    """Read the metadata of Stanford Cars, one image a row.

    Parameters
    ----------
    table
        CSV with the file names of images and their class, from 1 on; in a refined table ``class_colour``, as ``14_9``,
        the colour as a number from 0 on or as its name.
    names
        Text file of the names of the classes, one a line, as ``Audi TTS Coupe 2012``; the last word is the year.
    image, label
        Names of the two columns.
    colours
        What the numbers of colours mean.

    Returns
    -------
    Dataset over ``sample``, the file names
        ``number`` from 1 on; ``name``; ``make``, its first word; ``year``, int64; ``colour``, text, where the table has
        colours. ``meta["name"].str.contains("Convertible")`` is a column of bodies. In the order of the table: take
        those of your images with ``meta.sel(sample=names)``.

    Raises
    ------
    DataError
        If a file or a column is missing, a row has no class or colour that there is, an image is there twice, or only
        some rows have a colour.

    Notes
    -----
    Krause et al. 2013, "3D Object Representations for Fine-Grained Categorization". Colours of refined tables were told
    by a network, and are no ground truth.
    """
    cars = _names(Path(names))
    files: list[str] = []
    numbers: list[int] = []
    told: list[str | None] = []
    for line, row in rows_of(Path(table), (image, label)):
        number, colour = _cell(Path(table), line, row[label].strip(), len(cars), tuple(colours))
        files.append(row[image].strip())
        numbers.append(number)
        told.append(colour)
    if not files:
        raise DataError(f"{table} has no row; give the table of the images")
    twice = [name for name, count in Counter(files).items() if count > 1]
    if twice:
        raise DataError(f"{table} has {twice[0]!r} and {len(twice) - 1} other images twice; leave one row of each")
    at = np.array(numbers) - 1
    columns: dict[str, Any] = {
        "number": np.array(numbers, dtype=np.int64),
        "name": np.array([car for car, _ in cars])[at],
        "make": np.array([car.split()[0] for car, _ in cars])[at],
        "year": np.array([year for _, year in cars], dtype=np.int64)[at],
    }
    if any(colour is not None for colour in told):
        if None in told:
            raise DataError(
                f"{table}: {told.count(None)} of {len(told)} images have no colour, as {files[told.index(None)]!r}; "
                "give a table in which all rows have one, or none"
            )
        columns["colour"] = np.array(told)
    return xr.Dataset({name: ("sample", array) for name, array in columns.items()}, coords={"sample": files})


def _names(path: Path) -> list[tuple[str, int]]:
    """Return the name and the year of every class."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines()]
    except (FileNotFoundError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a text file of names ({error}); write one class a line") from None
    out = []
    for line, name in enumerate(lines, 1):
        year = name.rpartition(" ")[2]
        if not (year.isdecimal() and len(year) == 4):
            raise DataError(f"{path}, line {line}: {name!r} does not end in a year; write it as 'Audi TTS Coupe 2012'")
        out.append((name, int(year)))
    if not out:
        raise DataError(f"{path} names no class; write one a line")
    return out


def _cell(path: Path, line: int, text: str, classes: int, colours: tuple[str, ...]) -> tuple[int, str | None]:
    found = _CELL.fullmatch(text)
    if found is None or not 1 <= int(found[1]) <= classes:
        raise DataError(
            f"{path}, line {line}: {text!r} is no class from 1 to {classes}, alone or with a colour as 14_9; mend it"
        )
    colour = found[2]
    if colour is not None and colour.isdecimal() and int(colour) < len(colours):
        colour = colours[int(colour)]
    if colour is not None and colour not in colours:
        raise DataError(f"{path}, line {line}: {colour!r} is none of the colours {', '.join(colours)}; pass colours=")
    return int(found[1]), colour
