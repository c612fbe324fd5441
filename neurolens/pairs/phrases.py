"""Phrases and their embeddings: lists of words, classes, templates, and files of embeddings."""

import pickle
import re
from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from neurolens.errors import DataError, MissingExtraError, NonFiniteError, SchemaError, nearest

Array = npt.NDArray[Any]
Duplicates = Literal["refuse", "drop", "keep"]
DUPLICATES = ("refuse", "drop", "keep")

# fmt: off
PASCAL_CONTEXT: tuple[str, ...] = (
    "aeroplane", "bag", "bed", "bedclothes", "bench", "bicycle", "bird", "boat", "book", "bottle", "building", "bus",
    "cabinet", "car", "cat", "ceiling", "chair", "cloth", "computer", "cow", "cup", "curtain", "dog", "door", "fence",
    "floor", "flower", "food", "grass", "ground", "horse", "keyboard", "light", "motorbike", "mountain", "mouse",
    "person", "plate", "platform", "pottedplant", "road", "rock", "sheep", "shelves", "sidewalk", "sign", "sky", "snow",
    "sofa", "table", "track", "train", "tree", "truck", "tvmonitor", "wall", "water", "window", "wood",
)
# fmt: on
"""The 59 classes of PASCAL Context, as the data set spells them and in the order of its labels."""


def read_phrases(path: str | Path, *, duplicates: Duplicates = "refuse") -> list[str]:
    """Read phrases from a text file, one a line.

    Parameters
    ----------
    path
        UTF-8. Blanks and tabs around a phrase are stripped, lines of nothing else are left out, and the last line needs
        no end.
    duplicates
        A phrase that is there twice is refused; ``"drop"`` keeps the first of each, and ``"keep"`` all, as lists of
        classes need where two classes have one name.

    Returns
    -------
    phrases
        In the order of the file.

    Raises
    ------
    DataError
        If there is no such file, it is no text, has no phrase, or has one twice.
    """
    file = Path(path)
    lines = _lines(file, "phrases")
    mend = "pass duplicates='drop' for the first of each, or 'keep' where they are names of classes"
    return distinct([phrase for _, phrase in lines], duplicates, str(file), mend=mend, lines=[at for at, _ in lines])


def read_templates(path: str | Path) -> list[str]:
    """Read templates from a text file, one a line, each with ``{}`` where the phrase goes.

    Raises
    ------
    DataError
        If there is no such file, it has no template, or a line has not exactly one ``{}``.
    """
    file = Path(path)
    return checked_templates([line for _, line in _lines(file, "templates")], str(file))


def imagenet_classes() -> list[str]:
    """Return the names of ImageNet's 1000 classes in the order of its labels, as open_clip has them.

    "missile" and "sunglasses" are the names of two classes each.

    Raises
    ------
    MissingExtraError
        If open_clip is not installed.
    """
    return [str(name) for name in _open_clip().IMAGENET_CLASSNAMES]


def openai_templates() -> list[str]:
    """Return the 80 templates that CLIP was tested with, as open_clip has them, with ``{}`` where the phrase goes.

    Raises
    ------
    MissingExtraError
        If open_clip is not installed.
    """
    return [str(template("{}")) for template in _open_clip().OPENAI_IMAGENET_TEMPLATES]


