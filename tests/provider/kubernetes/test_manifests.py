"""What is shipped for clusters, held to the code: settings, ports, paths, rights, fields, schemas."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from gateway import __version__
from gateway.core.model import Kind, Runtime, RuntimeKey
from gateway.core.settings import ENV_PREFIX, Settings, requires_identity
from gateway.core.settings_load import load
from gateway.core.units import parse_duration
from gateway.egress.addresses import METADATA, is_within
from gateway.provider.kubernetes import names, rights
from gateway.provider.kubernetes.egress import make_egress
from gateway.provider.kubernetes.pod_resources import quantity
from gateway.provider.kubernetes.template import PodDefaults, make_template
from gateway.runtimes.manifest import load_runtimes, parse_runtime
from tests.support.kube.manifests import MANIFESTS, ROOT, built, one
from tests.support.kube.schema import problems_of

OVERLAYS = ("quickstart", "production")
MODELS = {
    "Deployment": "V1Deployment", "StatefulSet": "V1StatefulSet", "Service": "V1Service", "ConfigMap": "V1ConfigMap",
    "ServiceAccount": "V1ServiceAccount", "Role": "V1Role", "RoleBinding": "V1RoleBinding", "Namespace": "V1Namespace",
    "NetworkPolicy": "V1NetworkPolicy", "PersistentVolumeClaim": "V1PersistentVolumeClaim",
    "PodDisruptionBudget": "V1PodDisruptionBudget", "HorizontalPodAutoscaler": "V2HorizontalPodAutoscaler",
    "CustomResourceDefinition": "V1CustomResourceDefinition", "Secret": "V1Secret",
}  # fmt: skip


def gateway_pod(overlay: str) -> Any:
    return one(overlay, "Deployment", "wakegate")["spec"]["template"]["spec"]


def variables_of(overlay: str) -> dict[str, str]:
    """The ConfigMap's, and those of the container itself."""
    given = {
        each["name"]: each["value"] for each in gateway_pod(overlay)["containers"][0].get("env", ()) if "value" in each
    }
    return {**one(overlay, "ConfigMap", "wakegate-settings")["data"], **given}


