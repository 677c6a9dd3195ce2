"""docs/kubernetes-report.md, out of one run: versions, what passed and how long it took, and what was measured."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_PROGRAMS = ("etcd", "kube-apiserver", "kubelet")
_HEAD = """# On a whole cluster

Written by `scripts/test-cluster` on {day}, on {machine}. etcd, the control plane, and two nodes in namespaces of one
machine: each with kubelet, kube-proxy, containerd and runc of its own, and kube-router, which enforces
NetworkPolicies. The images are those of `manifests/docker`, over a base that debootstrap made. `overlays/quickstart`
is applied as it is; at the end an overlay over `overlays/production` takes its place, with a bucket (a server of the
tests outside the cluster), smaller requests, and two to three gateways, whose autoscaler has metrics-server's figures.

| program | version |
|---|---|
{versions}

## What was shown

{passed} passed, {failed} failed, {skipped} skipped, in {minutes:.0f} minutes. Seconds are of a machine that
everything shares, clients included.

| test | | s |
|---|---|---|
{tests}

## What was measured

Under load four clients read their sessions' files ten times a second, and a fifth makes sessions and ends them. None
repeats what failed: an error is an answer that was not 200, or none, or a connection that was not made within 5 s.
`lost` counts answers without the session's own
files.

| | |
|---|---|
{figures}

## What was not

CoreDNS (a responder of the tests answers the names of Services), a storage driver (volumes are folders that both
nodes see, bound by hand), a registry (images are imported), IPv6, a cloud's object store, the five minutes that the
autoscaler waits before it takes a gateway away (15 s here), control groups of version 2, and more than one control
plane.
`scripts/test-kubernetes` runs admission, quotas and the garbage collector over the same control plane with simulated
kubelets.
"""
_BY_HAND = "\n## With simulated kubelets\n"


@dataclass(frozen=True)
class Outcome:
    """Of one test."""

    name: str
    outcome: str  # passed, failed, skipped
    seconds: float


def _said(*argv: str) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20)
    except OSError:
        return "absent"
    return next((line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()), "")


def versions(programs: Path) -> dict[str, str]:
    """Of what the cluster is made of. kube-router does not know its own: scripts/build-kubernetes does."""
    found = {}
    for name in _PROGRAMS:
        said = re.search(r"v?\d+\.\d+\.\d+", _said(str(programs / name), "--version"))
        found[name] = said[0] if said else "built from its Go module"
    for name in ("containerd", "runc", "iptables"):
        said = re.search(r"\d+\.\d+\.\d+", _said(name, "--version"))
        found[name] = said[0] if said else "?"
    return {**found, "Linux": platform.release()}


def write(
    target: Path, day: str, programs: Path, outcomes: Sequence[Outcome], figures: Mapping[str, object], seconds: float
) -> None:
    """Replace the report, but for what is written by hand below it."""

    def rows(pairs: Mapping[str, object]) -> str:
        return "\n".join(f"| {name} | {_shown(value)} |" for name, value in pairs.items())

    count = {word: sum(each.outcome == word for each in outcomes) for word in ("passed", "failed", "skipped")}
    tests = "\n".join(f"| {_words(each.name)} | {each.outcome} | {each.seconds:.1f} |" for each in outcomes)
    load = "/".join(f"{each:.0f}" for each in os.getloadavg())
    _, heading, rest = target.read_text().partition(_BY_HAND) if target.exists() else ("", "", "")
    target.write_text(
        _HEAD.format(
            day=day,
            machine=f"{os.cpu_count()} cores with other load (load average {load} at its end)",
            versions=rows(versions(programs)),
            tests=tests,
            figures=rows(figures),
            minutes=seconds / 60,
            **count,
        )
        + heading
        + rest
    )


def _words(name: str) -> str:
    """A test's name, with what it was run for."""
    return name.removeprefix("test_").replace("_", " ")


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {each}" for name, each in value.items())
    return str(value)
