"""TLS files: what is said of those that cannot be used, and what becomes of those that change."""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.core.certificates import Certificates, expiry_problems, make_certificates
from gateway.core.clock import SystemClock
from gateway.core.errors import SettingsError
from gateway.core.settings import Settings
from gateway.core.settings_load import load
from tests.support.certificates import Authority, Pair


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def problems_of(pair: Pair, client_ca: Path | None = None) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        Certificates(pair.cert, pair.key, client_ca, SystemClock())
    return caught.value.problems


def test_good_files_make_contexts_of_tls_1_2_and_later(authority: Authority) -> None:
    """And a client certificate is asked for only where an authority for it is named."""
    pair = authority.issue("server")
    plain = Certificates(pair.cert, pair.key, None, SystemClock())
    assert plain.server.minimum_version is ssl.TLSVersion.TLSv1_2
    assert (plain.server.verify_mode, plain.verifies_clients) == (ssl.CERT_NONE, False)
    mutual = Certificates(pair.cert, pair.key, authority.file, SystemClock())
    assert (mutual.server.verify_mode, mutual.verifies_clients) == (ssl.CERT_REQUIRED, True)


def no_cert(pair: Pair) -> None:
    pair.cert.unlink()


def no_key(pair: Pair) -> None:
    pair.key.unlink()


def text_for_cert(pair: Pair) -> None:
    pair.cert.write_text("hello\n")


def text_for_key(pair: Pair) -> None:
    pair.key.write_text("hello\n")


def empty_key(pair: Pair) -> None:
    pair.key.write_bytes(b"")


def swapped(pair: Pair) -> None:
    cert, key = pair.cert.read_bytes(), pair.key.read_bytes()
    pair.cert.write_bytes(key)
    pair.key.write_bytes(cert)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (no_cert, ["--tls-cert {cert}: cannot be read: No such file or directory"]),
        (no_key, ["--tls-key {key}: cannot be read: No such file or directory"]),
        (text_for_cert, ["--tls-cert {cert}: has no certificate in PEM form"]),
        (text_for_key, ["--tls-key {key}: has no private key in PEM form"]),
        (empty_key, ["--tls-key {key}: is empty"]),
        (swapped, ["--tls-cert {cert}: has no certificate in PEM form", "--tls-key {key}: has no private key in PEM"]),
    ],
)
def test_bad_file_is_named_with_its_cause(authority: Authority, spoil: Callable[[Pair], None], said: list[str]) -> None:
    """One sentence for each file."""
    pair = authority.issue("server")
    spoil(pair)
    problems = problems_of(pair)
    assert len(problems) == len(said)
    for problem, start in zip(problems, said, strict=True):
        assert problem.startswith(start.format(cert=pair.cert, key=pair.key))


def test_key_of_another_certificate_is_reported(authority: Authority) -> None:
    """With the name of the certificate whose key it is not."""
    pair, other = authority.issue("server"), authority.issue("other")
    (problem,) = problems_of(Pair(pair.cert, other.key))
    assert f"--tls-key {other.key}: is not the key of the first certificate in {pair.cert} (CN=server)" in problem


def test_encrypted_key_is_reported_without_a_password_prompt(authority: Authority) -> None:
    """A gateway without a terminal would hang."""
    (problem,) = problems_of(authority.issue("server", password=b"secret"))
    assert "is encrypted" in problem
    assert "openssl pkey" in problem


def test_client_ca_without_certificates_is_reported(authority: Authority, tmp_path: Path) -> None:
    """Rather than refusing every client."""
    nothing = tmp_path / "nothing.pem"
    nothing.write_text("")
    (problem,) = problems_of(authority.issue("server"), nothing)
    assert problem.startswith(f"--tls-client-ca {nothing}: has no certificate")


@pytest.mark.parametrize(
    ("given", "missing"), [("tls_cert", "--tls-key"), ("tls_key", "--tls-cert"), ("tls_client_ca", "--tls-cert")]
)
def test_certificate_or_key_alone_is_refused(given: str, missing: str, tmp_path: Path) -> None:
    """A gateway that was to speak TLS must not start without it."""
    with pytest.raises(SettingsError, match=f"{missing} is missing"):
        make_certificates(load({given: str(tmp_path / "x")}, {"HOME": str(tmp_path)}), SystemClock())
    assert make_certificates(Settings(state_dir=tmp_path), SystemClock()) is None


def test_expired_certificate_is_a_warning(authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    """The clock of the machine may be what is wrong, and clients may not care."""
    pair = authority.issue("server", days=-0.5)
    Certificates(pair.cert, pair.key, None, SystemClock())
    assert "CN=server expired on" in caplog.text
    assert ["expired" in problem for problem in expiry_problems(pair.cert, time.time())] == [True]


def test_certificate_that_ends_within_14_days_or_has_not_begun_is_reported(authority: Authority) -> None:
    """The first in time to renew it."""
    now = time.time()
    assert ["expires on" in each for each in expiry_problems(authority.issue("a", days=13).cert, now)] == [True]
    assert list(expiry_problems(authority.issue("b", days=15).cert, now)) == []
    assert ["not valid before" in each for each in expiry_problems(authority.issue("c", since=1).cert, now)] == [True]


def test_changed_files_make_a_new_context_and_unchanged_ones_none(authority: Authority) -> None:
    """The old context stays as it is, for those who are in the middle of a handshake."""
    pair = authority.issue("server")
    certificates = Certificates(pair.cert, pair.key, None, SystemClock())
    before = certificates.server
    assert not certificates.reload_if_changed()
    authority.issue("server")
    assert certificates.reload_if_changed()
    assert certificates.server is not before
    assert not certificates.reload_if_changed()


def test_broken_new_file_is_logged_once_and_the_old_pair_goes_on(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    """Until it is whole: then that one is taken."""
    pair = authority.issue("server")
    certificates = Certificates(pair.cert, pair.key, None, SystemClock())
    before = certificates.server
    whole = pair.key.read_bytes()
    pair.key.write_bytes(whole[:40])
    for _ in range(3):
        assert not certificates.reload_if_changed()
    logged = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [f"--tls-key {pair.key}: has no private key" in record.getMessage() for record in logged] == [True]
    assert certificates.server is before
    pair.key.unlink()
    assert not certificates.reload_if_changed()
    pair.key.write_bytes(whole)
    assert certificates.reload_if_changed()
