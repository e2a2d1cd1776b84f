"""Provider URLs: what we write, what others write, and what nobody can read."""

from __future__ import annotations

import contextlib
import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordination.errors import BadProviderURL
from coordination.registry import ProviderURL
from coordination.registry.url import DEFAULT_WARMUP_MS, DEFAULT_WEIGHT, MAX_NUMBER
from coordination.rules.patterns import ANY_HOST

INTERFACE = "countinghouse.payment.v1.PaymentService"
OURS = ProviderURL.provider(
    INTERFACE,
    "10.0.0.5",
    50051,
    application="countinghouse-payment",
    methods=("Pay", "Settle"),
    release="0.1.0",
    timestamp_ms=1700000000000,
)

hosts = st.one_of(
    st.from_regex(r"[a-z][a-z0-9-]{0,20}(\.[a-z0-9]{1,10}){0,3}", fullmatch=True),
    st.ip_addresses().map(str),
)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
paths = st.from_regex(r"([A-Za-z_][A-Za-z0-9_]*\.){0,3}[A-Za-z_]+", fullmatch=True)
urls = st.builds(
    ProviderURL,
    st.sampled_from(["tri", "grpc", "dubbo"]),
    hosts,
    st.integers(1, 65535),
    st.one_of(st.just(""), paths),
    st.dictionaries(texts.filter(bool), texts, max_size=6),
)


@given(urls)
def test_written_url_is_read_back(url: ProviderURL) -> None:
    """Any URL comes back from its node name, and the name is one path segment with upper-case escapes."""
    name = url.node_name()
    assert ProviderURL.parse(name) == url
    assert ProviderURL.parse(str(url)) == url
    assert set(name) <= set(string.ascii_letters + string.digits + "%-._~")
    assert all(escape.isupper() or escape.isdigit() for escape in re.findall(r"%(..)", name))


@given(st.text())
def test_any_text_is_a_url_or_bad_provider_url(text: str) -> None:
    """Whatever stands in the registry, reading it gives a URL or BadProviderURL."""
    with contextlib.suppress(BadProviderURL):
        ProviderURL.parse(text)


def test_node_name_of_our_provider_has_the_expected_form() -> None:
    """The exact bytes: Dubbo's Java consumers read this name."""
    assert OURS.node_name() == (
        "tri%3A%2F%2F10.0.0.5%3A50051%2Fcountinghouse.payment.v1.PaymentService"
        "%3Finterface%3Dcountinghouse.payment.v1.PaymentService%26side%3Dprovider"
        "%26application%3Dcountinghouse-payment%26methods%3DPay%2CSettle%26dubbo%3D2.0.2"
        "%26release%3D0.1.0%26timestamp%3D1700000000000%26weight%3D100"
    )
    assert OURS.address == "10.0.0.5:50051"
    assert OURS.interface == INTERFACE
    assert OURS.weight == 100
    assert OURS.timestamp_ms == 1700000000000


def test_url_of_java_triple_is_read() -> None:
    """A provider of Java's Dubbo 3.3 with all it writes by default; a blank is a plus, an address has no brackets."""
    url = ProviderURL.parse(
        "tri%3A%2F%2F192.168.1.7%3A50052%2Forg.apache.dubbo.demo.GreeterService%3Fanyhost%3Dtrue%26application%3D"
        "demo-provider%26background%3Dfalse%26bind.ip%3D192.168.1.7%26bind.port%3D50052%26deprecated%3Dfalse%26dubbo%3D"
        "2.0.2%26dynamic%3Dtrue%26environment%3Dproduct%26executor-management-mode%3Disolation%26file-cache%3Dtrue%26"
        "generic%3Dfalse%26interface%3Dorg.apache.dubbo.demo.GreeterService%26methods%3DsayHello%2CsayHelloAsync%26owner"
        "%3Dtwo+words%26pid%3D41023%26prefer.serialization%3Dhessian2%2Cfastjson2%26release%3D3.3.1%26"
        "service-name-mapping%3Dtrue%26side%3Dprovider%26timeout%3D3000%26timestamp%3D1729674523123%26weight%3D20"
        "%26dubbo.tag%3Dgray"
    )
    assert (url.protocol, url.address, url.path) == ("tri", "192.168.1.7:50052", "org.apache.dubbo.demo.GreeterService")
    assert (url.application, url.tag, url.weight, url.timeout_ms("sayHello")) == ("demo-provider", "gray", 20, 3000)
    assert url.timestamp_ms == 1729674523123
    assert not url.disabled
    bare = ProviderURL.parse(
        "tri%3A%2F%2Ffe80%3A0%3A0%3A0%3A0%3A0%3A0%3A1%3A50052%2F%3Finterface%3Da.B%26version%3D1.0.0"
    )
    assert (bare.address, bare.path, bare.interface) == ("[fe80:0:0:0:0:0:0:1]:50052", "", "a.B")
    deep = ProviderURL.parse("tri%3A%2F%2F10.0.0.5%3A50052%2Fa%2Fb%2Fc%3Finterface%3Da.B%26version%3D1.0.0")
    assert (deep.path, deep.interface, deep.version) == ("a/b/c", "a.B", "1.0.0")


