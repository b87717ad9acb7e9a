"""Templates: functions, filters, built-in ones, errors with their place, and registered text that stays data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.cli.lists import Lists, Reader
from nacos_proxy.cli.templates import BUILT_IN, Scope, Template, TemplateError


def host(ip: str = "10.0.0.1", port: int = 80, weight: float = 1.0, **metadata: Any) -> dict[str, Any]:
    whole = {"ip": ip, "port": port, "weight": weight, "healthy": True, "enabled": True, "ephemeral": True}
    return {**whole, "clusterName": "DEFAULT", "serviceName": "g@@orders", "metadata": metadata}


class Proxy:
    """The same answer to all calls, which it writes down."""

    def __init__(self, *hosts: Any) -> None:
        self.hosts = hosts
        self.asked = list[tuple[str, Mapping[str, str]]]()

    def __call__(self, path: str, query: Mapping[str, str]) -> Any:
        self.asked.append((path, query))
        if path == "/api/v1/services":
            return {"services": ["orders", "stock"]}
        hosts = [{**host, "serviceName": unquote(path.rpartition("/")[2])} for host in self.hosts]
        return {"revision": "r", "hosts": hosts}


def rendered(template: Template, *hosts: Any) -> str:
    return template.render(Reader(Lists(Proxy(*hosts)), {}))


def written(directory: Path, text: str) -> Template:
    (directory / "page.j2").write_text(text)
    return Template(directory / "page.j2")


HOSTS = [host("10.0.0.1", 80, 2.0), host("2001:db8::1", 81, 1.0), host("ok.local", 82, 0.5)]


def test_built_in_nginx_writes_an_upstream_of_ip_addresses() -> None:
    assert rendered(Template("nginx", ["g@@orders"]), *HOSTS) == (
        "# Written by nacos-proxy render: changes to this file are lost.\n"
        "upstream g__orders {\n"
        "    server 10.0.0.1:80 weight=2;\n"
        "    server [2001:db8::1]:81 weight=1;\n"
        "}\n"
    )
    assert "    server 127.0.0.1:1 down;\n" in rendered(Template("nginx", ["orders"]), HOSTS[2])


def test_built_in_haproxy_writes_a_backend() -> None:
    assert rendered(Template("haproxy", ["orders"]), *HOSTS[:1]) == (
        "# Written by nacos-proxy render: changes to this file are lost.\n"
        "backend orders\n"
        "    balance roundrobin\n"
        "    server 10.0.0.1:80 10.0.0.1:80 weight 2 check\n"
    )
    assert rendered(Template("haproxy", ["orders"])).endswith("backend orders\n    balance roundrobin\n")


def test_built_in_caddy_writes_a_snippet() -> None:
    assert rendered(Template("caddy", ["orders"]), *HOSTS) == (
        "# Written by nacos-proxy render: changes to this file are lost.\n"
        "(orders) {\n"
        "\tto 10.0.0.1:80 [2001:db8::1]:81 ok.local:82\n"
        "}\n"
    )
    assert rendered(Template("caddy", ["orders"])).endswith("(orders) {\n}\n")


def test_built_in_hosts_writes_a_line_for_each_address() -> None:
    hosts = [*HOSTS, host("10.0.0.1", 8080)]
    assert rendered(Template("hosts", ["g@@Orders", "stock"]), *hosts).splitlines()[1:] == [
        "10.0.0.1\torders",
        "2001:db8::1\torders",
        "10.0.0.1\tstock",
        "2001:db8::1\tstock",
    ]
    with pytest.raises(TemplateError, match="'a:b' is not a host name"):
        rendered(Template("hosts", ["a:b"]), *hosts)


def test_template_reads_fields_and_metadata(tmp_path: Path) -> None:
    template = written(
        tmp_path,
        "{% for i in service('orders') %}\n"
        "{{ i.ip }} {{ i.port }} {{ i.address }} {{ i.weight }} {{ i.cluster }} {{ i.healthy }} {{ i.metadata.zone }} "
        "{{ i.metadata.rack | default('-') }}\n"
        "{% endfor %}\n"
        "{{ services() | join(',') }}\n",
    )
    assert rendered(template, host("2001:db8::1", zone="a")) == (
        "2001:db8::1 80 [2001:db8::1]:80 1.0 DEFAULT True a -\norders,stock\n"
    )


def test_template_passes_filters_on_and_its_own_win_over_the_given_ones(tmp_path: Path) -> None:
    (tmp_path / "t").write_text(
        "{% set a = service('orders', selector='x', clusters='c', prefer='y', prefer_min=0.5, healthy_only=true) %}"
        "{% set b = service('h@@stock', group='other', namespace='dev') %}{% set c = services(group='other') %}"
    )
    proxy = Proxy()
    template = Template(tmp_path / "t", scope=Scope("test", "g", {"selector": "z", "prefer": ""}))
    template.render(Reader(Lists(proxy), {}, allow_empty=True))
    asked = [query for path, query in proxy.asked if len(query) > 3]
    assert {"namespace": "test", "group": "g", "clusters": "c", "healthy_only": "true", "selector": "x", "prefer": "y",
            "prefer_min": "0.5"} in asked  # fmt: skip
    assert ("/api/v1/services/h%40%40stock", {"namespace": "dev", "group": "h", "selector": "z"}) in proxy.asked
    assert any(path == "/api/v1/services" and query["group"] == "other" for path, query in proxy.asked)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n{{ servic('orders') }}", "page.j2: there is no servic; known are service and services"),
        ("\n{% if", "page.j2:2: unexpected 'end of template'"),
        ("{% include 'nowhere' %}", "page.j2:1: 'nowhere' not found in search path: "),
        ("\n\n{% for i in service('orders') %}{{ i.metadata.zone }}{% endfor %}", "page.j2:3: 'dict object' has no "),
        ("\n{{ service('') }}", "page.j2:2: service() needs a name, not ''"),
        ("\n{{ service(1) }}", "page.j2:2: service() needs a name, not 1"),
        ("{{ service('orders').__class__ }}", "page.j2:1: access to attribute '__class__' of 'list' object is unsafe"),
        ("{% for i in service('orders') %}{{ i.metadata.clear() }}{% endfor %}", "page.j2:1: access to attribute"),
        ("{{ service('orders').pop() }}", "page.j2:1: access to attribute 'pop' of 'list' object is unsafe"),
        ("{{ 'x' | nginx }}", "page.j2:1: "),
        ("{{ 1 / 0 }}", "page.j2:1: division by zero"),
    ],
)
def test_template_errors_have_their_place(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(TemplateError) as caught:
        rendered(written(tmp_path, text), host())
    assert str(caught.value).startswith(f"{tmp_path}/{message}")


def test_template_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff")
    for name, reason in (("nowhere", "No such file"), ("bytes", "codec")):
        with pytest.raises(TemplateError, match=reason):
            Template(tmp_path / name)


def test_template_includes_files_beside_it(tmp_path: Path) -> None:
    (tmp_path / "part").write_text("{{ service('orders') | caddy }}")
    assert rendered(written(tmp_path, "<{% include 'part' %}>"), host()) == "<10.0.0.1:80>"


SHAPES = {
    "nginx": r"upstream orders \{|\}"
    r"|    server (127\.0\.0\.1:1 down|[\d.]+:\d+ weight=\d+|\[[\da-f:.]+\]:\d+ weight=\d+);",
    "haproxy": r"backend orders|    balance roundrobin"
    r"|    server [\w.:-]+ [\w.:\[\]-]+:\d+ weight \d+ check( init-addr last,libc,none)?",
    "caddy": r"\(orders\) \{|\tto( ([\w.-]+|\[[\da-f:.]+\]):\d+)+|\}",
    "hosts": r"[\da-f.:]+\torders",
}
TEXTS = st.one_of(
    st.text(), st.sampled_from(["a;b", "x\nserver evil:1;", "}", '"', "10.0.0.1 ", "$x", "unix", "::1%}"])
)
HOSTILE = st.builds(
    lambda ip, port, weight, cluster, key, value: {**host(ip, port, weight, **{key: value}), "clusterName": cluster},
    st.one_of(TEXTS, st.ip_addresses().map(str)),
    st.integers(0, 65535),
    st.floats(0, 10_000),
    *[TEXTS] * 3,
)


BUILT = {name: Template(name, ["orders"]) for name in BUILT_IN}


@given(st.lists(HOSTILE, max_size=5), st.sampled_from(sorted(BUILT_IN)))
def test_built_in_templates_write_only_lines_of_their_shape(hosts: list[Any], name: str) -> None:
    first, *lines = rendered(BUILT[name], *hosts).split("\n")
    assert (first[0], lines.pop()) == ("#", "")
    assert [line for line in lines if not re.fullmatch(SHAPES[name], line, re.ASCII)] == []


PRINTS_ALL = """\
{% for i in service("orders") %}
{{ i.ip }} {{ i.cluster }} {{ i.metadata }}{% for key in i.metadata %} {{ key }}={{ i.metadata[key] }}{% endfor %}.
{% endfor %}
{{ service("orders") | length }}"""


def test_registered_text_never_ends_a_line(tmp_path: Path) -> None:
    template = written(tmp_path, PRINTS_ALL)

    @given(st.lists(HOSTILE, min_size=1, max_size=5))
    def check(hosts: list[Any]) -> None:
        *lines, number = rendered(template, *hosts).splitlines()
        assert len(lines) == int(number)

    check()


def test_word_leaves_one_word(tmp_path: Path) -> None:
    assert rendered(written(tmp_path, "{{ 'a b;\"{}$x/y.z:1-2_3\u00e9' | word }}")) == "a_b_____x_y.z:1-2_3_"
