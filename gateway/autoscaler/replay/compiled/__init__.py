"""The forecast of one runtime over a whole trace as machine code: the same decisions, some thirty times as fast.

A port of `Demand` and all that is behind it (experts, mixture, shadow pools, follower) onto numpy arrays and numba, for
the laboratory only. The gateway never imports it. What is right is the product's code: a change there has to be made
here as well, and tests/autoscaler/test_compiled.py, which compares both target by target, fails until it is. Without
numba (an optional extra, `compiled`) the laboratory replays with the product's own code.
"""
