"""Benchmarks: ratios measured in turn, in one run, on one machine."""
