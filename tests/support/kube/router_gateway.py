"""`python -m tests.support.kube.router_gateway serve ...`: a gateway that dials pods on this machine's loopback.

There are the pods of a simulated cluster, and a gateway in a real one refuses such addresses.
"""

from __future__ import annotations

from gateway.cli import main
from gateway.provider.kubernetes import pod_addresses

if __name__ == "__main__":
    setattr(pod_addresses, "problem", lambda text: "" if text.startswith("127.") else "not of this cluster")  # noqa: B010
    raise SystemExit(main())
