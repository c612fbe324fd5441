"""Images with a label for every pixel, each in its own size: PASCAL Context, and any folder of images and labels."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from neurolens.data.fitting import file_size
from neurolens.data.folders import decode
from neurolens.data.planes import Plane, label_plane
from neurolens.data.samples import Pixels
from neurolens.data.segmentation import Layout, paired_files
from neurolens.errors import DataError, nearest

_VOC = ("", "VOC2010", "VOCdevkit/VOC2010")
_IMAGES, _LABELS, _SPLITS = "JPEGImages", "SegmentationClassContext", "ImageSets/SegmentationContext"


@dataclass(frozen=True)
class LabelledImages:
    """Images and their label pictures, decoded one at a time when asked for; none is resized.

    Attributes
    ----------
    root
        The folder that the paths start from.
    images, labels
        Paths of the images, and of the label picture of each.
    """

    root: Path
    images: tuple[str, ...]
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def image(self, position: int) -> Pixels:
        """Return one image, uint8 (h, w, 3); grey is repeated.

        Raises
        ------
        DataError
            If it cannot be decoded.
        """
        pixels = decode(self.root / self.images[position])
        return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels

    def label(self, position: int) -> Plane:
        """Return the numbers of one label picture, uint16 (h, w), as they are: 0 and 255 too.

        Raises
        ------
        DataError
            If it cannot be decoded, or has another size than its image.
        """
        plane = label_plane(self.root / self.labels[position])
        size = file_size(self.root / self.images[position])
        if plane.shape != size:
            raise DataError(
                f"{self.root / self.labels[position]} is {plane.shape[0]} x {plane.shape[1]} pixels and its image "
                f"{size[0]} x {size[1]} (h x w); make the labels anew in the size of the image"
            )
        return plane


def labelled_images(root: str | Path, layout: Layout | None = None) -> LabelledImages:
    """Open a folder of images and one of label pictures, and check that every image has one.

    Parameters
    ----------
    root
        The folder that the layout starts from.
    layout
        ``images``, one folder of ``labels``, and ``unlabelled``; the rest is of concepts.

    Raises
    ------
    DataError
        If a folder is missing, an image has no label picture, or there is more than one plane of labels.
    """
    layout = layout or Layout()
    if len(layout.labels) != 1:
        raise DataError(f"found {len(layout.labels)} folders of labels, and one was needed: a label for every pixel")
    images, planes = paired_files(Path(root), layout)
    return LabelledImages(Path(root), images, tuple(plane for (plane,) in planes))


def pascal_context(root: str | Path, *, split: str = "val") -> LabelledImages:
    """Open PASCAL Context in the layout of mmsegmentation, and check that every file of a split is there.

    ``JPEGImages``, ``SegmentationClassContext`` (0 is none of the classes, 1 to 59 are) and
    ``ImageSets/SegmentationContext/<split>.txt``, in ``root``, ``root/VOC2010`` or ``root/VOCdevkit/VOC2010``. Names of
    the classes are `neurolens.pairs.PASCAL_CONTEXT`; scores are those of ``confusion(…, reduce_zero_label=True)``.

    Parameters
    ----------
    root
        The folder that the images were unpacked to.
    split
        ``val``, of which results are told, or ``train``.

    Raises
    ------
    DataError
        If a folder, the list of the split, or a file that it names is missing.

    References
    ----------
    Mottaghi et al. 2014, "The Role of Context for Object Detection and Semantic Segmentation in the Wild".
    """
    tried = [Path(root, where) for where in _VOC]
    home = next((path for path in tried if (path / _IMAGES).is_dir()), None)
    if home is None:
        raise DataError(
            f"{root} has no {_IMAGES}, nor has VOC2010 or VOCdevkit/VOC2010 in it; give the unpacked folder"
        )
    listed = home / _SPLITS / f"{split}.txt"
    if not listed.is_file():
        known = [path.stem for path in sorted((home / _SPLITS).glob("*.txt"))]
        raise DataError(
            f"{home / _SPLITS} has no split {split!r}; {nearest(split, known)}"
            if known
            else f"{home} has no {_SPLITS}; unpack the lists of PASCAL Context there"
        )
    names = [line.strip() for line in listed.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not names:
        raise DataError(f"{listed} names no image; restore it")
    found = LabelledImages(
        home, tuple(f"{_IMAGES}/{name}.jpg" for name in names), tuple(f"{_LABELS}/{name}.png" for name in names)
    )
    missing = [path for path in (*found.images, *found.labels) if not (home / path).is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} of {2 * len(names)} files of {listed.name} are not in {home}, the first {missing[0]}; "
            "unpack them, or convert the labels as mmsegmentation's tools do"
        )
    return found
