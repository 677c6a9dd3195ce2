"""Runtimes from YAML: AgentCube's manifests as they are, and every error at once."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.errors import SettingsError
from gateway.core.model import (
    Agent,
    Invocations,
    Kind,
    Limits,
    PoolMode,
    Probe,
    Requests,
    Resources,
    RuntimeKey,
    Schedule,
)
from gateway.runtimes.catalog import StaticCatalog
from gateway.runtimes.crd import crd
from gateway.runtimes.manifest import load_runtimes, parse_runtime
from gateway.runtimes.schema import API_VERSION
from tests.support.backtracking import worst_growth

# The shape of the example manifests that AgentCube's users start from: every field that its kind has.
FULL = """\
apiVersion: runtime.agentcube.volcano.sh/v1alpha1
kind: CodeInterpreter
metadata:
  name: my-interpreter
  namespace: default
  labels: {app: demo}
spec:
  ports:
  - pathPrefix: "/"
    port: 8080
    protocol: "HTTP"
  template:
    labels: {a: b}
    annotations: {c: d}
    runtimeClassName: kuasar-vmm
    image: ghcr.io/volcano-sh/picod:latest
    imagePullPolicy: IfNotPresent
    imagePullSecrets: [{name: secret}]
    environment:
    - name: GREETING
      value: hello
    - name: EMPTY
    command: ["/picod"]
    args: ["--workspace=/root"]
    resources:
      limits: {cpu: "500m", memory: "512Mi"}
      requests: {cpu: "100m", memory: "128Mi"}
  sessionTimeout: "20m"
  maxSessionDuration: "8h30m"
  warmPoolSize: 2
  authMode: picod
status: {ready: true}
"""
SHORT = """\
apiVersion: runtime.agentcube.volcano.sh/v1alpha1
kind: CodeInterpreter
metadata: {name: small}
spec: {template: {}}
"""

AGENT_CONTAINER = "spec.podTemplate.spec.containers[0]."


def write(folder: Path, text: str | bytes, name: str = "r.yaml") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def problems(*paths: Path) -> list[str]:
    with pytest.raises(SettingsError) as error:
        load_runtimes(paths)
    return error.value.problems


def test_manifest_of_agentcube_loads_unmodified(tmp_path: Path) -> None:
    """What we use is read, what the local engine does not use is no error."""
    [runtime] = load_runtimes([write(tmp_path, FULL)])
    assert runtime.key == RuntimeKey("default", "my-interpreter")
    assert runtime.image == "ghcr.io/volcano-sh/picod:latest"
    assert runtime.environment == {"GREETING": "hello", "EMPTY": ""}
    assert (runtime.limits.memory, runtime.limits.cpus) == (512 << 20, 0.5)
    assert (runtime.session_timeout, runtime.max_session_duration) == (1200.0, 30600.0)
    assert (runtime.pool.size, runtime.auth) == (2, True)
    assert runtime.manifest["status"] == {"ready": True}


def test_smallest_manifest_has_agentcubes_defaults(tmp_path: Path) -> None:
    """15 minutes idle, 8 hours in all, no pool, tokens on, the default limits."""
    [runtime] = load_runtimes([write(tmp_path, SHORT)])
    assert (runtime.key, runtime.limits, runtime.pool.size) == (RuntimeKey("default", "small"), Limits(), 0)
    assert (runtime.session_timeout, runtime.max_session_duration, runtime.auth) == (900.0, 28800.0, True)


def test_own_fields_are_read(tmp_path: Path) -> None:
    """Everything below spec.wakegate."""
    text = SHORT.replace(
        "{template: {}}",
        "{template: {}, authMode: none, warmPoolSize: 3, wakegate: {pool: {mode: predictive, min: 1, max: 9,"
        " targetMissRate: 0.05}, limits: {processes: 64, fileSize: 1Gi, tmpSize: 64Mi, workspaceSize: 2Gi},"
        " python: env, ports: [8000, 9000-9100]}}",
    )
    (tmp_path / "env" / "bin").mkdir(parents=True)
    (tmp_path / "env" / "bin" / "python3").symlink_to(sys.executable)
    [runtime] = load_runtimes([write(tmp_path, text)])
    pool = runtime.pool
    assert (pool.size, pool.mode, pool.min, pool.max, pool.target_miss_rate) == (3, PoolMode.PREDICTIVE, 1, 9, 0.05)
    assert runtime.limits == Limits(processes=64, file_size=1 << 30, tmp_size=64 << 20, workspace_size=2 << 30)
    assert (runtime.auth, runtime.python) == (False, str(tmp_path / "env"))
    assert runtime.ports == ((8000, 8000), (9000, 9100))


def test_limit_that_a_cluster_cannot_keep_is_refused_there(tmp_path: Path) -> None:
    """With what to set in its place; on one machine the same manifest is served."""
    text = SHORT.replace("{template: {}}", "{template: {}, wakegate: {limits: {processes: 64}}}")
    [runtime] = load_runtimes([write(tmp_path, text)])
    assert runtime.limits.processes == 64
    with pytest.raises(SettingsError, match=r"spec\.wakegate\.limits\.processes: .*podPidsLimit, got 64"):
        load_runtimes([write(tmp_path, text)], engine="kubernetes")


def test_folder_is_read_by_name_and_other_kinds_are_passed_over(tmp_path: Path) -> None:
    """A manifest brings a Namespace along, a folder a README."""
    write(tmp_path, "apiVersion: v1\nkind: Namespace\nmetadata: {name: x}\n---\n" + SHORT + "---\n", "b.yml")
    write(tmp_path, FULL, "a.yaml")
    write(tmp_path, "kind: Broken", "notes.txt")
    assert [runtime.key.name for runtime in load_runtimes([tmp_path])] == ["my-interpreter", "small"]


def test_catalog_answers_by_key_in_order(tmp_path: Path) -> None:
    """All by key; None for what is not there."""
    catalog = StaticCatalog(load_runtimes([write(tmp_path, SHORT + "---\n" + FULL)]))
    assert [runtime.key.name for runtime in catalog.all()] == ["my-interpreter", "small"]
    assert catalog.get(RuntimeKey("default", "none")) is None


def test_every_error_is_named_at_once_with_file_and_field(tmp_path: Path) -> None:
    """Over all files and documents, so that one pass is enough to fix them all."""
    first = write(tmp_path, """\
