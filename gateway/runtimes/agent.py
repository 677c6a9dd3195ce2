"""Parses AgentRuntimes: the parts of a pod's description that the local engine runs, and the routes to its ports.

In a cluster the manifest's pod is used unchanged. The local engine pulls no image: it runs the first container's
command in a sandbox behind picod (picod/ports/agent.py), with `spec.wakegate.source` in place of the image's files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from gateway.core.model import Agent, Probe
from gateway.runtimes.fields import Reader
from gateway.runtimes.files import Files

CONTAINER = "spec.podTemplate.spec.containers[0]."
# `$$` first, so that $$(NAME) is the text $(NAME): without it there would be no way to write that.
_REFERENCE = re.compile(r"\$(?:\$|\(([^()]+)\))")


def first_container(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """The first container of an AgentRuntime; empty if there is none."""
    containers = spec.get("podTemplate", {}).get("spec", {}).get("containers", ())
    return (containers and containers[0]) or {}


def target_ports(entries: Sequence[Any], path: str, reader: Reader) -> tuple[tuple[str, int], ...]:
    """(path prefix, port) of each entry, the longest prefix first, so that the first match is the most specific."""
    found = []
    for index, entry in enumerate(entries):
        if entry is None or "port" not in entry:
            continue
        prefix = entry.get("pathPrefix") or "/"
        if not prefix.startswith("/"):
            reader.problem(f"{path}[{index}].pathPrefix", "expected a path that begins with /", prefix)
        found.append((prefix.rstrip("/") or "/", int(entry["port"])))
    # By length and not by depth: of two prefixes of one path the longer one is always the deeper.
    return tuple(sorted(found, key=lambda entry: -len(entry[0])))


def several(ports: tuple[tuple[str, int], ...]) -> tuple[tuple[str, int], ...]:
    """The ports if there are several; empty if one port takes all requests, which then need no routing."""
    return ports if len(ports) > 1 else ()


def parse_agent(
    spec: Mapping[str, Any],
    container: Mapping[str, Any],
    targets: tuple[tuple[str, int], ...],
    environment: Mapping[str, str],
    files: Files | None,
    reader: Reader,
) -> Agent:
    """The agent to run in a local sandbox. `files`: those that `spec.wakegate.source` may name."""
    pod = spec.get("podTemplate", {}).get("spec", {})
    for name in ("containers", "initContainers"):
        more = (pod.get(name) or ())[1 if name == "containers" else 0 :]
        if more:
            reader.problem(f"spec.podTemplate.spec.{name}", "the local engine runs one container", f"{len(more)} more")
    command = (*_words(container, "command", reader), *_words(container, "args", reader))
    if not container.get("command"):
        right = "expected the command to run: on one machine the image is not used, nor the command that it names"
        reader.problem(f"{CONTAINER}command", right, container.get("command"))
    return Agent(
        command=tuple(expand(word, environment) for word in command),
        working_dir=container.get("workingDir", ""),
        source=_source(spec.get("wakegate", {}).get("source", ""), files, reader),
        targets=targets,
        probe=_probe(container, reader),
    )


def expand(text: str, environment: Mapping[str, str]) -> str:
    """Expand $(NAME) as Kubernetes does in a pod's command; an unknown name is left as it is, and $$ is a dollar."""
    return _REFERENCE.sub(lambda found: "$" if found[1] is None else environment.get(found[1], found[0]), text)


def _words(container: Mapping[str, Any], key: str, reader: Reader) -> list[str]:
    words = [(index, word) for index, word in enumerate(container.get(key, ())) if word is not None]
    for index, word in words:
        if "\0" in word:
            reader.problem(f"{CONTAINER}{key}[{index}]", "expected text without NUL; put it in quotes", word)
    return [word for _, word in words]


def _source(name: str, files: Files | None, reader: Reader) -> str:
    """The folder as an absolute path without symbolic links; empty if none is named or it is invalid."""
    if not name:
        return ""
    if files is None:
        reader.problem("spec.wakegate.source", "there are no files beside this manifest; expected none", name)
        return ""
    try:
        return str(files.resolve_folder(name))
    except (OSError, ValueError) as error:
        reader.problem("spec.wakegate.source", f"{error}; sandboxes see it read-only at /app", name)
        return ""


def _probe(container: Mapping[str, Any], reader: Reader) -> Probe | None:
    given = container.get("readinessProbe")
    if not given:
        return None
    prefix = f"{CONTAINER}readinessProbe"
    # Kubernetes' defaults: the same manifest must behave alike on both engines.
    period, timeout = float(given.get("periodSeconds", 10)), float(given.get("timeoutSeconds", 1))
    if "exec" in given:
        words = [word for word in given["exec"].get("command", ()) if word is not None]
        return Probe(command=tuple(words), period=period, timeout=timeout)
    for kind in ("httpGet", "tcpSocket"):
        if kind in given:
            action = given[kind]
            path = action.get("path") or "/" if kind == "httpGet" else ""
            port = _port(action.get("port"), container)
            if not port:
                reader.problem(f"{prefix}.{kind}.port", "expected a port, or the name of one", action.get("port"))
            return Probe(port=port, path=path, period=period, timeout=timeout)
    reader.problem(prefix, "expected httpGet, tcpSocket or exec", given)
    return None


def _port(given: Any, container: Mapping[str, Any]) -> int:
    """A port by number, or by its name among the container's ports; 0 if there is none."""
    # The type itself: to isinstance True is an int, and YAML's `port: yes` would be port 1.
    if type(given) is int and 1 <= given <= 65535:
        return given
    known = container.get("ports")
    for each in known if isinstance(known, list) else ():
        if isinstance(each, Mapping) and each.get("name") == given and type(each.get("containerPort")) is int:
            return int(each["containerPort"])
    return 0
