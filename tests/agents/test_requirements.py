"""Requirements of agents: which lines are taken, and that an error names the line."""

from __future__ import annotations

import pytest

from gateway.agents.environments import PackageIndex
from gateway.agents.requirements import Requirement, explain, read_requirements
from gateway.core.errors import BadRequestError, SettingsError


def test_a_lock_with_hashes_is_read_line_by_line() -> None:
    """Comments and empty lines count as lines; a backslash joins."""
    text = "# lock\n\nFast_API[all]>=0.1,<2 ; python_version > '3.8'  # web\ntiny==1.0 \\\n    --hash=sha256:ab12\n"
    assert read_requirements(text) == (
        Requirement(3, "Fast_API", "Fast_API[all]>=0.1,<2 ; python_version > '3.8'"),
        Requirement(4, "tiny", "tiny==1.0 --hash=sha256:ab12"),
    )
    assert read_requirements("# nothing\n") == ()


@pytest.mark.parametrize(
    "line",
    ["--index-url http://e", "-r other.txt", "-e .", "./here", "/there", "a @ https://e/a.whl", "git+https://e/a",
     "a --global-option=x", "a==1 --hash=sha256:XX", "a\x00b", "[x]"],
)  # fmt: skip
def test_what_does_not_come_from_the_index_is_refused_with_its_line(line: str) -> None:
    """Options would change the index, paths are the sandbox's own, and URLs are not reached."""
    with pytest.raises(BadRequestError, match=r"requirements, line 2"):
        read_requirements(f"good==1\n{line}\n")


def test_requirements_are_bounded() -> None:
    """In characters and in lines."""
    for text in ("a\n" * 1002, "a" * 70_000):
        with pytest.raises(BadRequestError, match="larger than"):
            read_requirements(text)


def test_a_package_that_there_is_not_names_its_line() -> None:
    """By pip's last error, whatever form the name has; of a dependency there is no line."""
    requirements = read_requirements("# x\nNo_Such.thing==1\n")
    said = str(explain(requirements, "ERROR: No matching distribution found for no-such-thing==1\n"))
    assert said.startswith("requirements, line 2, 'No_Such.thing==1': ERROR: No matching")
    other = explain(requirements, "ERROR: No matching distribution found for other\n")
    assert str(other).startswith("requirements: ERROR")
    assert str(explain(requirements, "")) == "requirements: pip printed no error"
    traceback = "ERROR: Exception:\nTraceback (most recent call last):\n  File 'x'\nInvalidMarker: Expected a marker\n"
    assert str(explain(requirements, traceback)).endswith("InvalidMarker: Expected a marker")


def test_the_sandbox_that_installs_reaches_the_index_alone() -> None:
    """PyPI by its preset, which has the host of the files; another index by its host and port."""
    assert PackageIndex("https://pypi.org/simple").egress == ("pypi",)
    assert PackageIndex("http://index.example.com:8080/s").egress == ("index.example.com:8080",)
    for wrong in ("ftp://x/", "https://user:word@x/", "x", "https:///s"):
        with pytest.raises(SettingsError):
            PackageIndex(wrong)


def test_an_index_that_is_not_reached_is_no_package_that_is_missing() -> None:
    """pip takes it for one that has nothing; the person can do nothing about their list."""
    printed = (
        "WARNING: Retrying (Retry(total=0)) after connection broken by 'ProxyError('Cannot connect to proxy.', "
        "NewConnectionError('<pip.HTTPSConnection object at 0x7f84>: Failed to establish a new connection: [Errno 111] "
        "Connection refused'))': /simple/six/\n"
        "ERROR: Could not find a version that satisfies the requirement six (from versions: {})\n"
        "ERROR: No matching distribution found for six\n"
    )
    error = explain(read_requirements("six==9"), printed.format("none"))
    assert error.status == 503
    assert "index (--package-index) is not reached: ProxyError('Cannot connect to proxy.', " in str(error)
    assert "[Errno 111] Connection refused" in str(error)
    assert "0x7f84" not in str(error)
    assert explain(read_requirements("six==9"), printed.format("1.0, 1.1")).status == 400
