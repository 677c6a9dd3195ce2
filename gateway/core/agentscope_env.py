"""The env file of AgentScope Runtime's sandbox server, as settings of ours: `wakegate serve --agentscope-env FILE`.

What has no counterpart and changes nothing for clients is left out (_IGNORED); what would change something is a problem
that says what to do. Source: github.com/agentscope-ai/agentscope-runtime, sandbox/manager/server/config.py, 1.1.6.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from gateway.core.read_file import read_file

Problem = Callable[[str, str], None]  # (name, what is wrong with it)

_MAX_BYTES = 64 << 10
_LINE = re.compile(r"(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_]{0,63})[ \t]*=[ \t]*(.*)")
_MIN_TOKEN_CHARS = 32  # as an admin key has
_TYPES = ("base", "filesystem")
# One to one: their name, ours.
_SAME = {
    "HOST": "host", "PORT": "port", "POOL_SIZE": "warm_pool", "WATCHER_SCAN_INTERVAL": "sweep_interval",
}  # fmt: skip
# Names of their containers, ports and keys; placeholders of what is not used; what a session's runtime says here, such
# as how long an idle one stays. AUTO_CLEANUP: a gateway that stops hibernates its sessions, and ends none.
_IGNORED = frozenset((
    "AUTO_CLEANUP", "CONTAINER_PREFIX_KEY", "DEFAULT_MOUNT_DIR", "STORAGE_FOLDER", "PORT_RANGE", "REDIS_PORT_KEY",
    "REDIS_CONTAINER_POOL_KEY", "HEARTBEAT_TIMEOUT", "RELEASED_KEY_TTL", "RELEASE_KEY_TTL", "RELEASE_KET_TTL",
))  # fmt: skip
_USED_TOGETHER = (
    "BEARER_TOKEN", "DEFAULT_SANDBOX_TYPE", "WORKERS", "DEBUG", "CONTAINER_DEPLOYMENT", "READONLY_MOUNTS",
    "MAX_SANDBOX_INSTANCES", "REDIS_ENABLED", "REDIS_SERVER", "REDIS_PORT", "REDIS_DB", "REDIS_USER", "REDIS_PASSWORD",
    "FILE_SYSTEM", "K8S_NAMESPACE", "KUBECONFIG_PATH",
)  # fmt: skip
_OF_OTHERS = ("OSS_", "AGENT_RUN_", "FC_")  # of a store and of engines that CONTAINER_DEPLOYMENT and FILE_SYSTEM choose


def agentscope_values(path: str, problems: list[str]) -> dict[str, tuple[str, str]]:
    """Our settings by name, each with where it is from and its text. Adds to `problems` what cannot be served."""
    try:
        text = read_file(path, _MAX_BYTES).decode()
        found = parse_env(text, lambda line, said: problems.append(f"{path}: line {line}: {said}"))
    except OSError as error:
        problems.append(f"{path}: cannot be read: {error.strerror}")
        return {}
    except UnicodeDecodeError:
        problems.append(f"{path}: is not UTF-8")
        return {}
    mapped = map_settings(found, path, lambda name, text: problems.append(f"{path}: {name}: {text}"))
    return {name: (f"{path}: {theirs}", value) for name, (theirs, value) in mapped.items()}


def parse_env(text: str, problem: Problem) -> dict[str, str]:
    """The variables of an env file: `NAME=value`, quoted or not, with comments. Pure."""
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            problem(str(number), "expected NAME=value")
            continue
        found[match[1]] = _unquoted(match[2])
    return found


def _unquoted(value: str) -> str:
    quotation = value[:1]
    if quotation in ("'", '"') and (end := value.find(quotation, 1)) > 0:
        return value[1:end]
    return value.partition(" #")[0].strip()


def map_settings(found: Mapping[str, str], path: str, problem: Problem) -> dict[str, tuple[str, str]]:
    """Ours by name, each with theirs and its text. Pure. `path`: the file itself, which has the admin's key."""
    values = {ours: (theirs, found[theirs]) for theirs, ours in _SAME.items() if found.get(theirs)}
    if token := found.get("BEARER_TOKEN"):
        if len(token) < _MIN_TOKEN_CHARS or not token.isascii() or any(each.isspace() for each in token):
            expected = f"at least {_MIN_TOKEN_CHARS} ASCII characters (openssl rand -hex 32)"
            problem("BEARER_TOKEN", f"it becomes the admin's key, which has {expected}")
        values["admin_key_file"] = ("BEARER_TOKEN", str(Path(path).absolute()))
    for kind in _types_of(found.get("DEFAULT_SANDBOX_TYPE", "")):
        if kind not in _TYPES:
            problem("DEFAULT_SANDBOX_TYPE", f"{kind[:64]!r} is not offered here; there are {', '.join(_TYPES)}")
    if _is_on(found, "DEBUG"):
        values["log_level"] = ("DEBUG", "debug")
    if found.get("MAX_SANDBOX_INSTANCES", "0") != "0":  # which is no limit
        values["max_sandboxes"] = ("MAX_SANDBOX_INSTANCES", found["MAX_SANDBOX_INSTANCES"])
    if _is_on(found, "REDIS_ENABLED"):
        values["store"] = ("REDIS_SERVER", _redis_url(found))
        if found.get("WORKERS"):  # theirs has one worker without Redis, whatever this says
            values["workers"] = ("WORKERS", found["WORKERS"])
    if found.get("READONLY_MOUNTS", "").strip() not in ("", "{}", "null"):
        problem("READONLY_MOUNTS", "folders of the host are not mounted; put the files into the runtime's image")
    if found.get("FILE_SYSTEM", "local") != "local":
        problem("FILE_SYSTEM", "leave it out, and name a store for hibernated files with --snapshots s3://BUCKET")
    values |= _engine(found, problem)
    _name_unknown(found, problem)
    return values


