"""Decides which requests are retries, so that a call is answered from a cache only if its client asks for it again.

Models reuse call ids (`call_0` in every turn), and repeat a call because its result may have changed, so neither an
equal id nor equal arguments make a retry. A message is a retry of an equal earlier one in these cases:

    Idempotency-Key: K               both have the same key, within ten minutes, whatever came between them; another
                                     message under that key is refused
    x-stainless-retry-count: N > 0   counted by the SDKs of OpenAI and Anthropic; no other message has come since the
                                     answer to the earlier one
    neither                          the earlier one is not answered yet: it still runs, or its client has left

Each message runs under a key, derived from the message and the session's *epoch*, a random number that changes whenever
an answer is delivered. An equal message in the same epoch has the same key, so caches and picod
(picod/http/idempotency.py) answer it without running it; in the next epoch it is a new run:

    epoch 1   ls (runs, client disconnects)   ls (same key: replayed, delivered)
    epoch 2   ls (new key: runs again)

The epoch is stored beside the session's files, so that other gateways, and this one after a restart, decide alike.
Rejected: to write a record before each run. Every call would pay a round trip for it, and it would find nothing that
the epoch does not find.
"""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import orjson

from gateway.api.tools.calls import Call
from gateway.core.clock import Clock
from gateway.core.errors import IdempotencyKeyReusedError, WakegateError
from gateway.core.interfaces import SandboxCaller
from gateway.core.model import SessionId

logger = logging.getLogger(__name__)

