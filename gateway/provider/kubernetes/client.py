"""The way to the API server: kubernetes_asyncio for configuration, credentials and transport, plain dicts for objects.

Objects stay the JSON they are: the library's models cost some milliseconds a pod, which a cache of 10,000 cannot pay.
Requests are bounded in number and in time. What is retried: reads, and anything that the server reports as not begun
(429, 503 with Retry-After, 409 to a POST for a quota that changed meanwhile). A write that broke off may have happened;
it raises `OutcomeUnknownError`, and callers read the object to find out.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import orjson
from kubernetes_asyncio import client, config

from gateway.core.backoff import backoff, jittered
from gateway.core.errors import SettingsError, UnavailableError
from gateway.observability.counters import Calls

logger = logging.getLogger(__name__)

# Not a type of the API: the first event of `watch`, by which a reflector knows that it is up to date again.
OPENED = "OPENED"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
_REQUEST_TIMEOUT_S = 15.0  # the whole exchange of anything but a watch
_TRIES = 4
# Waits between the four tries: up to 0.1, 0.2 and 0.4 s, so a claim fails within a second of an outage.
_FIRST_BACKOFF_S, _MAX_BACKOFF_S = 0.1, 2.0

# A watch is silent for longer than this only if its connection is dead: servers send a bookmark about every minute.
_WATCH_IDLE_TIMEOUT_S = 100.0
# How long we ask the server to keep one open: a random time in this range, so that not all of them end at once.
_WATCH_LIFETIME_S = (240.0, 480.0)

Object = dict[str, Any]


class KubeError(UnavailableError):
    """The API server refused. `status` of HTTP as `http_status`, its `reason` word, e.g. Conflict, NotFound."""

    code = "KUBERNETES"

    def __init__(self, http_status: int, reason: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(message, retry_after=retry_after)
        self.http_status, self.reason = http_status, reason
        self.asked_to_wait = retry_after  # seconds, from Retry-After


class ApiAwayError(KubeError):
    """The API server could not be reached, or did not answer in time; nothing was changed."""

    def __init__(self, message: str) -> None:
        super().__init__(0, "Away", message)


class OutcomeUnknownError(ApiAwayError):
    """A write broke off after it was sent: it may have happened."""


class WatchExpiredError(Exception):
    """410: the version to watch from is too old; list again."""


class KubeApi:
    """Requests to one API server."""

    def __init__(self, connection: client.ApiClient, concurrency: int = 32) -> None:
        """`concurrency`: requests at once, watches not counted."""
        self._connection = connection
        self._slots = asyncio.Semaphore(concurrency)
        self.calls = Calls()  # how long requests take, and which fail, by `verb resource`

    async def aclose(self) -> None:
        """Close all connections, those of watches too."""
        await self._connection.close()

    async def get(self, path: str, **query: Any) -> Object:
        """Read an object or a list. Raises KubeError."""
        return await self._ask("GET", path, query=query)

    async def create(self, path: str, body: Object, **query: Any) -> Object:
        """POST. Raises KubeError; a name that is taken is reason AlreadyExists."""
        return await self._ask("POST", path, body, query=query)

    async def patch(self, path: str, body: Object, *, strategic: bool = False) -> Object:
        """A merge patch (RFC 7386). With metadata.resourceVersion a stale one is refused with reason Conflict.

        `strategic`: Kubernetes' own kind, in which lists such as a pod's containers are merged by name.
        """
        return await self._ask("PATCH", path, body, content_type=STRATEGIC_PATCH if strategic else MERGE_PATCH)

    async def replace(self, path: str, body: Object, **query: Any) -> Object:
        """PUT: the whole object; one that carries a stale resourceVersion is refused with reason Conflict."""
        return await self._ask("PUT", path, body, query=query)

    async def delete(self, path: str, *, uid: str | None = None, grace: int | None = None) -> None:
        """Absent, or by now another object of that name, is success. `grace` in seconds. Raises KubeError."""
        # Background: the answer does not wait until what the object owns (ReplicaSets, pods) is gone.
        body: Object = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if uid is not None:
            # The same name may belong to another object by now; without the UID that one would be deleted.
            body["preconditions"] = {"uid": uid}
        if grace is not None:
            body["gracePeriodSeconds"] = grace
        try:
            await self._ask("DELETE", path, body, repeatable=True, absent={})
        except KubeError as error:
            if uid is None or error.reason != "Conflict":
                raise

    async def watch(self, path: str, version: str, **query: Any) -> AsyncGenerator[tuple[str, Object], None]:
        """(type, object) as they come, bookmarks included, until the server ends the stream. The first is OPENED, with
        no object: the server has taken the watch.

        Raises WatchExpiredError, KubeError, ApiAwayError.
        """
        life = random.uniform(*_WATCH_LIFETIME_S)  # noqa: S311 - no secret
        query |= {"watch": "true", "allowWatchBookmarks": "true", "resourceVersion": version}
        query["timeoutSeconds"] = int(life)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5.0, sock_read=_WATCH_IDLE_TIMEOUT_S)
        try:
            response = await self._send("GET", path, query, None, "application/json", timeout)
            try:
                if response.status != 200:
                    raise _refusal(response, await response.read())
                yield OPENED, {}
                # One event is a line; a chunk may end in the middle of one.
                rest = b""
                async for piece in response.content.iter_any():
                    *lines, rest = (rest + piece).split(b"\n")
                    for line in lines:
                        yield _event(line)
            finally:
                cut(response)
        except aiohttp.ClientConnectorError as error:
            raise ApiAwayError(f"the Kubernetes API server cannot be reached: {error}") from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ApiAwayError(f"the watch on {path} broke: {error or type(error).__name__}") from error

    async def _ask(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        *,
        query: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
        repeatable: bool = False,
        absent: Object | None = None,
    ) -> Object:
        """`absent`: the answer for what is not there, which is then no failure, and not counted as one."""
        repeatable = repeatable or method == "GET"
        for attempt in range(1, _TRIES + 1):
            try:
                # A slot is held for one try, not for the wait between two: requests that wait would hold up those that
                # could go.
                async with self._slots:
                    with self.calls.timed(f"{method.lower()} {_resource(path)}"):
                        try:
                            return await self._once(method, path, query or {}, body, content_type)
                        except KubeError as error:
                            if error.http_status != 404 or absent is None:
                                raise
                            return absent
            except OutcomeUnknownError:
                if not repeatable or attempt == _TRIES:
                    raise
            except KubeError as error:
                begun = not (isinstance(error, ApiAwayError) or error.http_status in (429, 503))
                # A POST names no version: what has changed is a quota that it was to be counted in, and it was not.
                counted = method != "POST" or error.reason != "Conflict"
                if (begun and counted) or attempt == _TRIES:
                    raise
                if error.asked_to_wait:
                    await asyncio.sleep(min(error.asked_to_wait, _MAX_BACKOFF_S))
            await asyncio.sleep(jittered(backoff(attempt, first=_FIRST_BACKOFF_S, longest=_MAX_BACKOFF_S)))
        raise AssertionError("unreachable")

    async def _once(
        self, method: str, path: str, query: Mapping[str, Any], body: Object | None, content_type: str
    ) -> Object:
        timeout = aiohttp.ClientTimeout(total=_REQUEST_TIMEOUT_S, sock_connect=5.0)
        try:
            response = await self._send(method, path, query, body, content_type, timeout)
            async with response:
                data = await response.read()
        # No connection was made, so nothing was sent, and any request may be tried again. From the first byte on, the
        # server may have acted although its answer is missing: the next clause.
        except aiohttp.ClientConnectorError as error:
            raise ApiAwayError(f"the Kubernetes API server cannot be reached: {error}") from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            detail = str(error) or type(error).__name__
            raise OutcomeUnknownError(f"the Kubernetes API server did not answer {method} {path}: {detail}") from error
        if not 200 <= response.status < 300:
            raise _refusal(response, data)
        answer: Object = orjson.loads(data)
        return answer

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any],
        body: Object | None,
        content_type: str,
        timeout: aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:
        response: aiohttp.ClientResponse = await self._connection.call_api(
            path,
            method,
            query_params=list(query.items()),
            header_params={"Accept": "application/json", "Content-Type": content_type},
            body=body,
            # The library reads a pod's token again from its file as the kubelet rotates it.
            auth_settings=["BearerToken"],
            # The bytes as they come: the library would make its models of them (see above).
            _preload_content=False,
            _request_timeout=timeout,
        )
        return response


async def connect(kubeconfig: Path | None, concurrency: int = 32, *, watches: int = 64) -> KubeApi:
    """From a kubeconfig file; None: from the pod that we run in, else the user's own kubeconfig.

    `watches`: how many there may be at once.

    Raises SettingsError.
    """
    configuration = client.Configuration()
    try:
        if kubeconfig is not None:
            await config.load_kube_config(config_file=str(kubeconfig), client_configuration=configuration)
        else:
            try:
                config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
            except config.ConfigException:
                await config.load_kube_config(client_configuration=configuration)
    except (config.ConfigException, OSError, ValueError, TypeError) as error:
        where = f"--kubeconfig {kubeconfig}" if kubeconfig else "--engine kubernetes"
        raise SettingsError(
            [f"{where}: no way to a cluster: {error}; run in a pod, or name a kubeconfig file with --kubeconfig"]
        ) from error
    # A gateway keeps four watches per namespace (pods, Deployments, both kinds of runtimes): 64 connections are 16
    # namespaces.
    # Watches hold a connection each for as long as we live; requests must not wait for one of those.
    configuration.connection_pool_maxsize = concurrency + watches
    return KubeApi(client.ApiClient(configuration), concurrency)


def _resource(path: str) -> str:
    """`/api/v1/namespaces/NS/pods/NAME` as `pods`, `.../deployments/NAME/scale` as `deployments/scale`."""
    parts = path.strip("/").split("/")
    parts = parts[2:] if parts[0] == "api" else parts[3:]
    parts = parts[2:] if parts[:1] == ["namespaces"] else parts
    return "/".join(parts[:1] + parts[2:3]) or path.strip("/")


def _event(line: bytes) -> tuple[str, Object]:
    event = orjson.loads(line)
    kind, obj = event["type"], event["object"]
    if kind == "ERROR":
        # The status was 200 when the stream began, so a version that expires later is reported as an event. One that is
        # too old from the start is answered with status 410 (_refusal).
        if obj.get("code") == 410:
            raise WatchExpiredError
        raise KubeError(int(obj.get("code") or 500), obj.get("reason") or "", obj.get("message") or "watch error")
    return kind, obj


def cut(response: aiohttp.ClientResponse) -> None:
    """End a stream in its middle. `close` alone, over TLS, would keep the socket until the server says goodbye too."""
    connection = response.connection
    if connection is not None and connection.transport is not None:
        connection.transport.abort()
    response.close()


def _refusal(response: aiohttp.ClientResponse, data: bytes) -> KubeError | WatchExpiredError:
    if response.status == 410:
        return WatchExpiredError()
    try:
        status = orjson.loads(data)
        reason, message = str(status.get("reason") or ""), str(status.get("message") or "")
    except (ValueError, AttributeError):
        reason, message = "", data[:200].decode("utf-8", "replace")
    seconds = response.headers.get("retry-after", "")
    return KubeError(
        response.status,
        reason,
        message or f"the Kubernetes API server answered {response.status}",
        float(seconds) if seconds.isdigit() else None,
    )
