"""Labels of Broden's size: decoding every label file for every checkpoint against bitplanes packed once.

``python benchmarks/label_decoding.py [--quick]``. Per image three or four planes of 112 x 112 and one number; the
reference way is to decode the files into arrays of numbers, which each checkpoint does again.
"""

import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from neurolens.data.arrays import ArrayImages
from neurolens.data.bitplanes import ConceptMasks
from neurolens.data.concept_sets import ConceptSet
from neurolens.data.planes import LabelFiles

SIDE, CONCEPTS = 112, 1197
AHEAD = 63305  # images of Broden


def write_set(root: Path, images: int) -> ConceptSet:
    """Write label files as Broden has them: colours in patches, some eight objects, parts of some of them."""
    rng = np.random.default_rng(0)
    cells: list[tuple[str | int, ...]] = []
    for image in range(images):
        colours = rng.integers(1, 12, (14, 14)).repeat(8, axis=0).repeat(8, axis=1)
        planes = [colours]
        for count, low in ((8, 12), (6, 700), (3, 900))[: 3 - image % 2]:
            plane = np.zeros((SIDE, SIDE), dtype=np.int64)
            for _ in range(count):
                (y, x), (h, w) = rng.integers(0, SIDE - 10, 2), rng.integers(8, 60, 2)
                plane[y : y + h, x : x + w] = low + rng.integers(200)
            planes.append(plane)
        names = [f"{image:06d}_{i}.png" for i in range(len(planes))]
        for name, plane in zip(names, planes, strict=True):
            rgb = np.stack([plane % 256, plane // 256, np.zeros_like(plane)], axis=-1).astype(np.uint8)
            Image.fromarray(rgb).save(root / name)
        cells.append((*names, int(rng.integers(1150, CONCEPTS))))
    numbers = np.arange(1, CONCEPTS + 1)
    names = tuple(f"concept {number}" for number in numbers)
    return ConceptSet(
        name="bench",
        images=ArrayImages(np.zeros((images, 1, 1, 3), dtype=np.uint8)),
        image_size=(2 * SIDE, 2 * SIDE),
        files=LabelFiles(root, (SIDE, SIDE)),
        cells=tuple(cells),
        labels=numbers,
        concepts=names,
        concept_category=("object",) * CONCEPTS,
        categories=("object",),
        numbers=dict(zip(numbers.tolist(), names, strict=True)),
    )


def decode_all(concepts: ConceptSet) -> int:
    """Decode every plane, as the reference does for each checkpoint; return how many pixels have a label."""
    total = 0
    for cells in concepts.cells:
        for cell in cells:
            if isinstance(cell, str):
                with Image.open(concepts.files.root / cell) as picture:
                    rgb = np.asarray(picture, dtype=np.int64)
                total += int(np.count_nonzero(rgb[..., 0] + 256 * rgb[..., 1]))
            else:
                total += SIDE * SIDE
    return total


def read_all(masks: ConceptMasks) -> int:
    """Read every word of every plane; return how many bits are set."""
    return sum(
        int(np.bitwise_count(masks.words[start : start + 4096]).sum(dtype=np.int64))
        for start in range(0, len(masks.words), 4096)
    )


def main(quick: bool) -> None:
    """Print the time per image of both ways, and what the first pass costs."""
    images = 64 if quick else 2000
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in ("set", "cache"):
            (root / name).mkdir()
        concepts = write_set(root / "set", images)
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        masks = concepts.packed(cache=root / "cache")
        first = time.perf_counter() - start
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        start = time.perf_counter()
        decoded = decode_all(concepts)
        reference = time.perf_counter() - start
        start = time.perf_counter()
        read = read_all(concepts.packed(cache=root / "cache"))
        again = time.perf_counter() - start
        assert read == int(masks.area.sum()) == decoded
        size = masks.words.nbytes / images
    print(f"labels of {images} images, {SIDE} x {SIDE}; ms per image")
    print(f"  decode the files (each checkpoint)   {1e3 * reference / images:8.3f}")
    print(f"  decode, check and pack (once)        {1e3 * first / images:8.3f}   {grown:.0f} MB more at its peak")
    print(f"  open and read bitplanes (each ckpt)  {1e3 * again / images:8.3f}   {reference / again:.0f}x")
    print(f"  {size / 1e3:.1f} kB per image: {size * AHEAD / 1e9:.2f} GB for {AHEAD} images")


if __name__ == "__main__":
    main("--quick" in sys.argv)
