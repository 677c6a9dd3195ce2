"""The env file of AgentScope Runtime's sandbox server: what becomes of each of its settings, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.core.errors import SettingsError
from gateway.core.settings_load import load
from gateway.identity.directory import read_admin_key

TOKEN = "t" * 40
KEY = "at least 32 ASCII characters (openssl rand -hex 32)"
# As their documentation shows it.
DOCUMENTED = f"""
# Service settings
HOST="0.0.0.0"
PORT=8000
WORKERS=4
DEBUG=False
export BEARER_TOKEN={TOKEN} # keep it

DEFAULT_SANDBOX_TYPE=base
POOL_SIZE=10
AUTO_CLEANUP=True
CONTAINER_PREFIX_KEY=agent-runtime-container-
CONTAINER_DEPLOYMENT=docker
DEFAULT_MOUNT_DIR=sessions_mount_dir
PORT_RANGE=[49152,59152]
REDIS_ENABLED=True
REDIS_SERVER=redis.example
REDIS_PORT=6380
REDIS_DB=2
REDIS_USER=default
REDIS_PASSWORD='p@ss/word'
REDIS_PORT_KEY=_runtime_sandbox_container_occupied_ports
FILE_SYSTEM=local
OSS_ENDPOINT=http://oss-cn-hangzhou.aliyuncs.com
OSS_ACCESS_KEY_ID=
K8S_NAMESPACE=default
KUBECONFIG_PATH=
"""


def written(folder: Path, text: str) -> str:
    file = folder / "custom.env"
    file.write_text(text)
    return str(file)


def problems(folder: Path, text: str) -> list[str]:
    with pytest.raises(SettingsError) as refused:
        load({"agentscope_env": written(folder, text)}, {})
    return [each.replace(str(folder) + "/", "") for each in refused.value.problems]


def test_documented_file_becomes_our_settings(tmp_path: Path) -> None:
    """Address, pool, store and key; the rest names their containers. The key is read from the file itself."""
    settings = load({"agentscope_env": written(tmp_path, DOCUMENTED)}, {})
    assert (settings.host, settings.port, settings.workers, settings.warm_pool) == ("0.0.0.0", 8000, 4, 10)
    assert settings.store == "redis://default:p%40ss%2Fword@redis.example:6380/2"
    assert settings.engine == "local"
    assert settings.admin_key_file == tmp_path / "custom.env"
    assert read_admin_key(settings.admin_key_file)[0] == TOKEN
    assert settings.log_level == "info"


def test_flags_variables_and_our_own_file_win(tmp_path: Path) -> None:
    """In that order; the env file may be named by a variable."""
    theirs = "PORT=1\nPOOL_SIZE=1\nMAX_SANDBOX_INSTANCES=7\nDEBUG=true\nWORKERS=9"
    (tmp_path / "ours.toml").write_text("port = 3\nwarm_pool = 3\n")
    environ = {
        "WAKEGATE_AGENTSCOPE_ENV": written(tmp_path, theirs),
        "WAKEGATE_WARM_POOL": "4", "WAKEGATE_CONFIG": str(tmp_path / "ours.toml"),
    }  # fmt: skip
    settings = load({"port": "5"}, environ)
    assert (settings.port, settings.warm_pool, settings.max_sandboxes, settings.log_level) == (5, 4, 7, "debug")
    assert settings.workers == 1  # as theirs without Redis


def test_cluster_is_served_by_the_engine_for_it(tmp_path: Path) -> None:
    """With its namespace and kubeconfig."""
    text = "CONTAINER_DEPLOYMENT=k8s\nK8S_NAMESPACE=agents\nKUBECONFIG_PATH=/etc/kube/config\n"
    settings = load({"agentscope_env": written(tmp_path, text)}, {})
    assert (settings.engine, settings.kube_namespaces) == ("kubernetes", "agents")
    assert settings.kubeconfig == Path("/etc/kube/config")


def test_what_cannot_be_served_is_named_all_at_once(tmp_path: Path) -> None:
    """Each with its name and what to do."""
    text = (
        'BEARER_TOKEN=short\nDEFAULT_SANDBOX_TYPE=["base", "browser"]\nCONTAINER_DEPLOYMENT=agentrun\n'
        'READONLY_MOUNTS={"/opt": "/opt"}\nFILE_SYSTEM=oss\nPOOL_SIZ=3\nAGENT_RUN_CPU=2\nwhat\nPORT=http\n'
    )
    assert problems(tmp_path, text) == [
        "custom.env: line 8: expected NAME=value",
        f"custom.env: BEARER_TOKEN: it becomes the admin's key, which has {KEY}",
        "custom.env: DEFAULT_SANDBOX_TYPE: 'browser' is not offered here; there are base, filesystem",
        "custom.env: READONLY_MOUNTS: folders of the host are not mounted; put the files into the runtime's image",
        "custom.env: FILE_SYSTEM: leave it out, and name a store for hibernated files with --snapshots s3://BUCKET",
        "custom.env: CONTAINER_DEPLOYMENT: 'agentrun' is not offered here; there are docker and k8s",
        "custom.env: POOL_SIZ: unknown setting; did you mean POOL_SIZE?",
        "custom.env: PORT: expected a whole number, got 'http'",
    ]  # fmt: skip


@pytest.mark.parametrize(("text", "said"), [("\0" * 70_000, "larger than"), ("\0", "line 1: expected NAME=value")])
def test_what_is_no_env_file_is_refused(tmp_path: Path, text: str, said: str) -> None:
    """In a sentence, whatever is in it."""
    assert said in problems(tmp_path, text)[0]
    with pytest.raises(SettingsError, match="cannot be read"):
        load({"agentscope_env": str(tmp_path / "none")}, {})


def test_example_is_served() -> None:
    """As it stands in examples/."""
    settings = load({"agentscope_env": str(Path(__file__).parents[2] / "examples" / "agentscope.env")}, {})
    assert (settings.port, settings.warm_pool) == (8000, 3)