def test_url_of_java_is_read() -> None:
    """A name as Java's URLEncoder writes it, with group, version and parameters we do not know."""
    url = ProviderURL.parse(
        "tri%3A%2F%2F192.168.1.7%3A50052%2Forg.example.Greeter%3Fapplication%3Ddemo%26deprecated%3Dfalse"
        "%26dubbo%3D2.0.2%26dynamic%3Dtrue%26generic%3Dfalse%26group%3Dg1%26interface%3Dorg.example.Greeter"
        "%26methods%3DsayHello%2CsayHelloAsync%26owner%3Dtwo+words%26service-name-mapping%3Dtrue"
        "%26side%3Dprovider%26timestamp%3D1690000000000%26version%3D1.0.0"
    )
    assert (url.protocol, url.address, url.interface) == ("tri", "192.168.1.7:50052", "org.example.Greeter")
    assert (url.group, url.version) == ("g1", "1.0.0")
    assert url.parameters["methods"] == "sayHello,sayHelloAsync"
    assert url.parameters["owner"] == "two words"
    assert url.parameters["service-name-mapping"] == "true"


def test_url_of_dubbo_go_is_read() -> None:
    """A provider of dubbo-go 3.3: sorted, encoded once, empty values left out, and the time in seconds."""
    url = ProviderURL.parse(
        "tri%3A%2F%2F10.1.1.1%3A20000%2Fgreet.GreetService%3Fanyhost%3Dtrue%26application%3Ddubbo.io%26cluster%3Dfailover"
        "%26environment%3D%26interface%3Dgreet.GreetService%26loadbalance%3Drandom%26methods%3DGreet%2CGreetStream%26module"
        "%3Dsample%26name%3Ddubbo.io%26organization%3Ddubbo-go%26registry.role%3D3%26release%3Ddubbo-golang-3.3.0%26"
        "retries%3D%26serialization%3Dprotobuf%26service.filter%3Decho%2Cmetrics%2Ctoken%26side%3Dprovider%26timestamp"
        "%3D1729674523%26weight%3D0%26warmup%3D"
    )
    assert (url.address, url.path, url.interface) == ("10.1.1.1:20000", "greet.GreetService", "greet.GreetService")
    assert url.parameters["methods"] == "Greet,GreetStream"
    assert url.timestamp_ms == 1729674523000
    assert (url.warmup_ms, url.weight) == (600_000, 0)


def test_values_encoded_twice_are_read() -> None:
    """Some releases encode values, and then the whole once more."""
    url = ProviderURL.parse(
        "tri%3A%2F%2F10.1.1.1%3A20000%2Forg.example.Greeter%3Finterface%3Dorg.example.Greeter"
        "%26methods%3DSayHello%252CSayBye%26serialization%3Dprotobuf"
    )
    assert url.parameters["methods"] == "SayHello,SayBye"


def test_url_of_python_apache_dubbo_is_read() -> None:
    """apache-dubbo for Python writes ``service`` and no path."""
    url = ProviderURL.parse("tri%3A%2F%2F127.0.0.1%3A50051%3Fservice%3Dorg.example.Greeter")
    assert (url.interface, url.path, url.address) == ("org.example.Greeter", "", "127.0.0.1:50051")


@pytest.mark.parametrize(
    ("text", "address", "interface"),
    [
        ("tri://[2001:db8::1]:50051/a.B?interface=a.B", "[2001:db8::1]:50051", "a.B"),
        ("tri://2001:db8::1:50051/a.B", "[2001:db8::1]:50051", "a.B"),
        ("tri://user:secret@h:1/a.B", "h:1", "a.B"),
        ("tri://h:1/a.B?", "h:1", "a.B"),
        ("tri://h:1/?interface=a.B&&x", "h:1", "a.B"),
        ("tri://h:1", "h:1", ""),
        ("tri%3a%2f%2fh%3a1%2fa.B", "h:1", "a.B"),
    ],
)
def test_unusual_spellings_are_read(text: str, address: str, interface: str) -> None:
    """IPv6 with and without brackets, user names, empty parts, lower-case escapes."""
    url = ProviderURL.parse(text)
    assert (url.address, url.interface) == (address, interface)


@pytest.mark.parametrize(
    "text",
    [
        *("", "nonsense", "tri://", "tri:h:1", "://h:1/a.B", "tri://:1/a.B", "tri://host/a.B"),
        *("tri://host:0/a.B", "tri://host:99999/a.B", "tri://host:http/a.B", "tri://h:1 2/a.B", "tri://h:१/a.B"),
    ],
)
def test_unreadable_url_is_refused(text: str) -> None:
    """No protocol, host or port that can be: BadProviderURL."""
    with pytest.raises(BadProviderURL):
        ProviderURL.parse(text)


