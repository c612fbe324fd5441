"""One door to concept data, whatever their layout."""

from collections.abc import Sequence
from pathlib import Path

from neurolens.data.broden import INDEX, broden
from neurolens.data.concept_sets import ConceptSamples, ConceptSet
from neurolens.data.segmentation import Layout, segmentation
from neurolens.errors import DataError
from neurolens.study import Concepts


def open_concepts(
    root: str | Path,
    *,
    categories: Sequence[str] | None = None,
    split: str | None = None,
    size: int | None = None,
    layout: Layout | None = None,
    download: bool = False,
    sha256: str | None = None,
) -> ConceptSet:
    """Open concept data: Broden, or any segmentation data set.

    Parameters
    ----------
    root
        A folder with an ``index.csv`` (Broden); one that holds ``broden1_224`` and the like; or one of a segmentation
        data set, with a folder of images, one of label pictures, and a file of names.
    categories
        Which categories of the data set; all of them without it.
    split
        Images of this split only; Broden alone has splits.
    size : pixel
        Height and width of the images: which of several variants of Broden; what images of a segmentation data set are
        brought to.
    layout
        Where a segmentation data set keeps what; without it, in ``images``, ``labels`` and ``names.csv``.
    download
        Fetch Broden of this size (224 without one) into ``root`` if there is nothing. Needs pooch.
    sha256
        Of the archive that is fetched.

    Returns
    -------
    ConceptSet
        Its ``packed()`` gives the labels as bitplanes, decoded once.

    Raises
    ------
    DataError
        If nothing that can be read is there, or what is there is malformed; see `broden` and `segmentation`.
    MissingExtraError
        If something is to be fetched and pooch is not installed.
    """
    root = Path(root)
    variants = sorted(path.parent for path in root.glob(f"broden*/{INDEX}"))
    if layout is not None or (not (root / INDEX).is_file() and not variants and (root / Layout.names).is_file()):
        if split is not None:
            raise DataError(
                f"split = {split!r} goes with Broden; of a segmentation data set, name the folders of that split in "
                f"the layout, concepts.files in a study: images = 'images/{split}', labels = ['labels/{split}']"
            )
        return segmentation(root, layout, categories=categories, size=size)
    if download and not (root / INDEX).is_file() and not [v for v in variants if size is None or f"_{size}" in v.name]:
        from neurolens.data.fetching import fetch_broden

        variants = [fetch_broden(root, size=size or 224, sha256=sha256)]
    found = broden(_variant(root, variants, size), categories=categories, split=split)
    if size is not None and found.image_size != (size, size):
        h, w = found.image_size
        raise DataError(
            f"images of {root} are {h} x {w} pixels, and size = {size} was asked for; leave it out, or give the folder "
            f"of broden1_{size}"
        )
    return found


def study_concepts(table: Concepts) -> ConceptSamples:
    """Open the concept data that a study names, as samples.

    Raises
    ------
    DataError, MissingExtraError
        As `open_concepts`.
    """
    layout = None if table.files is None else Layout(**table.files.model_dump())
    return open_concepts(
        table.root,
        categories=table.categories,
        split=table.split,
        size=table.size,
        layout=layout,
        download=table.download,
        sha256=table.sha256,
    ).samples()


def _variant(root: Path, variants: Sequence[Path], size: int | None) -> Path:
    if (root / INDEX).is_file():
        return root
    names = ", ".join(path.name for path in variants)
    if not variants:
        raise DataError(
            f"{root} holds no concept data: neither {INDEX} (Broden), nor broden1_224 or the like, nor {Layout.names} "
            "beside images and labels; give another folder, or allow Broden to be fetched with download = true"
        )
    chosen = [path for path in variants if size is None or path.name.endswith(f"_{size}")]
    if len(chosen) != 1:
        asked = "no size was asked for" if size is None else f"size = {size} was asked for"
        raise DataError(f"{root} holds {names}, and {asked}; give one of them as size")
    return chosen[0]
