"""The pages over TLS, with a certificate of the test's own."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import trustme

from tests.console.harness import PASSWORD, Console
from worker import settings as settings_module
from worker.console.server import Server
from worker.errors import SettingsError

pytestmark = pytest.mark.integration


def test_pages_over_tls(open_console: Callable[..., Console], tmp_path: Path) -> None:
    """A browser that trusts the authority logs in; the cookie is for this host over https alone; plain HTTP and older
    protocols get nothing.
    """
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    certificate.private_key_pem.write_to_path(str(key))
    console = open_console(tls_cert_path=str(cert), tls_key_path=str(key))
    assert "https://127.0.0.1" in console.log()
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    url = f"https://127.0.0.1:{console.port}"
    with httpx.Client(base_url=url, verify=trust, trust_env=False, timeout=20) as client:
        page = client.get("/login")
        assert page.headers["strict-transport-security"] == "max-age=31536000"
        csrf = re.search(r'name="csrf" content="([0-9a-f]+)"', page.text)
        assert csrf is not None
        form = {"name": "anna", "password": PASSWORD, "csrf": csrf[1]}
        answer = client.post("/login", data=form)
        cookie = answer.headers["set-cookie"].lower()
        assert answer.status_code == 303 and cookie.startswith("__host-assay=")
        assert {"secure", "httponly", "samesite=strict", "path=/"} <= {part.strip() for part in cookie.split(";")}
        assert "domain" not in cookie
        assert client.get("/review").status_code == 200
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"http://127.0.0.1:{console.port}/login", trust_env=False)
    with pytest.raises(httpx.ConnectError):  # nobody vouches for it
        httpx.get(f"{url}/login", trust_env=False)
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(old)
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/login", verify=old, trust_env=False)


@pytest.mark.parametrize("field", ["tls_cert_path", "tls_key_path"])
def test_what_is_missing_is_named(tmp_path: Path, field: str) -> None:
    """Before anything is opened."""
    there = tmp_path / "there.pem"
    there.write_text("")
    values = {"tls_cert_path": str(there), "tls_key_path": str(there), field: str(tmp_path / "gone.pem")}
    environ = {f"ASSAY_CONSOLE__{name.upper()}": value for name, value in values.items()} | {
        "ASSAY_CONSOLE__AUTH": "proxy"
    }
    with pytest.raises(SettingsError, match=f"{field.upper()}={tmp_path}/gone.pem: no such file"):
        Server(settings_module.load(None, environ))
