"""Prefect flows: study in, store URL out."""