def _engine(found: Mapping[str, str], problem: Problem) -> dict[str, tuple[str, str]]:
    deployment = found.get("CONTAINER_DEPLOYMENT") or "docker"
    if deployment == "docker":
        return {}  # the local engine, which needs no docker
    if deployment != "k8s":
        problem("CONTAINER_DEPLOYMENT", f"{deployment[:64]!r} is not offered here; there are docker and k8s")
        return {}
    values = {"engine": ("CONTAINER_DEPLOYMENT", "kubernetes")}
    for theirs, ours in (("K8S_NAMESPACE", "kube_namespaces"), ("KUBECONFIG_PATH", "kubeconfig")):
        if found.get(theirs):
            values[ours] = (theirs, found[theirs])
    return values


def _name_unknown(found: Mapping[str, str], problem: Problem) -> None:
    known = {*_SAME, *_IGNORED, *_USED_TOGETHER}
    for name in sorted(found.keys() - known):
        if not name.startswith(_OF_OTHERS):
            close = difflib.get_close_matches(name, sorted(known), n=1)
            problem(name, "unknown setting" + (f"; did you mean {close[0]}?" if close else ""))


def _types_of(text: str) -> Sequence[str]:
    """`base`, `base, filesystem`, or a list as JSON or without quotes."""
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        try:
            value = json.loads(text)
            return [str(each) for each in value] if isinstance(value, list) else [text]
        except (ValueError, RecursionError):
            text = text[1:-1]
    return [each.strip() for each in text.split(",") if each.strip()]


def _is_on(found: Mapping[str, str], name: str) -> bool:
    return found.get(name, "").lower() in ("1", "true", "yes", "on")


def _redis_url(found: Mapping[str, str]) -> str:
    user, password = found.get("REDIS_USER", ""), found.get("REDIS_PASSWORD", "")
    access = f"{quote(user, safe='')}:{quote(password, safe='')}@" if user or password else ""
    server, port, number = (
        found.get("REDIS_SERVER") or "localhost", found.get("REDIS_PORT") or "6379", found.get("REDIS_DB") or "0",
    )  # fmt: skip
    return f"redis://{access}{server}:{port}/{number}"
