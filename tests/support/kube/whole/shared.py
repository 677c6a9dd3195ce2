"""The one whole cluster of a test run, started by who first asks for it."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

from tests.support.kube.whole.cluster import WholeCluster

IMAGES = "CLUSTER_IMAGES"  # the variable with the folder of images, without which there is no such cluster
_started: list[WholeCluster] = []


def shared_cluster() -> WholeCluster:
    """Two nodes that are ready, and nothing on them; until the process ends."""
    if not _started:
        folder = Path(tempfile.mkdtemp(prefix="wakegate-cluster-", dir=os.environ.get("CLUSTER_SCRATCH")))
        if "CLUSTER_KEEP" not in os.environ:
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
        one = WholeCluster(folder, Path(os.environ["KUBERNETES_BIN"]), Path(os.environ[IMAGES]))
        atexit.register(one.stop)
        one.start()
        _started.append(one)
    return _started[0]
