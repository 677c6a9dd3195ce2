"""Settings from flags, environment and file: who wins, and everything that is wrong said at once."""

from __future__ import annotations

import argparse
import contextlib
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cli.flags import add_flags
from gateway.core.errors import SettingsError
from gateway.core.settings import Settings
from gateway.core.settings_load import load


def read(*flags: str, **environ: str) -> Settings:
    """Settings as the command line would read them."""
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return load(vars(parser.parse_args(flags)), {"HOME": "/home/u", **environ})


def problems(*flags: str, **environ: str) -> list[str]:
    with pytest.raises(SettingsError) as error:
        read(*flags, **environ)
    return error.value.problems


def test_nothing_set_is_the_defaults() -> None:
    """The state folder follows the XDG base directories."""
    assert read() == Settings(state_dir=Path("/home/u/.local/share/wakegate"))
    assert read(XDG_DATA_HOME="/data").state_dir == Path("/data/wakegate")


def test_flag_wins_over_environment_over_file_over_default(tmp_path: Path) -> None:
    """One setting taken away after the other."""
    file = tmp_path / "wakegate.toml"
    file.write_text('port = 1001\nconnect_timeout = "3s"\nlog_level = "debug"\n')
    flags, environ = ("--config", str(file), "--port", "1003"), {"WAKEGATE_PORT": "1002", "WAKEGATE_LOG_LEVEL": "error"}
    settings = read(*flags, **environ)
    assert (settings.port, settings.log_level, settings.connect_timeout, settings.host) == (
        1003,
        "error",
        3.0,
        "127.0.0.1",
    )
    assert read(*flags[:2], **environ).port == 1002
    assert read(*flags[:2]).port == 1001
    assert read(WAKEGATE_CONFIG=str(file)).port == 1001
    assert read().port == 8080


def test_every_setting_has_flag_variable_and_help() -> None:
    """None is reachable in one way only."""
    parser = argparse.ArgumentParser()
    add_flags(parser)
    text = parser.format_help()
    for setting in fields(Settings):
        assert "--" + setting.name.replace("_", "-") in text
        assert setting.metadata["help"]


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90.0), ("1.5", 1.5), ("250ms", 0.25), ("2m", 120.0), ("1h30m", 5400.0)]
)
def test_durations_are_seconds_or_text_with_units(text: str, seconds: float) -> None:
    """In each source."""
    assert read("--connect-timeout", text).connect_timeout == seconds
    assert read(WAKEGATE_CONNECT_TIMEOUT=text).connect_timeout == seconds


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("1000", 1000), ("512Mi", 512 << 20), ("1.5Gi", 3 << 29), ("2G", 2 * 10**9)]
)
def test_sizes_are_bytes_or_kubernetes_quantities(tmp_path: Path, text: str, size: int) -> None:
    """In each source; TOML may have a whole number too."""
    assert read("--snapshot-max-size", text).snapshot_max_size == size
    assert read(WAKEGATE_SNAPSHOT_MAX_SIZE=text).snapshot_max_size == size
    file = tmp_path / "w.toml"
    file.write_text(f"snapshot_max_size = {size}")
    assert read("--config", str(file)).snapshot_max_size == size


def test_runtime_may_be_repeated_and_listed(tmp_path: Path) -> None:
    """Flags repeat, a variable separates by the path separator, TOML has a list."""
    file = tmp_path / "w.toml"
    file.write_text('runtime = ["a", "b"]')
    expected = (Path("a"), Path("b"))
    assert read("--runtime", "a", "--runtime", "b").runtime == expected
    assert read(WAKEGATE_RUNTIME="a:b").runtime == expected
    assert read("--config", str(file)).runtime == expected


