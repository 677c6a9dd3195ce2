"""Which web pages and which names of this host may be used by a browser, decided from a request's head. Pure.

A gateway without authentication trusts whoever reaches its port, and the browser of a person who can reach it fetches
for any page that this person visits. Two things give such a page away: Origin (or Sec-Fetch-Site, where a browser sends
no Origin), and, when the page's own name was made to lead here (DNS rebinding), Host. Programs send neither a foreign
Origin nor a foreign Host, so they are unaffected.

The common request, a program's, costs two comparisons and one set look-up here.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from gateway.core.addresses import host_name, is_loopback
from gateway.core.errors import BadRequestError, SettingsError, UnauthorizedError, UnavailableError
from gateway.core.identity import ANONYMOUS, Identity
from gateway.core.origin_fields import names_of
from gateway.core.proxies import read_proxies
from gateway.identity.authenticator import Authenticator
from gateway.identity.peers import PeerSigner
from gateway.routing.client_rates import ClientRates
from gateway.routing.field_names import PLAIN
from gateway.routing.port_hosts import PortHost, PortHostError, read_domain
from gateway.routing.public_ports import PublicPorts
from gateway.routing.target import Target

DEFAULT_NAMESPACE = b"default"  # of a request that names none in X-Sandbox-Namespace
_DEFAULT_PORTS = {b"http": b":80", b"https": b":443"}
_OWN_FETCHES = frozenset((b"same-origin", b"none"))  # `none`: a person typed the address or opened a bookmark
_MAX_KNOWN_HOSTS = 1024  # any spelling of loopback is allowed, and there are 2^24 of those
_MAX_SHOWN = 128


class OriginError(BadRequestError):
    """A page of a site that may not use the gateway: it would act as the person before the browser."""

    status = 403
    code = "ORIGIN_NOT_ALLOWED"


class HostError(BadRequestError):
    """A Host that is none of the gateway's names (RFC 9110 15.5.20)."""

    status = 421
    code = "HOST_NOT_ALLOWED"


