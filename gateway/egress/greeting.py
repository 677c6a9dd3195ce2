"""What TLS begins with, checked: the hello must name the host that was asked for."""

from __future__ import annotations

from gateway.egress.client import Client, GoneError
from gateway.egress.policy import Target
from gateway.egress.tls_hello import MAX_HELLO_BYTES, UNRECOGNIZED_NAME, server_name


async def hello_agrees(client: Client, target: Target, data: bytes) -> bool:
    """Whether the hello is complete and names the target. Raises GoneError when it names another host."""
    try:
        if len(data) > MAX_HELLO_BYTES:
            raise ValueError("its TLS hello is too large")
        name = server_name(data)
    except ValueError as error:
        client.cut(f"its TLS hello cannot be read: {error}")
        raise GoneError from None
    if name is None:
        return False
    # By address there is nothing to compare: a policy that names a network opens all that is served there.
    if isinstance(target.host, str) and name != target.host:
        shown = f"names {name[:253]}" if name else "names no server"
        client.cut(f"its TLS hello {shown}, and the connection was asked for as {target.host}")
        await client.send(UNRECOGNIZED_NAME)
        raise GoneError
    return True
