"""One static, self-contained HTML page per run."""

from neurolens.report.page import write_report
from neurolens.report.sources import images_of, life_rule_of, metrics_of

__all__ = ["images_of", "life_rule_of", "metrics_of", "write_report"]
