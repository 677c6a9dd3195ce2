"""The replay laboratory: recorded traces, virtual time, the same decide code, and every baseline beside it.

`traces` reads, `pool` simulates a warm pool, `predictive` and `baselines` are the policies, `lab` runs and compares
them, `report` and `plots` write it down. Imports the rest of `autoscaler` and `core`. Start with `cli`, which is
`wakegate replay`.
"""
