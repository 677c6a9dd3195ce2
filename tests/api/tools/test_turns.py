"""Which requests are retries, decided over what is known of a session's messages."""

from __future__ import annotations

import pytest

from gateway.api.tools.calls import Call
from gateway.api.tools.idempotency import KEEP_S
from gateway.api.tools.turns import KEY_LIFETIME_S, RetryHints, Turn, TurnState, call_key, digest_of
from gateway.core.errors import IdempotencyKeyReusedError
from gateway.core.model import SessionId

PLAIN, RETRY, KEYED = RetryHints(), RetryHints(is_retry=True), RetryHints("a key")
ONE, TWO = digest_of("one"), digest_of("two")
NOW = 1_700_000_000.0
EPOCHS = [digest_of("epoch", index) for index in range(9)]


def test_equal_message_after_a_delivered_answer_is_a_new_run() -> None:
    """However often it is sent."""
    state, keys = TurnState(), set()
    for epoch in EPOCHS:
        key = state.begin(ONE, PLAIN, NOW)
        state.end(ONE, key, epoch)
        keys.add(key)
    assert len(keys) == len(EPOCHS)


@pytest.mark.parametrize("hints", [PLAIN, RETRY])
def test_equal_message_while_its_answer_is_due_is_a_retry(hints: RetryHints) -> None:
    """Its client left, or asks while it runs."""
    state = TurnState()
    assert state.begin(ONE, PLAIN, NOW) == state.begin(ONE, hints, NOW)


def test_marked_retry_finds_its_run_until_another_message_comes() -> None:
    """Also after the answer was sent: it may have been lost on the way. Twice is as good as once."""
    state = TurnState()
    key = state.begin(ONE, PLAIN, NOW)
    state.end(ONE, key, EPOCHS[0])
    for epoch in EPOCHS[1:3]:
        assert state.begin(ONE, RETRY, NOW) == key
        state.end(ONE, key, epoch)
    state.end(TWO, state.begin(TWO, PLAIN, NOW), EPOCHS[3])
    assert state.begin(ONE, RETRY, NOW) != key


def test_marked_retry_finds_its_run_that_others_overtook() -> None:
    """As long as its own answer was not delivered."""
    state = TurnState()
    key = state.begin(ONE, PLAIN, NOW)
    state.end(TWO, state.begin(TWO, PLAIN, NOW), EPOCHS[0])
    assert state.begin(ONE, RETRY, NOW) == key


def test_idempotency_key_means_the_same_run_always() -> None:
    """With the same message, whatever came between."""
    state = TurnState()
    key = state.begin(ONE, KEYED, NOW)
    state.end(ONE, key, EPOCHS[0])
    state.end(TWO, state.begin(TWO, PLAIN, NOW), EPOCHS[1])
    assert state.begin(ONE, KEYED, NOW) == key
    assert TurnState().begin(ONE, KEYED, NOW) == key


def test_idempotency_key_of_another_message_is_refused_for_its_lifetime() -> None:
    """Also at the gateway that reads the file, and without a trace: the first message is still answered."""
    assert KEY_LIFETIME_S == KEEP_S
    state = TurnState()
    key = state.begin(ONE, KEYED, NOW)
    state.end(ONE, key, EPOCHS[0])
    for each in (state, TurnState.from_json(state.to_json())):
        with pytest.raises(IdempotencyKeyReusedError):
            each.begin(TWO, KEYED, NOW + KEY_LIFETIME_S - 1)
        assert each.begin(ONE, KEYED, NOW + KEY_LIFETIME_S - 1) == key
        assert each.begin(TWO, RetryHints("another key"), NOW) != key
        assert each.begin(TWO, KEYED, NOW + KEY_LIFETIME_S) != key


def test_idempotency_keys_are_bounded() -> None:
    """The latest are kept, and fit the file with everything else."""
    state = TurnState()
    for index in range(100):
        state.begin(digest_of(index), RetryHints(f"key {index}"), NOW)
    content = state.to_json()
    assert len(content) < 16 << 10
    assert TurnState.from_json(content) == state
    with pytest.raises(IdempotencyKeyReusedError):
        state.begin(ONE, RetryHints("key 99"), NOW)


def test_state_survives_its_file() -> None:
    """Another gateway decides as this one would."""
    state = TurnState()
    first, second = state.begin(ONE, PLAIN, NOW), state.begin(TWO, PLAIN, NOW)
    state.end(TWO, second, EPOCHS[0])
    other = TurnState.from_json(state.to_json())
    assert other == state
    assert (other.begin(TWO, RETRY, NOW), other.begin(ONE, RETRY, NOW)) == (second, first)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"5", b"[]", b"{}", b'{"epoch": 5, "pending": {}, "answered": null}',
        b'{"epoch": "a\\r\\nx: y", "pending": {}, "answered": null}', b'{"epoch": "", "pending": [], "answered": null}',
        b'{"epoch": "", "pending": {}, "answered": ["x"]}', b'{"epoch": "", "pending": {"a": {}}, "answered": {}}',
        b'{"epoch": "", "pending": {}, "answered": {"%b": 1, "%b": 2}}' % (b"0" * 32, b"1" * 32),
    ],
)  # fmt: skip
def test_malformed_state_file_is_ignored(content: bytes) -> None:
    """Never a fault, nor a word that could end up in a header."""
    assert TurnState.from_json(content) == TurnState()


def test_pending_messages_are_bounded() -> None:
    """Of one session; the oldest go first."""
    state = TurnState()
    for index in range(100):
        state.begin(digest_of(index), PLAIN, NOW)
    assert len(state.pending) == 32


def test_key_of_a_call_depends_on_its_session() -> None:
    """A key that is read from one workspace leads to no other session's result."""
    call = Call("call_0", "run_shell", {"b": 1, "a": 2})
    keys = {
        call_key(Turn(SessionId(session), ONE, EPOCHS[0]), each)
        for session in ("s1", "s2")
        for each in (call, Call("call_0", "run_shell", {"a": 2, "b": 1}), Call("call_1", "run_shell", {"a": 2, "b": 1}))
    }
    assert len(keys) == 4
