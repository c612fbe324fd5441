"""How well labels of pixels are found: intersection over union and accuracies, from counts that add up over images."""

from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from neurolens.errors import SchemaError

Array = npt.NDArray[Any]
_LAST = 255


def confusion(
    prediction: npt.ArrayLike,
    truth: npt.ArrayLike,
    *,
    classes: int,
    ignore: int = _LAST,
    reduce_zero_label: bool = False,
) -> xr.DataArray:
    """Count pixels by what they are and what they were taken for; add the counts of all images. **Eager**.

    Parameters
    ----------
    prediction : whole numbers, (…)
        From 0 to ``classes`` − 1.
    truth : whole numbers, of the same shape
        Of a label picture.
    classes
        How many.
    ignore
        Pixels of this truth do not count.
    reduce_zero_label
        Truth 0 does not count and label 1 is class 0, as mmsegmentation reads PASCAL Context's 59 classes: labels are
        1 to 59, and predictions 0 to 58.

    Returns
    -------
    int64, (truth, prediction), pixels

    Raises
    ------
    SchemaError
        If shapes differ, or a number is no class.

    Notes
    -----
    Counted by torchmetrics' ``multiclass_confusion_matrix``.
    """
    import torch
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    found, exact = _whole(prediction, "prediction"), _whole(truth, "truth")
    if found.shape != exact.shape:
        raise SchemaError(f"found a prediction of {found.shape} and a truth of {exact.shape}; bring both to one size")
    if classes < 2:
        raise SchemaError(f"classes={classes}, and two or more were needed")
    kept = exact != ignore
    if reduce_zero_label:
        kept &= exact != 0
        exact = exact - 1
    found, exact = found[kept], exact[kept]
    for name, values in (("prediction", found), ("truth", exact)):
        if values.size and (values.min() < 0 or values.max() >= classes):
            bad = int(values[(values < 0) | (values >= classes)][0])
            told = "" if name == "prediction" or not reduce_zero_label else ", after 1 was taken off"
            raise SchemaError(
                f"{name} has the number {bad}{told}, which is none of {classes} classes from 0 on; give the number of "
                "classes, and as ignore= the one that means none"
            )
    if not kept.any():
        counts = np.zeros((classes, classes), np.int64)
    else:
        table = multiclass_confusion_matrix(
            torch.from_numpy(found), torch.from_numpy(exact), num_classes=classes, validate_args=False
        )
        counts = table.numpy().astype(np.int64)
    attrs = {"long_name": "pixels of a class taken for another", "units": "pixel"}
    return xr.DataArray(counts, dims=("truth", "prediction"), name="confusion", attrs=attrs)


def segmentation_scores(counts: xr.DataArray) -> xr.Dataset:
    """Return intersection over union and accuracy of each class, and their means. Lazy if the counts are.

    Parameters
    ----------
    counts : (…, truth, prediction)
        Of `confusion`, added up over images: scores of a data set are those of its sum, not a mean over images.

    Returns
    -------
    Dataset
        ``iou`` (…, class): pixels that are the class and found, over those that are either; NaN of a class that is
        neither there nor found. ``accuracy`` (…, class): found, of those that are there; NaN where none is. ``miou``,
        ``macc`` (…): means over the classes that have one. ``aacc`` (…): share of all pixels that are right.

    Raises
    ------
    SchemaError
        If the dims are missing or the counts are not square.

    References
    ----------
    Everingham et al. 2010, "The PASCAL Visual Object Classes (VOC) Challenge"; means as in mmsegmentation.
    """
    if not {"truth", "prediction"} <= set(counts.dims) or counts.sizes["truth"] != counts.sizes["prediction"]:
        raise SchemaError(
            f"found counts over {dict(counts.sizes)}, and as many along 'truth' as 'prediction' were needed"
        )
    if counts.chunks is not None:
        counts = counts.chunk({"truth": -1, "prediction": -1})
    plain = counts.drop_vars([name for name in ("truth", "prediction") if name in counts.coords])
    size = plain.sizes["truth"]
    same = xr.DataArray(np.eye(size, dtype=bool), dims=("truth", "prediction"))
    hit = plain.where(same, 0).sum("prediction").rename(truth="class")
    there, told = plain.sum("prediction").rename(truth="class"), plain.sum("truth").rename(prediction="class")
    either = there + told - hit
    iou, accuracy = hit / either.where(either > 0), hit / there.where(there > 0)
    pixels = there.sum("class")
    out = xr.Dataset(
        {
            "iou": iou,
            "accuracy": accuracy,
            "miou": iou.mean("class"),
            "macc": accuracy.mean("class"),
            "aacc": hit.sum("class") / pixels.where(pixels > 0),
        }
    )
    names = {
        "iou": "intersection over union",
        "accuracy": "share of a class that is found",
        "miou": "mean intersection over union",
        "macc": "mean accuracy over classes",
        "aacc": "share of pixels that are right",
    }
    for name, told_as in names.items():
        out[name].attrs = {"long_name": told_as, "units": "1"}
    if "truth" in counts.coords:
        out = out.assign_coords({"class": counts["truth"].to_numpy()})
    return out


def _whole(values: npt.ArrayLike, name: str) -> Array:
    found = np.asarray(values)
    if found.dtype.kind not in "iu":
        raise SchemaError(f"found a {name} of {found.dtype}, and whole numbers were needed, one per pixel")
    return found.astype(np.int64)