def settings_of(overlay: str) -> Settings:
    """As the gateway in the pod reads them; the Secret's part is made up."""
    environ = variables_of(overlay)
    environ.setdefault("WAKEGATE_STORE", "redis://redis:6379/0")
    return load({}, environ)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlay_builds_and_fits_the_published_api(overlay: str) -> None:
    """Every object has a kind that we know the schema of, and only fields that it has; all names are there once."""
    documents = built(overlay)
    for document in documents:
        assert problems_of(document, MODELS[document["kind"]]) == [], document["metadata"]["name"]
    keys = [(d["kind"], d["metadata"].get("namespace"), d["metadata"]["name"]) for d in documents]
    assert len(keys) == len(set(keys))
    cluster_wide = {"Namespace", "CustomResourceDefinition"}
    assert all(d["metadata"].get("namespace") for d in documents if d["kind"] not in cluster_wide)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlay_settings_are_settings_of_the_gateway(overlay: str) -> None:
    """Each WAKEGATE_ variable is known and parses; what other objects rely on has the value that they rely on."""
    settings = settings_of(overlay)
    container = gateway_pod(overlay)["containers"][0]
    assert settings.engine == "kubernetes"
    assert settings.host == "0.0.0.0"
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert ports == {"http": settings.port, "egress": settings.egress_port}
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert str(settings.state_dir) in mounts
    assert all(str(path) in mounts for path in settings.runtime)
    if settings.snapshots.startswith("file://"):
        assert settings.snapshots.removeprefix("file://") in mounts
    assert settings.picod_image == Settings().picod_image == f"wakegate/picod:{__version__}"
    assert container["image"] == f"wakegate/gateway:{__version__}"
    assert settings.kube_gateway_namespace == one(overlay, "Deployment", "wakegate")["metadata"]["namespace"]
    assert (
        settings.kube_namespaces
        == one(overlay, "Role", "wakegate-sandboxes", "wakegate-sandboxes")["metadata"]["namespace"]
    )


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlay_drains_longer_than_its_longest_request(overlay: str) -> None:
    """request_timeout < drain_timeout, and the pod's grace covers the pause, the notice, the drain, and a little."""
    settings, pod = settings_of(overlay), gateway_pod(overlay)
    pause = float(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    assert 0 < settings.request_timeout < settings.drain_timeout
    assert pod["terminationGracePeriodSeconds"] > pause + settings.shutdown_delay + settings.drain_timeout + 5


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlay_probes_paths_that_the_gateway_answers(overlay: str) -> None:
    """Probes and scraping ask for routes that exist."""
    table = (ROOT / "gateway/api/openapi/table.py").read_text()
    container = gateway_pod(overlay)["containers"][0]
    paths = [container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "liveness", "readiness")]
    job = yaml.safe_load((MANIFESTS / "monitoring/scrape.yaml").read_text())
    for path in [*paths, job["metrics_path"]]:
        assert f'"{path}"' in table


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlay_requires_authentication_and_your_own_admin_key(overlay: str) -> None:
    """The admin's key is a Secret that must be there, that no manifest brings, and that the gateway's user can read."""
    settings, pod = settings_of(overlay), gateway_pod(overlay)
    assert requires_identity(settings)
    assert not settings.insecure_no_auth
    (mount,) = [
        m for m in pod["containers"][0]["volumeMounts"] if m["mountPath"] == str(settings.admin_key_file.parent)
    ]
    (volume,) = [v for v in pod["volumes"] if v["name"] == mount["name"]]
    assert volume["secret"] == {"secretName": "wakegate-admin-key", "defaultMode": 0o440}
    assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsGroup"]
    assert not [d for d in built(overlay) if d["metadata"]["name"] == "wakegate-admin-key"]


