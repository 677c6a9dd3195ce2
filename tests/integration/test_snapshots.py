"""Sessions that sleep as sealed snapshots, through a gateway as a user starts it."""

from __future__ import annotations

import base64
from pathlib import Path

from tests.support.serve import serve
from tests.support.waiting import wait_until


def test_session_hibernates_as_a_sealed_snapshot_and_outlives_the_gateway(tmp_path: Path) -> None:
    """Its files lie encrypted in the folder that was named, wake after kill -9, and follow what is written since."""
    keys = tmp_path / "keys"
    keys.touch(0o600)
    keys.write_text(base64.b64encode(b"k" * 32).decode())
    folder = tmp_path / "snapshots"
    flags = ("--snapshots", f"file://{folder}", "--snapshot-key-file", str(keys), "--warm-pool", "1")
    with serve(tmp_path / "state", *flags) as server:
        session = server.session()
        assert server.run(session, "echo first secret > note").status_code == 200
        assert server.client.post(f"/v1/sessions/{session}/hibernate").json()["state"] == "hibernated"
        (kept,) = folder.iterdir()
        assert kept.read_bytes().startswith(b"wakegate-seal-1\n")
        server.kill()

    with serve(tmp_path / "state", *flags) as server:
        reply = server.run(session, "cat note; echo second secret >> note")
        assert (reply.json()["stdout"], reply.headers["x-wakegate-start"][:4]) == ("first secret\n", "wake")
        assert server.client.post(f"/v1/sessions/{session}/hibernate").json()["state"] == "hibernated"
        (successor,) = folder.iterdir()  # the first one went when no record named it any more
        assert successor != kept
        assert server.run(session, "cat note").json()["stdout"] == "first secret\nsecond secret\n"
        server.client.delete(f"/v1/sessions/{session}")
        assert list(folder.iterdir()) == []


def test_gateway_with_other_snapshot_settings_reports_it_and_loses_nothing(tmp_path: Path) -> None:
    """Without --snapshots, with another folder, without keys: each names its setting; with the right ones it wakes."""
    keys = tmp_path / "keys"
    keys.touch(0o600)
    keys.write_text(base64.b64encode(b"k" * 32).decode())
    folder, sealing = ("--snapshots", f"file://{tmp_path}/snapshots"), ("--snapshot-key-file", str(keys))
    state = tmp_path / "state"
    with serve(state, *folder, *sealing, "--warm-pool", "0") as server:
        session = server.session()
        assert server.run(session, "echo precious > note").status_code == 200
        assert server.client.post(f"/v1/sessions/{session}/hibernate").json()["state"] == "hibernated"
    elsewhere = ("--snapshots", f"file://{tmp_path}/elsewhere", *sealing)
    for flags, named in (
        ((), "--snapshots"),
        (elsewhere, "in the store that --snapshots names"),
        (folder, "--snapshot-key-file"),
    ):
        with serve(state, *flags, "--warm-pool", "0") as server:
            for _ in range(2):
                reply = server.run(session, "ls")
                assert reply.status_code == 500
                assert named in reply.json()["error"]
            assert server.state(session)["state"] == "hibernated"
            wait_until(lambda: f"session {session} cannot wake" in server.log.read_text(), "it is in the log")
    with serve(state, *folder, *sealing, "--warm-pool", "0") as server:
        assert server.run(session, "cat note").json()["stdout"] == "precious\n"


def test_workspace_over_the_limit_keeps_its_session_awake(tmp_path: Path) -> None:
    """Told with the limit, and the session goes on with all it has."""
    flags = ("--snapshots", f"file://{tmp_path}/snapshots", "--snapshot-max-size", "64Ki", "--warm-pool", "0")
    with serve(tmp_path / "state", *flags) as server:
        session = server.session()
        assert server.run(session, "head -c 1000000 /dev/urandom > noise").status_code == 200
        reply = server.client.post(f"/v1/sessions/{session}/hibernate")
        assert (reply.status_code, reply.json()["code"]) == (413, "SNAPSHOT_TOO_LARGE")
        assert "limit of 65536 bytes (64 KiB, compressed)" in reply.json()["error"]
        assert server.run(session, "wc -c < noise").json()["stdout"].strip() == "1000000"
        assert server.state(session)["state"] == "active"
        assert list((tmp_path / "snapshots").iterdir()) == []
