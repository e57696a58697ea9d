"""Measurements, each a module to run by `python -m benchmarks.NAME`."""