def test_scrape_job_finds_the_gateways_pods() -> None:
    """By the labels and the port's name that they have, with the key in a file."""
    job = yaml.safe_load((MANIFESTS / "monitoring/scrape.yaml").read_text())
    made = one("quickstart", "Deployment", "wakegate")["spec"]["template"]
    labels = made["metadata"]["labels"]
    port = made["spec"]["containers"][0]["ports"][0]["name"]
    keep = job["relabel_configs"][0]
    found = (labels["app.kubernetes.io/name"], labels["app.kubernetes.io/component"], port)
    assert keep["source_labels"][0] == "__meta_kubernetes_pod_label_app_kubernetes_io_name"
    assert keep["regex"] == ";".join(found)
    assert job["kubernetes_sd_configs"][0]["namespaces"]["names"] == ["wakegate"]
    assert job["job_name"] == "wakegate"
    assert job["authorization"]["credentials_file"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlay_gives_no_service_variables_to_the_gateway(overlay: str) -> None:
    """A Service named wakegate would make WAKEGATE_PORT=tcp://..., which reads as a setting."""
    assert gateway_pod(overlay)["enableServiceLinks"] is False
    assert any(d["kind"] == "Service" and d["metadata"]["name"].startswith("wakegate") for d in built(overlay))
    assert ENV_PREFIX == "WAKEGATE_"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlay_pods_have_no_privileges(overlay: str) -> None:
    """Non-root, read-only root, no capabilities, seccomp, pinned images."""
    for document in built(overlay):
        if document["kind"] in ("Deployment", "StatefulSet"):
            pod = document["spec"]["template"]["spec"]
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
            for container in pod["containers"]:
                assert container["securityContext"] == {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                }
                assert re.search(r":\d+\.\d+\.\d+$", container["image"])


def test_prepull_component_pulls_the_image_of_the_settings(tmp_path: Path) -> None:
    """Added to an overlay it builds, fits the API, and names the image that sandboxes have."""
    base = os.path.relpath(MANIFESTS, tmp_path)
    kustomization = {"resources": [f"{base}/overlays/production"], "components": [f"{base}/components/prepull"]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    kubectl = Path(sys.executable).parent / "kubectl"
    done = subprocess.run([kubectl, "kustomize", tmp_path], capture_output=True, check=True)
    (made,) = [d for d in yaml.safe_load_all(done.stdout) if d["kind"] == "DaemonSet"]
    assert problems_of(made, "V1DaemonSet") == []
    (container,) = made["spec"]["template"]["spec"]["containers"]
    assert container["image"] == Settings().picod_image


def test_shared_volume_component_gives_every_gateway_the_snapshots(tmp_path: Path) -> None:
    """Added to production it builds, fits the API, and the settings name the folder where the claim is mounted."""
    base = os.path.relpath(MANIFESTS, tmp_path)
    kustomization = {"resources": [f"{base}/overlays/production"], "components": [f"{base}/components/shared-volume"]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    kubectl = Path(sys.executable).parent / "kubectl"
    done = subprocess.run([kubectl, "kustomize", tmp_path], capture_output=True, check=True)
    documents = {(d["kind"], d["metadata"]["name"]): d for d in yaml.safe_load_all(done.stdout)}
    for document in documents.values():
        assert problems_of(document, MODELS[document["kind"]]) == []
    claim = documents["PersistentVolumeClaim", "wakegate-snapshots"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    pod = documents["Deployment", "wakegate"]["spec"]["template"]["spec"]
    (volume,) = [each for each in pod["volumes"] if "persistentVolumeClaim" in each]
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    (mount,) = [each for each in pod["containers"][0]["volumeMounts"] if each["name"] == volume["name"]]
    settings = load({}, documents["ConfigMap", "wakegate-settings"]["data"])
    assert settings.snapshots == f"file://{mount['mountPath']}"


def test_overlay_with_one_volume_has_one_gateway_and_the_other_scales() -> None:
    """ReadWriteOnce: one replica that ends before the next starts. Production: three and more, none of them counted in
    the Deployment, where an apply would undo the autoscaler, and a budget that lets one go at a time."""
    single = one("quickstart", "Deployment", "wakegate")["spec"]
    assert one("quickstart", "PersistentVolumeClaim", "wakegate-snapshots")["spec"]["accessModes"] == ["ReadWriteOnce"]
    assert (single["replicas"], single["strategy"]) == (1, {"type": "Recreate"})
    many = one("production", "Deployment", "wakegate")
    assert "replicas" not in many["spec"]
    assert many["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    scaler = one("production", "HorizontalPodAutoscaler", "wakegate")["spec"]
    assert scaler["scaleTargetRef"]["name"] == many["metadata"]["name"]
    assert scaler["minReplicas"] >= 2
    budget = one("production", "PodDisruptionBudget", "wakegate")["spec"]
    assert budget["maxUnavailable"] == 1
    labels = many["spec"]["template"]["metadata"]["labels"]
    assert budget["selector"]["matchLabels"].items() <= labels.items()


def granted(role: Any) -> set[tuple[str, str, str, str]]:
    return {
        (group, resource, verb, name)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames", [""])
    }


def needed(wanted: tuple[rights.Right, ...]) -> set[tuple[str, str, str, str]]:
    return {(right.group, right.resource, verb, right.name) for right in wanted for verb in right.verbs}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlay_grants_the_rights_that_are_needed_and_no_more(overlay: str) -> None:
    """The Roles are what gateway/provider/kubernetes/rights.py lists; no cluster-wide role, no list of secrets."""
    assert granted(one(overlay, "Role", "wakegate-sandboxes", "wakegate-sandboxes")) == needed(rights.SANDBOXES)
    assert granted(one(overlay, "Role", "wakegate")) == needed(rights.GATEWAY)
    assert granted(one(overlay, "Role", "wakegate-node-leases", "kube-node-lease")) == needed(rights.NODES)
    assert not [d for d in built(overlay) if d["kind"].startswith("ClusterRole")]


def test_rights_to_claims_are_those_that_are_needed() -> None:
    """And only where somebody asks for them: no overlay has them."""
    folder = MANIFESTS / "sandbox-claims"
    role = next(yaml.safe_load_all((folder / "access.yaml").read_text()))
    assert granted(role) == needed(rights.CLAIMS)
    for document in yaml.safe_load_all((folder / "crds.yaml").read_text()):
        assert problems_of(document, MODELS["CustomResourceDefinition"]) == []
    assert not [each for overlay in OVERLAYS for each in built(overlay) if "claims" in each["metadata"]["name"]]


def test_rights_of_a_router_are_those_that_are_needed() -> None:
    """And only where somebody asks for them."""
    role = next(yaml.safe_load_all((MANIFESTS / "sandbox-router" / "access.yaml").read_text()))
    assert granted(role) == needed(rights.ROUTER)
    assert not [each for overlay in OVERLAYS for each in built(overlay) if "router" in each["metadata"]["name"]]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlay_lets_only_gateways_reach_sandboxes(overlay: str) -> None:
    """The policy selects the pods that we make, denies all, and its exception selects the gateway's."""
    policy = one(overlay, "NetworkPolicy", "wakegate-sandboxes", "wakegate-sandboxes")["spec"]
    runtime = load_runtimes([MANIFESTS / "overlays/quickstart/my-interpreter.yaml"], engine="kubernetes")[0]
    labels = make_template(runtime, PodDefaults(picod_image="x:1"))["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert "egress" not in policy
    (source,) = policy["ingress"][0]["from"]
    pod = one(overlay, "Deployment", "wakegate")["spec"]["template"]["metadata"]["labels"]
    assert source["podSelector"]["matchLabels"].items() <= pod.items()
    namespace = one(overlay, "Namespace", "wakegate")
    assert source["namespaceSelector"]["matchLabels"].items() <= namespace["metadata"]["labels"].items()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlay_keeps_sandboxes_in_a_restricted_namespace_of_their_own(overlay: str) -> None:
    """Nothing else is there, and Pod Security refuses whatever asks for more, whoever makes it."""
    (namespace,) = settings_of(overlay).kube_namespaces.split(",")
    labels = one(overlay, "Namespace", namespace)["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    there = {d["kind"] for d in built(overlay) if d["metadata"].get("namespace") == namespace}
    assert there == {"Role", "RoleBinding", "NetworkPolicy"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlay_lets_gateways_reach_only_what_they_need(overlay: str) -> None:
    """Sandboxes on any port, other gateways, Redis; of the rest names, HTTPS and the API server."""
    labels = gateway_labels(overlay).items()
    policies = [
        d["spec"] for d in built(overlay)
        if d["kind"] == "NetworkPolicy"
        and d["metadata"]["namespace"] == "wakegate"
        and d["spec"]["podSelector"]["matchLabels"].items() <= labels
    ]  # fmt: skip
    assert any("Egress" in policy["policyTypes"] for policy in policies)
    rules = [rule for policy in policies for rule in policy.get("egress", ())]
    anywhere = {port["port"] for rule in rules if "to" not in rule for port in rule["ports"]}
    assert anywhere == {53, 443, 6443} | ({6379, 6380} if overlay == "production" else set())
    everything = [rule for rule in rules if "ports" not in rule]
    assert [peer["podSelector"]["matchLabels"] for rule in everything for peer in rule["to"]] == [
        {names.MANAGED: names.MANAGER}
    ]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlay_opens_the_egress_port_to_sandboxes_alone(overlay: str) -> None:
    """The settings, the Service, the container and both sides' policies name one port; no metadata server is opened."""
    settings, pod = settings_of(overlay), one(overlay, "Deployment", "wakegate")["spec"]["template"]
    host, _, port = settings.egress_address.rpartition(":")
    service = one(overlay, "Service", host)["spec"]
    assert service["selector"].items() <= pod["metadata"]["labels"].items()
    assert service["sessionAffinity"] == "ClientIP"
    ports = {each["name"]: each["containerPort"] for each in pod["spec"]["containers"][0]["ports"]}
    assert [(str(each["port"]), ports[each["targetPort"]]) for each in service["ports"]] == [
        (port, settings.egress_port)
    ]
    policy = one(overlay, "NetworkPolicy", "wakegate-gateway-egress")["spec"]
    (rule,) = policy["ingress"]
    assert [each["podSelector"]["matchLabels"] for each in rule["from"]] == [{names.MANAGED: names.MANAGER}]
    assert [each["port"] for each in rule["ports"]] == [settings.egress_port]
    open_to_all = one(overlay, "NetworkPolicy", "wakegate-gateway")["spec"]["ingress"]
    assert [each["port"] for rule in open_to_all for each in rule["ports"]] == [settings.port]
    (reach,) = policy["egress"]
    assert [each["port"] for each in reach["ports"]] == [80]
    refused = [ip_network(each) for peer in reach["to"] for each in peer["ipBlock"]["except"]]
    for metadata in METADATA:
        assert is_within(metadata, refused), metadata
    manifest = {"spec": {"wakegate": {"egress": ["pypi"]}}}
    runtime = Runtime(RuntimeKey("default", "one"), manifest=manifest, egress=("pypi",))
    made = make_egress(runtime, service=(settings.kube_gateway_namespace, settings.egress_port))
    assert made is not None
    (peer,) = made["spec"]["egress"][0]["to"]
    assert peer["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    namespace = one(overlay, "Namespace", settings.kube_gateway_namespace)["metadata"]["labels"]
    assert peer["namespaceSelector"]["matchLabels"].items() <= namespace.items()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_packages_are_kept_on_a_volume_of_their_own(overlay: str) -> None:
    """Not in the state folder's memory; and the volume is larger than the cache, beyond which a pod is evicted."""
    settings, pod = settings_of(overlay), gateway_pod(overlay)
    (mount,) = [
        each for each in pod["containers"][0]["volumeMounts"]
        if each["mountPath"] == str(settings.state_dir / "packages")
    ]  # fmt: skip
    (volume,) = [each for each in pod["volumes"] if each["name"] == mount["name"]]
    assert "medium" not in volume["emptyDir"]
    assert quantity(volume["emptyDir"]["sizeLimit"]) >= 1.25 * settings.package_cache > 0


def gateway_labels(overlay: str) -> Any:
    return one(overlay, "Deployment", "wakegate")["spec"]["template"]["metadata"]["labels"]


def test_quickstarts_gateway_reaches_redis_by_an_address_that_stays() -> None:
    """A headless Service has no name while its pod is replaced, and resolvers remember that."""
    host = variables_of("quickstart")["WAKEGATE_STORE"].partition("@")[2].partition(".")[0]
    service = one("quickstart", "Service", host)["spec"]
    assert service.get("clusterIP") != "None"
    labels = one("quickstart", "StatefulSet", "wakegate-redis")["spec"]["template"]["metadata"]["labels"]
    assert service["selector"].items() <= labels.items()


def test_quickstarts_redis_wants_a_password_and_has_no_known_hole() -> None:
    """The gateway's URL carries the one that Redis is started with; 7.4.6 mends CVE-2025-49844."""
    (container,) = one("quickstart", "StatefulSet", "wakegate-redis")["spec"]["template"]["spec"]["containers"]
    gateway = gateway_pod("quickstart")["containers"][0]
    for each in (container, gateway):
        (password,) = [variable for variable in each["env"] if variable["name"] == "REDIS_PASSWORD"]
        assert password["valueFrom"]["secretKeyRef"] == {"name": "wakegate-redis", "key": "password"}
        assert each["env"][0] == password  # $(REDIS_PASSWORD) works only in what comes after it
    assert container["args"][:2] == ["--requirepass", "$(REDIS_PASSWORD)"]
    assert variables_of("quickstart")["WAKEGATE_STORE"].startswith("redis://:$(REDIS_PASSWORD)@")
    assert one("quickstart", "Secret", "wakegate-redis")["data"]["password"]
    assert tuple(map(int, container["image"].partition(":")[2].split("."))) >= (7, 4, 6)


# Custom resources.

AGENTCUBE = """
apiVersion: runtime.agentcube.volcano.sh/v1alpha1
kind: CodeInterpreter
metadata: {name: theirs, namespace: default}
spec:
  ports: [{pathPrefix: "/", port: 8080, protocol: HTTP}]
  template:
    image: registry.example/picod:latest
    imagePullPolicy: IfNotPresent
    args: ["--workspace=/root"]
    environment: [{name: GREETING, value: hello}]
    resources: {limits: {cpu: 500m, memory: 512Mi}, requests: {cpu: 100m, memory: 128Mi}}
  sessionTimeout: 15m
  maxSessionDuration: 8h
  warmPoolSize: 1
"""
AGENT = """
apiVersion: runtime.agentcube.volcano.sh/v1alpha1
kind: AgentRuntime
metadata: {name: agent, namespace: default}
spec:
  targetPort: [{pathPrefix: /api, port: 8080, protocol: HTTP}, {pathPrefix: /ui, port: 3000, protocol: HTTP}]
  podTemplate:
    labels: {app: agent}
    spec: {containers: [{name: agent, image: "registry.example/agent:1"}]}
  sessionTimeout: 15m
  maxSessionDuration: 8h
"""
OURS = """
apiVersion: runtime.agentcube.volcano.sh/v1alpha1
kind: CodeInterpreter
metadata: {name: ours, namespace: default}
spec:
  template: {image: "wakegate/picod:0.1.0"}
  warmPoolSize: 2
  wakegate:
    pool: {mode: predictive, min: 1, max: 9, targetMissRate: 0.02}
    hibernation: "off"
    limits: {fileSize: 1Gi, tmpSize: 64Mi}
    ports: [8000, 9000-9100]
    egress: [dns, 10.0.0.0/8, {ports: [{port: 443}]}]
    pod: {spread: pack, nodeSelector: {gpu: "yes"}, workspaceSize: 1Gi, priorityClassName: high,
          tolerations: [{key: gpu, operator: Exists}]}
"""


def schema_of(kind: str) -> Any:
    (crd,) = [
        d for d in built("quickstart") if d["kind"] == "CustomResourceDefinition" and d["spec"]["names"]["kind"] == kind
    ]
    return crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def as_json_schema(schema: Any) -> Any:
    """OpenAPI v3 as JSON Schema: exclusive bounds are numbers there, unknown fields are pruned, so here refused."""
    if isinstance(schema, list):
        return [as_json_schema(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: as_json_schema(value) for key, value in schema.items() if not key.startswith("exclusive")}
    for bound in ("Minimum", "Maximum"):
        if schema.get(f"exclusive{bound}") is True:
            made[f"exclusive{bound}"] = schema[bound.lower()]
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made["additionalProperties"] = False
    return made


@pytest.mark.parametrize("text", [AGENTCUBE, AGENT, OURS])
def test_crd_accepts_what_the_gateway_accepts(text: str) -> None:
    """AgentCube's manifests and ours fit the schema, are read without a problem, and make pods that fit the API."""
    document = yaml.safe_load(text)
    schema = as_json_schema(schema_of(document["kind"]))
    schema["properties"]["metadata"] = {"type": "object"}
    jsonschema.validate(document, schema)
    problems: list[str] = []
    runtime = parse_runtime(document, "test", problems, engine="kubernetes")
    assert problems == []
    assert runtime is not None
    template = make_template(runtime, PodDefaults(picod_image="x:1"))
    assert problems_of(template, "V1PodTemplateSpec") == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("warmPoolSize",), -1),
        (("wakegate", "pool", "mode"), "sometimes"),
        (("wakegate", "pool", "targetMissRate"), 1),
        (("wakegate", "hibernation"), "deep"),
        (("wakegate", "limits", "processes"), 1),
        (("authMode",), "maybe"),
        (("template", "imag"), "x"),
    ],
)
def test_crd_refuses_what_the_gateway_refuses(path: tuple[str, ...], value: Any) -> None:
    """Wrong values stop at `kubectl apply`, with the field named."""
    document = yaml.safe_load(OURS)
    at = document["spec"]
    for part in path[:-1]:
        at = at[part]
    at[path[-1]] = value
    schema = as_json_schema(schema_of("CodeInterpreter"))
    schema["properties"]["metadata"] = {"type": "object"}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, schema)


def test_crd_defaults_are_those_of_the_gateway() -> None:
    """What the API server fills in is what the gateway assumes where nothing is."""
    spec = schema_of("CodeInterpreter")["properties"]["spec"]["properties"]
    runtime = parse_runtime(
        yaml.safe_load(AGENTCUBE.replace("sessionTimeout: 15m", "").replace("maxSessionDuration: 8h", "")), "test", []
    )
    assert runtime is not None
    assert parse_duration(spec["sessionTimeout"]["default"]) == runtime.session_timeout
    assert parse_duration(spec["maxSessionDuration"]["default"]) == runtime.max_session_duration
    assert (spec["authMode"]["default"] == "picod") == runtime.auth
    pool = spec["wakegate"]["properties"]["pool"]["properties"]
    assert pool["targetMissRate"]["default"] == runtime.pool.target_miss_rate
    assert pool["min"]["default"] == runtime.pool.min


def test_crds_are_named_as_the_gateway_asks_for_them() -> None:
    """Group, version, plural, kind, the status subresource, and the printer columns."""
    for kind in Kind:
        (crd,) = [d for d in built("production") if d["metadata"]["name"] == f"{names.plural(kind)}.{names.GROUP}"]
        (version,) = crd["spec"]["versions"]
        assert (version["name"], crd["spec"]["names"]["kind"]) == (names.VERSION, kind.value)
        assert version["subresources"] == {"status": {}}
        columns = [column["name"] for column in version["additionalPrinterColumns"]]
        assert columns == ["Ready", "Reason", "Warm", "Claimed", "Target", "Age"]


# Images.


def test_picod_image_installs_what_picod_imports() -> None:
    """Each package that picod imports is in its requirements, and pinned."""
    known = {"jwt": "pyjwt", "python_multipart": "python-multipart"}
    own = {"picod", "__main__", ""} | {file.stem for file in (ROOT / "picod").rglob("*.py")}
    found = set()
    for file in (ROOT / "picod").rglob("*.py"):
        if "userside" in file.parts:
            continue  # runs on the python3 of user code
        for node in ast.walk(ast.parse(file.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            found |= {module.partition(".")[0] for module in modules}
    third = found - set(sys.stdlib_module_names) - own
    lines = (MANIFESTS / "docker/picod-requirements.txt").read_text().splitlines()
    installed = {line for line in lines if line and not line.startswith("#")}
    assert {known.get(module, module) for module in third} | {"cryptography"} == installed
    pinned = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert installed <= pinned


@pytest.mark.parametrize("image", ["gateway", "picod"])
def test_dockerfile_copies_only_files_of_the_build_context(image: str) -> None:
    """Every COPY source exists and .dockerignore lets it into the build; bases are pinned; the user is not root."""
    text = (MANIFESTS / f"docker/{image}.Dockerfile").read_text()
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists()
            assert source in allowed
    assert all(re.search(r":\d+\.\d+\.\d+-", base) for base in re.findall(r"^FROM (\S+)", text, re.MULTILINE))
    assert re.search(r"^USER 1000:1000$", text, re.MULTILINE)
    entry = re.search(r"^ENTRYPOINT (.*)$", text, re.MULTILINE)
    assert entry is not None
    if image == "picod":
        assert yaml.safe_load(entry[1])[-4:] == ["--host", "0.0.0.0", "--port", "8080"]
