"""Trees of tallies for tests, in the reference's columns."""

import csv

CATEGORIES = ("color", "object")
FIELDS = ("label", "truth", "activation", "intersect", "iou")


def write(path, rows, categories=CATEGORIES):
    """Rows: {unit from 1: {category: (label, truth, activation, intersect)}}; best first, as the reference sorts."""
    lines = []
    for unit, cells in rows.items():
        line, scores = {"unit": unit}, {}
        for category in categories:
            label, truth, activation, intersect = cells[category]
            iou = intersect / (activation + truth - intersect + 1e-10)
            line |= {f"{category}-{f}": v for f, v in zip(FIELDS, (label, truth, activation, intersect, iou))}
            scores[category] = iou
        best = max(categories, key=scores.get)
        lines.append(line | {"category": best, "label": cells[best][0], "score": scores[best]})
    lines.sort(key=lambda line: -line["score"])
    columns = ("unit", "category", "label", "score", *(f"{c}-{f}" for c in categories for f in FIELDS))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(lines)


def both(color, object_):
    return dict(zip(CATEGORIES, (color, object_)))


TREE = [
    {1: both(("red-c", 100, 50, 20), ("dog", 60, 50, 2)), 2: both(("red-c", 100, 40, 4), ("cat", 40, 40, 20))},
    {1: both(("red-c", 100, 50, 2), ("dog", 60, 50, 30)), 2: both(("blue-c", 90, 40, 4), ("dog", 60, 40, 10))},
    {1: both(("red-c", 100, 50, 1), ("dog", 60, 50, 1)), 2: both(("blue-c", 90, 40, 30), ("", 70, 40, 9))},
]


def tree(root, names=("epoch_0", "epoch_2", "epoch_10"), layer="layer4"):
    for name, rows in zip(names, TREE):
        write(root / name / layer / "tally.csv" if layer else root / name / "tally.csv", rows)
    return root


def ratio(truth, activation, intersect):
    return intersect / (activation + truth - intersect + 1e-10)
