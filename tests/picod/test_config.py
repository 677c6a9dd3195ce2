"""Flags, environment, and what is said about wrong ones."""

from __future__ import annotations

import pytest

from picod.config import PicodConfig


def test_flags_win_over_the_environment() -> None:
    """Both are read; where both speak, the flag does."""
    environ = {"PICOD_AUTH": "none", "PICOD_WORKSPACE": "/from-env", "PICOD_MAX_OUTPUT": "5"}
    config = PicodConfig.from_args(["--workspace", "/from-flag"], environ)

    assert (config.workspace, config.auth, config.max_output) == ("/from-flag", "none", 5)


def test_command_environment_is_four_names_by_default() -> None:
    """Nothing of picod's own environment but PATH is handed on."""
    config = PicodConfig.from_args(
        ["--auth", "none", "--workspace", "/w"], {"PATH": "/bin", "PICOD_AUTH": "jwt", "SECRET": "x"}
    )

    assert config.command_env == {"PATH": "/bin", "HOME": "/w", "LANG": "C.UTF-8", "TMPDIR": "/tmp"}


def test_command_environment_is_replaced_whole() -> None:
    """PICOD_COMMAND_ENV is all there is."""
    config = PicodConfig.from_args(["--auth", "none"], {"PATH": "/bin", "PICOD_COMMAND_ENV": '{"A": "1"}'})

    assert config.command_env == {"A": "1"}


@pytest.mark.parametrize(
    ("text", "ranges"),
    [("", ()), ("8000", ((8000, 8000),)), ("80, 9000-9100", ((80, 80), (9000, 9100))), (None, ((1024, 65535),))],
)
def test_ports_are_a_list_of_numbers_and_ranges(text: str | None, ranges: tuple[tuple[int, int], ...]) -> None:
    """An empty list allows none; the default is all ports above 1023."""
    environ = {} if text is None else {"PICOD_PORTS": text}

    assert PicodConfig.from_args(["--auth", "none"], environ).ports == ranges


@pytest.mark.parametrize(
    ("argv", "environ", "named"),
    [
        ([], {}, "--keys-file"),
        (["--keys-file", "k"], {}, "--audience"),
        (["--auth", "basic"], {}, "--auth"),
        (["--auth", "none", "--max-output", "-1"], {}, "--max-output"),
        (["--auth", "none"], {"PICOD_MAX_BODY": "1e3"}, "PICOD_MAX_BODY"),
        (["--auth", "none"], {"PICOD_COMMAND_ENV": "{"}, "PICOD_COMMAND_ENV"),
        (["--auth", "none"], {"PICOD_COMMAND_ENV": '{"A": 1}'}, "PICOD_COMMAND_ENV"),
        (["--auth", "none", "--fd", "x"], {}, "--fd"),
        (["--auth", "none", "--ports", "9-8"], {}, "--ports"),
        (["--auth", "none"], {"PICOD_PORTS": "80,http"}, "PICOD_PORTS"),
    ],
)
def test_wrong_settings_end_the_start_and_are_named(
    argv: list[str], environ: dict[str, str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2, and the line says which setting it was."""
    with pytest.raises(SystemExit) as caught:
        PicodConfig.from_args(argv, environ)

    assert caught.value.code == 2
    assert named in capsys.readouterr().err.splitlines()[-1]
