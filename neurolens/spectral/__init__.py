"""Spectra of activations: how many directions a layer uses, and which; lazily, out of core."""

from neurolens.spectral.metrics import spectrum_metrics
from neurolens.spectral.per_layer import spectra

__all__ = ["spectra", "spectrum_metrics"]