apiVersion: v2
kind: CodeInterpreter
metadata: {name: Bad_Name, namespace: "-x"}
spec:
  template:
    image: [a]
    environment: [{name: A, value: 1}, {name: "B=C"}, {name: D, valueFrom: {}}, text, {name: "", value: x}]
    resources: {limits: {memory: 512MB, cpu: -1}}
  sessionTimeout: 15
  maxSessionDuration: 0s
  warmPoolSize: -1
  authMode: open
  wakegate: {pool: {min: 5, max: 2, targetMissRate: 7, mode: guess}, limits: {processes: 1}, ports: [8000, 0, 9-8],
    preload: [numpy, "a b", 3]}
""", "a.yaml")  # fmt: skip
    second = write(tmp_path, SHORT + "---\n" + SHORT + "---\n- list\n---\nkind: AgentRuntime\n", "b.yaml")
    found = problems(tmp_path)
    for where in (
        "apiVersion", "metadata.name", "metadata.namespace", "spec.template.image",
        "spec.template.environment[0].value",
        "spec.template.environment[1]", "spec.template.environment[2].valueFrom", "spec.template.environment[3]",
        "spec.template.environment[4]", "spec.template.resources.limits.memory", "spec.template.resources.limits.cpu",
        "spec.sessionTimeout", "spec.maxSessionDuration", "spec.warmPoolSize", "spec.authMode",
        "spec.wakegate.pool.max",
        "spec.wakegate.pool.targetMissRate", "spec.wakegate.pool.mode", "spec.wakegate.limits.processes",
        "spec.wakegate.ports[1]", "spec.wakegate.ports[2]", "spec.wakegate.preload[1]", "spec.wakegate.preload[2]",
    ):  # fmt: skip
        assert any(line.startswith(f"{first}: {where}: ") for line in found), where
    assert any(
        line.startswith(f"{second} (document 2): metadata.name: ") and "already defined" in line for line in found
    )
    assert any(line.startswith(f"{second} (document 3): expected a mapping") for line in found)
    for where in ("apiVersion", "spec.podTemplate", "spec.targetPort", AGENT_CONTAINER + "command"):
        assert any(line.startswith(f"{second} (document 4): {where}: ") for line in found), where


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "no runtime found"),
        ("---\n---\n", "no runtime found"),
        ("just text", "expected a mapping"),
        ("- a\n- b\n", "expected a mapping"),
        ("{}", "kind: missing"),
        ("a: [", "is not YAML"),
        ("a: b: c", "line 1: is not YAML"),
        (b"\xff\xfe\x00\x01", "expected a mapping"),
        (b"\x00\x01\x02\x7fELF", "is not YAML"),
        ("a: !!python/object/apply:os.system ['true']", "is not YAML"),
        ("a: *nobody", "is not YAML"),
        ("a: " + "9" * 5000, "is not YAML"),
        ("[" * 5000, "nested more than 100 deep"),
        ("- " * 500_000, "nested more than 100 deep"),
        ("[" + "a," * 120_000 + "]", "more than 100000 values"),
        ("a: " + "b" * (1 << 20), "larger than 1 MiB"),
        ("".join(f"%TAG !a{n}! tag:x\n" for n in range(40_000)) + "--- a", "%TAG directives"),
        ("a: 1" + ":1" * 400_000, "a number or date of more than"),
        ("&a [*a]", "contains itself"),
        (SHORT + "x: &a {b: *a}\n", "contains itself"),
        (SHORT.replace("{template: {}}", '{template: {environment: [{name: A, value: "a\\0b"}]}}'), "environment[0]"),
        (SHORT.replace("{template: {}}", "{template: {resources: {limits: {memory: 1e400}}}}"), "limits.memory"),
        (SHORT.replace("{template: {}}", "{template: {}, sessionTimeout: " + "9" * 400 + "h}"), "sessionTimeout"),
        (SHORT.replace("{template: {}}", "[]"), "spec: expected a mapping"),
        (SHORT.replace("spec: {template: {}}", ""), "spec.template: expected a mapping"),
        (SHORT.replace("{name: small}", "{name: 2024.01}"), "metadata.name"),
    ],
)
def test_strange_yaml_is_reported_in_a_sentence(tmp_path: Path, content: str | bytes, problem: str) -> None:
    """Empty, binary, recursive, hostile or nearly right: a short problem that names the file, never a traceback."""
    path = write(tmp_path, content)
    found = problems(path)
    assert any(problem in line for line in found), found
    assert all(str(path) in line and len(line) < 1000 for line in found)


def test_yaml_that_expands_without_end_is_refused(tmp_path: Path) -> None:
    """A few lines of anchors stand for a billion nodes: neither read nor repeated in the message."""
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
    )
    merge = "m0: &m0 {a: 1, b: 2}\n" + "".join(
        f"m{n}: &m{n}\n  <<: [{', '.join([f'*m{n - 1}'] * 9)}]\n" for n in range(1, 12)
    )
    for text in (bomb + SHORT.replace("apiVersion: runtime", "apiVersion: *a11\nx: runtime"), merge + SHORT):
        found = problems(write(tmp_path, text))
        assert any("anchors" in line for line in found)
        assert all(len(line) < 1000 for line in found)


def test_anchors_within_bounds_are_accepted(tmp_path: Path) -> None:
    """They are YAML's way to say a thing once."""
    text = "x: &t {image: a}\n" + SHORT.replace("{template: {}}", "{template: *t}")
    assert load_runtimes([write(tmp_path, text)])[0].image == "a"


