"""Plain HTTPS to a vSphere server, beside its SOAP API: files of datastores, and the list of versions."""

from __future__ import annotations

import http.cookiejar
import ssl
from typing import Any

import requests
import requests.adapters

from imgstore.errors import InvalidError
from imgstore.vsphere.login import VsphereLogin

_CONNECTIONS = 8

_BLOCK = 1 << 20
"""Bytes that are sent at once."""


def tls_context(login: VsphereLogin) -> ssl.SSLContext:
    """What both ways to the server trust.

    Raises:
        InvalidError: the file of authorities cannot be used.
    """
    if login.insecure:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    files = [name for name in login.ca_file.split(":") if name]
    if not files:
        return ssl.create_default_context()
    context = ssl.create_default_context(cafile=_readable(files[0]))
    for name in files[1:]:
        context.load_verify_locations(cafile=_readable(name))
    return context


def make_http_session(login: VsphereLogin, context: ssl.SSLContext) -> requests.Session:
    """A session that keeps no cookies and reads nothing from the environment; for several threads."""
    session = requests.Session()
    session.trust_env = False
    session.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
    session.mount("https://", _Adapter(context, verify=not login.insecure))
    session.headers["User-Agent"] = "imgstore"
    session.headers["Accept-Encoding"] = "identity"
    return session


def start_of(response: requests.Response, limit: int) -> bytes:
    """The first bytes of an answer, of all its chunks: as many as ``limit``, or all if it has fewer.

    They are taken as they came: we ask for nothing compressed, and what is small then may be huge.
    """
    data: bytes = response.raw.read(limit, decode_content=False)
    return data


def _readable(name: str) -> str:
    """The name itself.

    Raises:
        InvalidError: it is no file of certificates.
    """
    try:
        ssl.create_default_context(cafile=name)
    except ssl.SSLError as error:
        raise InvalidError(f"{name}: holds no certificates in PEM form: {error.reason}") from error
    except OSError as error:
        raise InvalidError(f"{name}: cannot be read: {error.strerror}") from error
    return name


class _Adapter(requests.adapters.HTTPAdapter):
    """Trusts what its context trusts, where requests alone would trust certifi's list; closes its connections when it is closed."""

    def __init__(self, context: ssl.SSLContext, *, verify: bool) -> None:
        self._context = context
        self._verify = verify
        super().__init__(pool_maxsize=_CONNECTIONS)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, ssl_context=self._context, blocksize=_BLOCK, **kwargs)

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        conn.cert_reqs = "CERT_REQUIRED" if self._verify else "CERT_NONE"
        conn.assert_hostname = None if self._verify else False

    def close(self) -> None:
        for key in self.poolmanager.pools.keys():  # noqa: SIM118 - it cannot be iterated over
            pool = self.poolmanager.pools.get(key)
            if pool is not None:
                pool.close()
        super().close()
