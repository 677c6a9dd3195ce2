"""`wakegate deploy`: a folder with an agent becomes an agent of a gateway, or the next revision of one."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.cli.deploy.calls import change_agent, create_agent, get_agent, install, upload_bundle
from gateway.cli.deploy.entry import CANDIDATES, Entry, EntryError, find_entry
from gateway.cli.deploy.image import dockerfile_of, name_in, write_dockerfile
from gateway.cli.deploy.pack import PackError, bundle_of, files_of
from gateway.cli.remote.connection import Target, over_api
from gateway.cli.remote.progress import Counted, transfer, waiting
from gateway.cli.remote.screen import plain
from gateway.core.errors import SettingsError
from wakegate_client import APIError, Client

_RUNNER = ".wakegate/serve_agent.py"
_POLL_S = 0.1
_WAIT_S = 120.0
_MAX_SOURCE_BYTES = 1 << 20
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


@over_api
def deploy(
    gateway: Client,
    target: Target,
    path: Annotated[str, typer.Argument(help="A folder, a file, or MODULE:NAME.", show_default=False)] = "",
    name: Annotated[str, typer.Option(help="The agent's name; the folder's if absent.")] = "",
    entry: Annotated[str, typer.Option(help="What to run: FILE.py or FILE.py:NAME.")] = "",
    env: Annotated[list[str] | None, typer.Option(help="NAME=VALUE; may be repeated.", show_default=False)] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port that it listens on.")] = 8080,
    pool: Annotated[int, typer.Option("--pool", "--replicas", min=0, help="Sandboxes that are kept ready.")] = 1,
    requirements: Annotated[str, typer.Option(help="The folder's requirements.txt if absent.")] = "",
    egress: Annotated[list[str] | None, typer.Option(help="A host that it may reach; repeatable.")] = None,
    secret: Annotated[
        list[str] | None, typer.Option(help="NAME=HOST: a variable of the gateway's, for that host; repeatable.")
    ] = None,
    conversation: Annotated[
        str, typer.Option(help="Where a JSON body names the conversation, such as session_id.", show_default=False)
    ] = "",
    canary: Annotated[float, typer.Option(min=0, max=100, help="Percent of new sessions that try it first.")] = 0.0,
    image: Annotated[str, typer.Option(help="An image that has the agent, in place of code.")] = "",
    dockerfile: Annotated[
        bool, typer.Option("--dockerfile", help="Write a Dockerfile there, and deploy nothing.")
    ] = False,
) -> None:
    """Put an agent on the gateway, or a new revision of it.

    \b
    wakegate deploy ./my_agent
    wakegate deploy ./my_agent --name greeter --entry app.py:app --env GREETING=Welcome
    wakegate deploy ./my_agent --secret MODEL_KEY=api.example.com --requirements lock.txt
    wakegate deploy ./my_agent --dockerfile
    wakegate deploy --image registry.example/greeter:1.2
    """
    reach = reach_of(egress or [], secret or [])  # what is wrong is said before anything is sent
    if name and not _NAME.fullmatch(name):
        raise SettingsError([f"--name {name[:64]}: expected a DNS name of at most 63 characters (a-z, 0-9 and '-')"])
    variables = {"PORT": str(port), "AGENT_PORT": str(port), "PYTHONUNBUFFERED": "1", **_environment(env or [])}
    if image:
        if path or entry or requirements or dockerfile:
            raise SettingsError(["--image: the image has files, packages and a command; name none beside it"])
        name = name or name_in(image)
        spec = spec_of({"image": image, "env": variables}, port, pool)
        fields: dict[str, Any] = {"bundle": None, "environment": None}
    else:
        code = _code_of(path, entry, port)
        if dockerfile:
            _write(code, port, requirements)
            return
        name = name or _name_of(code.folder)
        spec = spec_of({"command": code.command, "workingDir": "/app", "env": variables}, port, pool)
        fields = _sent(gateway, name, code, requirements)
    spec["wakegate"] = reach
    if conversation:  # else as it was: an agent may have been given it, and more, by other means
        spec["wakegate"]["invocation"] = {"session": conversation}
    fields |= {"spec": spec, "strategy": {"canary": {"weight": canary}} if canary else {}}
    agent = _release(gateway, name, fields)
    made = agent["latestRevision"]
    with waiting(f"revision {made} of {name} is being started"):
        agent = _wait(gateway, name, made)
    print(_outcome(agent, made))
    print(f"{target.url.rstrip('/')}{agent['path']}")


def _outcome(agent: dict[str, Any], made: int) -> str:
    """Who gets the revision that was made, in a sentence."""
    if agent["phase"] == "Stopped":
        name = plain(agent["name"])
        return f"{name} is stopped: revision {made} is started with it, by `wakegate agents start {name}`"
    under_way = agent["status"]["rollout"]
    if under_way is not None and under_way["phase"] == "canary":
        tried = f"revision {made} is tried by {under_way['weight']:g} % of new sessions"
        return f"{tried}; revision {agent['revision']} serves the others"
    return f"revision {agent['revision']} serves"


@dataclass(frozen=True, slots=True)
class _Code:
    """A folder, what to run in it, by which command, and the bundle that has all of it."""

    folder: Path
    entry: Entry
    command: list[str]
    bundle: bytes


def _code_of(path: str, entry: str, port: int) -> _Code:
    """Raises SettingsError for a folder without an agent, or one that cannot be packed."""
    if not path:
        raise SettingsError(["name a folder, a file or MODULE:NAME; or an image with --image"])
    folder, wanted = _folder_of(path, entry)
    try:
        files = files_of(folder)
        found = find_entry(_sources(files), wanted)
        bundle = bundle_of(files, {_RUNNER: _runner()})
    except (EntryError, PackError) as error:
        raise SettingsError([f"{folder}: {error}"]) from None
    if found.kind == "script":
        command = ["python3", found.file]
    else:
        command = ["python3", _RUNNER, found.kind, found.module, found.name, str(port)]
    return _Code(folder, found, command, bundle)


def _runner() -> bytes:
    return (Path(__file__).parent / "serve_agent.py").read_bytes()


def _write(code: _Code, port: int, requirements: str) -> None:
    """Write the Dockerfile of a folder. Raises SettingsError."""
    listed = ""
    if _requirements(code.folder, requirements):
        file = Path(requirements) if requirements else code.folder / "requirements.txt"
        if not file.resolve().is_relative_to(code.folder.resolve()):
            raise SettingsError([f"--requirements {file}: a Dockerfile copies what is in {code.folder} only"])
        listed = file.resolve().relative_to(code.folder.resolve()).as_posix()
    try:
        text = dockerfile_of(code.command, port, listed)
        written = write_dockerfile(code.folder, text, (_RUNNER, _runner()))
    except PackError as error:
        raise SettingsError([f"{code.folder}: {error}"]) from None
    except OSError as error:
        raise SettingsError([f"{error.filename}: {error.strerror}"]) from None
    for each in written:
        print(plain(str(each)))


def _sent(gateway: Client, name: str, code: _Code, requirements: str) -> dict[str, Any]:
    """The digests of files and packages, which the gateway has from now on."""
    found, bundle = code.entry, code.bundle
    packages = _requirements(code.folder, requirements)
    print(f"{plain(name)}: {found.kind} {found.file}{':' + found.name if found.name else ''}, {len(bundle)} bytes")
    # What is likeliest to fail comes first: a name of a package that is wrong leaves no bundle and no revision behind.
    environment = _install(gateway, packages) if packages else None
    with transfer(f"{name}: upload", len(bundle)) as advance:
        digest = gateway.send(upload_bundle(Counted(bundle, advance)))["digest"]
    return {"bundle": digest, "environment": environment}


def _release(gateway: Client, name: str, fields: dict[str, Any]) -> dict[str, Any]:
    # A revision first, an agent if there is none: to ask beforehand would be a third request, whose answer may be
    # wrong by the time of the second when two deploy at once.
    try:
        changed: dict[str, Any] = gateway.send(change_agent(name, fields))
        return changed
    except APIError as error:
        if error.status != 404:
            raise
    spec = fields["spec"]
    spec["wakegate"] = {field: value for field, value in spec["wakegate"].items() if value is not None}
    made: dict[str, Any] = gateway.send(create_agent(name, fields))
    return made


def _requirements(folder: Path, given: str) -> str:
    """The text of the requirements; empty: there are none."""
    path = Path(given) if given else folder / "requirements.txt"
    if not given and not path.is_file():
        return ""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError([f"{path}: {error}"]) from None
    lines = (line.strip() for line in text.splitlines())
    return text if any(line and not line.startswith("#") for line in lines) else ""


def _install(gateway: Client, requirements: str) -> str:
    """The digest of the packages, which the gateway installs unless it has them."""
    print("packages: being installed, unless they were before", flush=True)
    with waiting("packages are being installed"):
        built = gateway.send(install(requirements))
    print("packages: here already" if built["cached"] else f"packages: installed in {built['seconds']:.1f} s")
    return str(built["digest"])


def reach_of(egress: list[str], secrets: list[str]) -> dict[str, Any]:
    """`spec.wakegate` for the hosts that it may reach. A secret's host is one of them. Raises SettingsError."""
    hosts = list(egress)
    entries = []
    for text in secrets:
        name, _, host = text.partition("=")
        if not name or not host:
            raise SettingsError([f"--secret {text}: expected NAME=HOST; the value is the gateway's variable NAME"])
        entries.append({"name": name, "hosts": [host], "from": {"env": name}})
        hosts.append(host)
    # Null removes what an earlier revision had: a release has what its command line says.
    return {"egress": list(dict.fromkeys(hosts)) or None, "secrets": entries or None}


