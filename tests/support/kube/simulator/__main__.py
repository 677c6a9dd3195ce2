"""`python -m tests.support.kube.simulator`: a cluster as a process, for benchmarks and for trying things by hand.

Prints its URL once it answers; the kubeconfig is in the folder that is named. `GET /simulator/counts` counts requests.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
from pathlib import Path

from tests.support.kube.simulator import Cluster
from tests.support.kube.simulator.kubelet import hollow_pod


async def main() -> None:
    """Run until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.kube.simulator", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the kubeconfig goes")
    parser.add_argument("--hollow", action="store_true", help="pods without processes")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--runtime", metavar="NAME", help="a claimed pod of that runtime, see --pods")
    parser.add_argument("--pods", type=int, default=0, help="so many claimed pods from the start")
    arguments = parser.parse_args()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    cluster = Cluster(hollow=arguments.hollow)
    for index in range(arguments.pods):
        cluster.objects.place("pods", hollow_pod(arguments.runtime, index))
    async with cluster.running():
        cluster.api.latency = arguments.latency
        cluster.kubeconfig(arguments.folder)
        print(cluster.url, flush=True)  # noqa: T201 - for whoever started it
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(main())