def test_every_wrong_setting_is_named_at_once(tmp_path: Path) -> None:
    """Each with the place it came from and what would be right."""
    file = tmp_path / "w.toml"
    file.write_text('prot = 1\nwarm_pool = "many"\naccess_log = "perhaps"\n[table]\nx = 1\n')
    found = problems(
        "--config", str(file), "--port", "99999", "--engine", "x", WAKEGATE_CONNECT_TIMEOUT="soon",
        WAKEGATE_STAT_DIR="/x",
        WAKEGATE_MAX_SANDBOXES="0", WAKEGATE_HOST="",
    )  # fmt: skip
    for expected in (
        "--port: must be at most 65535, got '99999'",
        "--engine: expected one of local, kubernetes; got 'x'",
        "WAKEGATE_CONNECT_TIMEOUT: 'soon' is not a duration; write a number with a unit, e.g. 30s, 15m or 1h30m",
        "WAKEGATE_STAT_DIR: unknown setting; did you mean 'state_dir'?",
        "WAKEGATE_MAX_SANDBOXES: must be at least 1, got '0'",
        "WAKEGATE_HOST: expected text, got ''",
        f"{file}: unknown setting 'prot'; did you mean 'port'?",
        f"{file}: warm_pool: expected a whole number, got 'many'",
        f"{file}: access_log: expected true or false, got 'perhaps'",
    ):
        assert expected in found
    assert any(line.startswith(f"{file}: unknown setting 'table'") for line in found)
    assert len(found) == 10


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("port = 8080.5", "port: expected a whole number"),
        ("port = inf", "port: expected a whole number"),
        ("port = true", "port: expected a number"),
        ("port = [1]", "port: expected a whole number"),
        ("connect_timeout = nan", "connect_timeout: "),
        ("connect_timeout = inf", "connect_timeout: "),
        ("connect_timeout = -1", "connect_timeout: must be at least"),
        ("connect_timeout = 2024-01-01", "connect_timeout: "),
        ("host = 1", "host: expected text"),
        ("state_dir = {a = 1}", "state_dir: expected text"),
        ("runtime = [1]", "runtime: expected a path"),
        ("snapshot_max_size = 1.5", "snapshot_max_size: expected a size such as 512Mi or 4Gi"),
        ("snapshot_max_size = true", "snapshot_max_size: expected a size"),
        ('snapshot_max_size = "4 GB"', "snapshot_max_size: expected a size"),
        (f"snapshot_max_size = {'9' * 400}", "snapshot_max_size: expected a size"),
        ("snapshot_max_size = -1", "snapshot_max_size: must be a whole number of bytes below 1024 TiB"),
        ('snapshot_max_size = "500m"', "snapshot_max_size: must be a whole number of bytes"),
    ],
)
def test_toml_values_of_the_wrong_type_are_refused(tmp_path: Path, line: str, problem: str) -> None:
    """None is bent into shape, and none ends in a traceback."""
    file = tmp_path / "w.toml"
    file.write_text(line)
    assert f"{file}: {problem}" in problems("--config", str(file))[0]


@pytest.mark.parametrize("content", [b"port = ", b"\xff\xfe\x00", b"a = 1\na = 2"])
def test_broken_file_is_named(tmp_path: Path, content: bytes) -> None:
    """With what the reader of TOML says."""
    file = tmp_path / "w.toml"
    file.write_bytes(content)
    assert problems("--config", str(file))[0].startswith(f"{file}: is not TOML")


def test_missing_file_is_named(tmp_path: Path) -> None:
    """And a folder in its place."""
    assert problems("--config", str(tmp_path / "none")) == [
        f"{tmp_path}/none: cannot be read: No such file or directory"
    ]
    assert problems("--config", str(tmp_path)) == [f"{tmp_path}: cannot be read: Is a directory"]


def test_home_of_an_unknown_user_is_a_problem_that_names_the_setting() -> None:
    """`~name` where no such user exists is refused like any other bad value."""
    with pytest.raises(SettingsError, match="~nosuchuser has no home directory"):
        load({}, {"WAKEGATE_STATE_DIR": "~nosuchuser/state"})


@given(name=st.sampled_from([f.name for f in fields(Settings)]), value=st.text(max_size=30))
def test_any_text_in_any_variable_is_a_setting_or_a_problem(name: str, value: str) -> None:
    """Nothing that an environment can hold makes it raise anything else."""
    with contextlib.suppress(SettingsError):
        load({}, {"WAKEGATE_" + name.upper(): value})