def spec_of(container: dict[str, Any], port: int, pool: int) -> dict[str, Any]:
    """The spec of an AgentRuntime. `container`: its image, or its command and folder; and `env` by name."""
    variables = [{"name": name, "value": value} for name, value in container["env"].items()]
    container = {"name": "agent", "image": "deployed-from-code", **container, "env": variables}
    return {
        "targetPort": [{"pathPrefix": "/", "port": port, "protocol": "HTTP"}],
        "podTemplate": {"spec": {"containers": [container]}},
        "warmPoolSize": pool,
    }


def _wait(gateway: Client, name: str, revision: int) -> dict[str, Any]:
    """Until new sessions get the revision, or have tried it. Raises SettingsError where it has failed."""
    # Looked at ten times a second, for two minutes: a start takes a second or two, and the events of the agent name the
    # reason as soon as it fails. The stream of /v1/events has sessions and pools, not revisions.
    until = time.monotonic() + _WAIT_S
    while True:
        agent: dict[str, Any] = gateway.send(get_agent(name))
        status = agent["status"]
        under_way = status["rollout"]
        texts = [each["text"] for each in status["events"] if each["revision"] == revision]
        failed = [text for text in texts if text.startswith(("failed", "rolled back"))]
        if failed:
            raise SettingsError([f"{name}: revision {revision} {plain(failed[0])}"])
        if under_way is None or under_way["phase"] != "starting" or agent["phase"] == "Stopped":
            return agent
        if time.monotonic() > until:
            raise SettingsError([f"{name}: revision {revision} is not ready yet; see `wakegate rollout status {name}`"])
        time.sleep(_POLL_S)