def test_missing_and_empty_places_are_named(tmp_path: Path) -> None:
    """A path that is not there, and a folder without manifests."""
    empty = tmp_path / "empty"
    empty.mkdir()
    assert problems(tmp_path / "none", empty) == [
        f"{tmp_path}/none: no such file or folder",
        f"{empty}: no *.yaml or *.yml file in this folder",
    ]


def test_list_of_kubectl_is_read_as_its_items(tmp_path: Path) -> None:
    """`kubectl get -o yaml` writes one document; an error names the item in it."""
    items = "".join("- " + text.strip().replace("\n", "\n  ") + "\n" for text in (FULL, "kind: Pod", SHORT))
    path = write(tmp_path, "apiVersion: v1\nkind: List\nitems:\n" + items)
    assert [runtime.key.name for runtime in load_runtimes([path])] == ["my-interpreter", "small"]

    write(tmp_path, path.read_text().replace("name: small", "name: Small"))
    assert problems(path)[0].startswith(f"{path} items[2]: metadata.name: ")


@pytest.mark.parametrize("source", ["..", "../../../etc", "/etc", "link", "inside/../../other", "link/deeper"])
def test_source_outside_of_the_manifests_folder_is_refused(tmp_path: Path, source: str) -> None:
    """Neither by dots nor by an absolute path nor through a symbolic link, unless the operator lists the folder."""
    folder, other = tmp_path / "manifests", tmp_path / "other"
    (folder / "inside").mkdir(parents=True)
    (other / "deeper").mkdir(parents=True)
    (folder / "link").symlink_to(other)
    path = write(folder, AGENT.replace("source: .", f"source: {source}"))
    assert [line for line in problems(path) if "spec.wakegate.source: expected a path below" in line]

    if "link" in source or "other" in source:
        [runtime] = load_runtimes([path], sources=[other])
        assert runtime.agent is not None
        assert runtime.agent.source.startswith(str(other))


