"""A typed client of Wakegate's HTTP API, synchronous and asynchronous. Stands alone: imports httpx and nothing else.

    from wakegate_client import Client

    with Client("http://127.0.0.1:8080") as gateway:
        session = gateway.create_session()
        print(gateway.execute(session["id"], ["uname", "-a"])["stdout"])
        gateway.end_session(session["id"])

`AsyncClient` has the same methods to be awaited. Answers are the JSON objects of docs/http-api.md, typed in `types`.
"""

from wakegate_client.answers import APIError, Event, UnreachableError
from wakegate_client.async_client import AsyncClient
from wakegate_client.client import Client

__all__ = ["APIError", "AsyncClient", "Client", "Event", "UnreachableError"]
