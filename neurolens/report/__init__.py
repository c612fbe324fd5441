"""One static, self-contained HTML page per run."""

from neurolens.report.galleries import concepts_of, detector_picture, galleries_of, unit_galleries
from neurolens.report.page import write_report
from neurolens.report.pair_images import write_images
from neurolens.report.shown_images import shown_images_of
from neurolens.report.sources import images_of, life_rule_of, metrics_of

__all__ = [
    "concepts_of",
    "detector_picture",
    "galleries_of",
    "images_of",
    "life_rule_of",
    "metrics_of",
    "shown_images_of",
    "unit_galleries",
    "write_images",
    "write_report",
]
