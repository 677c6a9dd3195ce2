"""Starts the parts of a gateway, keeps its background loops running, and ends all of it in reverse order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

from gateway import __version__
from gateway.agents.directory import FOLLOW_INTERVAL_S as AGENTS_INTERVAL_S
from gateway.app.gateway import Gateway
from gateway.app.usage import sample_interval
from gateway.core.background import cancel, every
from gateway.core.certificates import POLL_S
from gateway.core.errors import StoreUnavailableError, UnavailableError, WakegateError
from gateway.core.model import SandboxEvent
from gateway.core.settings import requires_identity
from gateway.identity.authenticator import open_authenticator
from gateway.identity.directory import FOLLOW_INTERVAL_S
from gateway.identity.oidc_keys import REFRESH_INTERVAL_S
from gateway.routing.public_ports import PublicPorts
from gateway.sessions.idleness import GATEWAY_TTL_S, HEARTBEAT_INTERVAL_S
from gateway.sessions.restorability import restore_problems

logger = logging.getLogger(__name__)

ADVISE_INTERVAL_S = 5.0
CHECKPOINT_INTERVAL_S = 1.0  # between checks of which sessions are due for a checkpoint
UNUSED_ROUTES_INTERVAL_S = 2.0
REFILL_INTERVAL_S = 0.1  # of the tokens for tenants' requests: the grain of a rate
SECRET_INTERVAL_S = 5.0  # as the sweeper writes lost records again
# Between pages of 500 records, which keep the store busy for 10 ms each. Of 10,000 hibernated sessions read without it,
# the first sweeps, and requests that wake, waited for their turn at the store: 10 ms for a sweep in place of 0.2.
_CHECK_PAUSE_S = 0.05


@asynccontextmanager
async def running(gateway: Gateway, address: str = "") -> AsyncIterator[None]:
    """Start the parts, and stop them in reverse order with the block. `address`: this gateway's URL for other ones.

    Raises WakegateError when a part cannot start.
    """
    sessions, membership = gateway.sessions, gateway.sessions.membership
    async with AsyncExitStack() as stack:
        if gateway.tracing is not None:
            stack.push_async_callback(asyncio.to_thread, gateway.tracing.close)
        if gateway.audit is not None:
            await asyncio.to_thread(gateway.audit.start)
            stack.push_async_callback(gateway.audit.aclose)
            stack.callback(gateway.events.of_gateway, "gateway.end")
            gateway.events.of_gateway("gateway.start", version=__version__)
        # The store before everything that reads it, and closed after all of that: the stack unwinds in reverse.
        await gateway.store.start()
        stack.push_async_callback(gateway.store.aclose)
        for warning in await gateway.store.warnings():
            logger.warning("%s", warning)
        if sessions.completeness is not None:
            await sessions.completeness.start()
        await gateway.secret.follow()
        await _start_identities(gateway, stack)
        if gateway.egress is not None:
            stack.push_async_callback(gateway.egress.aclose)
            gateway.egress.start()
        if gateway.pod_egress is not None:
            stack.push_async_callback(gateway.pod_egress.aclose)
        if gateway.agents is not None:
            await gateway.agents.load()
        await gateway.provider.start()
        stack.push_async_callback(gateway.provider.aclose)
        await gateway.apply_runtimes()
        # It runs once all sessions are hibernated, and while the engine can still be asked what they used.
        stack.push_async_callback(partial(_last_usage, gateway))
        # A rate needs the zero before the first event: a counter that appears with 1 shows no increase.
        for runtime in gateway.catalog.all():
            gateway.counters.of(runtime.key)  # so that failures before its first success count for this runtime
        if membership.me:
            membership.address = address
            await membership.announce()
            stack.push_async_callback(membership.leave)
            stack.push_async_callback(gateway.shutdown.notices.wait)
        # Until the last session is hibernated this gateway announces itself: silent, it would be taken for dead and
        # its sessions restored elsewhere from older snapshots.
        announcements = asyncio.create_task(
            every(membership.heartbeat_interval, partial(_announce, gateway)), name="announcements"
        )
        stack.push_async_callback(cancel, announcements)
        # Before the first request: records name the sandboxes of a process that is dead.
        await sessions.recovery.recover_all()
        stack.push_async_callback(sessions.hibernator.hibernate_all)
        stack.push_async_callback(sessions.lifecycle.aclose)
        stack.push_async_callback(sessions.resizing.aclose)
        stack.push_async_callback(sessions.opener.aclose)
        stack.push_async_callback(gateway.activator.aclose)
        await gateway.autoscaler.start()
        stack.push_async_callback(gateway.autoscaler.aclose)
        stack.push_async_callback(partial(_last_flush, gateway))
        stack.push_async_callback(sessions.sweeper.aclose)
        stack.push_async_callback(sessions.checkpointer.aclose)
        stack.push_async_callback(gateway.surfaces.aclose)
        stack.push_async_callback(gateway.tasks.runner.aclose)
        # Last in, so they are cancelled first: none of them acts on parts that are closing.
        for name, loop in _loops(gateway):
            stack.push_async_callback(cancel, asyncio.create_task(loop, name=name))
        yield


async def _start_identities(gateway: Gateway, stack: AsyncExitStack) -> None:
    """Tenants and, where requests need one, keys: from the store, and followed there from now on."""
    await gateway.tenants.follow()
    if gateway.tenants.has_rates or gateway.sessions.ownership.shared_provider:
        # Before the first request: the others take a session for unused only if they know that nobody else serves it.
        alive = await gateway.store.quotas.gateways(gateway.holder, GATEWAY_TTL_S)
        gateway.tenants.join(len(alive))
        if gateway.tenants.has_rates and len(alive) > 1:
            # Each of the others has counted this one by then, and gives tenants its part of their rates only. Rejected:
            # to serve at once, which gave a tenant of one gateway 1.5 of its rate, or to refuse it until then.
            await asyncio.sleep(FOLLOW_INTERVAL_S)
    loops = [
        ("tenants", every(FOLLOW_INTERVAL_S, partial(_follow_tenants, gateway))),
        ("request budgets", every(REFILL_INTERVAL_S, partial(_refill_budgets, gateway))),
    ]
    if requires_identity(gateway.settings):
        authenticator = await open_authenticator(
            gateway.store.documents,
            gateway.clock,
            gateway.settings.admin_key_file,
            gateway.tenants,
            gateway.issuers,
        )
        gateway.access.authenticate_with(authenticator)
        gateway.access.make_public(PublicPorts(gateway.store.get, gateway.catalog, gateway.tenants, gateway.clock))
        gateway.surfaces.keys.authenticator = gateway.surfaces.tenants.authenticator = authenticator
        loops.append(("API keys", every(FOLLOW_INTERVAL_S, authenticator.follow)))
    for name, loop in loops:
        stack.push_async_callback(cancel, asyncio.create_task(loop, name=name))


def _loops(gateway: Gateway) -> Sequence[tuple[str, Coroutine[Any, Any, None]]]:
    """What runs for as long as the gateway does, by name."""
    sessions = gateway.sessions
    return (
        ("exchanges", gateway.proxy.run_ticker()),
        ("activity", every(HEARTBEAT_INTERVAL_S, sessions.idleness.flush)),
        *_question_loop(gateway),
        ("durations", every(HEARTBEAT_INTERVAL_S, sessions.durations.catch_up)),
        ("usage", every(sample_interval(gateway.settings), gateway.usage.tick)),
        ("usage records", every(gateway.settings.usage_interval, gateway.usage.flush)),
        ("sweeper", every(gateway.settings.sweep_interval, sessions.sweeper.sweep)),
        ("checkpoints", every(CHECKPOINT_INTERVAL_S, sessions.checkpointer.run_once)),
        ("quiet routes", every(UNUSED_ROUTES_INTERVAL_S, partial(_forget_quiet, gateway))),
        ("session advice", every(ADVISE_INTERVAL_S, partial(_advise, gateway))),
        ("sandbox events", _follow_events(gateway)),
        ("kept workspaces", _check_kept(gateway)),
        ("loop lag", gateway.metrics.watch_loop()),
        ("tasks", gateway.tasks.runner.run()),
        ("schedules", gateway.tasks.scheduler.run()),
        *_agent_loops(gateway),
        *_secret_loop(gateway),
        *_certificate_loop(gateway),
        *_issuer_loop(gateway),
        *gateway.engine.background(gateway),
    )


def _agent_loops(gateway: Gateway) -> Sequence[tuple[str, Coroutine[Any, Any, None]]]:
    if gateway.agents is None:
        return ()
    return (("agents", every(AGENTS_INTERVAL_S, gateway.agents.keeper.tick)),)


def _secret_loop(gateway: Gateway) -> Sequence[tuple[str, Coroutine[Any, Any, None]]]:
    if gateway.sessions.completeness is None:
        return ()  # nobody else writes to the store
    return (("secret", every(SECRET_INTERVAL_S, gateway.secret.follow)),)


def _question_loop(gateway: Gateway) -> Sequence[tuple[str, Coroutine[Any, Any, None]]]:
    if not gateway.sessions.ownership.shared_provider:
        return ()
    return (("questions", gateway.store.questions.listen(gateway.holder, gateway.activator.is_in_use)),)


def _certificate_loop(gateway: Gateway) -> Sequence[tuple[str, Coroutine[Any, Any, None]]]:
    if (certificates := gateway.certificates) is None:
        return ()

    async def reload() -> None:
        await asyncio.to_thread(certificates.reload_if_changed)

    return (("certificates", every(POLL_S, reload)),)


async def _follow_tenants(gateway: Gateway) -> None:
    """Take over limits that were changed anywhere, and this gateway's part of each tenant's rate."""
    try:
        authenticator = gateway.surfaces.tenants.authenticator
        if await gateway.tenants.follow() and authenticator is not None:
            authenticator.forget_all()  # identities carry what counts their requests
        if gateway.session_egress is not None:
            gateway.session_egress.refresh()
        if gateway.tenants.has_rates or gateway.sessions.ownership.shared_provider:
            alive = await gateway.store.quotas.gateways(gateway.holder, GATEWAY_TTL_S)
            gateway.tenants.share_among(len(alive))
    except StoreUnavailableError as error:
        logger.debug("tenants' limits are as they were: %s", error)


async def _refill_budgets(gateway: Gateway) -> None:
    gateway.tenants.refill(gateway.clock.monotonic())


def _issuer_loop(gateway: Gateway) -> Sequence[tuple[str, Coroutine[Any, Any, None]]]:
    if (verifier := gateway.issuers) is None:
        return ()

    async def follow() -> None:
        try:
            await verifier.refresh()
        except UnavailableError as error:  # it may start with the gateway, and later
            logger.warning("%s", error)
        await every(REFRESH_INTERVAL_S, verifier.refresh)

    return (("keys of issuers", follow()),)


async def _advise(gateway: Gateway) -> None:
    await gateway.advisor.run_once(gateway.clock.now())


async def _forget_quiet(gateway: Gateway) -> None:
    if gateway.sessions.ownership.shared_provider:
        gateway.activator.forget_quiet()


async def _announce(gateway: Gateway) -> None:
    membership = gateway.sessions.membership
    # Too late once (a pause, an overloaded machine): others may have taken sessions over, whose sandboxes end here.
    if membership.me and not await membership.announce():
        await gateway.sessions.recovery.release_taken_over()


async def _check_kept(gateway: Gateway) -> None:
    """Log a warning for each reason why hibernated sessions cannot wake with these settings. Runs once."""
    try:
        async for problem in restore_problems(
            gateway.store, gateway.keeper.check, gateway.sessions.membership.me, pause_s=_CHECK_PAUSE_S
        ):
            logger.warning("%s", problem)
    except WakegateError as error:
        logger.warning("cannot check whether hibernated sessions can wake: %s", error)


async def _follow_events(gateway: Gateway) -> None:
    def record(event: SandboxEvent) -> None:
        gateway.events.of_gateway(
            "sandbox.ended", event.session_id or "", sandbox=event.sandbox_id, reason=event.reason
        )

    await gateway.sessions.losses.follow(gateway.provider.watch(), record)


async def _last_usage(gateway: Gateway) -> None:
    try:
        await gateway.usage.flush()
    except WakegateError as error:
        logger.warning("cannot write the last usage of tenants: %s", error)


async def _last_flush(gateway: Gateway) -> None:
    try:
        await gateway.sessions.idleness.flush()
    except WakegateError as error:
        logger.warning("cannot write the last activity of sessions: %s", error)
