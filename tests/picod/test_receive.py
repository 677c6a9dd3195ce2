"""A picod that waits for the files of an agent: which it takes, and that it ends with them."""

from __future__ import annotations

import hashlib
import io
import os
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from gateway.sandbox.signing_keys import KeyRing
from tests.support.picod import ROOT
from tests.support.waiting import wait_until

pytestmark = pytest.mark.processes


def archive(**files: str) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name.replace("__", "/"))
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    return made.getvalue()


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


@contextmanager
def waiting(
    folder: Path, *wanted: tuple[Path, bytes], **environ: str
) -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    """picod with a folder for each archive."""
    uds = folder / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(uds))
        listener.listen(16)
        process = subprocess.Popen(
            [sys.executable, "-m", "picod", "--fd", str(listener.fileno())],
            cwd=ROOT,
            env={
                "PATH": os.environ["PATH"],
                "PICOD_AUTH": "none",
                "PICOD_RECEIVE": ",".join(f"{target}={digest_of(data)}" for target, data in wanted),
                **environ,
            },
            pass_fds=[listener.fileno()],
        )
    transport = httpx.HTTPTransport(uds=str(uds))
    try:
        with httpx.Client(transport=transport, base_url="http://picod", timeout=30.0, trust_env=False) as client:
            yield process, client
    finally:
        process.kill()
        process.wait()


def put(client: httpx.Client, data: bytes, digest: str = "", **headers: str) -> httpx.Response:
    return client.put(f"/api/code/{digest or digest_of(data)}", content=data, headers=headers)


def test_it_ends_once_it_has_unpacked_all_of_its_archives(tmp_path: Path) -> None:
    """Two archives, in any order; what an earlier try has left in a folder is gone."""
    code, packages = tmp_path / "app", tmp_path / "packages"
    code.mkdir()
    packages.mkdir()
    (code / "half").mkdir()
    (code / "half" / "written").write_text("by a container that was killed")
    files, environment = archive(**{"main.py": "print(1)", "a__b.txt": "deep"}), archive(**{"parcel.py": "answer = 42"})
    with waiting(tmp_path, (code, files), (packages, environment)) as (process, client):
        assert put(client, environment).status_code == 200
        assert put(client, environment).status_code == 200, "another gateway brings it, too"
        assert process.poll() is None
        assert put(client, files).json() == {"digest": digest_of(files)}
        assert process.wait(20) == 0
    assert sorted(os.listdir(code)) == ["a", "main.py"]
    assert (code / "a" / "b.txt").read_text() == "deep"
    assert os.listdir(packages) == ["parcel.py"]


def test_other_bytes_other_digests_and_broken_archives_are_refused(tmp_path: Path) -> None:
    """Nothing is left of them, and the right archive is still taken."""
    code = tmp_path / "app"
    code.mkdir()
    out = archive(**{"..__escaped": "out"})
    with waiting(tmp_path, (code, out)) as (process, client):
        assert put(client, archive(other="x"), digest_of(out)).status_code == 400
        assert put(client, archive(other="x")).status_code == 404
        assert client.get("/api/files/main.py").status_code == 404
        refused = put(client, out)
        assert (refused.status_code, process.poll()) == (400, None), refused.text
        assert "leads out" in refused.json()["error"]
    assert not (tmp_path / "escaped").exists()
    assert os.listdir(code) == []


def test_an_archive_that_unpacks_to_more_than_the_limit_is_refused(tmp_path: Path) -> None:
    """A megabyte of zeros is a kilobyte as gzip."""
    code = tmp_path / "app"
    code.mkdir()
    large = archive(zeros="\0" * (1 << 20))
    with waiting(tmp_path, (code, large), PICOD_MAX_UNPACK="100000") as (process, client):
        refused = put(client, large)
        assert refused.status_code == 400, refused.text
        assert "more than 100000 bytes" in refused.json()["error"]
        assert process.poll() is None


def test_only_a_token_for_this_pod_brings_anything(tmp_path: Path) -> None:
    """Without one, and with one for another pod: 401."""
    code = tmp_path / "app"
    code.mkdir()
    files = archive(main="print(1)")
    keys = KeyRing(tmp_path / "keys")
    keys.open()
    file = keys.public_dir / "jwks.json"
    environ = {"PICOD_AUTH": "jwt", "PICOD_KEYS_FILE": str(file), "PICOD_AUDIENCE": "pod-1"}

    def token(pod: str) -> str:
        return "Bearer " + keys.signer.sign(audience=pod, subject="", issued_at=time.time(), lifetime=60.0)

    with waiting(tmp_path, (code, files), **environ) as (process, client):
        assert put(client, files).status_code == 401
        assert put(client, files, authorization=token("pod-2")).status_code == 401
        assert put(client, files, authorization=token("pod-1")).status_code == 200
        assert process.wait(20) == 0


def test_an_end_before_the_files_came_is_a_failure(tmp_path: Path) -> None:
    """The kubelet starts the container again, and the agent not at all."""
    code = tmp_path / "app"
    code.mkdir()
    with waiting(tmp_path, (code, archive(main="1"))) as (process, client):
        wait_until(lambda: client.get("/").status_code == 404, "it listens")
        process.terminate()
        assert process.wait(20) == 1
