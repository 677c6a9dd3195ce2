"""What entries of a policy mean, and what a refusal says."""

from __future__ import annotations

from typing import Any, cast

import pytest

from gateway.egress.addresses import parse_host
from gateway.egress.policy import Layer, Target, decide, may_reach_private
from gateway.egress.rule_entries import MAX_ENTRIES, parse_entry, parse_rules
from gateway.egress.rules import uncovered


def layer(*entries: Any, setting: str = "the setting") -> Layer:
    return Layer(setting, parse_rules(entries))


def allows(*entries: Any, host: str, port: int = 443, **fields: Any) -> bool:
    return decide([layer(*entries)], Target(parse_host(host), port, **fields)).allowed


def test_name_is_itself_at_the_ports_of_the_web() -> None:
    assert allows("api.example.com", host="API.example.com.")
    assert allows("api.example.com", host="api.example.com", port=80)
    assert not allows("api.example.com", host="api.example.com", port=22)
    for other in ("example.com", "x.api.example.com", "notapi.example.com", "api.example.com.evil.net"):
        assert not allows("api.example.com", host=other)


def test_wildcard_is_every_name_below_and_not_the_name() -> None:
    assert allows("*.example.com", host="a.example.com")
    assert allows("*.example.com", host="a.b.example.com")
    assert not allows("*.example.com", host="example.com")
    assert not allows("*.example.com", host="notexample.com")
    assert not allows("*.example.com", host="93.184.216.34")


def test_ports_are_single_ranges_or_all() -> None:
    entry = "db.example.com:5432,8000-8100"
    assert allows(entry, host="db.example.com", port=5432)
    assert allows(entry, host="db.example.com", port=8050)
    assert not allows(entry, host="db.example.com", port=443)
    assert allows("db.example.com:*", host="db.example.com", port=1)


def test_network_is_its_addresses_at_every_port() -> None:
    assert allows("93.184.0.0/16", host="93.184.216.34", port=5432)
    assert allows("93.184.0.0/16", host="::ffff:93.184.216.34", port=5432)
    assert allows("[2606:4700::]/32:443", host="2606:4700::1")
    assert not allows("[2606:4700::]/32:443", host="2606:4700::1", port=80)
    assert allows("[2606:4700::1]:443", host="2606:4700::1")
    assert allows("93.184.216.34:8443", host="93.184.216.34", port=8443)
    assert not allows("93.184.0.0/16", host="example.com")  # resolving any name would carry data out


def test_any_and_presets() -> None:
    assert allows("any", host="example.com", port=5432)
    assert allows("any:443", host="93.184.216.34")
    assert not allows("any:443", host="93.184.216.34", port=80)
    assert allows("pypi", host="files.pythonhosted.org")
    assert allows("github", host="github.com", port=22)
    assert allows("github", host="raw.githubusercontent.com")
    assert not allows("npm", "debian", "github", host="pypi.org")


@pytest.mark.parametrize(
    "entry",
    ["", "pypy", "*", "*.", "*.com/", "*example.com", "a.*.com", "http://example.com", "example.com/path",
     "example.com:",
     "example.com:0", "example.com:65536", "example.com:90-80", "10.0.0.1/8", "10.0.0.0/33", "0177.0.0.1", "1.2.3",
     "fe80::1%eth0", "[::1", "x" * 400, "*.10.0.0.1", 5, None, ["a"], {}, {"host": "pypi"},
     {"host": "a.com", "path": "/"},
     {"host": "a.com", "ports": 443}, {"host": "a.com", "ports": ["x"]}, {"host": "a.com", "ports": [True]},
     {"host": "a.com", "methods": "GET"}, {"host": "a.com", "methods": ["GET /"]}, {"host": "a.com", "paths": ["v1"]},
     {"host": "a.com", "paths": ["/\u00e4"]}, {"host": "a.com", "ports": ["1"] * 40}],
)  # fmt: skip
def test_malformed_entry_is_a_problem(entry: Any) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_entry(entry)


