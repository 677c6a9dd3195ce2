"""Says that a task is over to the address that its client named: signed, and never to an address inside.

The message and its signature are those of Standard Webhooks 1.0, so that receivers have a library for it.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

import httpx
import orjson

from gateway.core.clock import Clock
from gateway.core.model import RuntimeKey
from gateway.egress.addresses import METADATA, Address, Host, Network, parse_host, refusal, unmapped
from gateway.egress.dialer import is_own
from gateway.egress.resolver import ResolveError, Resolver
from gateway.identity.shared_secret import SharedSecret
from gateway.tasks import decisions
from gateway.tasks.counts import TaskCounts
from gateway.tasks.document import task_document
from gateway.tasks.model import Task

MAX_URL = 2048  # characters
TIMEOUT_S = 10.0
_CHECK_S = 2.0  # for a name server to answer while a client waits for its task to be taken
_GONE = 410  # the receiver wants no more of these


class RefusedError(Exception):
    """The address is one that webhooks are not sent to."""


class Webhooks:
    """Signs the notices that tasks are over, and sends them to the addresses that their callers gave.

    `refused`: networks that are closed by setting; `allowed`: inside ones that the operator has opened.
    """

    def __init__(
        self,
        resolver: Resolver,
        clock: Clock,
        counts: TaskCounts,
        chance: Callable[[], float],
        *,
        refused: Sequence[Network] = (),
        allowed: Sequence[Network] = (),
    ) -> None:
        self._resolver = resolver
        self._clock = clock
        self._counts = counts
        self._chance = chance
        self._refused = refused
        self._allowed = allowed
        self._shared: SharedSecret | None = None

    def open(self, secret: SharedSecret) -> None:
        """Derive the keys from the store's secret: all its gateways sign alike."""
        self._shared = secret

    def secret(self, tenant: str, agent: RuntimeKey) -> str:
        """With what the webhooks of a tenant's tasks of an agent are signed, as Standard Webhooks writes it."""
        return "whsec_" + base64.b64encode(self._key(tenant, agent)).decode()

    def _key(self, tenant: str, agent: RuntimeKey) -> bytes:
        assert self._shared is not None  # `open` is called before the first request
        return self._shared.key(f"webhook {tenant} {agent.namespace}/{agent.name}")

    async def check(self, url: str) -> None:
        """Raise ValueError for what is no address of a webhook, or leads inside by now.

        A name that has no address may get one until it is told, and each is looked at again then.
        """
        _, host, _ = read_url(url)
        try:
            async with asyncio.timeout(_CHECK_S):
                await self._address(host)
        except RefusedError as error:
            raise ValueError(str(error)) from None
        except (ResolveError, TimeoutError):
            pass

    async def deliver(self, task: Task) -> Task:
        """Send it once. Returns the task with what became of that."""
        assert task.webhook is not None
        try:
            status = await self._send(task, task.webhook.url)
        except (RefusedError, ValueError) as error:
            self._counts.webhooks["refused"] += 1
            return decisions.undelivered(task, str(error), self._clock.now(), self._chance(), final=True)
        except (httpx.HTTPError, ResolveError, OSError) as error:
            self._counts.webhooks["failed"] += 1
            why = f"{type(error).__name__}: {error}"
            return decisions.undelivered(task, why, self._clock.now(), self._chance(), final=False)
        if 200 <= status < 300:
            self._counts.webhooks["delivered"] += 1
            return decisions.delivered(task)
        self._counts.webhooks["failed"] += 1
        why = f"the receiver answered {status}"
        return decisions.undelivered(task, why, self._clock.now(), self._chance(), final=status == _GONE)

    async def _send(self, task: Task, url: str) -> int:
        netloc, host, is_tls = read_url(url)
        address = await self._address(host)
        data = task_document(task, with_content=False)
        del data["webhook"]  # it says how often this was sent, and each try sends the same
        body = orjson.dumps({"type": f"task.{task.state}", "timestamp": task.finished_at, "data": data})
        # The address that was checked is the one that is dialled: a second look-up could have another answer.
        target = httpx.URL(url).copy_with(host=str(address))
        extensions = {"sni_hostname": str(host)} if is_tls else {}
        headers = {"host": netloc, "content-type": "application/json", "user-agent": "wakegate"}
        headers |= self._signed(task, body)
        async with (
            httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False, follow_redirects=False) as client,
            client.stream("POST", target, content=body, headers=headers, extensions=extensions) as answer,
        ):
            return answer.status_code  # its body is not read

    def _signed(self, task: Task, body: bytes) -> dict[str, str]:
        # The same for each try of one message, so that a receiver can tell; another after `retry`.
        message, at = f"{task.id}.{int(task.finished_at)}", str(int(self._clock.now()))
        signed = hmac.new(self._key(task.tenant, task.key), f"{message}.{at}.".encode() + body, hashlib.sha256)
        signature = "v1," + base64.b64encode(signed.digest()).decode()
        return {"webhook-id": message, "webhook-timestamp": at, "webhook-signature": signature}

    async def _address(self, host: Host) -> Address:
        addresses = await self._resolver.resolve(host) if isinstance(host, str) else [host]
        for address in addresses:
            self._require_outside(address)  # one that leads inside is reason enough to refuse the name
        if not addresses:
            raise ResolveError(f"{host} has no address")
        return unmapped(addresses[0])

    def _require_outside(self, address: Address) -> None:
        """Raise RefusedError for an address of this machine, of a private network, or of a metadata server."""
        address = unmapped(address)
        is_metadata = any(address in network for network in METADATA)
        if not is_metadata and any(address in network for network in self._allowed):
            return
        found = refusal(address, self._refused)
        if found is None and not is_own(address):
            return
        reason = "an address of the gateway's machine" if found is None else found.reason
        how = "" if is_metadata else "; an operator may open it with --webhook-allow"
        raise RefusedError(f"nothing is sent to {address}: {reason}{how}")


def read_url(url: str) -> tuple[str, Host, bool]:
    """Host and port as written, the host, and whether it is https. Raises ValueError."""
    if len(url) > MAX_URL or not url.isascii() or any(each <= " " for each in url):
        raise ValueError(f"expected a URL of at most {MAX_URL} characters of ASCII")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.fragment:
        raise ValueError("expected http(s)://HOST[:PORT]/PATH")
    if "@" in parts.netloc:
        raise ValueError("expected a URL without user and password; the message is signed")
    if parts.port == 0:
        raise ValueError("expected a port from 1 to 65535")
    return parts.netloc, parse_host(parts.hostname), parts.scheme == "https"
