"""YAML files that are hostile, or only odd: each is read in bounds, or refused by a sentence with the line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from gateway.runtimes.documents import load_documents, read_documents
from gateway.runtimes.manifest import parse_runtime

MERGES = "\n".join(["a0: &a0 {k: 1}", *(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}" for n in range(1, 30))])
WIDE = "a: &a {" + ",".join(f"k{n}: 1" for n in range(3000)) + "}\nb: {<<: [" + ",".join(["*a"] * 3000) + "]}"

REFUSED: dict[str, str | bytes] = {
    "merges-that-double": MERGES,
    "wide-merges": WIDE,
    "merge-of-itself": "a: &a\n  <<: *a",
    "merge-of-text": "a: {<<: x}",
    "key-twice": "spec: {a: 1}\nspec: {b: 2}",
    "key-twice-within": "spec:\n  a: 1\n  'a': 2",
    "key-twice-by-escape": 'a: 1\n"\\x61": 2',
    "list-as-key": "? [a, b]\n: 1",
    "mapping-as-key": "? {a: b}\n: 1",
    "python-object": "a: !!python/object/apply:os.system ['id']",
    "own-tag": "a: !secret x",
    "binary": "a: !!binary aGk=",
    "set": "a: !!set {x, y}",
    "ordered-mapping": "a: !!omap [x: 1]",
    "pairs": "a: !!pairs [x: 1]",
    "date-by-tag": "a: !!timestamp 2020-01-01",
    "no-number": 'a: !!int ""',
    "no-float": "a: !!float x",
    "no-boolean": "a: !!bool maybe",
    "surrogate": 'a: "\\ud800"',
    "utf-32": "a: b".encode("utf-32"),
    "latin-1": b"a: \xe9",
    "escape-sequence": "a: \x1b[2J",
    "deep": "[" * 50_000,
    "questions": "? " * 20_000,
    "dashes": "- " * 40_000,
    "long-number": "a: " + "1:" * 300 + "1",
    "huge-number": "a: 9223372036854775808",
    "huge-hexadecimal": "a: -0x" + "f" * 390,
    "many-documents": "--- a\n" * 110_000,
    "another-version": "%YAML 2.0\n--- a",
    "two-versions": "%YAML 1.1\n%YAML 1.1\n--- a",
    "nothing-behind-an-anchor": "a: *none",
}  # fmt: skip
READ: dict[str, tuple[str | bytes, list[Any]]] = {
    "dates": ("a: 2020-01-01\nb: 2001-12-14t21:59:43.10-99:99\nc: 2020-99-99",
              [{"a": "2020-01-01", "b": "2001-12-14t21:59:43.10-99:99", "c": "2020-99-99"}]),
    "overridden-merge": ("a: &a {k: 1, l: 2}\nb: {<<: *a, k: 3}", [{"a": {"k": 1, "l": 2}, "b": {"k": 3, "l": 2}}]),
    "anchors": ("a: &a [x]\nb: *a", [{"a": ["x"], "b": ["x"]}]),
    "utf-16": ("a: b".encode("utf-16"), [{"a": "b"}]),
    "byte-order-mark": (b"\xef\xbb\xbfa: b", [{"a": "b"}]),
    "equal-keys-apart": ("a: {k: 1}\nb: {k: 1}", [{"a": {"k": 1}, "b": {"k": 1}}]),
    "nothing": ("# only a comment", []),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_file_that_is_no_manifest_is_a_problem(tmp_path: Path, name: str) -> None:
    """One problem, which names the file; never an exception of another kind."""
    text = REFUSED[name]
    file = tmp_path / "one.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    problems: list[str] = []
    assert read_documents(file, problems) == []
    assert len(problems) == 1
    assert problems[0].startswith(f"{file}:")
    assert problems[0].isprintable()
    assert len(problems[0]) < 1000


@pytest.mark.parametrize("name", READ)
def test_odd_file_is_read(name: str) -> None:
    """What Kubernetes takes, and as it takes it."""
    text, documents = READ[name]
    assert load_documents(text if isinstance(text, bytes) else text.encode()) == documents


PLACES = (
    "metadata.labels.a",
    "spec.podTemplate.annotations.a",
    "spec.podTemplate.spec.aField",
    "spec.unknown",
    "status.a",
)


@pytest.mark.parametrize(
    "value", [".nan", ".inf", "9223372036854775807", "1e400", "2020-01-01", '"\\0"', "~", "[[[]]]"]
)
@pytest.mark.parametrize("kind", ["AgentRuntime", "CodeInterpreter"])
def test_any_value_in_an_open_field_can_be_written_again(kind: str, value: str) -> None:
    """Fields that the schema leaves open go into digests, records and answers as JSON; or are problems."""
    for place in PLACES:
        document: Any = {
            "apiVersion": "runtime.agentcube.volcano.sh/v1alpha1",
            "kind": kind,
            "metadata": {"name": "one"},
            "spec": {
                "targetPort": [{"port": 1}],
                "podTemplate": {"spec": {"containers": [{"name": "a", "image": "b"}]}},
            }
            if kind == "AgentRuntime"
            else {"template": {}},
        }
        at = document
        *steps, last = place.split(".")
        for step in steps:
            at = at.setdefault(step, {})
        at[last] = yaml.safe_load(value) if value != "2020-01-01" else load_documents(value.encode())[0]
        problems: list[str] = []
        runtime = parse_runtime(document, "one.yaml", problems, engine="kubernetes")
        if runtime is not None and not problems:
            orjson.dumps(runtime.manifest)
