"""picod after SIGTERM: it serves on for a while where files are to be copied, and else ends at once."""

from __future__ import annotations

import signal

from picod import wire
from tests.support.picod import picod_process
from tests.support.waiting import LIMIT_S


def test_picod_with_files_serves_on_after_sigterm_until_a_second_one() -> None:
    with picod_process("--auth", "none", environ={wire.ENV_LINGER: "600"}) as picod:
        (picod.workspace / "note").write_text("here")
        picod.process.send_signal(signal.SIGTERM)
        for _ in range(3):
            assert picod.client.get("/api/snapshot").status_code == 200
        assert picod.process.poll() is None
        picod.process.send_signal(signal.SIGTERM)
        assert picod.process.wait(LIMIT_S) == 0


def test_picod_lingers_no_longer_than_it_was_told() -> None:
    with picod_process("--auth", "none", environ={wire.ENV_LINGER: "1"}) as picod:
        (picod.workspace / "note").write_text("here")
        picod.process.send_signal(signal.SIGTERM)
        assert picod.process.wait(LIMIT_S) == 0


def test_picod_without_files_ends_at_once() -> None:
    """Its own folder does not count: every sandbox that ran something has one."""
    with picod_process("--auth", "none", environ={wire.ENV_LINGER: "600"}) as picod:
        (picod.workspace / ".wakegate").mkdir(exist_ok=True)
        picod.process.send_signal(signal.SIGTERM)
        assert picod.process.wait(LIMIT_S) == 0
