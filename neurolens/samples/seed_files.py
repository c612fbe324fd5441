"""The per-sample files of the reference CSL workflow: read them into a Dataset, and write its results.

Two file-name schemes are read: ``loss_{dataset}_epoch_{e}.npy``, which carries no run, and
``loss_{dataset}_run{r}_epoch_{e}_noise_{n}.npy``; gradients likewise as ``loss_grad_…``.
"""

import json
import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from neurolens import schema
from neurolens.errors import DataError, MissingMeasurementError, nearest
from neurolens.samples.cumulative import csl
from neurolens.samples.inputs import OnMissing, choice, stored_counts
from neurolens.samples.learning import learning_time
from neurolens.store.repository import explained

_NAME = re.compile(
    r"(?P<quantity>loss_grad|loss)_(?P<dataset>.+?)(?:_run(?P<run>\d+))?_epoch_(?P<epoch>\d+)"
    r"(?:_noise_(?P<noise>[0-9.eE+-]+?))?\.npy"
)
GRADIENTS = ("grad_norm", "grand")


def read_samples(
    folder: Path | str,
    *,
    dataset: str,
    run: int = 1,
    noise: float = 0.01,
    scheme: str | None = None,
    gradient: str = "grad_norm",
    start: int | None = None,
    end: int | None = None,
    stride: int = 1,
) -> tuple[xr.Dataset, tuple[str, ...]]:
    """Read a folder of the reference's per-epoch files. **Eager.**

    Parameters
    ----------
    folder : path
    dataset : str
        The data set in the file names.
    run, noise
        Which run and label-noise level of the names that carry them.
    scheme : {"plain", "run"}, optional
        Names without, or with, a run; needed only where the folder holds both (the reference silently prefers the
        first, whatever run it came from).
    gradient : {"grad_norm", "grand"}
        What the producer of ``loss_grad`` measured, which the files do not say: input-gradient norms (csl_pipeline,
        score_incremental, CSL-Mem), or parameter-gradient norms of a loss with weight decay (score_cifar100_loss).
    start, end, stride
        Epochs to keep, ``end`` inclusive; all by default.

    Returns
    -------
    dataset : `loss` and, if there are any, ``gradient`` (epoch, sample), float32
        NaN rows where an epoch has no gradient file. Samples are known by position only: `sample` is
        ``<dataset>:<position>``, `position` (sample) the integer.
    notes : tuple of str
        Gaps in the epochs, epochs without gradients, other runs and files in the folder that were left alone.

    Raises
    ------
    DataError
        If there is no loss file, both schemes are there, an epoch comes twice, a file is malformed, or the number of
        samples differs between epochs (all such epochs are named).
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; give the one that holds loss_{dataset}_….npy")
    choice("gradient", gradient, *GRADIENTS)
    choice("scheme", scheme or "run", "plain", "run")
    found, notes = _find(folder, dataset, run, noise, scheme)
    kept = sorted(e for e in found["loss"] if (start is None or e >= start) and (end is None or e <= end))
    kept = [e for e in kept if (e - (kept[0] if start is None else start)) % stride == 0]
    if not kept:
        raise DataError(
            f"{folder}: no loss file in epochs {start}–{end} step {stride}; there are {_span(found['loss'])}"
        )
    notes += _gaps(kept, found["loss_grad"])
    loss = _load(found["loss"], kept)
    width = loss.shape[1]
    variables = {"loss": (("epoch", "sample"), loss, schema.LOSS.attrs)}
    with_gradient = [e for e in kept if e in found["loss_grad"]]
    if with_gradient:
        gradients = _load(found["loss_grad"], with_gradient)
        if gradients.shape[1] != width:
            raise DataError(
                f"{folder}: losses have {width} samples and gradients {gradients.shape[1]}; "
                "they come from different producers or data sets: import them from separate folders"
            )
        norms = gradients
        if len(with_gradient) < len(kept):
            norms = np.full(loss.shape, np.nan, np.float32)
            norms[np.isin(kept, with_gradient)] = gradients
        variables[gradient] = (("epoch", "sample"), norms, schema.SAMPLES.part_of(gradient).variables[0].attrs)
    ds = xr.Dataset(
        variables,
        coords={
            "epoch": np.array(kept, dtype=np.int64),
            "sample": np.array([f"{dataset}:{i}" for i in range(width)]),
            "position": ("sample", np.arange(width)),
        },
        attrs={"data": dataset, "run": f"{dataset}-run{run}-noise{noise:g}", "imported_from": folder.name},
    )
    return ds, tuple(notes)


def _find(
    folder: Path, dataset: str, run: int, noise: float, scheme: str | None
) -> tuple[dict[str, dict[int, Path]], list[str]]:
    chosen: dict[str, dict[str, dict[int, Path]]] = {s: {"loss": {}, "loss_grad": {}} for s in ("plain", "run")}
    others: dict[str, int] = {}
    datasets: set[str] = set()
    for path in sorted(folder.glob("loss*.npy")):
        match = _NAME.fullmatch(path.name)
        if match is None:
            others["names that neither scheme makes"] = others.get("names that neither scheme makes", 0) + 1
            continue
        datasets.add(match["dataset"])
        plain = match["run"] is None and match["noise"] is None
        if match["dataset"] != dataset:
            other = f"data set {match['dataset']!r}"
        elif not plain and (match["run"] is None or int(match["run"]) != run or _noise(match["noise"]) != noise):
            other = f"run {match['run']}, noise {match['noise']}"
        else:
            files = chosen["plain" if plain else "run"][match["quantity"]]
            epoch = int(match["epoch"])
            if epoch in files:
                raise DataError(f"epoch {epoch} comes twice: {files[epoch].name} and {path.name}; remove one")
            files[epoch] = path
            continue
        others[other] = others.get(other, 0) + 1
    both = [s for s in chosen if chosen[s]["loss"] or chosen[s]["loss_grad"]]
    if scheme is None and len(both) == 2:
        raise DataError(
            f"{folder} holds {dataset} files with a run in their names and files without one, which may be another "
            'run\'s; say which to read: scheme="run" or scheme="plain"'
        )
    found = chosen[scheme or (both[0] if both else "run")]
    if not found["loss"]:
        there = "; ".join(f"{n} files of {what}" for what, n in others.items()) or "no loss files at all"
        close = f" ({nearest(dataset, datasets)})" if datasets and dataset not in datasets else ""
        raise DataError(f"{folder} has no losses of {dataset!r}, run {run}, noise {noise:g}; found {there}{close}")
    return found, [f"left alone: {n} files of {what}" for what, n in sorted(others.items())]


def _noise(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _span(epochs: Iterable[int]) -> str:
    shown = [str(e) for e in sorted(epochs)]
    return "epoch" + ("s " if len(shown) > 1 else " ") + ", ".join(shown[:12]) + (", …" if len(shown) > 12 else "")


def _gaps(kept: list[int], gradients: dict[int, Path]) -> list[str]:
    notes = []
    if len(kept) > 1:
        usual = int(np.median(np.diff(kept)))
        missing = sorted(set(range(kept[0], kept[-1] + 1, usual)) - set(kept)) if usual else []
        if missing:
            notes.append(f"gaps: no losses at {_span(missing)} (every {usual} from {kept[0]} to {kept[-1]} expected)")
    without = [e for e in kept if e not in gradients]
    if without:
        what = "no gradients at all" if len(without) == len(kept) else f"no gradients at {_span(without)}"
        notes.append(what)
    orphans = sorted(set(gradients) - set(kept))
    if orphans:
        notes.append(f"left alone: gradients without losses or outside the selection at {_span(orphans)}")
    return notes


def _load(files: dict[int, Path], epochs: list[int]) -> NDArray[np.float32]:
    """Read one row per epoch into (epoch, sample); no number is held twice."""
    sizes = np.array([_size(files[e]) for e in epochs])
    values, counts = np.unique(sizes, return_counts=True)
    if len(values) > 1:
        usual = values[counts.argmax()]
        odd = ", ".join(f"epoch {e}: {n}" for e, n in zip(epochs, sizes, strict=True) if n != usual)
        raise DataError(
            f"{files[epochs[0]].parent}: most epochs have {usual} samples, but {odd}; positions cannot be matched "
            "(a producer that drops zero losses does this): re-score those epochs"
        )
    out = np.empty((len(epochs), int(values[0])), np.float32)
    for row, epoch in zip(out, epochs, strict=True):
        row[:] = _array(files[epoch])
    return out


def _size(path: Path) -> int:
    """Return how many samples a file is about, by its header."""
    array = _array(path, mmap_mode="r")
    if array.ndim != 1 or array.dtype.kind not in "fiu":
        raise DataError(f"{path} has shape {array.shape}, dtype {array.dtype}; need one number per sample")
    return len(array)


def _array(path: Path, **options: Any) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, allow_pickle=False, **options)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path} cannot be read ({error}); remove or rewrite it") from error
    return array


def export_csl(
    ds: xr.Dataset,
    folder: Path | str,
    *,
    dataset: str,
    run: int = 1,
    noise: float = 0.01,
    variable: str = "grad_norm",
    missing: OnMissing = "error",
    compat: Literal["seed"] | None = None,
) -> tuple[Path, ...]:
    """Write ``csl_…``, ``lt_….npy`` and ``metrics_….json`` as the reference does. **Eager.**

    Parameters
    ----------
    ds : Dataset with `loss` and, for learning time, ``variable`` (epoch, sample)
    folder : path
        Made if absent. Each file is replaced whole or not at all.
    dataset, run, noise
        For the file names and the metrics.
    variable : str
        The gradient for learning time. Without it no ``lt`` file is written, and an old one is removed.
    missing : {"error", "drop"}
        Stop where a loss or gradient is missing, or leave that epoch out; one without any loss is not in
        ``kept_epochs`` then, as in the reference.
    compat : "seed" or None
        The reference's arithmetic, every sample at every epoch, and losses in place of missing gradients.

    Returns
    -------
    paths : tuple of Path
        What was written: float32 arrays in the order of `position` (of ``ds.sample`` without one), and the metrics
        with the reference's keys.

    Raises
    ------
    MissingMeasurementError
        If losses, or without ``compat`` some but not all gradients, are missing, unless they may be dropped.
    StoreError
        If the folder cannot be written.
    """
    choice("compat", compat or "seed", "seed")
    choice("missing", missing, "error", "drop")
    dim = schema.require(ds, "loss")
    if "position" in ds.coords:  # the reference's files go by position, and a store keeps samples as they arrived
        ds = ds.isel(sample=np.argsort(ds.coords["position"].values, kind="stable"))
    if missing == "drop":
        ds = ds.isel({dim: np.flatnonzero(_measured(ds, "loss", dim))})
    folder = Path(folder)
    stem = f"{dataset}_run{run}_noise_{noise}"
    csl_path, lt_path = folder / f"csl_{stem}.npy", folder / f"lt_{stem}.npy"
    metrics_path = folder / f"metrics_{stem}.json"
    sums = csl(ds, missing=missing, compat=compat)["csl"].compute()
    epochs = [int(e) for e in ds.indexes[dim]] if dim in ds.indexes else list(range(ds.sizes[dim]))
    shape = [ds.sizes[dim], ds.sizes["sample"]]
    learned = None
    gradients = _measured(ds, variable, dim)
    if gradients.any():
        learned = learning_time(ds, variable=variable, missing=missing, compat=compat).compute()
    metrics = {
        "dataset": dataset,
        "run_idx": run,
        "noise_level": noise,
        "kept_epochs": epochs,
        "num_epochs": len(epochs),
        "losses_shape": shape,
        "loss_grads_shape": None
        if learned is None
        else [int(gradients.sum()) if compat is None else shape[0], shape[1]],
        "csl_path": str(csl_path),
        "lt_path": str(lt_path) if learned is not None else None,
        "tau": float(learned["learning_tau"]) if learned is not None else None,
        "source": "neurolens",
    }
    with explained(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        if learned is not None:
            _replace(lt_path, learned["learning_time"].to_numpy().astype(np.float32))
        else:
            lt_path.unlink(missing_ok=True)  # an old one would pass for this run's
        _replace(csl_path, sums.to_numpy().astype(np.float32))
        _replace(metrics_path, metrics)
    return (csl_path, *((lt_path,) if learned is not None else ()), metrics_path)


def _measured(ds: xr.Dataset, variable: str, dim: str) -> NDArray[np.bool_]:
    """Whether a quantity is there at all, per row: without any gradient, the reference computes no learning time."""
    try:
        schema.require(ds, variable, dim=dim)
    except MissingMeasurementError:
        return np.zeros(ds.sizes[dim], bool)
    counts = stored_counts(ds, variable, dim)
    present = ds[variable].notnull().any("sample") if counts is None else counts.sum("class") > 0
    return np.asarray(present.compute().values)


def _replace(path: Path, content: Any) -> None:
    """Write a file beside its place and rename it there, so that a reader never sees half of one."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            if isinstance(content, np.ndarray):
                np.save(file, content)
            else:
                file.write((json.dumps(content, indent=2) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        Path(name).chmod(0o666 & ~mask)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