def _folder_of(path: str, entry: str) -> tuple[Path, str]:
    """The folder to pack, and what to run in it."""
    given = Path(path)
    if given.is_dir():
        return given, entry
    if given.is_file():
        return given.parent, entry or given.name
    module, colon, name = path.partition(":")
    for file in (Path(module), Path(module.replace(".", "/") + ".py")):
        if colon and file.is_file():
            return file.parent, entry or f"{file.name}:{name}"
    raise SettingsError(
        [f"{path}: is no folder, no file and no MODULE:NAME; a folder has a file such as {CANDIDATES[0]}"]
    )


def _sources(files: dict[str, Path]) -> dict[str, str]:
    return {
        name: path.read_text(errors="replace")
        for name, path in files.items()
        if name.endswith(".py") and path.stat().st_size <= _MAX_SOURCE_BYTES
    }


def _name_of(folder: Path) -> str:
    # A DNS label, as names of agents are: My_Agent (2) -> my-agent-2.
    name = re.sub(r"[^a-z0-9]+", "-", folder.resolve().name.lower()).strip("-")[:63].strip("-")
    if not name:
        raise SettingsError([f"{folder}: name the agent with --name"])
    return name


def _environment(pairs: list[str]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name:
            raise SettingsError([f"--env {pair}: expected NAME=VALUE"])
        found[name] = value if equals else os.environ.get(name, "")
    return found