FILE = ".wakegate/tool_calls.json"  # in the workspace; not among the files that list_files shows
_TARGET = f"/api/files/{FILE}"
_MAX_SESSIONS = 4096
_MAX_PENDING = 32  # messages of one session without a delivered answer
KEY_LIFETIME_S = 600.0  # of an Idempotency-Key: as long as results are kept, here and in picod
_MAX_KEYED = 32  # Idempotency-Keys of one session
_MAX_FILE_BYTES = 16 << 10
_TIMEOUT_S = 5.0  # the file is small, and a sandbox that does not answer must not delay a call for long
_HEX = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class RetryHints:
    """What a request's headers say about earlier attempts."""

    idempotency_key: str = ""
    is_retry: bool = False  # x-stainless-retry-count above zero


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a session. Equal messages have equal digests; attempts at the same run have equal keys."""

    session_id: SessionId
    digest: str
    key: str


@dataclass(slots=True)
class TurnState:
    """The unanswered messages of one session and the last answered one. Pure: time and `new_epoch` are arguments."""

    epoch: str = ""
    pending: dict[str, str] = field(default_factory=dict)  # digest -> key of messages whose answer is due
    answered: tuple[str, str] | None = None  # the last delivered one, until another message acknowledges it
    keyed: dict[str, tuple[str, float]] = field(default_factory=dict)  # Idempotency-Key -> digest, until when it holds

    def begin(self, digest: str, hints: RetryHints, now: float) -> str:
        """Return the key of a message: a new one, or that of the attempt which it retries. `now` in epoch seconds.

        Raises IdempotencyKeyReusedError.
        """
        if hints.idempotency_key:
            self._claim(digest_of("key", hints.idempotency_key), digest, now)
        answered = self.answered if self.answered is not None and self.answered[0] == digest else None
        if hints.idempotency_key:
            key = digest_of("key", hints.idempotency_key, digest)
        elif hints.is_retry and digest in self.pending:
            key = self.pending[digest]
        elif hints.is_retry and answered is not None:
            key = answered[1]
        else:
            key = digest_of("epoch", self.epoch, digest)
        if answered is None or answered[1] != key:
            # Another message shows that the client has the answer, so it cannot be a retry's any more.
            self.answered = None
        self.pending[digest] = key
        while len(self.pending) > _MAX_PENDING:
            del self.pending[next(iter(self.pending))]
        return key

    def _claim(self, idempotency_key: str, digest: str, now: float) -> None:
        """Bind the key to this message for as long as results are kept, from its first use on."""
        bound, until = self.keyed.get(idempotency_key, (digest, 0.0))
        if until > now:
            if bound != digest:
                raise IdempotencyKeyReusedError(
                    "this Idempotency-Key was used for other tool calls in this session; use a new one for each message"
                )
            return
        self.keyed.pop(idempotency_key, None)
        self.keyed[idempotency_key] = (digest, now + KEY_LIFETIME_S)
        while len(self.keyed) > _MAX_KEYED:
            del self.keyed[next(iter(self.keyed))]

    def end(self, digest: str, key: str, new_epoch: str) -> None:
        """Record that the answer is about to be delivered, and start a new epoch."""
        self.pending.pop(digest, None)
        self.answered = (digest, key)
        self.epoch = new_epoch

    def to_json(self) -> bytes:
        """Encode the state for the file in the workspace."""
        return orjson.dumps(
            {"epoch": self.epoch, "pending": self.pending, "answered": self.answered, "keyed": self.keyed}
        )

    @classmethod
    def from_json(cls, data: bytes) -> TurnState:
        """Decode the file. Code of the session can write to it, so anything malformed gives an empty state."""
        try:
            document = orjson.loads(data)
            epoch, pending, answered = document["epoch"], document["pending"], document["answered"]
            keyed = {key: (digest, float(until)) for key, (digest, until) in document.get("keyed", {}).items()}
            words = [*pending.keys(), *pending.values(), *(answered or ()), *([epoch] if epoch else ())]
            words += [*keyed.keys(), *(digest for digest, _ in keyed.values())]
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            return cls()
        if not all(isinstance(each, str) and _HEX.fullmatch(each) for each in words) or len(pending) > _MAX_PENDING:
            return cls()
        if len(keyed) > _MAX_KEYED:
            return cls()
        if answered is None:
            return cls(epoch or "", dict(pending), None, keyed)
        if not isinstance(answered, list) or len(answered) != 2:
            return cls()
        return cls(epoch or "", dict(pending), (answered[0], answered[1]), keyed)


class Turns:
    """The states of recently used sessions, each cached here and stored in a file of its session."""

    def __init__(self, caller: SandboxCaller, clock: Clock) -> None:
        self._caller = caller
        self._clock = clock
        self._states: OrderedDict[SessionId, TurnState] = OrderedDict()

    async def begin(
        self, session_id: SessionId, calls: Sequence[Call], hints: RetryHints, *, is_new: bool = False
    ) -> Turn:
        """Start a message. `is_new`: the session was created for it, so it has no file to read.

        Raises IdempotencyKeyReusedError.
        """
        state = self._states.get(session_id)
        if state is None:
            read = TurnState() if is_new else await self._read(session_id)
            state = self._states.setdefault(session_id, read)  # a concurrent message may have stored its state first
        self._states.move_to_end(session_id)
        while len(self._states) > _MAX_SESSIONS:
            self._states.popitem(last=False)
        digest = digest_of(*((call.id, call.name, call.arguments, _problem_of(call)) for call in calls))
        return Turn(session_id, digest, state.begin(digest, hints, self._clock.now()))

    async def end(self, turn: Turn) -> None:
        """Record that the answer is about to be delivered: an equal message is a new run from now on.

        The file is written before the answer is sent, so that the client's next message finds it at any gateway.
        """
        state = self._states.setdefault(turn.session_id, TurnState())
        state.end(turn.digest, turn.key, secrets.token_hex(16))
        try:
            reply = await self._caller.call(
                turn.session_id, "PUT", _TARGET, body=state.to_json(), timeout=_TIMEOUT_S, limit=_MAX_FILE_BYTES
            )
        except WakegateError as error:
            logger.info("session %s: the state of its tool calls was not written: %s", turn.session_id, error)
            return
        if reply.status not in (200, 201):  # for example a full disk; this gateway still has the state in memory
            logger.info(
                "session %s: the state of its tool calls was not written: status %s", turn.session_id, reply.status
            )

    async def _read(self, session_id: SessionId) -> TurnState:
        try:
            reply = await self._caller.call(session_id, "GET", _TARGET, timeout=_TIMEOUT_S, limit=_MAX_FILE_BYTES)
        except WakegateError as error:
            logger.info("session %s: the state of its tool calls cannot be read: %s", session_id, error)
            return TurnState()
        return TurnState.from_json(reply.body) if reply.status == 200 else TurnState()


def call_key(turn: Turn, call: Call) -> str:
    """The key of one call of a turn, 32 hexadecimal digits.

    It includes the session's id: the turn's key may come from the file, which code of the session can set to the key of
    another session's turn to read that one's results.
    """
    return digest_of(turn.session_id, turn.key, call.id, call.name, call.arguments)


def digest_of(*parts: object) -> str:
    """A hash of JSON values, 32 hexadecimal digits; the order of an object's keys does not matter."""
    content = orjson.dumps(parts, default=dict, option=orjson.OPT_SORT_KEYS)
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _problem_of(call: Call) -> str:
    return "" if call.problem is None else call.problem.text
