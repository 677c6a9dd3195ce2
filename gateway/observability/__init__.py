"""What a gateway tells its operators: metrics, logs and traces.

Imports `core` only. Start with `counters`, where the other packages count, and `metrics`, which renders `/metrics`.
"""
