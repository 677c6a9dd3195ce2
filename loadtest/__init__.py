"""Benchmarks and load. Each prints ratios against a baseline that it runs beside."""
