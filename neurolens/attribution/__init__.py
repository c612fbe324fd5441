"""Attributions by unit cluster: what each group of units carries of a network's answer to its input."""
