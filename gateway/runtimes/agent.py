"""AgentRuntimes: what of a pod's description the local engine runs, and which path leads to which port.

In a cluster the manifest becomes a pod as it is. On one machine no image is pulled: the first container's command runs
in a sandbox of ours, with picod before it (picod/ports/agent.py), and `spec.wakegate.source` stands for the image's
files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from gateway.core.model import Agent, Probe
from gateway.runtimes.fields import Reader
from gateway.runtimes.files import Files

CONTAINER = "spec.podTemplate.spec.containers[0]."
_REFERENCE = re.compile(r"\$(?:\$|\(([^()]+)\))")


def first_container(spec: Mapping[str, Any], reader: Reader) -> Mapping[str, Any]:
    """An AgentRuntime's own fields, as far as they are not the API server's to check, and its first container."""
    pod = reader.mapping(reader.mapping(spec, "podTemplate", "spec.", required=True), "spec", "spec.podTemplate.")
    containers = reader.sequence(pod, "containers", "spec.podTemplate.spec.")
    if not containers:
        reader.problem("spec.podTemplate.spec.containers", "expected at least one container", pod.get("containers"))
    ports = reader.sequence(spec, "targetPort", "spec.")
    if not ports:
        reader.problem("spec.targetPort", "expected at least one port", spec.get("targetPort"))
    for index, entry in enumerate(ports):
        where = f"spec.targetPort[{index}]"
        port = entry.get("port") if isinstance(entry, Mapping) else None
        if type(port) is not int or not 1 <= port <= 65535:
            reader.problem(f"{where}.port", "expected a port from 1 to 65535", port)
        elif not str(entry.get("pathPrefix") or "/").startswith("/"):
            reader.problem(f"{where}.pathPrefix", "expected a path that begins with /", entry["pathPrefix"])
    return containers[0] if containers and isinstance(containers[0], Mapping) else {}


def target_ports(entries: Sequence[Any]) -> tuple[tuple[str, int], ...]:
    """(path prefix, port), the longest prefix first."""
    known = [each for each in entries if isinstance(each, Mapping) and type(each.get("port")) is int]
    found = [(str(each.get("pathPrefix") or "/").rstrip("/") or "/", int(each["port"])) for each in known]
    return tuple(sorted(found, key=lambda entry: -len(entry[0])))


def several(ports: tuple[tuple[str, int], ...]) -> tuple[tuple[str, int], ...]:
    """The same where there is a choice; empty where one port takes all."""
    return ports if len(ports) > 1 else ()


def parse_agent(
    spec: Mapping[str, Any],
    container: Mapping[str, Any],
    extra: Mapping[str, Any],
    environment: Mapping[str, str],
    files: Files | None,
    reader: Reader,
) -> Agent:
    """What runs in a local sandbox. `files`: those that `spec.wakegate.source` may name."""
    pod = reader.mapping(reader.mapping(spec, "podTemplate", "spec."), "spec", "spec.podTemplate.")
    for name in ("containers", "initContainers"):
        more = reader.sequence(pod, name, "spec.podTemplate.spec.")[1 if name == "containers" else 0 :]
        if more:
            reader.problem(f"spec.podTemplate.spec.{name}", "the local engine runs one container", f"{len(more)} more")
    command = (*_texts(container, "command", reader), *_texts(container, "args", reader))
    if not container.get("command"):
        right = "expected the command to run: on one machine the image is not used, nor the command that it names"
        reader.problem(f"{CONTAINER}command", right, container.get("command"))
    return Agent(
        command=tuple(expand(word, environment) for word in command),
        working_dir=reader.text(container, "workingDir", CONTAINER),
        source=_source(extra, files, reader),
        targets=target_ports(reader.sequence(spec, "targetPort", "spec.")),
        probe=_probe(container, reader),
    )


def expand(text: str, environment: Mapping[str, str]) -> str:
    """$(NAME) as in a pod's command: the variable where there is one, else as it stands; $$ is a dollar."""
    return _REFERENCE.sub(lambda found: "$" if found[1] is None else environment.get(found[1], found[0]), text)


def _texts(container: Mapping[str, Any], key: str, reader: Reader) -> list[str]:
    words = reader.sequence(container, key, CONTAINER)
    for index, word in enumerate(words):
        if not isinstance(word, str) or "\0" in word:
            reader.problem(f"{CONTAINER}{key}[{index}]", "expected text without NUL; put it in quotes", word)
    return [str(word) for word in words]


def _source(extra: Mapping[str, Any], files: Files | None, reader: Reader) -> str:
    """The folder as an absolute path without symbolic links; empty where there is none."""
    name = reader.text(extra, "source", "spec.wakegate.")
    if not name:
        return ""
    if files is None:
        reader.problem("spec.wakegate.source", "there are no files beside this manifest; expected none", name)
        return ""
    try:
        path = files.resolve(name)
        found = path.is_dir()
    except (OSError, ValueError) as error:
        reader.problem("spec.wakegate.source", str(error), name)
        return ""
    if not found:
        reader.problem("spec.wakegate.source", "expected a folder, which the sandbox sees read-only at /app", name)
    return str(path)


def _probe(container: Mapping[str, Any], reader: Reader) -> Probe | None:
    said = reader.mapping(container, "readinessProbe", CONTAINER)
    if not said:
        return None
    prefix = f"{CONTAINER}readinessProbe."
    period = float(reader.whole(said, "periodSeconds", prefix, 10, low=1, high=3600))
    timeout = float(reader.whole(said, "timeoutSeconds", prefix, 1, low=1, high=3600))
    if "exec" in said:
        words = reader.sequence(reader.mapping(said, "exec", prefix), "command", f"{prefix}exec.")
        return Probe(command=tuple(map(str, words)), period=period, timeout=timeout)
    for kind in ("httpGet", "tcpSocket"):
        if kind in said:
            action = reader.mapping(said, kind, prefix)
            path = (reader.text(action, "path", f"{prefix}{kind}.") or "/") if kind == "httpGet" else ""
            port = _port(action.get("port"), container)
            if not port:
                reader.problem(f"{prefix}{kind}.port", "expected a port, or the name of one", action.get("port"))
            return Probe(port=port, path=path, period=period, timeout=timeout)
    reader.problem(prefix.rstrip("."), "expected httpGet, tcpSocket or exec", dict(said))
    return None


def _port(said: Any, container: Mapping[str, Any]) -> int:
    """A port by number, or by its name among the container's. 0: there is none."""
    if type(said) is int and 1 <= said <= 65535:
        return said
    known = container.get("ports")
    for each in known if isinstance(known, list) else ():
        if isinstance(each, Mapping) and each.get("name") == said and type(each.get("containerPort")) is int:
            return int(each["containerPort"])
    return 0
