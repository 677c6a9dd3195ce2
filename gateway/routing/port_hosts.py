"""Host names for the ports of sessions, `{port}-{session}.{domain}`, where `--domain` is set. Pure.

A server that is shown below a path shares the gateway's origin with every other, and breaks where its pages link to
"/". Under a name of its own it has an origin of its own, and its root. Names below the domain are for ports alone: no
control surface is behind them, so a page of a sandbox that calls "/v1/sessions" calls its own server.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from gateway.core.errors import BadRequestError, SettingsError

E2B_PORTS = frozenset((b"49983", b"49999"))  # of its envd and its code interpreter
_LONGEST_LABEL = 63  # RFC 1035 2.3.4; and 253 for the whole name
_LONGEST_NAME = 253
_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_DOMAIN = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_PORT_AND_SESSION = re.compile(rb"([0-9]+)-(.+)", re.DOTALL)
# No zero in front: 8000 and 08000 would be two origins for one server, each with cookies of its own.
_PORT = re.compile(rb"[1-9][0-9]{0,4}")
_SESSION = re.compile(rb"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_MAX_SHOWN = 128


class PortHostError(BadRequestError):
    """A name below the domain that is none of a port."""

    status = 404
    code = "PORT_HOST_NOT_FOUND"


@dataclass(frozen=True, slots=True)
class PortHost:
    """The port and the session of such a name. The session need not exist."""

    port: bytes
    session: bytes


class PortHosts:
    """The names below one domain."""

    def __init__(self, domain: str) -> None:
        """Raises SettingsError for what is no domain, or leaves no place for a label before it."""
        name = domain.lower().removesuffix(".")
        # All digits: browsers take such a name for an address.
        if not _DOMAIN.fullmatch(name) or name.replace(".", "").isdigit():
            raise SettingsError([f"--domain: {domain!r} is no domain name; expected one as in sandboxes.example"])
        if len(name) > _LONGEST_NAME - _LONGEST_LABEL - 1:
            raise SettingsError([f"--domain: {domain!r} is too long for names below it"])
        self.domain = name
        self._suffix = b"." + name.encode("ascii")

    def __repr__(self) -> str:
        return f"<PortHosts *.{self.domain}>"

    def cover(self, name: bytes) -> bool:
        """Whether a name, in lower case and without a port, is below the domain."""
        return name.rstrip(b".").endswith(self._suffix)

    def read(self, name: bytes) -> PortHost:
        """The port that such a name is of. Raises PortHostError, which says what is wrong with it."""
        label = name.removesuffix(self._suffix)
        if label == name or b"." in label:  # a wildcard's certificate covers one label
            raise self._error(name, "expected one label before the domain")
        if len(label) > _LONGEST_LABEL:
            raise self._error(
                name, f"a label has at most {_LONGEST_LABEL} characters; reach that session at {_BY_PATH}"
            )
        found = _PORT_AND_SESSION.fullmatch(label)
        if found is None:
            raise self._error(name, "expected a port, '-' and a session id")
        port, session = found.groups()
        if not _PORT.fullmatch(port) or int(port) > 65535:
            raise self._error(name, "expected a port from 1 to 65535, without zeros in front")
        if not _SESSION.fullmatch(session):
            raise self._error(
                name, f"in a name a session id is of a-z, 0-9 and '-', not at its end; reach others at {_BY_PATH}"
            )
        return PortHost(port, session)

    def _error(self, name: bytes, reason: str) -> PortHostError:
        shown = repr(name[:_MAX_SHOWN].decode("latin-1"))
        return PortHostError(f"{shown} is no PORT-SESSION.{self.domain}: {reason}")


_BY_PATH = "/v1/sessions/ID/ports/PORT/ of the gateway's own name"


def read_domain(text: str) -> PortHosts | None:
    """The setting; None where it is empty. Raises SettingsError."""
    return PortHosts(text.strip()) if text.strip() else None