def test_every_problem_is_reported_with_its_index() -> None:
    with pytest.raises(ValueError, match="pypy") as caught:
        parse_rules(["pypi", "pypy", cast("Any", 5)])
    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == ["[1]", "[2]"]
    with pytest.raises(ValueError, match=f"at most {MAX_ENTRIES}"):
        parse_rules(["pypi"] * (MAX_ENTRIES + 1))


def test_every_layer_has_to_allow_and_the_refusal_names_the_one_that_does_not() -> None:
    layers = [layer("*.example.com", setting="A"), layer("a.example.com", setting="B")]
    assert decide(layers, Target("a.example.com", 443)).rule == "*.example.com"
    refused = decide(layers, Target("b.example.com", 443))
    assert refused.text == "b.example.com:443 is not allowed; to allow it, add b.example.com to B"
    assert "add c.net:8443 to A" in decide(layers, Target("c.net", 8443)).text
    assert not decide([], Target("a.example.com", 443)).allowed
    assert not decide([layer()], Target("a.example.com", 443)).allowed


def test_methods_and_paths_count_where_requests_are_seen() -> None:
    entry = {"host": "api.example.com", "methods": ["get"], "paths": ["/v1", "/public/"]}
    seen: Any = {"host": "api.example.com", "visible": True}
    assert allows(entry, **seen)  # before the first request
    assert not allows(entry, host="api.example.com")  # they will not be seen
    assert allows(entry, **seen, method="GET", path="/v1?x")
    assert allows(entry, **seen, method="GET", path="/public/x")
    assert not allows(entry, **seen, method="POST", path="/v1")
    for path in ("/v10", "/v1/../admin", "/v1/%2e%2e/admin", "/v1/..;/x", "/v1//x", "/public/%2F", "/v1/\\..\\x", "/"):
        assert not allows(entry, **seen, method="GET", path=path), path
    said = decide([layer(entry)], Target("api.example.com", 443)).text
    assert "encrypted" in said


def test_private_network_has_to_be_named_by_every_layer() -> None:
    private = parse_host("10.1.2.3")
    assert not isinstance(private, str)
    named, wide, everything = layer("10.0.0.0/8"), layer("0.0.0.0/0"), layer("any")
    assert may_reach_private([named], private, 80) is None
    assert may_reach_private([named, wide], private, 80) is wide
    assert may_reach_private([everything], private, 80) is everything
    assert may_reach_private([layer("10.0.0.0/8:443")], private, 80) is not None


@pytest.mark.parametrize(
    ("inner", "outer", "covered"),
    [
        (["a.example.com"], ["*.example.com"], True),
        (["*.a.example.com"], ["*.example.com"], True),
        (["*.example.com"], ["a.example.com"], False),
        (["example.com"], ["*.example.com"], False),
        (["a.example.com:443"], ["a.example.com"], True),
        (["a.example.com:8443"], ["a.example.com"], False),
        (["a.example.com:1-100"], ["a.example.com:1-50", "*.example.com:51-100"], True),
        (["pypi"], ["any"], True),
        (["any"], ["pypi"], False),
        (["any:443"], ["any"], True),
        (["10.1.0.0/16"], ["10.0.0.0/8"], True),
        (["10.1.0.0/16"], ["any"], False),
        (["93.184.216.34"], ["any"], True),
        (["10.0.0.0/8"], ["10.1.0.0/16"], False),
        ([{"host": "a.com", "methods": ["GET"]}], ["a.com"], True),
        (["a.com"], [{"host": "a.com", "methods": ["GET"]}], False),
        ([{"host": "a.com", "paths": ["/v1/x"]}], [{"host": "a.com", "paths": ["/v1"]}], True),
        ([{"host": "a.com", "paths": ["/v10"]}], [{"host": "a.com", "paths": ["/v1"]}], False),
        ([], ["pypi"], True),
    ],
)  # fmt: skip
def test_narrower_is_what_allows_nothing_more(inner: list[Any], outer: list[Any], covered: bool) -> None:
    assert (not list(uncovered(parse_rules(inner), parse_rules(outer)))) is covered
