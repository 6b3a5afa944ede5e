"""Which hosts are reached without a proxy."""

from __future__ import annotations

import pytest

from registry_client.proxies import find_proxies, is_exception


@pytest.mark.parametrize(
    ("url", "no_proxy"),
    [
        ("https://example.com/v2/", "example.com"),
        ("https://harbor.example.com/v2/", "example.com"),
        ("https://harbor.example.com/v2/", ".example.com"),
        ("https://harbor.example.com/v2/", "*.example.com"),
        ("https://Harbor.Example.com/v2/", "HARBOR.example.COM"),
        ("https://example.com/v2/", "example.com:443"),
        ("https://example.com:8443/v2/", "example.com:8443"),
        ("http://example.com/v2/", "example.com:80"),
        ("https://example.com/v2/", "other.test, example.com"),
        ("https://example.com/v2/", "other.test example.com"),
        ("https://10.1.2.3/v2/", "10.0.0.0/8"),
        ("https://10.1.2.3:5000/v2/", "10.1.2.3"),
        ("https://10.1.2.3:5000/v2/", "10.1.2.3:5000"),
        ("https://[fd00::1]:5000/v2/", "fd00::/8"),
        ("https://[fd00::1]:5000/v2/", "fd00::1"),
        ("https://[fd00::1]:5000/v2/", "[fd00::1]:5000"),
        ("https://example.com/v2/", "*"),
    ],
)
def test_exceptions(url: str, no_proxy: str) -> None:
    assert is_exception(url, no_proxy)


@pytest.mark.parametrize(
    ("url", "no_proxy"),
    [
        ("https://example.com/v2/", ""),
        ("https://example.com/v2/", " , "),
        ("https://notexample.com/v2/", "example.com"),
        ("https://example.com/v2/", "harbor.example.com"),
        ("https://example.com/v2/", "example.com:8443"),
        ("https://example.com:8443/v2/", "example.com:443"),
        ("https://example.com.test/v2/", "example.com"),
        ("https://11.1.2.3/v2/", "10.0.0.0/8"),
        ("https://1.10.1.2/v2/", "10.1.2"),
        ("https://example.com/v2/", "10.0.0.0/8,fd00::/8"),
        ("https://10.1.2.3/v2/", "10.0.0.0/99,nonsense/8,[,:,://"),
    ],
)
def test_no_exceptions(url: str, no_proxy: str) -> None:
    assert not is_exception(url, no_proxy)


def test_lower_case_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert find_proxies("https://example.com/") == {}
    monkeypatch.setenv("HTTPS_PROXY", "http://upper:1")
    monkeypatch.setenv("https_proxy", "http://lower:1")
    monkeypatch.setenv("ALL_PROXY", "http://all:1")
    assert find_proxies("https://example.com/") == {"https": "http://lower:1", "all": "http://all:1"}
    monkeypatch.setenv("NO_PROXY", "example.com")
    monkeypatch.setenv("no_proxy", "other.test")
    assert find_proxies("https://example.com/") != {}
    assert find_proxies("https://other.test/") == {}