@pytest.mark.parametrize("name", ["../secret.py", "/etc/passwd", "link.py", "pipe"])
def test_file_of_a_tool_outside_of_the_manifests_folder_is_refused(tmp_path: Path, name: str) -> None:
    """Neither through a link nor by its path; opening a FIFO does not block."""
    folder = tmp_path / "manifests"
    folder.mkdir()
    (tmp_path / "secret.py").write_text("def f(): pass")
    (folder / "link.py").symlink_to(tmp_path / "secret.py")
    os.mkfifo(folder / "pipe")
    tool = f"{{name: t, description: d, python: {{file: {name}, function: f}}}}"
    text = SHORT.replace("{template: {}}", f"{{template: {{}}, wakegate: {{tools: [{tool}]}}}}")
    said = [line for line in problems(write(folder, text)) if "tools[0].python.file: cannot be read: " in line]
    assert any("expected a" in line for line in said)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@given(
    field=st.sampled_from(["template", "sessionTimeout", "warmPoolSize", "authMode", "wakegate", "maxSessionDuration"]),
    value=values,
)
def test_any_value_in_any_field_is_a_runtime_or_a_problem(field: str, value: object) -> None:
    """Nothing that YAML can say makes the reader raise anything else."""
    found: list[str] = []
    document = {"apiVersion": API_VERSION, "kind": "CodeInterpreter", "metadata": {"name": "x"}}
    runtime = parse_runtime({**document, "spec": {"template": {}, field: value}}, "f", found)
    assert (runtime is None) == bool(found)


@pytest.mark.parametrize("value", ["warm", "lazy", "off"])
def test_code_context_of_a_runtime_is_read(value: str) -> None:
    """spec.wakegate.codeContext says when the Python context starts; without it the gateway's setting does."""
    document = {
        "apiVersion": API_VERSION,
        "kind": "CodeInterpreter",
        "metadata": {"name": "r"},
        "spec": {"template": {}, "wakegate": {"codeContext": value}},
    }
    problems: list[str] = []
    runtime = parse_runtime(document, "r.yaml", problems)
    assert runtime is not None
    assert runtime.code_context == value
    document["spec"] = {"template": {}, "wakegate": {"codeContext": "later"}}
    assert parse_runtime(document, "r.yaml", problems) is None
    assert "spec.wakegate.codeContext: expected one of warm, lazy, off" in problems[0]


AGENT = """
apiVersion: runtime.agentcube.volcano.sh/v1alpha1
kind: AgentRuntime
metadata: {name: agent}
spec:
  targetPort: [{pathPrefix: /, port: 8080}, {pathPrefix: /tools/, port: 3000}]
  podTemplate:
    spec:
      containers:
        - name: agent
          image: agent:1
          command: [python3, "$(WHERE)/a.py"]
          args: [--cost, $$5, $(NOBODY)]
          env: [{name: WHERE, value: /app}]
          workingDir: /app/x
          ports: [{name: http, containerPort: 8080}]
          readinessProbe: {httpGet: {path: /ready, port: http}, periodSeconds: 2}
          resources: {limits: {memory: 256Mi}}
  wakegate: {source: .}
"""


