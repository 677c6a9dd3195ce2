"""Sizes each runtime's warm pool just ahead of demand: observe -> forecast -> decide -> act.

The pure half, no I/O and no clock: `window` counts, `rates`, `empirical` and `seasonal` forecast, `mixture` weighs the
forecasters, `shadow` learns how much to stock, `scaler` decides. The other half lives in a gateway: `signal` gathers
claims, `runner` ticks on the leader and tells people why, `sessions` advises. `replay` runs the pure half over recorded
traces. Imports `sessions` and `core`; start with `pool`. docs/autoscaler.md has the method and what it was measured to
do.
"""

import os

# BLAS looks for threads to share work with before each product, and here each is one of some thousand numbers: without
# threads a look at a runtime takes a tenth less time. Read when numpy is imported first; sandboxes get none of it.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
