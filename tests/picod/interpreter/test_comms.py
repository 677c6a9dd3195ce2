"""Messages of comms in a run's stream, and silent runs."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import pytest

from tests.support.interpreters import events, interpreter_process, printed, run_code
from tests.support.picod import Executor

OPEN = "from comm import create_comm\nprint('first')\nc = create_comm(target_name='w', data={'a': 1}, buffers=[b'raw'])"


@pytest.fixture(scope="module")
def picod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Executor]:
    """One picod for all tests of this module."""
    with interpreter_process(tmp_path_factory.mktemp("home")) as executor:
        yield executor


def test_messages_of_comms_come_to_who_asks_for_them(picod: Executor) -> None:
    """After what was printed before them, with their raw data; to nobody else, and in no answer of one piece."""
    for comms, expected in ((True, ["w"]), (False, [])):
        body = {"code": OPEN, "stream": True, "comms": comms}
        with picod.client.stream("POST", "/api/run_code", json=body) as reply:
            heard = list(events(reply))
        opened = [each.data for each in heard if each.kind == "comm"]
        assert [each["content"]["target_name"] for each in opened] == expected
        for each in opened:
            assert each["type"] == "comm_open"
            assert each["content"]["data"] == {"a": 1}
            assert [base64.b64decode(one) for one in each["buffers"]] == [b"raw"]
            before = heard[: [one.kind for one in heard].index("comm")]
            assert printed(before) == "first\n"
    assert run_code(picod, OPEN, comms=True)["results"] == []


def test_silent_run_has_no_number_and_no_value(picod: Executor) -> None:
    """What it prints and does stays."""
    first = run_code(picod, "1")["execution_count"]
    silent = run_code(picod, "print('said'); x = 5\nx", silent=True)
    assert (silent["stdout"], silent["results"], silent["execution_count"]) == ("said\n", [], None)
    after = run_code(picod, "x")
    assert after["results"][0]["text/plain"] == "5"
    assert after["execution_count"] == first + 1
