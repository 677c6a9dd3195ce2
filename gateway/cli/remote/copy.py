"""cp: files, folders and streams, into a session and out of it."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tarfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Annotated, Any

import typer

from gateway.cli.remote.connection import over_api
from gateway.cli.remote.progress import Advance, transfer
from gateway.cli.remote.screen import note, plain
from gateway.core.errors import SettingsError
from gateway.core.tar import read_tar
from wakegate_client import APIError, Client, UnreachableError
from wakegate_client.calls import file_path, in_sandbox, quoted

_CHUNK_BYTES = 256 << 10
_WORKSPACE = "/workspace"
# No slash in an id: `./a:b` and `/tmp/a:b` are files of this machine whose names have a colon.
_REMOTE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,127}):(.*)", re.DOTALL)


@over_api
def cp(
    gateway: Client,
    source: Annotated[str, typer.Argument(metavar="SOURCE", show_default=False)],
    destination: Annotated[str, typer.Argument(metavar="TARGET", show_default=False)],
) -> None:
    """Copy a file, a folder or a stream. ID:PATH is in a session, - is standard input or output.

    A folder's contents go into TARGET; with a slash at its end, into a folder of the same name below it. Paths of a
    session are below /workspace. A folder that goes to - is a tar.

    \b
    wakegate cp data.csv ID:data.csv
    wakegate cp ID:results/ .
    wakegate cp src ID:project
    wakegate cp ID:project - | tar t
    tar c . | wakegate cp - ID:all.tar
    """
    there, here = _REMOTE.fullmatch(destination), _REMOTE.fullmatch(source)
    if bool(there) == bool(here):
        raise SettingsError(["cp: one of the two has to be ID:PATH, and the other a path of this machine or -"])
    if there is not None:
        _upload(gateway, source, there[1], _in_workspace(there[2]))
    elif here is not None:
        _download(gateway, here[1], _in_workspace(here[2]), destination)


def _in_workspace(path: str) -> str:
    """A path of a session as the API takes it, from its workspace on. Raises SettingsError for one elsewhere."""
    # The API takes /etc/x for etc/x in the workspace, as AgentCube's does: who copies to /etc means another file.
    if not path.startswith("/"):
        return path
    if path != _WORKSPACE and not path.startswith(_WORKSPACE + "/"):
        raise SettingsError([f"cp: {path} is not below {_WORKSPACE}; `wakegate exec` reaches other files"])
    return path.removeprefix(_WORKSPACE).lstrip("/")


def _upload(gateway: Client, source: str, session: str, path: str) -> None:
    if source == "-":
        if path in ("", ".") or path.endswith("/"):
            raise SettingsError(["cp: standard input has no name; name a file behind the colon"])
        with transfer("standard input", None) as advance:
            gateway.write_file(session, path, _chunks(sys.stdin.buffer, advance))
        return
    here = Path(source)
    # As cp does it: into a folder under its own name. `resolve`, as `..` and `.` have none.
    if path in ("", ".") or path.endswith("/"):
        path = str(PurePosixPath(path or ".") / here.resolve().name)
    if not here.is_dir():
        with open(here, "rb") as file, transfer(here.name, os.fstat(file.fileno()).st_size) as advance:
            gateway.write_file(session, path, _chunks(file, advance))
        return
    gateway.send(in_sandbox("POST", session, "/api/fs/mkdir", json={"path": path, "parents": True}))
    with transfer(here.name, None) as advance:
        params = {"path": path, "overwrite": "true"}
        gateway.send(
            in_sandbox("PUT", session, "/api/fs/archive", params=params, content=_tar_of(here, advance), slow=True)
        )


def _tar_of(folder: Path, advance: Advance) -> Iterator[bytes]:
    """A tar of what is in a folder, made by a thread while it is read."""
    # A pipe, which holds 64 KiB: the folder is neither in memory nor, as an archive beside it, once more on the disk.
    # tarfile writes and httpx reads, each when it wants to, so one of them needs a thread.
    reading, writing = os.pipe()
    failure: list[OSError] = []

    def write() -> None:
        try:
            with open(writing, "wb") as out, tarfile.open(fileobj=out, mode="w|") as tar:
                tar.add(folder, arcname=".")
        except BrokenPipeError:
            pass  # the upload has ended before
        except OSError as error:
            failure.append(error)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    with open(reading, "rb") as file:
        yield from _chunks(file, advance)
    thread.join()
    if failure:
        raise failure[0]


def _download(gateway: Client, session: str, path: str, target: str) -> None:
    stat = _stat(gateway, session, path)
    if stat.get("type") == "directory" or stat.get("is_dir"):
        _download_folder(gateway, session, path, target)
        return
    headers = {"x-session-id": quoted(session)}
    with gateway.stream("GET", file_path(path), headers=headers) as response:
        size = response.headers.get("content-length")
        with transfer(path, int(size) if size else None) as advance:
            if target == "-":
                _print(response.iter_bytes(_CHUNK_BYTES), advance)
                return
            here = Path(target)
            if here.is_dir() or target.endswith("/"):
                here = here / _safe_name(path)
            _require_folder(here.parent)
            # Beside it and renamed: a copy that breaks off leaves the file that was here, not the half of another.
            # Not named by it: a name may have 255 bytes.
            half = here.with_name(f".wakegate-cp.{os.getpid()}")
            try:
                with open(half, "xb") as file:
                    for chunk in response.iter_bytes(_CHUNK_BYTES):
                        file.write(chunk)
                        advance(len(chunk))
                half.replace(here)
            finally:
                half.unlink(missing_ok=True)


def _stat(gateway: Client, session: str, path: str) -> dict[str, Any]:
    return gateway.send(in_sandbox("GET", session, "/api/fs/stat", params={"path": path or ".", "follow": "true"}))


def _safe_name(path: str) -> str:
    name = PurePosixPath(path).name
    if not name or name in (".", "..") or "\0" in name:
        raise SettingsError([f"cp: {plain(path)} has no name for a file here; name TARGET"])
    return name


def _require_folder(folder: Path) -> None:
    """A target with a slip in it makes no folders all the way down, as with cp."""
    if not folder.is_dir():
        raise SettingsError([f"cp: there is no folder {folder}"])


def _download_folder(gateway: Client, session: str, path: str, target: str) -> None:
    options = {"headers": {"x-session-id": quoted(session)}, "params": {"path": path or ".", "format": "tar"}}
    if target == "-":
        with gateway.stream("GET", "/api/fs/archive", **options) as response, transfer(path or ".", None) as advance:
            _print(response.iter_bytes(_CHUNK_BYTES), advance)
        return
    folder = Path(target)
    if target.endswith("/"):
        folder = folder / _safe_name(path)
    _require_folder(folder.parent)
    with gateway.stream("GET", "/api/fs/archive", **options) as response, transfer(path or ".", None) as advance:
        source = _Reader(response.iter_bytes(_CHUNK_BYTES), advance)
        try:
            left_out = unpack(source, folder)
        except tarfile.TarError as error:
            raise UnreachableError(f"the archive broke off: {error}") from error
    if left_out:
        note(f"left out {left_out} links and special files: a sandbox's links may lead anywhere on this machine")


def _print(chunks: Iterable[bytes], advance: Advance) -> None:
    for chunk in chunks:
        sys.stdout.buffer.write(chunk)
        advance(len(chunk))
    sys.stdout.buffer.flush()


def unpack(source: IO[bytes] | _Reader, folder: Path) -> int:
    """Files and folders of a tar that a sandbox made, below `folder`; returns how many others were left out.

    A sandbox writes its archive as it likes. So no link is made, and none that is made could lead out; names that do
    are refused; of the mode the owner's and readers' bits are kept. tarfile's own filters came with Python 3.11.4.
    Raises APIError for a name that leads out, tarfile.TarError for what is no archive.
    """
    left_out = 0
    folder.mkdir(parents=True, exist_ok=True)
    for member, data in read_tar(source):
        parts = [part for part in member.name.split("/") if part not in ("", ".")]
        if member.name.startswith("/") or ".." in parts:
            raise APIError(0, "", f"the archive has a name that leads out of it: {member.name[:200]}")
        place = folder.joinpath(*parts)
        # A link to a folder that is here already would be another way out.
        if any(each.is_symlink() for each in place.parents if each != folder and each.is_relative_to(folder)):
            raise APIError(0, "", f"{member.name[:200]} would be written through a link of this machine")
        if member.isdir():
            place.mkdir(parents=True, exist_ok=True)
        elif data is not None:
            place.parent.mkdir(parents=True, exist_ok=True)
            # A file that is there is replaced and not written through: it may be a link of this machine's.
            place.unlink(missing_ok=True)
            with open(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                shutil.copyfileobj(data, file, _CHUNK_BYTES)
            place.chmod((member.mode & 0o755) | 0o600)
        else:
            left_out += 1
    return left_out


class _Reader:
    """Chunks as a file that can be read."""

    def __init__(self, chunks: Iterable[bytes], advance: Advance) -> None:
        self._chunks, self._rest, self._advance = iter(chunks), b"", advance

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; fewer at the end only."""
        parts = [self._rest]
        have = len(self._rest)
        while have < size and (chunk := next(self._chunks, b"")):
            parts.append(chunk)
            have += len(chunk)
            self._advance(len(chunk))
        data = b"".join(parts)
        self._rest = data[size:]
        return data[:size]


def _chunks(file: Any, advance: Advance) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK_BYTES):
        yield chunk
        advance(len(chunk))
