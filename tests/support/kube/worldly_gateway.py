"""`python -m tests.support.kube.worldly_gateway serve ...`: a gateway whose egress service runs in a test's internet.

TEST_EGRESS_WRAPPER: the command that starts it there, as JSON. The port that sandboxes connect to stays the gateway's:
a listening socket belongs to the namespace in which it was made. Redis may take 20 s to answer in place of one: on a
machine with much other work it does, and what is tested here is not that.
"""

from __future__ import annotations

import json
import os
from functools import partial

from gateway import build
from gateway.cli import main
from gateway.egress.gate import EgressGate
from gateway.store import redis

if __name__ == "__main__":
    setattr(build, "EgressGate", partial(EgressGate, wrapper=json.loads(os.environ["TEST_EGRESS_WRAPPER"])))  # noqa: B010
    setattr(redis, "RedisStore", partial(redis.RedisStore, deadline=20.0))  # noqa: B010
    raise SystemExit(main())
