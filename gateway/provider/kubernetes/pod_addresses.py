"""Which addresses are dialled of those that the status of somebody else's object names."""

from __future__ import annotations

import socket
from functools import lru_cache
from ipaddress import ip_address

from gateway.egress.addresses import Address, refusal


@lru_cache(maxsize=4096)
def problem(text: str) -> str:
    """Why an address is not dialled as a pod's; empty if it is.

    Whoever may write the status of a Sandbox must not thereby reach the gateway itself or a metadata server.
    """
    try:
        address = ip_address(text)
    except ValueError:
        return "the address of its pod is none"
    refused = refusal(address)
    if refused is not None and not refused.private:  # pods have private ones
        return f"the address of its pod is not dialled: {refused.reason}"
    if _is_own(address):
        return "the address of its pod is this gateway's own"
    return ""


def _is_own(address: Address) -> bool:
    """Whether it is an address of this machine, or of this pod: only those can be bound."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((str(address), 0))
        except OSError:
            return False
    return True