@pytest.mark.parametrize(
    ("parameters", "disabled"),
    [
        ({}, False),
        ({"disabled": "true"}, True),
        ({"disabled": "TRUE", "enabled": "true"}, True),
        ({"disabled": "false", "enabled": "false"}, False),
        ({"enabled": "false"}, True),
        ({"enabled": "true"}, False),
        ({"disabled": "", "enabled": ""}, False),
    ],
)
def test_disabled_prevails_over_enabled(parameters: dict[str, str], disabled: bool) -> None:
    """`disabled` decides, and where it is missing `enabled`."""
    assert ProviderURL("tri", "h", 1, "a.B", parameters).disabled is disabled


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("1729674523123", 1729674523123),
        ("1729674523", 1729674523000),
        ("1", 1),
        ("0", 0),
        ("-5", 0),
        ("x", 0),
        ("9" * 5000, 0),
        ("9" * 400, 0),
        ("9" * 15, 999_999_999_999_999),
        ("1" + "0" * 15, 0),
    ],
)
def test_timestamps_in_seconds_are_recognised(written: str, read: int) -> None:
    """No process started in January 1970: a number that small is dubbo-go's seconds."""
    assert ProviderURL("tri", "h", 1, "a.B", {"timestamp": written}).timestamp_ms == read


def test_rules_need_no_port_and_providers_do() -> None:
    """A rule may be for every port; a user's name in it is the application, as in Dubbo."""
    url = ProviderURL.parse("override://shop@0.0.0.0/a.B?category=configurators&weight=5")
    assert (url.host, url.port, url.application) == (ANY_HOST, 0, "shop")
    assert ProviderURL.parse(url.node_name()) == url
    with pytest.raises(BadProviderURL):
        ProviderURL.parse("tri://0.0.0.0/a.B")


@pytest.mark.parametrize(("weight", "read"), [("7", 7), ("0", 0), ("-3", 0), ("heavy", 100), ("", 100)])
def test_weight_is_tolerant(weight: str, read: int) -> None:
    """A malformed weight is the default; a negative one is none."""
    assert ProviderURL("tri", "h", 1, "a.B", {"weight": weight}).weight == read


@pytest.mark.parametrize("written", [str(MAX_NUMBER + 1), "9" * 400, "9" * 5_000])
def test_number_above_its_bound_is_the_default(written: str) -> None:
    """As one that is malformed; at its bound it is read."""
    said = {"weight": written, "warmup": written, "timeout": "7", "Pay.timeout": written}
    url = ProviderURL("tri", "h", 1, "a.B", said)
    assert (url.weight, url.warmup_ms, url.timeout_ms("Pay")) == (DEFAULT_WEIGHT, DEFAULT_WARMUP_MS, 7)
    assert url.with_parameters({"timeout": written}).timeout_ms("Pay") == 0
    most = ProviderURL("tri", "h", 1, "a.B", dict.fromkeys(said, str(MAX_NUMBER)))
    assert (most.weight, most.warmup_ms, most.timeout_ms("Pay")) == (MAX_NUMBER,) * 3


def test_consumers_need_no_port() -> None:
    """A consumer's URL has an address without a port, and comes back from its name."""
    url = ProviderURL.consumer(INTERFACE, "10.0.0.9", application="web", timestamp_ms=5)
    assert str(url).startswith(f"consumer://10.0.0.9/{INTERFACE}?interface={INTERFACE}&side=consumer")
    assert ProviderURL.parse(url.node_name()) == url


def test_values_with_reserved_characters_are_escaped() -> None:
    """A value with separators in it survives; ordinary values are written as they are."""
    url = ProviderURL("tri", "h", 1, "a.B", {"note": "a&b=c?d#e%f+g", "methods": "A,B", "list": "x:y/z"})
    assert str(url) == "tri://h:1/a.B?note=a%26b%3Dc%3Fd%23e%25f%2Bg&methods=A,B&list=x:y/z"
    assert ProviderURL.parse(url.node_name()) == url


def test_urls_are_values() -> None:
    """Equal URLs are equal and hash alike, and nobody can change one."""
    again = ProviderURL.parse(OURS.node_name())
    assert again == OURS
    assert len({again, OURS}) == 1
    with pytest.raises(TypeError):
        OURS.parameters["weight"] = "1"  # type: ignore[index]


@pytest.mark.parametrize("host", ["h\x1b[2J", "h\u202eg", "h\x9b", "h\x00"])
def test_host_that_cannot_be_printed_is_refused(host: str) -> None:
    """It would be read on terminals and in logs; nobody's host is called so."""
    with pytest.raises(BadProviderURL):
        ProviderURL.parse(f"tri://{host}:1/a.B")
