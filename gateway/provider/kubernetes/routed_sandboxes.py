"""Sandboxes that agent-sandbox's controllers manage, looked up in copies kept by watches, and woken when requests come.

Any number of gateways do this at once. A wake is a patch of `spec.operatingMode` that names the version it was made
from: of several gateways that ask at the same time one succeeds, and the others see its change. The requests of one
gateway share one attempt. Nothing is remembered of a wake but what the object says, so a gateway that dies in the
middle of one leaves nothing behind: the next request looks at the object again.

Of one that has an idle timeout, an annotation says until when it is in use at least: it is written before a request is
sent, and again as long as any is under way. sandbox_idleness.py suspends it after that time alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from gateway.core.agent_sandbox import FORMER_VERSION, SANDBOX_GROUP, VERSION, OpenedSandbox
from gateway.core.backoff import backoff, jittered
from gateway.core.clock import Clock
from gateway.core.errors import ActivationTimeoutError, NotFoundError, UnavailableError
from gateway.core.interfaces import SessionStore
from gateway.provider.kubernetes import routed_objects as objects
from gateway.provider.kubernetes.attempts import Attempts
from gateway.provider.kubernetes.claim_objects import sandboxes
from gateway.provider.kubernetes.client import ApiAwayError, KubeApi, KubeError
from gateway.provider.kubernetes.reflector import Reflector
from gateway.provider.kubernetes.routed_objects import RoutedObject
from gateway.provider.kubernetes.sandbox_idleness import IdleSandboxes

logger = logging.getLogger(__name__)

Key = tuple[str, str]  # namespace and name

# A client that was just told of a new Sandbox may ask for it before our watch has brought it.
_ARRIVAL_S = 1.0
_FIRST_LIST_S = 10.0  # of a gateway that has just started
_FIRST_RETRY_S, _LAST_RETRY_S = 0.2, 5.0
_AWAY_S = 1.0
_MARK_INTERVAL_S = 0.5
_REFUSED = (400, 401, 403, 422)  # answers to a patch after which the same one would fail again


class ClusterSandboxes:
    """The Sandboxes of some namespaces, each a tenant's. `run` follows them. Implements RoutedSandboxes."""

    def __init__(self, api: KubeApi, tenants: Mapping[str, str], clock: Clock) -> None:
        self._api, self._clock = api, clock
        self._tenants = tenants
        self._found: dict[Key, RoutedObject] = {}
        self._in_use: dict[Key, int] = {}
        self._waiting: dict[Key, set[asyncio.Future[None]]] = {}  # for the next change
        self._used: set[Key] = set()  # since the last look
        self._wakes, self._marks = Attempts(), Attempts()
        self._away_until = 0.0  # loop time; until then the API server is not asked to note what is in use
        self._reflectors = {
            each: Reflector(api, sandboxes(each), objects.read, self._on_change) for each in tenants
        }  # fmt: skip

    def __repr__(self) -> str:
        return f"<ClusterSandboxes {len(self._found)} in {sorted(self._tenants)}>"

    async def run(self) -> None:
        """Follow the Sandboxes until cancelled."""
        version = await self._served_version()
        for namespace, reflector in self._reflectors.items():
            reflector.path = sandboxes(namespace, version=version)
        following = [asyncio.create_task(each.run(), name="follow sandboxes") for each in self._reflectors.values()]
        following.append(asyncio.create_task(self._keep_in_use(), name="sandboxes in use"))
        try:
            await asyncio.gather(*following)
        finally:
            for task in following:
                task.cancel()
            await asyncio.gather(*following, return_exceptions=True)
            await self._wakes.aclose()
            await self._marks.aclose()

    async def _served_version(self) -> str:
        """The version of the API in which Sandboxes are read and changed: the newest that this server has."""
        while True:
            try:
                group = await self._api.get(f"/apis/{SANDBOX_GROUP}")
            except ApiAwayError:
                await asyncio.sleep(_AWAY_S)
            except KubeError:
                return VERSION  # there are none, or nobody may ask; the list says which
            else:
                served = {each.get("version") for each in group.get("versions") or ()}
                return FORMER_VERSION if FORMER_VERSION in served and VERSION not in served else VERSION

    async def suspend_idle(self, store: SessionStore, holder: str) -> None:
        """Suspend those that no gateway uses, until cancelled."""
        await IdleSandboxes(self._api, self._reflectors, self._clock, self._in_use).run(store, holder)

    def tenant_of(self, namespace: str) -> str:
        """The tenant of a namespace that is routed; empty for any other."""
        return self._tenants.get(namespace, "")

    def live(self, namespace: str, name: str) -> OpenedSandbox | None:
        """The Sandbox if it is ready; None: it has to be opened."""
        found = self._found.get((namespace, name))
        return None if found is None or self._lacks(found) else _opened(found)

    async def open(self, namespace: str, name: str, within: float) -> OpenedSandbox:
        """The Sandbox, once it is ready; one that is suspended is woken.

        Raises NotFoundError, ActivationTimeoutError, UnavailableError.
        """
        key = (namespace, name)
        try:
            async with asyncio.timeout(within):
                await self._arrival(key)
                while (found := self._found.get(key)) is not None:
                    if not self._lacks(found):
                        return _opened(found)
                    with self._next_change(key) as change:
                        awaited = {change, *self._attempt(found)}
                        done, _ = await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
                    for each in done:
                        each.result()  # raises what made the wake fail
        except TimeoutError:
            last = self._found.get(key)
            why = "" if last is None or not last.why else f" ({last.why})"
            raise ActivationTimeoutError(f"sandbox {name} was not ready within {within:g} s{why}") from None
        raise NotFoundError(f"sandbox {name} not found in {namespace}")

    async def _arrival(self, key: Key) -> None:
        """Wait for a Sandbox that is not known, for as long as the watch may lag. Raises UnavailableError."""
        reflector = self._reflectors[key[0]]
        with suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_LIST_S):
                await reflector.synced.wait()
        if key in self._found:
            return
        if reflector.problem or not reflector.synced.is_set():  # it may be there all the same
            raise UnavailableError("the cluster's sandboxes cannot be read at present; try again shortly")
        with self._next_change(key) as change:
            await asyncio.wait({change}, timeout=_ARRIVAL_S)

    async def changed(self, opened: OpenedSandbox, within: float) -> bool:
        """Wait until more is known of it than it was opened with. False: nothing was, within so many seconds."""
        key = (opened.namespace, opened.name)
        found = self._found.get(key)
        if found is None or (found.uid, found.version) != (opened.uid, opened.version):
            return True
        with self._next_change(key) as change:
            done, _ = await asyncio.wait({change}, timeout=within)
        return bool(done)

    @contextmanager
    def using(self, namespace: str, name: str) -> Iterator[None]:
        """While a request for it is held or under way."""
        key = (namespace, name)
        self._in_use[key] = self._in_use.get(key, 0) + 1
        try:
            yield
        finally:
            self._used.add(key)
            self._in_use[key] -= 1
            if not self._in_use[key]:
                del self._in_use[key]

    def _lacks(self, found: RoutedObject) -> bool:
        """Whether a request may not be sent to it now: it is not ready, or could be suspended any moment."""
        return not found.address or self._must_mark(found, 0.5)

    def _must_mark(self, found: RoutedObject, share: float) -> bool:
        """Whether it is not noted to be in use for this share of its idle timeout at least."""
        if found.idle_timeout is None or asyncio.get_running_loop().time() < self._away_until:
            return False
        return found.in_use_until < self._clock.now() + share * found.idle_timeout

    def _attempt(self, found: RoutedObject) -> Iterator[asyncio.Task[None]]:
        """What is done about what it lacks, unless that is its controller's."""
        if found.is_suspended:
            yield self._wakes.join(found.uid, lambda: self._patch_awake(found))
        elif found.address:
            yield self._mark(found)

    def _mark(self, found: RoutedObject) -> asyncio.Task[None]:
        return self._marks.join(found.uid, lambda: self._patch_in_use(found))

    async def _patch_in_use(self, sandbox: RoutedObject) -> None:
        """Note that it is in use. Raises UnavailableError where that is refused."""
        path = sandboxes(sandbox.namespace, sandbox.name, version=sandbox.api)
        try:
            made = await self._api.patch(path, objects.use_patch(sandbox, self._clock.now()))
        except ApiAwayError:
            # Nobody can suspend it either meanwhile, nor for an idle timeout after that (sandbox_idleness.py).
            self._away_until = asyncio.get_running_loop().time() + _AWAY_S
        except KubeError as error:
            if error.http_status in _REFUSED:
                raise UnavailableError(f"sandbox {sandbox.name}: the cluster refuses to note its use") from error
            await asyncio.sleep(_FIRST_RETRY_S)  # it is another one by now: the watch tells
        else:
            self._reflectors[sandbox.namespace].learn(made)

    async def _keep_in_use(self) -> None:
        """Have what this gateway uses be noted as in use, again and again."""
        while True:
            await asyncio.sleep(_MARK_INTERVAL_S)
            used, self._used = self._used | self._in_use.keys(), set()
            for key in used:
                found = self._found.get(key)
                if found is not None and not found.is_suspended and self._must_mark(found, 1.0):
                    self._mark(found)

    async def _patch_awake(self, sandbox: RoutedObject) -> None:
        """Patch it as long as it is suspended and somebody waits for it. Raises UnavailableError if it is refused."""
        key = (sandbox.namespace, sandbox.name)
        failures, outdated = 0, ""
        while True:
            found = self._found.get(key)
            if found is None or found.uid != sandbox.uid or not found.is_suspended or key not in self._waiting:
                return
            if found.version != outdated:
                try:
                    made = await self._api.patch(
                        sandboxes(*key, version=found.api), objects.wake_patch(found, self._clock.now())
                    )
                except KubeError as error:
                    self._note_failed_wake(found, error)
                    # Gone, or changed meanwhile, be it by its controller's status: this version would be refused again.
                    outdated = found.version if error.http_status in (404, 409) else ""
                else:
                    self._reflectors[sandbox.namespace].learn(made)
                    return
            failures += 1
            if self._found.get(key) is found:
                with self._next_change(key) as change:
                    delay = jittered(backoff(failures, first=_FIRST_RETRY_S, longest=_LAST_RETRY_S))
                    await asyncio.wait({change}, timeout=delay)

    def _note_failed_wake(self, found: RoutedObject, error: KubeError) -> None:
        """Log why a patch failed. Raises UnavailableError where the same one would be refused for good."""
        name = f"{found.namespace}/{found.name}"
        if error.http_status in _REFUSED:
            logger.warning("sandbox %s cannot be woken: %s", name, error)
            raise UnavailableError(f"sandbox {found.name} cannot be woken: the cluster refuses it") from error
        if error.http_status not in (404, 409):
            logger.warning("sandbox %s is not woken yet, trying again: %s", name, error)

    def _on_change(self, old: RoutedObject | None, new: RoutedObject | None) -> None:
        if new is not None:
            self._found[new.namespace, new.name] = new
            if new.fault and (old is None or old.fault != new.fault):
                logger.warning("%s/%s: %s: %s", new.namespace, new.name, objects.IDLE_TIMEOUT, new.fault)
        elif old is not None and (found := self._found.get((old.namespace, old.name))) and found.uid == old.uid:
            del self._found[old.namespace, old.name]
        for each in filter(None, (new or old,)):
            for waiter in self._waiting.get((each.namespace, each.name), ()):
                if not waiter.done():
                    waiter.set_result(None)

    @contextmanager
    def _next_change(self, key: Key) -> Iterator[asyncio.Future[None]]:
        """A future that the next change of a Sandbox completes."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiters = self._waiting.setdefault(key, set())
        waiters.add(waiter)
        try:
            yield waiter
        finally:
            waiter.cancel()
            waiters.discard(waiter)
            if not waiters and self._waiting.get(key) is waiters:
                del self._waiting[key]


def _opened(found: RoutedObject) -> OpenedSandbox:
    return OpenedSandbox(found.namespace, found.name, found.uid, found.version, found.address)
