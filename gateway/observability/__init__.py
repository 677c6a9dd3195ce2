"""Metrics, logs and traces.

Imports `core` only. Start with `counters`, which the other packages write to, and `metrics`, which renders `/metrics`.
"""
