"""Benchmarks and load tests. Each prints ratios to a baseline that it measures in the same run.

May import everything of the gateway and picod, and tests.support. Start with `run` (scripts/loadtest) for load tests,
or with any `*_bench` (scripts/bench).
"""