def test_agent_of_one_machine_is_its_containers_command(tmp_path: Path) -> None:
    """Variables are put in as in a pod; ports have their names looked up; the source is beside the manifest."""
    [runtime] = load_runtimes([write(tmp_path, AGENT)])
    assert (runtime.key.kind, runtime.image, runtime.limits.memory) == (Kind.AGENT_RUNTIME, "agent:1", 256 << 20)
    assert runtime.agent == Agent(
        command=("python3", "/app/a.py", "--cost", "$5", "$(NOBODY)"),
        targets=(("/tools", 3000), ("/", 8080)),
        working_dir="/app/x",
        source=str(tmp_path),
        probe=Probe(port=8080, path="/ready", period=2.0),
    )
    [in_cluster] = load_runtimes([tmp_path], engine="kubernetes")
    assert (in_cluster.agent, in_cluster.auth, runtime.auth) == (None, False, True)


@pytest.mark.parametrize("engine", ["local", "kubernetes"])
def test_how_an_agent_is_invoked_is_read(tmp_path: Path, engine: str) -> None:
    """On both engines, with the defaults of a manifest that says nothing; `$.` before a path says the same."""
    write(tmp_path, AGENT)
    [runtime] = load_runtimes([tmp_path], engine=engine)
    assert runtime.invocations == Invocations()
    own = "invocation: {session: $.meta.chat, concurrency: 2, perSession: 3, attempts: 4, timeout: 5m, "
    own += "requests: 5, requestsPerSession: 6}"
    write(tmp_path, AGENT.replace("{source: .}", "{" + own + "}"))
    [runtime] = load_runtimes([tmp_path], engine=engine)
    assert runtime.invocations == Invocations(("meta", "chat"), 2, 3, 5, 6, 4, 300.0)


