"""``python -m neurolens.cli``."""

from neurolens.cli import app

app(prog_name="neurolens")
