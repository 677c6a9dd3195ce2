"""Fields of HTTP by which code in a sandbox could act for the gateway, or learn who its caller is. Pure.

All doors that pass an app's own requests and answers on leave them out: the paths and hosts of ports, agents, and the
APIs of other products.
"""

from __future__ import annotations

# What speaks for the whole origin, which is the gateway's: a service worker's scope above its script's folder, the data
# of other pages, TLS policies, other addresses to reach it at, error reports about all of it.
OF_THE_ORIGIN = frozenset((
    "alt-svc", "clear-site-data", "nel", "public-key-pins", "public-key-pins-report-only", "report-to",
    "service-worker-allowed", "strict-transport-security",
))  # fmt: skip


def names_of(setting: str) -> frozenset[str]:
    """The fields of a request that reach no sandbox, out of the setting `strip_headers`."""
    return frozenset(each.strip().lower() for each in setting.split(",") if each.strip())
