"""When a certificate ends."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.wire.certificates import valid_until

FOLDER = Path(__file__).parent.parent.parent / "certificates"


def end_by_openssl(path: Path) -> float:
    command = ["openssl", "x509", "-noout", "-enddate", "-in", str(path)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return ssl.cert_time_to_seconds(said.strip().removeprefix("notAfter="))


@pytest.mark.parametrize("name", ["ca", "client", "server", "stranger"])
def test_valid_until_agrees_with_openssl(name: str) -> None:
    path = FOLDER / f"{name}.pem"
    assert valid_until(path.read_bytes()) == end_by_openssl(path)


@pytest.mark.parametrize("days", ["2", "36500"])  # from 2050 on, a year has four digits
def test_valid_until_reads_the_first_certificate_of_a_file(days: str, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    more = ["-days", days, "-subj", "/CN=localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*new, *more], check=True, capture_output=True)
    pem = key.read_bytes() + certificate.read_bytes() + (FOLDER / "ca.pem").read_bytes()
    assert valid_until(pem) == end_by_openssl(certificate)


@given(st.binary())
def test_valid_until_of_what_is_no_certificate_is_none(content: bytes) -> None:
    whole = ssl.PEM_cert_to_DER_cert((FOLDER / "ca.pem").read_text())
    assert valid_until(content) is None
    assert valid_until(ssl.DER_cert_to_PEM_cert(content).encode()) is None
    assert valid_until(ssl.DER_cert_to_PEM_cert(whole[: len(content)]).encode()) is None
