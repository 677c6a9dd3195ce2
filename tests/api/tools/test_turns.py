"""Which requests are retries, decided over what is known of a session's messages."""

from __future__ import annotations

import pytest

from gateway.api.tools.calls import Call
from gateway.api.tools.turns import RetryHints, Turn, TurnState, call_key, digest_of
from gateway.core.model import SessionId

PLAIN, RETRY, KEYED = RetryHints(), RetryHints(is_retry=True), RetryHints("a key")
ONE, TWO = digest_of("one"), digest_of("two")
EPOCHS = [digest_of("epoch", index) for index in range(9)]


def test_equal_message_after_a_delivered_answer_is_a_new_run() -> None:
    """However often it is sent."""
    state, keys = TurnState(), set()
    for epoch in EPOCHS:
        key = state.begin(ONE, PLAIN)
        state.end(ONE, key, epoch)
        keys.add(key)
    assert len(keys) == len(EPOCHS)


@pytest.mark.parametrize("hints", [PLAIN, RETRY])
def test_equal_message_while_its_answer_is_due_is_a_retry(hints: RetryHints) -> None:
    """Its client left, or asks while it runs."""
    state = TurnState()
    assert state.begin(ONE, PLAIN) == state.begin(ONE, hints)


def test_marked_retry_finds_its_run_until_another_message_comes() -> None:
    """Also after the answer was sent: it may have been lost on the way. Twice is as good as once."""
    state = TurnState()
    key = state.begin(ONE, PLAIN)
    state.end(ONE, key, EPOCHS[0])
    for epoch in EPOCHS[1:3]:
        assert state.begin(ONE, RETRY) == key
        state.end(ONE, key, epoch)
    state.end(TWO, state.begin(TWO, PLAIN), EPOCHS[3])
    assert state.begin(ONE, RETRY) != key


def test_marked_retry_finds_its_run_that_others_overtook() -> None:
    """As long as its own answer was not delivered."""
    state = TurnState()
    key = state.begin(ONE, PLAIN)
    state.end(TWO, state.begin(TWO, PLAIN), EPOCHS[0])
    assert state.begin(ONE, RETRY) == key


def test_idempotency_key_means_the_same_run_always() -> None:
    """With the same message; another message under that key is another run."""
    state = TurnState()
    key = state.begin(ONE, KEYED)
    state.end(ONE, key, EPOCHS[0])
    state.end(TWO, state.begin(TWO, PLAIN), EPOCHS[1])
    assert state.begin(ONE, KEYED) == key
    assert TurnState().begin(ONE, KEYED) == key
    assert state.begin(TWO, KEYED) != key


def test_state_survives_its_file() -> None:
    """Another gateway decides as this one would."""
    state = TurnState()
    first, second = state.begin(ONE, PLAIN), state.begin(TWO, PLAIN)
    state.end(TWO, second, EPOCHS[0])
    other = TurnState.from_json(state.to_json())
    assert other == state
    assert (other.begin(TWO, RETRY), other.begin(ONE, RETRY)) == (second, first)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"5", b"[]", b"{}", b'{"epoch": 5, "pending": {}, "answered": null}',
        b'{"epoch": "a\\r\\nx: y", "pending": {}, "answered": null}', b'{"epoch": "", "pending": [], "answered": null}',
        b'{"epoch": "", "pending": {}, "answered": ["x"]}', b'{"epoch": "", "pending": {"a": {}}, "answered": {}}',
        b'{"epoch": "", "pending": {}, "answered": {"%b": 1, "%b": 2}}' % (b"0" * 32, b"1" * 32),
    ],
)  # fmt: skip
def test_file_that_the_sessions_code_wrote_is_no_state(content: bytes) -> None:
    """Never a fault, nor a word that could end up in a header."""
    assert TurnState.from_json(content) == TurnState()


def test_pending_messages_are_bounded() -> None:
    """Of one session; the oldest go first."""
    state = TurnState()
    for index in range(100):
        state.begin(digest_of(index), PLAIN)
    assert len(state.pending) == 32


def test_key_of_a_call_is_its_sessions_alone() -> None:
    """A key that is read from one workspace leads to no other session's result."""
    call = Call("call_0", "run_shell", {"b": 1, "a": 2})
    keys = {
        call_key(Turn(SessionId(session), ONE, EPOCHS[0]), each)
        for session in ("s1", "s2")
        for each in (call, Call("call_0", "run_shell", {"a": 2, "b": 1}), Call("call_1", "run_shell", {"a": 2, "b": 1}))
    }
    assert len(keys) == 4
