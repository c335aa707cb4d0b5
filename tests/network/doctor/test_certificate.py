"""Certificates that openssl(1) made: good ones, and each that cannot be served with."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.config.network import Api
from appliance.network.doctor import ours
from appliance.network.doctor.certificate import Expired, NotYetValid, Unusable, examine
from appliance.wire.messages import Outcome

DAY_S = 86_400


def openssl(*words: str | Path) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True, timeout=120)


def made(
    folder: Path, name: str, *, begins_s: float = -DAY_S, ends_s: float = 100 * DAY_S
) -> tuple[Path, Path]:
    """A certificate that is valid from and until then, seen from now; and its key."""
    key, request, certificate = (folder / f"{name}.{end}" for end in ("key", "csr", "crt"))
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", request, "-subj", "/CN=tower")
    (folder / "ca").mkdir(exist_ok=True)
    (folder / "ca/index").write_text("")
    (folder / "ca/serial").write_text("01")
    (folder / "ca.conf").write_text(
        f"[ca]\ndefault_ca = it\n[it]\ndatabase = {folder}/ca/index\nserial = {folder}/ca/serial\n"
        f"new_certs_dir = {folder}/ca\ndefault_md = sha256\npolicy = any\nx509_extensions = more\n"
        "[any]\ncommonName = supplied\n[more]\nsubjectAltName = DNS:coral-reef.local,IP:10.67.82.1\n"
    )
    begins, ends = (
        time.strftime("%Y%m%d%H%M%SZ", time.gmtime(time.time() + each)) for each in (begins_s, ends_s)
    )
    openssl(
        *("ca", "-batch", "-config", folder / "ca.conf", "-selfsign", "-keyfile", key, "-in", request),
        *("-out", certificate, "-startdate", begins, "-enddate", ends, "-notext"),
    )
    return certificate, key


def test_a_good_one(tmp_path: Path) -> None:
    certificate, key = made(tmp_path, "good")
    found = examine(certificate, key)
    assert found.until == pytest.approx(time.time() + 100 * DAY_S, abs=3600)
    assert found.names == ("coral-reef.local", "10.67.82.1")
    finding = ours.certificate(Api(tls=True, cert=str(certificate)), time.time())
    assert (finding.outcome, finding.symptom) == (
        Outcome.OK,
        "valid for 100 more days for coral-reef.local, 10.67.82.1",
    )
    soon = ours.certificate(Api(tls=True, cert=str(certificate)), time.time() + 90 * DAY_S)
    assert (soon.outcome, soon.remedy) == (Outcome.WARNING, "renew it")


def test_expired_and_not_yet_valid(tmp_path: Path) -> None:
    certificate, key = made(tmp_path, "old", begins_s=-3 * DAY_S, ends_s=-DAY_S)
    with pytest.raises(Expired, match="has expired"):
        examine(certificate, key)
    finding = ours.certificate(Api(tls=True, cert=str(certificate), key=str(key)), time.time())
    assert (finding.outcome, finding.remedy) == (Outcome.FAILED, "renew it")
    early, its_key = made(tmp_path, "early", begins_s=DAY_S)
    with pytest.raises(NotYetValid, match="not valid yet"):
        examine(early, its_key)


def test_what_cannot_be_served_with(tmp_path: Path) -> None:
    certificate, key = made(tmp_path, "good")
    _, other = made(tmp_path, "other")
    locked, binary, empty = (tmp_path / name for name in ("locked", "binary", "empty"))
    openssl("pkey", "-in", key, "-aes128", "-passout", "pass:secret", "-out", locked)
    binary.write_bytes(b"\xff\xfe")
    empty.write_text("")
    for one, its, says in (
        (certificate, other, "is not the key of"),
        (certificate, locked, "locked by a password"),
        (certificate, tmp_path / "none", "none cannot be read: No such file"),
        (tmp_path, key, "cannot be read: Is a directory"),
        (binary, key, "not PEM"),
        (empty, key, "are not a certificate and its key"),
    ):
        with pytest.raises(Unusable, match=says):
            examine(one, its)
        finding = ours.certificate(Api(tls=True, cert=str(one), key=str(its)), time.time())
        assert finding.outcome is Outcome.FAILED
        assert finding.remedy


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300) | st.text(max_size=200).map(str.encode))
def test_any_file(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "file"
    wrapped = b"-----BEGIN CERTIFICATE-----\n" + content + b"\n-----END CERTIFICATE-----\n"
    for each in (content, wrapped):
        file.write_bytes(each)
        with pytest.raises(Unusable):
            examine(file, file)


def test_without_tls_there_is_none() -> None:
    assert ours.certificate(Api(), time.time()).outcome is Outcome.SKIPPED
    assert ours.certificate(Api(tls=True), time.time()).outcome is Outcome.FAILED