def test_when_an_agent_is_asked_by_itself_is_read(tmp_path: Path) -> None:
    """With UTC, the root and an empty object where nothing is said."""
    own = (
        "schedules: [{name: a, cron: '0 6 * * MON-FRI', timezone: Europe/Berlin, path: /run?x=1, body: {n: [1, é]}},"
        " {name: b, cron: '*/5 * * * *'}]"
    )
    [runtime] = load_runtimes([write(tmp_path, AGENT.replace("{source: .}", "{" + own + "}"))])
    assert runtime.invocations.schedules == (
        Schedule("a", "0 6 * * MON-FRI", "Europe/Berlin", "/run?x=1", '{"n":[1,"é"]}'), Schedule("b", "*/5 * * * *"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("entry", "field"),
    [
        ("{name: a, cron: '* * * * * *'}", "cron"),
        ("{name: a, cron: '60 * * * *'}", "cron"),
        ("{name: a, cron: '* * */20 * 1L'}", "cron"),
        ("{name: a, cron: '@daily'}", "cron"),
        ("{name: a, cron: '" + "1," * 60 + "1 * * * *'}", "cron"),
        ("{name: a, cron: '* * * * *', timezone: ../UTC}", "cron"),
        ("{name: a, cron: '* * * * *', timezone: Mars/Base}", "cron"),
        ("{name: A b, cron: '* * * * *'}", "name"),
        ("{name: a, cron: '* * * * *', path: run}", "path"),
        ("{name: a, cron: '* * * * *', body: [1]}", "body"),
        ("{cron: '* * * * *'}", "name"),
    ],
)
def test_schedule_that_never_fires_as_it_is_meant_is_refused(tmp_path: Path, entry: str, field: str) -> None:
    """By its field, once."""
    found = problems(write(tmp_path, AGENT.replace("{source: .}", "{schedules: [" + entry + "]}")))
    assert [f"spec.wakegate.schedules[0].{field}: " in each for each in found] == [True], found


def test_two_schedules_of_one_name_are_refused(tmp_path: Path) -> None:
    """A task says by its name which one it is of."""
    one = "{name: a, cron: '* * * * *'}"
    [found] = problems(write(tmp_path, AGENT.replace("{source: .}", "{schedules: [" + one + ", " + one + "]}")))
    assert "spec.wakegate.schedules[1].name: " in found


def test_every_mistake_about_invocations_is_named(tmp_path: Path) -> None:
    """By its field, with what would be right."""
    own = "session: 'a..b', concurrency: 0, perSession: 101, attempts: 21, timeout: 7h, retries: 1"
    found = problems(write(tmp_path, AGENT.replace("{source: .}", "{invocation: {" + own + "}}")))
    fields = ("session", "concurrency", "perSession", "attempts", "timeout", "retries")
    for field in fields:
        assert any(f"spec.wakegate.invocation.{field}: " in each for each in found), (field, found)
    assert len(found) == len(fields)
    for path in ("a[0]", "$", "a b", "a" * 65, ".".join("a" * 9)):
        text = AGENT.replace("{source: .}", "{invocation: {session: '" + path + "'}}")
        assert len(problems(write(tmp_path, text))) == 1, path


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        ("- name: agent", "- {name: other}\n        - name: agent", "spec.podTemplate.spec.containers"),
        ("command: [", "was: [", AGENT_CONTAINER + "command"),
        ("--cost", "5", AGENT_CONTAINER + "args[0]"),
        ("port: http", "port: https", AGENT_CONTAINER + "readinessProbe.httpGet.port"),
        ("httpGet", "grpc", AGENT_CONTAINER + "readinessProbe"),
        ("periodSeconds: 2", "periodSeconds: 0", AGENT_CONTAINER + "readinessProbe.periodSeconds"),
        ("value: /app", "valueFrom: {}", AGENT_CONTAINER + "env[0].valueFrom"),
        ("source: .", "source: nowhere", "spec.wakegate.source"),
    ],
)
def test_agent_that_one_machine_cannot_run_is_reported(tmp_path: Path, old: str, new: str, where: str) -> None:
    """What a cluster would take and this engine cannot is named, not passed over."""
    path = write(tmp_path, AGENT.replace(old, new, 1))
    assert any(line.startswith(f"{path}: {where}: ") for line in problems(tmp_path))


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("wakegate: {", "wakegate: {pol: {min: 1}, ", "spec.wakegate.pol: unknown field; did you mean pool?"),
        (
            "targetMissRate",
            "targetMissrate",
            "spec.wakegate.pool.targetMissrate: unknown field; did you mean targetMissRate?",
        ),
        ("processes", "procs", "spec.wakegate.limits.procs: unknown field; did you mean processes?"),
        ("command: [wc]", "comand: [wc]", "spec.wakegate.tools[0].comand: unknown field; did you mean command?"),
        ("wakegate: {", "wakegate: {quite_else: 1, ", "spec.wakegate.quite_else: unknown field"),
    ],
)
def test_unknown_field_of_ours_is_refused_with_the_one_that_was_meant(
    tmp_path: Path, old: str, new: str, problem: str
) -> None:
    """A typing error would otherwise leave a setting at its default without a word."""
    tool = "{name: t, description: d, command: [wc]}"
    own = f"{{pool: {{min: 1, max: 2, targetMissRate: 0.1}}, limits: {{processes: 9}}, tools: [{tool}]}}"
    text = SHORT.replace("{template: {}}", f"{{template: {{}}, wakegate: {own}}}")
    assert load_runtimes([write(tmp_path, text)])

    path = write(tmp_path, text.replace(old, new))
    assert problems(path) == [f"{path}: {problem}"]


