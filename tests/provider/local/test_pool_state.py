"""A pool's decisions, without a process: who gets what, when to start, when to hold back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.provider.local.pool_state import BACKOFF_MAX, EARLY, GIVE_UP, Book


def order(book: Book[str, str], now: float = 0.0) -> int:
    count = book.wanted(now)
    book.ordered(count)
    return count


def alive(_: str) -> bool:
    return True


def test_book_orders_what_is_missing_once() -> None:
    """What is under way already is not ordered again."""
    book = Book[str, str](3)
    assert [order(book), order(book)] == [3, 0]
    assert book.arrived("a", 0.1) is True
    assert order(book) == 0


def test_book_orders_one_more_for_a_claim_than_the_pool_lacks() -> None:
    """A claim on an empty pool has a start of its own although refills are under way."""
    book = Book[str, str](2)
    order(book)
    book.waiters.append("w")
    assert order(book) == 1


def test_book_gives_the_first_arrival_to_the_first_waiter() -> None:
    """Whichever sandbox is ready first serves the claim that came first; only then the pool fills."""
    book = Book[str, str](1)
    book.waiters.extend(["first", "second"])
    assert order(book) == 3
    assert [book.arrived(name, 0.1) for name in "abc"] == ["first", "second", True]
    assert list(book.ready) == ["c"]


def test_book_hands_out_the_oldest_and_skips_the_dead() -> None:
    """A sandbox that ended unnoticed is never handed out."""
    book = Book[str, str](3)
    book.ready.extend(["dead", "old", "new"])
    assert book.take(lambda box: box != "dead") == "old"
    assert list(book.ready) == ["new"]


def test_book_refuses_surplus() -> None:
    """An arrival beyond the target is not kept; starts nobody wants any more are counted."""
    book = Book[str, str](2)
    order(book)
    assert book.resize(1) == []
    assert book.surplus() == 1
    book.arrived("a", 0.1)
    assert book.arrived("b", 0.1) is False


def test_book_shrinks_from_the_newest() -> None:
    """The ones that have been well for longest stay."""
    book = Book[str, str](3)
    book.ready.extend(["a", "b", "c"])
    assert book.resize(1) == ["c", "b"]
    assert list(book.ready) == ["a"]


def test_book_doubles_the_pause_and_tries_one_at_a_time() -> None:
    """Failures in a row: 0.5, 1, 2, ... 30 s between tries, one try each, and a success forgets them."""
    book, now, pauses = Book[str, str](4), 0.0, []
    assert order(book, now) == 4
    for _ in range(4):
        book.failed(now, "no bwrap")
    for _ in range(5):
        assert book.retry_at is not None
        assert order(book, book.retry_at - 0.001) == 0
        pauses.append(book.retry_at - now)
        now = book.retry_at
        assert order(book, now) == 1
        book.failed(now, "no bwrap")
    assert pauses == [4.0, 8.0, 16.0, BACKOFF_MAX, BACKOFF_MAX]
    assert (book.failures, book.last_error) == (9, "no bwrap")
    book.ordered(1)
    book.arrived("a", 0.1)
    assert (book.failures, book.retry_at, book.last_error) == (0, None, "")
    assert order(book, now) == 3


def test_book_refuses_claims_only_while_it_has_given_up() -> None:
    """Early failures let claims try; after GIVE_UP in a row they hear how long to wait, until the pause is over."""
    book = Book[str, str](0)
    for count in range(1, GIVE_UP + 1):
        assert book.refusal(0.0) is None
        book.waiters.append("w")
        assert order(book) == 1
        assert book.failed(0.0, "broken") == ["w"]
        assert book.failures == count
    assert book.refusal(0.5) == 1.5
    assert book.refusal(2.0) is None


def test_failed_start_refuses_only_waiters_that_nothing_serves() -> None:
    """Of three claims with three starts, one failure refuses one claim, the first; the others keep theirs."""
    book = Book[str, str](0)
    book.waiters.extend(["a", "b", "c"])
    assert order(book) == 3
    assert book.failed(0.0, "broken") == ["a"]
    assert book.arrived("box", 0.1) == "b"
    assert book.failed(0.0, "broken") == ["c"]


def test_early_deaths_hold_the_refill_back() -> None:
    """A sandbox that comes up well and dies at once would otherwise be started for ever; starts do not forget it."""
    book = Book[str, str](1)
    for pause in (0.5, 1.0, 2.0):
        book.ordered(1)
        book.arrived("box", 0.1)
        book.died("box", 0.2, 0.0, "died")
        assert book.retry_at == pause
        assert order(book, pause - 0.001) == 0
    book.ordered(1)
    book.arrived("box", 0.1)
    book.proved(EARLY)
    assert (book.failures, book.retry_at) == (0, None)


def test_late_death_is_replaced_at_once() -> None:
    """One that lived long enough is just replaced."""
    book = Book[str, str](1)
    book.ordered(1)
    book.arrived("box", 0.1)
    book.died("box", EARLY, 100.0, "died")
    assert order(book, 100.0) == 1


def test_lead_time_is_a_quantile_of_recent_starts() -> None:
    """Nearest rank over the last starts; None before the first."""
    book = Book[str, str](200)
    assert book.lead_time(0.5) is None
    for number in range(1, 101):
        book.ordered(1)
        book.arrived(str(number), float(number))
    assert book.lead_time(0.5) == 69.0  # of 37 .. 100
    assert book.lead_time(0.9) == 94.0


@given(st.lists(st.sampled_from(["claim", "arrive", "fail", "die", "grow", "shrink", "pass"]), max_size=60))
def test_book_never_hands_a_sandbox_out_twice_and_keeps_count(steps: list[str]) -> None:
    """Whatever happens in whatever order: each sandbox goes to one place, starts are never negative nor unbounded."""
    book, now, made, claimed = Book[int, int](2), 0.0, 0, list[int]()
    book.ordered(book.wanted(now))
    for number, step in enumerate(steps):
        now += 0.1
        if step == "claim":
            box = book.take(lambda _: True)
            if box is None:
                book.waiters.append(-number)
            else:
                claimed.append(box)
        elif step == "arrive" and book.starting:
            made += 1
            if book.arrived(made, 0.1) not in (True, False):
                claimed.append(made)
        elif step == "fail" and book.starting:
            book.failed(now, "broken")
        elif step == "die" and book.ready:
            book.died(book.ready[0], 0.0, now, "died")
        elif step in ("grow", "shrink"):
            book.resize(max(0, book.target + (1 if step == "grow" else -1)))
        elif step == "pass":
            now += 40.0
        book.ordered(book.wanted(now))
        assert 0 <= book.starting <= 20 + len(steps)
        assert len(claimed) == len(set(claimed))
        assert not set(claimed) & set(book.ready)
        assert len(book.ready) <= book.target
        assert len(book.waiters) <= book.starting or book.start_failures
