"""Answers SandboxClaims of agent-sandbox: each becomes a session on a warm pod, and its status names it.

Level by level, as controllers do: what is to be done follows from a claim's object and its session's record alone, and
doing it twice does no harm. The session has the claim's UID as its id, so that two gateways cannot make two of one
claim; one gateway at a time works, by a lease of the session store. A claim that goes takes its session along: a
finalizer holds it until that has ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

from gateway.core.agent_sandbox import RUNNING, SUSPENDED
from gateway.core.background import Tasks
from gateway.core.backoff import backoff, jittered
from gateway.core.clock import Clock
from gateway.core.errors import BadRequestError, NotFoundError, WakegateError, public_message
from gateway.core.interfaces import SessionStore
from gateway.core.model import Session, SessionId, SessionState
from gateway.provider.kubernetes import claim_objects as objects
from gateway.provider.kubernetes.claim_objects import FINALIZER, ClaimObject, SandboxObject
from gateway.provider.kubernetes.client import KubeApi, KubeError
from gateway.provider.kubernetes.names import SELECTOR
from gateway.provider.kubernetes.reflector import Reflector

logger = logging.getLogger(__name__)

CLAIMS_LEASE = "kubernetes-claims"
_LEASE_TTL_S = 10.0
# Between two looks at what became of the sessions, and two renewals of the lease.
_LOOK_INTERVAL_S = 2.0
# After what failed (a runtime that is not there yet, a quota that is used up), growing: 10,000 claims that cannot be
# answered are then 170 tries a second, which wait for each other.
_FIRST_RETRY_S, _LAST_RETRY_S = 2.0, 60.0
_MAX_UNDER_WAY = 16


class ClaimSessions(Protocol):
    """The sessions of claims, as the controller needs them. They belong to one tenant."""

    async def open(self, session_id: SessionId, namespace: str, manifest: Mapping[str, Any]) -> tuple[Session, str]:
        """Make the session if there is none, and give it a sandbox. Returns its runtime's image as well.

        Raises BadRequestError for a claim that cannot be answered, NotFoundError for an unknown runtime, WakegateError.
        """
        ...

    async def find(self, session_id: SessionId) -> Session | None:
        """The record; None: there is none (any more)."""
        ...

    async def versions(self, session_ids: Sequence[SessionId]) -> Mapping[SessionId, int]:
        """The versions of the records that exist."""
        ...

    async def end(self, session_id: SessionId) -> None:
        """End it; one that is not there has ended."""
        ...

    async def suspend(self, session_id: SessionId) -> None:
        """Hibernate the session of a claim whose operatingMode became Suspended."""
        ...

    async def resume(self, session_id: SessionId) -> None:
        """Wake the session of a claim whose operatingMode became Running."""
        ...


class ClaimController:
    """The claims of some namespaces. `run` follows and answers them."""

    def __init__(self, api: KubeApi, namespaces: Sequence[str], sessions: ClaimSessions, clock: Clock) -> None:
        self._api, self._sessions, self._clock = api, sessions, clock
        self._claims: dict[str, ClaimObject] = {}
        self._sandboxes: dict[str, SandboxObject] = {}  # by their claim's UID
        self._versions: Mapping[SessionId, int] = {}  # of the records, when they were looked at last
        self._due: set[str] = set()
        self._at: dict[str, float] = {}  # UIDs that are due again at a loop time
        self._failures: dict[str, int] = {}  # of UIDs, one after another
        self._under_way: set[str] = set()
        self._wake = asyncio.Event()
        self._tasks = Tasks()
        self._reflectors: list[Reflector[ClaimObject] | Reflector[SandboxObject]] = []
        for each in namespaces:
            self._reflectors.append(Reflector(api, objects.claims(each), objects.read_claim, self._on_claim))
            path, read = objects.sandboxes(each), objects.read_sandbox
            self._reflectors.append(Reflector(api, path, read, self._on_sandbox, labelSelector=SELECTOR))

    async def run(self, store: SessionStore, holder: str) -> None:
        """Follow the claims, and answer them while this gateway holds the lease. Until cancelled."""
        following = [asyncio.create_task(each.run(), name="follow claims") for each in self._reflectors]
        try:
            await self._lead(store, holder)
        finally:
            for task in following:
                task.cancel()
            await asyncio.gather(*following, return_exceptions=True)
            await self._tasks.aclose()

    async def _lead(self, store: SessionStore, holder: str) -> None:
        loop = asyncio.get_running_loop()
        leads = False
        while True:
            try:
                held = await store.acquire_lease(CLAIMS_LEASE, holder, _LEASE_TTL_S) is not None
                if held:
                    if not leads:
                        self._due.update(self._claims)
                    await self._look()
                leads = held
            except WakegateError as error:
                logger.debug("SandboxClaims: %s", error)
                leads = False
            until = loop.time() + _LOOK_INTERVAL_S
            while (left := until - loop.time()) > 0:
                if leads:
                    self._begin_due()
                self._wake.clear()
                try:
                    async with asyncio.timeout(left):
                        await self._wake.wait()
                except TimeoutError:
                    break

    async def _look(self) -> None:
        """Note the claims whose sessions have changed, or that are to be tried again."""
        bound = [claim.session_id for claim in self._claims.values() if claim.is_bound]
        versions = await self._sessions.versions(bound)
        self._due.update(str(each) for each in bound if versions.get(each) != self._versions.get(each))
        self._versions = versions
        now = asyncio.get_running_loop().time()
        self._due.update(uid for uid, at in self._at.items() if at <= now)
        self._at = {uid: at for uid, at in self._at.items() if at > now and uid in self._claims}

    def _begin_due(self) -> None:
        for uid in [each for each in self._due if each not in self._under_way]:
            if len(self._under_way) >= _MAX_UNDER_WAY:
                return
            self._due.discard(uid)
            self._under_way.add(uid)
            self._tasks.spawn(self._settle(uid), name=f"claim {uid}")

    async def _settle(self, uid: str) -> None:
        try:
            claim = self._claims.get(uid)
            if claim is None or await self._reconcile(claim):
                self._failures.pop(uid, None)
            else:
                self._try_again(uid)
        except KubeError as error:
            # It is gone or changed: the watch tells how, and that is the next try. Anything else is tried again.
            if error.http_status not in (404, 409):
                logger.warning("a SandboxClaim could not be answered, trying again: %s", error)
            self._try_again(uid)
        except WakegateError as error:
            logger.warning("a SandboxClaim could not be answered, trying again: %s", error)
            self._try_again(uid)
        except Exception:
            logger.exception("SandboxClaim %s", uid)
            self._try_again(uid)
        finally:
            self._under_way.discard(uid)
            self._wake.set()

    def _try_again(self, uid: str) -> None:
        failures = self._failures[uid] = self._failures.get(uid, 0) + 1
        delay = jittered(backoff(failures, first=_FIRST_RETRY_S, longest=_LAST_RETRY_S))
        self._at[uid] = asyncio.get_running_loop().time() + delay

    async def _reconcile(self, claim: ClaimObject) -> bool:
        """Do what is to be done for a claim. False: it has no session, and its status says why."""
        if claim.is_deleted:
            await self._take_down(claim)
            return True
        session = await self._sessions.find(claim.session_id)
        if session is None and claim.is_bound:
            return True  # it ended long ago, which the status says
        if session is None or session.state is SessionState.CREATING:
            session = await self._bind(claim)
            if session is None:
                return False
        # The same object to the end: its status says which generation was followed, and is refused if that is old.
        sandbox = self._sandboxes.get(claim.uid)
        if sandbox is not None and session.state is not SessionState.TERMINATED:
            session = await self._follow_mode(sandbox, session)
        await self._write(objects.claims, claim, objects.claim_status(claim, session, self._now()))
        if sandbox is not None:
            await self._write(objects.sandboxes, sandbox, objects.sandbox_status(sandbox, session, self._now()))
        if session.state is SessionState.TERMINATED and claim.ends_with_sandbox:
            await self._api.delete(objects.claims(claim.namespace, claim.name), uid=claim.uid)
        return True

    async def _bind(self, claim: ClaimObject) -> Session | None:
        """Make the session of a claim, and the Sandbox that stands for it. None: the status says why there is none."""
        if FINALIZER not in claim.finalizers:  # before there is anything that it would have to take down
            claim = await self._set_finalizers(claim, [*claim.finalizers, FINALIZER])
        try:
            session, image = await self._sessions.open(claim.session_id, claim.namespace, claim.manifest)
        except NotFoundError as error:
            await self._refuse(claim, "WarmPoolNotFound", error)
            return None
        except BadRequestError as error:
            await self._refuse(claim, "InvalidConfiguration", error)
            return None
        except WakegateError as error:
            await self._refuse(claim, "SandboxNotReady", error)  # clients wait for it
            return None
        try:
            made = await self._api.create(objects.sandboxes(claim.namespace), objects.make_sandbox(claim, image))
        except KubeError as error:
            if error.reason != "AlreadyExists":
                raise
        else:
            if (sandbox := objects.read_sandbox(made)) is not None:
                self._sandboxes.setdefault(claim.uid, sandbox)
        return session

    async def _refuse(self, claim: ClaimObject, reason: str, error: WakegateError) -> None:
        status = objects.waiting_status(claim, reason, public_message(error), self._now())
        await self._write(objects.claims, self._claims.get(claim.uid, claim), status)

    async def _follow_mode(self, sandbox: SandboxObject, session: Session) -> Session:
        """Hibernate or wake where somebody has changed the Sandbox's operating mode since it was looked at last.

        A session that fell asleep by itself is not woken for saying Running all the time, nor one that a request woke
        put to sleep again: what counts is the change.
        """
        if sandbox.generation <= max(1, sandbox.observed):
            return session
        if sandbox.mode == SUSPENDED and session.state is not SessionState.HIBERNATED:
            await self._sessions.suspend(session.id)
        elif sandbox.mode == RUNNING and session.state is not SessionState.ACTIVE:
            await self._sessions.resume(session.id)
        return await self._sessions.find(session.id) or session

    async def _take_down(self, claim: ClaimObject) -> None:
        await self._sessions.end(claim.session_id)
        sandbox = self._sandboxes.get(claim.uid)
        if sandbox is not None:
            await self._api.delete(objects.sandboxes(sandbox.namespace, sandbox.name), uid=sandbox.uid)
        if FINALIZER in claim.finalizers:
            await self._set_finalizers(claim, [each for each in claim.finalizers if each != FINALIZER])

    async def _set_finalizers(self, claim: ClaimObject, finalizers: list[str]) -> ClaimObject:
        body = {"metadata": {"resourceVersion": claim.version, "finalizers": finalizers}}
        written = objects.read_claim(await self._api.patch(objects.claims(claim.namespace, claim.name), body))
        if claim.uid in self._claims:
            self._claims[claim.uid] = written
        return written

    async def _write(self, path: Any, target: ClaimObject | SandboxObject, status: dict[str, Any]) -> None:
        """Write a status where it differs; conditional, so that a gateway that led before cannot put an older one."""
        if isinstance(target, ClaimObject):
            target = self._claims.get(target.uid, target)  # its finalizers may have been written meanwhile
        if any(target.status.get(name) != value for name, value in status.items()):
            body = {"metadata": {"resourceVersion": target.version}, "status": status}
            await self._api.patch(path(target.namespace, target.name, "status"), body)

    def _on_claim(self, old: ClaimObject | None, new: ClaimObject | None) -> None:
        if new is None:
            assert old is not None
            self._claims.pop(old.uid, None)
            return
        self._claims[new.uid] = new
        self._note(new.uid)

    def _on_sandbox(self, old: SandboxObject | None, new: SandboxObject | None) -> None:
        if new is None:
            assert old is not None
            self._sandboxes.pop(old.claim_uid, None)
            return
        self._sandboxes[new.claim_uid] = new
        self._note(new.claim_uid)

    def _note(self, uid: str) -> None:
        self._due.add(uid)
        self._wake.set()

    def _now(self) -> str:
        return datetime.fromtimestamp(self._clock.now(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