def test_unknown_field_elsewhere_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A later AgentCube may know it; a person may have meant another."""
    path = write(tmp_path, SHORT.replace("{template: {}}", "{template: {imag: x}, warmPoolsize: 2, later: {}}"))
    assert load_runtimes([path])[0].pool.size == 0
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: spec.template.imag: unknown field; did you mean image?",
        f"{path}: spec.warmPoolsize: unknown field; did you mean warmPoolSize?",
        f"{path}: spec.later: unknown field",
    ]


def test_null_counts_as_absent(tmp_path: Path) -> None:
    """As the API server has it: a field that is named and left empty has its default."""
    text = SHORT.replace(
        "{template: {}}", "{template: {image: , environment: }, authMode: , wakegate: {pool: , ports: }}"
    )
    [runtime] = load_runtimes([write(tmp_path, text)])
    assert (runtime.image, runtime.auth, runtime.pool.size) == ("", True, 0)


def patterns(schema: object) -> set[str]:
    """All regular expressions in a schema."""
    if isinstance(schema, list):
        return {pattern for each in schema for pattern in patterns(each)}
    if not isinstance(schema, dict):
        return set()
    own = {schema["pattern"]} if isinstance(schema.get("pattern"), str) else set()
    return own | {pattern for each in schema.values() for pattern in patterns(each)}


@pytest.mark.parametrize("pattern", sorted(patterns([crd(kind) for kind in Kind])))
def test_pattern_of_a_field_is_matched_in_linear_time(pattern: str) -> None:
    """They run on what a stranger wrote; each field that has one has a longest length too."""
    growth, piece = worst_growth(re.compile(pattern), "search")
    assert growth < 2.5, piece


@pytest.mark.parametrize("value", ["9" * 200_000 + "x", "1s" * 100_000])
def test_long_duration_or_quantity_is_refused_at_once(tmp_path: Path, value: str) -> None:
    """Of a few hundred kilobytes, in any field that takes one."""
    own = f"{{checkpointInterval: {value}, limits: {{fileSize: {value}}}}}"
    text = SHORT.replace("{template: {}}", f"{{template: {{}}, sessionTimeout: {value}, wakegate: {own}}}")
    found = problems(write(tmp_path, text))
    assert [line.split(": ")[1] for line in found] == [
        "spec.sessionTimeout", "spec.wakegate.checkpointInterval", "spec.wakegate.limits.fileSize",
    ]  # fmt: skip
    assert all(len(line) < 300 for line in found)


def test_crds_match_the_schema() -> None:
    """`scripts/crds.py` has been run after the last change."""
    script = Path(__file__).resolve().parents[2] / "scripts" / "crds.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_requests_and_the_most_that_a_session_may_have(tmp_path: Path) -> None:
    """Whole GPUs are among requests or limits; the most names what it bounds, the rest is bounded by the limits."""
    template = "resources: {requests: {cpu: 100m, memory: 1Gi}, limits: {nvidia.com/gpu: 2}}"
    text = SHORT.replace("template: {}", f"template: {{{template}}}, wakegate: {{maxResources: {{memory: 2Gi}}}}")
    [runtime] = load_runtimes([write(tmp_path, text)])
    assert runtime.requests == Requests(millicores=100, memory=1 << 30, gpus=2)
    assert runtime.max_resources == Resources(memory=2 << 30)
    half = text.replace("gpu: 2", 'gpu: "0.5"').replace("memory: 2Gi", "memory: none, processes: 4")
    found = problems(write(tmp_path, half))
    assert [line.split(": ", 1)[1].partition(":")[0] for line in found] == [
        "spec.wakegate.maxResources.memory",
        "spec.wakegate.maxResources.processes",
        "spec.template.resources.limits.nvidia.com/gpu",
    ]


@pytest.mark.parametrize(
    ("containers", "limits"),
    [
        ([{"resources": {"limits": {"memory": "4Gi", "cpu": 2}}}], Limits(memory=4 << 30, cpus=2.0)),
        ([{"resources": {"limits": {"memory": "much", "cpu": None}}}], Limits()),
        ([{"resources": "x"}], Limits()),
        ([5], Limits()),
        ({"a": 1}, Limits()),
        ("abc", Limits()),
        ([], Limits()),
    ],
)
def test_limits_of_an_agents_pod_in_a_cluster_are_read_whatever_is_there(containers: Any, limits: Limits) -> None:
    """Its quota counts them; the pod is the API server's to check, and a strange one stops no other runtime."""
    document = {
        "apiVersion": API_VERSION,
        "kind": "AgentRuntime",
        "metadata": {"name": "a"},
        "spec": {
            "targetPort": [{"port": 80, "protocol": "HTTP"}],
            "podTemplate": {"spec": {"containers": containers}},
            "sessionTimeout": "15m",
            "maxSessionDuration": "8h",
        },
    }
    found: list[str] = []
    runtime = parse_runtime(document, "here", found, engine="kubernetes")
    assert found == []
    assert runtime is not None
    assert runtime.limits == limits
