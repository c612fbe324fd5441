"""Neurolens: the longitudinal microscope for neural networks."""

__version__ = "0.1.0"