class AccessPolicy:
    """The rule for one gateway.

    `allowed_origins` and `allowed_hosts` are comma-separated, as set. `listens_on`: the address of --host. On loopback
    only names of this machine are served. Elsewhere any Host is, unless `allowed_hosts` names some: probes and
    balancers use addresses that the gateway cannot know. `advertise`: the URL at which other gateways reach this one.
    `strip_headers`: comma-separated; `stripped` are the names of request fields that reach no sandbox, `plain` of those
    that reach every one as they came.
    `authenticated`: every request has to say who it comes from; until `authenticate_with`, none is served.
    `trusted_proxies`: comma-separated networks; `proxies` is None without any.
    `unauthenticated_rate`: requests per second and address without a valid credential; 0: any number.
    `domain`: below it are the names of ports; `ports` is None without one.
    `routed`: namespaces of the cluster whose Sandboxes are reached by X-Sandbox-ID, through this gateway as the router.
    """

    def __init__(
        self,
        *,
        allowed_origins: str = "",
        allowed_hosts: str = "",
        listens_on: str = "127.0.0.1",
        advertise: str = "",
        strip_headers: str = "",
        trusted_proxies: str = "",
        authenticated: bool = False,
        domain: str = "",
        unauthenticated_rate: float = 0.0,
        routed: Iterable[str] = (),
    ) -> None:
        """Raises SettingsError for an origin, a network or a domain that is none, and for an own name below it."""
        self.stripped = frozenset(name.encode() for name in names_of(strip_headers))
        if authenticated:
            self.stripped |= {b"x-api-key"}  # it is a key of ours then, and no application's
        self.plain = PLAIN - self.stripped
        self.proxies = read_proxies(trusted_proxies)
        self._authenticated = authenticated
        self._rates = ClientRates(unauthenticated_rate, time.monotonic)
        self.peers: PeerSigner | None = None  # verifies what other gateways say of requests that they pass on
        self._authenticator: Authenticator | None = None
        self._public: PublicPorts | None = None
        self.origins = frozenset(_read_origins(allowed_origins))
        hosts = frozenset(host_name(each.strip().encode()) for each in allowed_hosts.split(",") if each.strip())
        self._checks_hosts = b"*" not in hosts and (bool(hosts) or is_loopback(host_name(listens_on.encode())))
        own = (listens_on, advertise.partition("://")[2].partition("/")[0])
        self._hosts = hosts | {host_name(each.encode()) for each in own if each}
        self.ports = read_domain(domain)
        for name in sorted(self._hosts):
            if self.ports is not None and self.ports.cover(name):
                raise SettingsError(
                    [f"--domain: {name.decode()} is below it, where the gateway itself is never reached"]
                )
        self.routed = frozenset(each.encode() for each in routed)
        self._known: set[bytes] = set()  # values of Host that were found to be allowed

    @property
    def is_authenticated(self) -> bool:
        """Whether requests have to say who they come from."""
        return self._authenticated

    def authenticate_with(self, authenticator: Authenticator) -> None:
        """Ask this one who requests come from."""
        self._authenticator = authenticator

    def make_public(self, ports: PublicPorts) -> None:
        """Ask this one whether a port needs a credential."""
        self._public = ports

    def identify(self, credential: bytes | None) -> Identity | None:
        """Who a request comes from, as far as memory knows; None: it has to be authenticated."""
        if not self._authenticated:
            return ANONYMOUS
        if credential is None or self._authenticator is None:
            return None
        return self._authenticator.lookup(credential)

    async def authenticate(self, credential: bytes | None, client: str = "", target: object = None) -> Identity:
        """Who a request comes from. `client`: its address, "" where it has none. `target`: where it goes, if that may
        be a port that is public.

        Raises UnauthorizedError, RateLimitError in its place for an address that comes too often, UnavailableError.
        """
        if not self._authenticated:
            return ANONYMOUS
        if self._authenticator is None:
            raise UnavailableError("this gateway is starting; try again shortly")
        try:
            return await self._authenticator.authenticate(credential)
        except UnauthorizedError:
            if self._public is not None and isinstance(target, Target):
                # After the credential has failed: with a valid one a request is its owner's, at a public port too.
                anybody = await self._public.identity(target, lambda: self._rates.refused(client))
                if anybody is not None:
                    return anybody
            self._rates.refused(client)
            raise

    def passed_on_for(self, signature: bytes, scope: Mapping[str, Any]) -> Identity | None:
        """For whom another gateway passed a request on; None: none of this store's gateways signed it."""
        if self.peers is None:
            return None
        path: bytes = scope.get("raw_path") or scope["path"].encode()
        return self.peers.verify(signature, scope.get("method", "GET"), path)

    def __repr__(self) -> str:
        return f"<AccessPolicy origins={sorted(self.origins)} hosts={sorted(self._hosts)}>"

    def check(
        self,
        host: bytes | None,
        origin: bytes | None,
        fetch_site: bytes | None,
        headers: Iterable[tuple[bytes, bytes]],
    ) -> bytes | None:
        """The origin of a page that may read the answer, None where no other site's page asks.

        `host` None: there is none, as in HTTP/1.0. Raises OriginError or HostError for a request that is refused.
        """
        if self._checks_hosts and host is not None and host not in self._known:
            self._check_host(host)
        if origin is not None:
            if not self.allows_origin(origin, host or b""):
                raise OriginError(
                    f"pages of {_shown(origin)} may not use this gateway; --allowed-origins names those that may"
                )
            return self._reader(origin, host or b"")
        elif fetch_site is not None and fetch_site.lower() not in _OWN_FETCHES:
            # Links, forms with GET, images and scripts come without an Origin; their Referer has it, and no page can
            # put another site's there.
            referer = next((value for name, value in headers if name == b"referer"), b"")
            if not self.allows_origin(b"/".join(referer.split(b"/", 3)[:3]), host or b""):
                raise OriginError(
                    "a page of another site sent the browser here: type the address, or name the page's origin in"
                    " --allowed-origins"
                )
        return None

    def port_host(self, host: bytes | None, sent_host: bytes | None) -> PortHost | None:
        """The port that a request is for by its host; None where that is not below the domain.

        `sent_host`: the Host field, where a trusted proxy names another. A page of a sandbox can send X-Forwarded-Host
        to its own server, so through a proxy that passes it on it must not lead out of the domain.
        Raises PortHostError, HostError.
        """
        if self.ports is None or not host:
            return None
        name = host_name(host)
        if not name or (b":" in name and not host.strip().startswith(b"[")):  # an IPv6 address has brackets in Host
            raise HostError(f"{_shown(host)} is no host name")
        if self.ports.cover(name):
            return self.ports.read(name)
        if sent_host is not None and self.ports.cover(host_name(sent_host)):
            raise PortHostError(f"Host is {_shown(sent_host)}, and X-Forwarded-Host or Forwarded names {_shown(host)}")
        return None

    def routes(self, sandbox: bytes | None, namespace: bytes | None, host: bytes | None) -> bool:
        """Whether a request with such header fields is for a Sandbox of a namespace that is routed."""
        if not self.routed or (sandbox is None and namespace is None):
            return False
        # Not under a name of a port: a page of one sandbox could ask for another with its reader's credentials.
        if self.ports is not None and host is not None and self.ports.cover(host_name(host)):
            return False
        return (namespace or DEFAULT_NAMESPACE) in self.routed

    def reader_among(self, headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
        """The origin of a page that may read why a request with such fields is refused."""
        fields = {name: value for name, value in headers if name in (b"host", b"origin")}
        return self._reader(fields[b"origin"], fields.get(b"host", b"")) if b"origin" in fields else None

    def allows_origin(self, origin: bytes, host: bytes) -> bool:
        """Whether pages of an origin may use the gateway: its own, this machine's, and those that are set."""
        if names_host(origin, host):
            return True
        _, slashes, authority = origin.lower().partition(b"://")
        name = host_name(authority)
        # A page of a sandbox is no page of this machine, whatever its name resolves to: --domain wakegate.localhost.
        is_ours = is_loopback(name) and not (self.ports is not None and self.ports.cover(name))
        return bool(slashes) and (is_ours or self._is_listed(origin))

    def _reader(self, origin: bytes, host: bytes) -> bytes | None:
        """An origin that may read: one that is set. Others of this machine may ask, as any program here may."""
        return origin if self._is_listed(origin) and not names_host(origin, host) else None

    def _is_listed(self, origin: bytes) -> bool:
        scheme, _, authority = origin.lower().partition(b"://")
        return normalized_origin(scheme, authority) in self.origins

    def _check_host(self, host: bytes) -> None:
        name = host_name(host)
        if self.ports is not None and self.ports.cover(name):
            return
        if name not in self._hosts and not is_loopback(name):
            raise HostError(f"{_shown(host)} is no name of this gateway; --allowed-hosts names further ones")
        if len(self._known) < _MAX_KNOWN_HOSTS:
            self._known.add(host)


def names_host(origin: bytes, host: bytes) -> bool:
    """Whether an Origin names a Host, of either scheme (TLS may end in front of us), with or without its usual port."""
    scheme, slashes, name = origin.lower().partition(b"://")
    port = _DEFAULT_PORTS.get(scheme)
    return bool(slashes and port and host) and name.removesuffix(port or b"") == host.lower().removesuffix(port or b"")


def normalized_origin(scheme: bytes, authority: bytes) -> bytes:
    """An origin, in parts and lower case, without its scheme's usual port."""
    return b"%b://%b" % (scheme, authority.removesuffix(_DEFAULT_PORTS.get(scheme, b"\0")))


def _read_origins(text: str) -> Iterable[bytes]:
    for each in text.split(","):
        if not (origin := each.strip().rstrip("/").lower()):
            continue
        scheme, slashes, authority = origin.encode().partition(b"://")
        if not slashes or not scheme or b"/" in authority or not host_name(authority):
            raise SettingsError(
                [f"--allowed-origins: {each.strip()!r} is no origin; expected e.g. https://app.example"]
            )
        yield normalized_origin(scheme, authority)


def _shown(value: bytes) -> str:
    return repr(value[:_MAX_SHOWN].decode("latin-1"))
