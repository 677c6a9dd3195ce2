"""From a target to a connection: the policy's verdict, the addresses, and dialling exactly one that was checked."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field

from gateway.egress.addresses import Address, Network, refusal, unmapped
from gateway.egress.policy import Layer, Target, Verdict, decide, may_reach_private
from gateway.egress.resolver import ResolveError, Resolver

_DIAL_TIMEOUT_S = 10.0  # for each address
_ANY_PORT = 9  # of a datagram that is never sent


class RefusedError(Exception):
    """The policy does not allow it. `verdict` says why, and what would."""

    def __init__(self, verdict: Verdict, address: str = "") -> None:
        super().__init__(verdict.text)
        self.verdict = verdict
        self.address = address


class UnreachableError(Exception):
    """It is allowed and cannot be reached. `timed_out`: no answer came in time."""

    def __init__(self, reason: str, *, timed_out: bool = False) -> None:
        super().__init__(reason)
        self.timed_out = timed_out


@dataclass(slots=True)
class Dialer:
    """Makes connections to what policies allow, at addresses that nothing forbids.

    `refused`: networks that no policy opens, by setting.
    """

    resolver: Resolver
    refused: Sequence[Network] = field(default_factory=tuple)

    async def dial(self, layers: Sequence[Layer], target: Target) -> tuple[socket.socket, str, str]:
        """A connection to the target, its address, and the rule that allows it.

        Raises RefusedError, UnreachableError.
        """
        verdict = decide(layers, target)
        if not verdict.allowed:
            raise RefusedError(verdict)
        last: Exception = UnreachableError(f"{target.host} has no address")
        for address in await self._addresses(target):
            try:
                self._check(layers, target, address)
                return await _connect(address, target), str(address), verdict.rule
            except (RefusedError, UnreachableError) as error:
                # A refusal says more than a failure, and one address that is refused does not close the others.
                # A refusal says more than that another address did not answer: it is what the operator can change.
                last = last if isinstance(last, RefusedError) else error
        raise last

    async def _addresses(self, target: Target) -> list[Address]:
        if not isinstance(target.host, str):
            return [unmapped(target.host)]
        try:
            return await self.resolver.resolve(target.host)
        except ResolveError as error:
            raise UnreachableError(str(error)) from None

    def _check(self, layers: Sequence[Layer], target: Target, address: Address) -> None:
        found = refusal(address, self.refused)
        if found is None and is_own(address):
            reason = f"{target} is refused: {address} is an address of the machine that the gateway runs on"
            raise RefusedError(Verdict(False, reason=reason), str(address))
        if found is None:
            return
        where = f"{address}" if str(address) == str(target.host) else f"it is {address}"
        if not found.private:
            reason = f"{target} is refused: {where}, {found.reason}, which no setting opens"
            raise RefusedError(Verdict(False, reason=reason), str(address))
        closed = may_reach_private(layers, address, target.port)
        if closed is not None:
            reason = f"{target} is refused: {where}, a private address"
            setting = f"to allow it, add {address} to {closed.setting}"
            raise RefusedError(Verdict(False, reason=reason, setting=setting), str(address))


def is_own(address: Address) -> bool:
    """Whether it is an address of this machine: then the kernel would send from that very address.

    Nothing is sent. Rejected: binding it, which succeeds for any address where ip_nonlocal_bind is set.
    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((str(address), _ANY_PORT))
            return str(probe.getsockname()[0]) == str(address)
    except OSError:
        return False  # no route: connecting fails with that error


async def _connect(address: Address, target: Target) -> socket.socket:
    """A connection to one address of the target. Raises UnreachableError."""
    made = socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        tune(made)
        async with asyncio.timeout(_DIAL_TIMEOUT_S):
            await asyncio.get_running_loop().sock_connect(made, (str(address), target.port))
    except TimeoutError:
        made.close()
        reason = f"{target} ({address}) did not answer within {_DIAL_TIMEOUT_S:g} s"
        raise UnreachableError(reason, timed_out=True) from None
    except OSError as error:
        made.close()
        # uvloop raises errors without the text of the number.
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise UnreachableError(f"{target} ({address}) cannot be reached: {reason}") from None
    except BaseException:
        made.close()
        raise
    return made


def tune(connection: socket.socket) -> None:
    """As connections that bytes are passed between should be: no delay, and found out when the other side is gone."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
