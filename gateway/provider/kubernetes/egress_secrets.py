"""Credentials of `spec.wakegate.secrets` in a cluster: Secrets beside the gateways, lent by an operator to runtimes.

Who may write a runtime names the hosts that a value goes to, so lending is the operator's alone: a Role lets gateways
read the Secret, and two annotations on it say for which runtimes, and to which hosts.

    wakegate.io/egress-runtimes: team-a/*, team-b/my-interpreter
    wakegate.io/egress-hosts: api.example.com, *.example.net
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.core.clock import Clock
from gateway.core.model import RuntimeKey, Secret
from gateway.egress.credentials import check_value, host_rules
from gateway.egress.notation import Grant
from gateway.egress.rules import uncovered
from gateway.provider.kubernetes import names, shared_objects
from gateway.provider.kubernetes.client import ApiAwayError, KubeApi, KubeError

logger = logging.getLogger(__name__)

# A value that was replaced, or is lent no more, counts this long for new connections. Asked about are Secrets that
# sandboxes use now, so the API server is asked three times a minute for each.
_FRESH_S = 20.0
_REPORT_FRESH_S = 60.0  # for statuses: a runtime that names what it may not read costs a refused request a minute
_MAX_KEPT = 1024  # names come from manifests, which people may write whom nobody trusts
_OWN = (names.KEYS_SECRET, names.AUTHORITY_SECRET)


@dataclass(slots=True)
class _Known:
    """A Secret as it was read, `None` where it is not there, or why it could not be read."""

    found: Mapping[str, Any] | None
    refused: str
    read_at: float


class LentSecrets:
    """Reads them. `namespace`: the gateways' own."""

    def __init__(self, api: KubeApi, namespace: str, clock: Clock) -> None:
        self._api, self._namespace, self._clock = api, namespace, clock
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._reading: dict[str, asyncio.Task[None]] = {}
        self._logged: OrderedDict[tuple[str, str], str] = OrderedDict()

    async def values(self, grant: Grant) -> Callable[[Secret], str]:
        """The values of a sandbox's secrets, for EgressGate.on_secrets: empty where one is not lent or not readable."""
        await asyncio.gather(*(self._learn(name) for name in {each.secret for each in grant.secrets if each.secret}))
        return lambda secret: self._value(secret, grant.runtime)

    async def problems(self, runtime: RuntimeKey, secrets: Sequence[Secret]) -> list[str]:
        """Why requests of a runtime's sandboxes get no value for some of these secrets; empty if they get all."""
        found = []
        for secret in secrets:
            if secret.secret:
                await self._learn(secret.secret, _REPORT_FRESH_S)
                try:
                    self._lent(secret, str(runtime))
                except ValueError as error:
                    found.append(f"{secret.name}: Secret {self._namespace}/{secret.secret} {error}")
        return found

    async def _learn(self, name: str, fresh_s: float = _FRESH_S) -> None:
        """Read a Secret unless it was read so shortly ago; several that ask at once ask the server once."""
        known = self._known.get(name)
        if known is not None and self._clock.monotonic() < known.read_at + fresh_s:
            return
        reading = self._reading.get(name)
        if reading is None:
            reading = self._reading[name] = asyncio.create_task(self._read(name))
            reading.add_done_callback(lambda _: self._reading.pop(name, None))
        await asyncio.shield(reading)

    async def _read(self, name: str) -> None:
        found: Mapping[str, Any] | None = None
        refused = ""
        if name in _OWN:
            refused = "is the gateways' own, and no runtime's"
        else:
            try:
                found = await shared_objects.get(self._api, names.secrets(self._namespace, name))
            except KubeError as error:
                earlier = self._known.get(name)
                if isinstance(error, ApiAwayError) and earlier is not None:
                    found, refused = earlier.found, earlier.refused  # what was lent is not taken back by an outage
                else:
                    refused = f"cannot be read: {error}"
        self._known[name] = _Known(found, refused, self._clock.monotonic())
        self._known.move_to_end(name)
        while len(self._known) > _MAX_KEPT:
            self._known.popitem(last=False)

    def _value(self, secret: Secret, runtime: str) -> str:
        try:
            value, wrong = self._lent(secret, runtime), ""
        except ValueError as error:
            value, wrong = "", str(error)
        # Once for each reason, and not with every question: sandboxes ask each five seconds.
        key = runtime, secret.name
        if wrong and self._logged.get(key) != wrong:
            logger.error(
                "secret %s of %s: Secret %s/%s %s", secret.name, runtime, self._namespace, secret.secret, wrong
            )
        self._logged[key] = wrong
        self._logged.move_to_end(key)
        while len(self._logged) > _MAX_KEPT:
            self._logged.popitem(last=False)
        return value

    def _lent(self, secret: Secret, runtime: str) -> str:
        """Raises ValueError with why not, and nothing of the value."""
        known = self._known.get(secret.secret)
        if known is None or (known.found is None and not known.refused):
            raise ValueError("is not there")
        if known.found is None:
            raise ValueError(known.refused)
        check_lent(known.found, secret, runtime)
        data = known.found.get("data") or {}
        if secret.key not in data:
            raise ValueError(f"has no field {secret.key}")
        try:
            return check_value(base64.b64decode(str(data[secret.key]), validate=True).decode("ascii"))
        except (binascii.Error, UnicodeDecodeError):
            raise ValueError(f"{secret.key}: expected one line of printable ASCII") from None
        except ValueError as error:
            raise ValueError(f"{secret.key}: {error}") from None


def check_lent(obj: Mapping[str, Any], secret: Secret, runtime: str) -> None:
    """Raise ValueError unless the annotations of a Secret lend it to this runtime, for the hosts that it names.

    `runtime`: the text of its key.
    """
    notes = (obj.get("metadata") or {}).get("annotations") or {}
    _, namespace, name = runtime.split("/", 2)
    lent_to = _listed(notes.get(names.LENT_TO))
    if not {f"{namespace}/{name}", f"{namespace}/*"} & set(lent_to):
        raise ValueError(f"is not lent to it: its annotation {names.LENT_TO} has no {namespace}/{name}")
    try:
        lent_for = [rule for host in _listed(notes.get(names.LENT_FOR)) for rule in host_rules(host)]
    except ValueError as error:
        raise ValueError(f"has a mistake in its annotation {names.LENT_FOR}: {error}") from None
    for host in secret.hosts:
        if list(uncovered(host_rules(host), lent_for)):
            raise ValueError(f"is not lent for {host}: its annotation {names.LENT_FOR} does not have it")


def _listed(text: Any) -> list[str]:
    return [each.strip() for each in str(text or "").split(",") if each.strip()]