def embed_phrases(
    encode: Callable[[list[str]], Any],
    phrases: Sequence[str],
    templates: Sequence[str] | None = None,
    *,
    batch: int = 256,
) -> xr.DataArray:
    """Embed phrases, each as the mean of its templates. **Eager**.

    Each prompt's embedding is divided by its length, those of one phrase are averaged, and the mean is divided by its
    length.

    Parameters
    ----------
    encode
        From a list of texts to their embeddings (text, feature): numpy, or tensors of torch on any device.
    phrases
        As `read_phrases` returns them.
    templates
        With ``{}`` where the phrase goes; without, the phrase itself is embedded.
    batch
        Texts given to ``encode`` at once.

    Returns
    -------
    array (phrase, feature), float32, or float64 if the encoder's are
        Of length 1, with the phrases as coordinate.

    Raises
    ------
    DataError
        If there is no phrase, or a template has not exactly one ``{}``.
    SchemaError
        If the encoder returns something else than one embedding per text.
    NonFiniteError
        If an embedding has NaN or infinity, or a mean has no length.

    References
    ----------
    Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", section 3.1.4.
    """
    if isinstance(phrases, str):
        raise DataError(f"found one text, {phrases[:40]!r}, and a list of phrases was needed")
    names = [str(phrase) for phrase in phrases]
    if not names:
        raise DataError("the list of phrases is empty; name at least one")
    if isinstance(batch, bool) or not isinstance(batch, int | np.integer) or batch < 1:
        raise SchemaError(f"found batch={batch!r}, and a whole number of texts of at least 1 was needed")
    forms = ["{}"] if templates is None else checked_templates(list(templates), "the list of templates")
    texts = (form.replace("{}", name) for name in names for form in forms)
    total: Array | None = None
    done = 0
    while chunk := list(islice(texts, int(batch))):
        found = _embedded(encode, chunk, None if total is None else total.shape[1])
        if total is None:
            total = np.zeros((len(names), found.shape[1]), np.float64)
            dtype = np.result_type(found.dtype, np.float32)
        np.add.at(total, np.arange(done, done + len(chunk)) // len(forms), found.astype(np.float64))
        done += len(chunk)
    assert total is not None  # there is a phrase, and so a chunk
    total /= len(forms)
    lengths = np.linalg.norm(total, axis=1, keepdims=True)
    if (lengths <= np.finfo(np.float32).eps).any():
        name = names[int(np.flatnonzero(lengths[:, 0] <= np.finfo(np.float32).eps)[0])]
        raise NonFiniteError(f"the templates of {name!r} cancel: their mean has no length; take other templates")
    return _phrased((total / lengths).astype(dtype), names)


def read_embeddings(
    path: str | Path,
    phrases: Sequence[str] | None = None,
    *,
    features: int | None = None,
    transposed: bool = False,
) -> xr.DataArray:
    """Read embeddings of phrases from a ``.pt`` file of the reference, one tensor with a row per phrase, or ``.npy``.

    Parameters
    ----------
    path
        Of ``torch.save`` or ``numpy.save``, by its ending. Nothing in it is executed.
    phrases
        Names of the rows.
    features
        How wide they must be: the ``features`` of a `Pool`.
    transposed
        The file has a column per phrase, as CLIP's zero-shot weights have.

    Returns
    -------
    array (phrase, feature)
        float32, or float64 if the file's are; with ``phrases`` as coordinate.

    Raises
    ------
    DataError
        If there is no such file, it is damaged or needs code to be executed, or it holds anything but a matrix of
        floating-point numbers of as many rows as phrases, of that width.
    NonFiniteError
        If a number is NaN or infinite.
    """
    file = Path(path)
    _require_file(file, "embeddings")
    held = _array_of(file) if file.suffix == ".npy" else _tensor_of(file)
    values = held.T if transposed else held
    needed = (len(phrases) if phrases is not None else len(values), features or values.shape[1])
    if values.shape != needed:
        turned = f"; it is transposed: transposed={not transposed}" if values.shape[::-1] == needed else ""
        raise DataError(
            f"{file} holds {values.shape[0]} phrases of {values.shape[1]} features, and {needed[0]} of {needed[1]} "
            f"were needed{turned or '; give the phrases that it was made of, and the network that it is of'}"
        )
    _require_finite(values, phrases, f"{file}: ")
    return _phrased(np.ascontiguousarray(values), phrases)


def _tensor_of(file: Path) -> Array:
    import torch

    try:
        held = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise DataError(
            f"{file} cannot be read as tensors ({_first(error)}); it is damaged, or needs "
            "code to be executed: write it again with torch.save(tensor, path)"
        ) from error
    if not isinstance(held, torch.Tensor) or held.ndim != 2 or not held.is_floating_point() or not held.numel():
        found = f"{held.dtype} {tuple(held.shape)}" if isinstance(held, torch.Tensor) else type(held).__name__
        raise DataError(f"{file} holds {found}, and floating-point numbers (phrase, feature) were needed")
    values: Array = held.detach().to(torch.float64 if held.dtype == torch.float64 else torch.float32).numpy()
    return values


def _first(error: Exception) -> str:
    """Return the first sentence of what another library says."""
    return re.split(r"\.\s|\n", str(error), maxsplit=1)[0].rstrip(".")


def _array_of(file: Path) -> Array:
    try:
        held = np.load(file, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(
            f"{file} cannot be read as an array ({_first(error)}); it is damaged, or needs "
            "code to be executed: write it again with numpy.save"
        ) from error
    if held.ndim != 2 or held.dtype.kind != "f" or not held.size:
        raise DataError(
            f"{file} holds {held.dtype} {held.shape}, and floating-point numbers (phrase, feature) were needed"
        )
    values: Array = held.astype(np.float64 if held.dtype == np.float64 else np.float32)
    return values


def write_embeddings(embeddings: Any, path: str | Path) -> Path:
    """Write embeddings (phrase, feature) as the reference keeps them: one float32 tensor of ``torch.save``.

    Raises
    ------
    SchemaError
        If they are no matrix, or are empty.
    NonFiniteError
        If a number is NaN or infinite.
    DataError
        If it cannot be written there.
    """
    import torch

    if isinstance(embeddings, xr.DataArray) and set(embeddings.dims) == {"phrase", "feature"}:
        embeddings = embeddings.transpose("phrase", "feature")
    values = np.array(embeddings, dtype=np.float32, order="C")
    if values.ndim != 2 or not values.size:
        raise SchemaError(f"found embeddings of shape {values.shape}, and (phrase, feature) was needed, not empty")
    _require_finite(values, None)
    file = Path(path)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(torch.from_numpy(values), file)
    except (OSError, RuntimeError) as error:  # torch's writer of files raises the latter
        raise DataError(f"{file} cannot be written ({error}); name a folder you may write to") from error
    return file


def _lines(file: Path, what: str) -> list[tuple[int, str]]:
    """Return the lines that say something, stripped, with their numbers from 1."""
    _require_file(file, what)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file} is no text in UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error
    found = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not found:
        raise DataError(f"{file} has no {what}; write one a line")
    return found


def _require_file(file: Path, what: str) -> None:
    if not file.is_file():
        beside = [path.name for path in file.parent.iterdir() if path.is_file()] if file.parent.is_dir() else []
        hint = nearest(file.name, beside) if beside else f"give the path of a file of {what}"
        raise DataError(f"there is no file {file}; {hint}")


def distinct(
    phrases: Sequence[str], duplicates: Duplicates, where: str, *, mend: str, lines: Sequence[int] | None = None
) -> list[str]:
    """Return phrases without those that come again, or with them, or refuse these: DataError names the first.

    Parameters
    ----------
    where, mend
        What has the phrases, and what to do, for the message.
    lines
        Number of the line of each; by default its place, from 1.
    """
    if duplicates not in DUPLICATES:
        raise DataError(f"there is no duplicates={duplicates!r}; {nearest(str(duplicates), DUPLICATES)}")
    if duplicates == "keep":
        return list(phrases)
    first: dict[str, int] = {}
    numbered = list(zip(lines or range(1, len(phrases) + 1), phrases, strict=True))
    again = [(phrase, first[phrase], at) for at, phrase in numbered if first.setdefault(phrase, at) != at]
    if again and duplicates == "refuse":
        phrase, one, other = again[0]
        more = f", and {len(again) - 1} more like it" if len(again) > 1 else ""
        what = "places" if lines is None else "lines"
        raise DataError(
            f"{where} has {phrase!r} in {what} {one} and {other}{more}; each phrase once was needed: {mend}"
        )
    return list(first)


def checked_templates(templates: list[str], where: str) -> list[str]:
    """Return templates, each with exactly one ``{}``; DataError names the first that has not."""
    if not templates:
        raise DataError(f"{where} is empty; give templates with {{}} where the phrase goes, or none for bare phrases")
    for template in templates:
        if template.count("{}") != 1:
            raise DataError(
                f"{where} has {template!r}, and exactly one {{}} was needed, where the phrase goes, as in "
                "'a photo of a {}.'"
            )
    return templates


def _open_clip() -> Any:
    try:
        return import_module("open_clip")
    except ImportError as error:
        raise MissingExtraError.of("open_clip_torch", "clip", "the list of ImageNet's classes and templates") from error


def _embedded(encode: Callable[[list[str]], Any], texts: list[str], width: int | None) -> Array:
    """Return embeddings of length 1, or say what the encoder did instead."""
    found = encode(texts)
    if hasattr(found, "detach"):  # a tensor of torch, which need not be on the CPU or of a type that numpy has
        found = found.detach().cpu()
        found = found if str(found.dtype) == "torch.float64" else found.float()
    array = np.asarray(found)
    if array.ndim != 2 or len(array) != len(texts) or array.dtype.kind != "f" or width not in (None, array.shape[1]):
        raise SchemaError(
            f"the encoder returned {array.dtype} {array.shape} for {len(texts)} texts, and floating-point numbers "
            f"({len(texts)}, {width or 'features'}) were needed: an embedding per text"
        )
    lengths = np.linalg.norm(array.astype(np.float64), axis=1, keepdims=True)
    bad = ~np.isfinite(lengths[:, 0]) | (lengths[:, 0] == 0)
    if bad.any():
        text = texts[int(np.flatnonzero(bad)[0])]
        raise NonFiniteError(f"the embedding of {text!r} has no finite length above 0; see what the encoder does to it")
    out: Array = array / lengths.astype(array.dtype if array.dtype != np.float16 else np.float32)
    return out


def _require_finite(values: Array, phrases: Sequence[str] | None, where: str = "") -> None:
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
        name = row if phrases is None else repr(phrases[row])
        raise NonFiniteError(f"{where}the embedding of phrase {name} has NaN or infinity; embed the phrases again")


def _phrased(values: Array, phrases: Sequence[str] | None) -> xr.DataArray:
    coords = {} if phrases is None else {"phrase": np.asarray(list(phrases), dtype=object)}
    told = {"long_name": "embedding of a phrase", "units": "embedding"}
    return xr.DataArray(values, dims=("phrase", "feature"), coords=coords, name="phrases", attrs=told)
