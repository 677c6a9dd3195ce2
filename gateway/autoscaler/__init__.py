"""Sizes each runtime's warm pool just ahead of demand: observe -> forecast -> decide -> act.

The pure half has no I/O and no clock: `window` counts, `rates`, `empirical` and `seasonal` forecast, `mixture` weighs
the forecasters, `shadow` and `follower` learn how much to stock, `scaler` decides. The other half runs in a gateway:
`signal` collects claims, `runner` ticks on the leader, `sessions` advises on single sessions. `replay` runs the pure
half over recorded traces. Imports `sessions` and `core`; start with `pool`. docs/autoscaler.md has the method and
measurements.
"""

import os

# BLAS looks for threads to share each product with, and here a product has some thousand numbers: with one thread, a
# tick of a runtime takes a tenth less time. Read once, when numpy is imported. Sandboxes do not inherit it.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
