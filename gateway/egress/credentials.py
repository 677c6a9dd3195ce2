"""Credentials that requests get here and never inside a sandbox: where each goes, and answers without them. Pure.

Code knows a placeholder. In a request to a host of the credential, the credential's own place (a header, a parameter of
the query) is filled with the value, whatever code had put there: so code cannot use a key of its own for that host. The
placeholder is replaced in other headers too; in bodies, paths and requests to other hosts it stays what it is.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import html
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from urllib.parse import quote, quote_plus, unquote_plus

from gateway.egress.addresses import Host
from gateway.egress.http_head import Field, Head
from gateway.egress.rule_entries import parse_entry
from gateway.egress.rules import Rule

MIN_VALUE, MAX_VALUE = 8, 4096  # characters: a shorter one cannot be told from other text in an answer
PLACES = ("header", "bearer", "basic", "query")
_VALUE = re.compile(r"[!-~](?:[ -~]*[!-~])?")
_KEPT = frozenset((b"host", b"content-length", b"transfer-encoding", b"connection", b"upgrade", b"expect"))
_HELD_FROM = 4  # bytes of a value at the end of what has come, from which on the rest is waited for


@dataclass(frozen=True, slots=True)
class Credential:
    """A secret as the service has it. `value` is empty where the gateway could not read it: then nothing is sent."""

    name: str
    rules: tuple[Rule, ...]
    place: str  # of PLACES; empty: only where code wrote the placeholder
    argument: str  # name of the header or parameter, or the user of `basic`
    placeholder: str
    value: str = field(repr=False)

    def matches(self, host: Host, port: int) -> bool:
        """Whether requests to this host get it."""
        return any(rule.matches(host, port) for rule in self.rules)


def placeholder_of(runtime: str, name: str) -> str:
    """What sandboxes of a runtime see in place of a value: the same on every sandbox, so that state which sleeps and
    wakes still has it. It is no secret, and means nothing where the runtime's own policy does not.
    """
    return f"wakegate-secret-{hashlib.sha256(f'{runtime}/{name}'.encode()).hexdigest()[:24]}"


def host_rules(text: str) -> tuple[Rule, ...]:
    """The rules of a host that gets a credential: a name or *.NAME, at port 443 unless it names one.

    Raises ValueError.
    """
    bare, colon, _ = text.partition(":")
    rules = parse_entry(text if colon else f"{bare}:443")
    if any(not rule.name for rule in rules):
        raise ValueError(f"expected the name of a host, or *.NAME, got {text[:64]!r}")
    return rules


def check_value(text: str) -> str:
    """A value without the end of its line. Raises ValueError with what is wrong, and nothing of the value."""
    value = text.rstrip("\r\n")
    if not MIN_VALUE <= len(value) <= MAX_VALUE:
        raise ValueError(f"expected {MIN_VALUE} to {MAX_VALUE} characters, got {len(value)}")
    if not _VALUE.fullmatch(value):
        raise ValueError("expected one line of printable ASCII")
    return value


def fill(head: Head, credentials: Iterable[Credential]) -> tuple[list[Field], str]:
    """The fields and the target of a request with the credentials in it."""
    fields, target = list(head.fields), head.target
    for each in credentials:
        fields = [(name, value if name in _KEPT else _replaced(value, each)) for name, value in fields]
        if each.place == "query":
            target = _with_parameter(target, each.argument, each.value)
        elif each.place:
            name, content = _own_field(each)
            fields = [*((other, value) for other, value in fields if other != name), (name, content)]
    return fields, target


def _own_field(credential: Credential) -> Field:
    if credential.place == "bearer":
        return b"authorization", f"Bearer {credential.value}".encode()
    if credential.place == "basic":
        return b"authorization", b"Basic " + _basic(credential)
    return credential.argument.lower().encode(), credential.value.encode()


def _basic(credential: Credential) -> bytes:
    return base64.b64encode(f"{credential.argument}:{credential.value}".encode())


def _replaced(content: bytes, credential: Credential) -> bytes:
    """A field's value with the placeholder replaced, also within the base64 of Basic, where git and curl put it."""
    placeholder, value = credential.placeholder.encode(), credential.value.encode()
    if content[:6].lower() == b"basic ":
        try:
            inner = base64.b64decode(content[6:].strip(), validate=True)
        except binascii.Error:
            return content
        return b"Basic " + base64.b64encode(inner.replace(placeholder, value)) if placeholder in inner else content
    return content.replace(placeholder, value)


def _with_parameter(target: str, name: str, value: str) -> str:
    path, _, query = target.partition("?")
    kept = [part for part in query.split("&") if part and unquote_plus(part.partition("=")[0]) != name]
    kept.append(f"{quote(name, safe='')}={quote(value, safe='')}")
    return f"{path}?{'&'.join(kept)}"


class Mask:
    """Takes credentials out of an answer: each byte of them becomes an asterisk, so that lengths stay.

    An answer must not hold a value because its server shows what it was asked, as echo services and messages of errors
    do. Found are the value as it is, quoted for URLs, JSON and HTML, and in base64 as Basic has it. A server that means
    to give it away can write it in other ways; it had it before.
    """

    def __init__(self, credentials: Sequence[Credential]) -> None:
        forms = {form for each in credentials for form in _forms(each)}
        self._forms = sorted(forms, key=len, reverse=True)
        self._tail = b""  # what has been passed on last: a value may have begun in it
        self._held = b""

    def whole(self, data: bytes) -> bytes:
        """A whole text with every value in it replaced by asterisks."""
        for form in self._forms:
            if form in data:
                data = data.replace(form, b"*" * len(form))
        return data

    def feed(self, data: bytes) -> bytes:
        """The next bytes of a stream. What may be the beginning of a value waits for more."""
        if not self._forms:
            return data
        lead, data = len(self._tail), self.whole(self._tail + self._held + data)
        end = max(lead, self._begins(data))
        self._tail, self._held = data[max(0, end - _HELD_FROM + 1) : end], data[end:]
        return data[lead:end]

    def flush(self) -> bytes:
        """What was held back because it could have been the beginning of a value."""
        held, self._held = self._held, b""
        return held

    def _begins(self, data: bytes) -> int:
        """Where the longest beginning of a value begins with which the data ends; its end, if there is none."""
        best = len(data)
        for form in self._forms:
            at = data.find(form[:_HELD_FROM], max(0, len(data) - len(form) + 1))
            while 0 <= at < best:
                if form.startswith(data[at:]):
                    best = at
                    break
                at = data.find(form[:_HELD_FROM], at + 1)
        return best


def _forms(credential: Credential) -> set[bytes]:
    value = credential.value
    if not value:
        return set()
    encoded = {base64.b64encode(value.encode()).rstrip(b"=")}
    if credential.place == "basic":
        encoded.add(_basic(credential).rstrip(b"="))
    texts = {value, quote(value, safe=""), quote_plus(value), quote(value), json.dumps(value)[1:-1], html.escape(value)}
    return {text.encode() for text in texts} | encoded
