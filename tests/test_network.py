"""Where a request may go: published ways around such rules, and whatever else hypothesis finds."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from urllib3.util import parse_url as other_parser

from oxydra.errors import PolicyDenied
from oxydra.policy.network import Egress, check_address, check_url, follow, parse_url

NOWHERE = Egress()


def denied(text: str) -> str:
    with pytest.raises(PolicyDenied) as caught:
        check_url(parse_url(text), NOWHERE)
    assert caught.value.remedy
    return str(caught.value)


def urls(text: str) -> list[str]:
    return [url for url in text.replace("\n", " ").split(" ") if url]


# Collected from public lists of SSRF bypasses, by the trick they use.
LOOPBACK = urls("""
http://127.0.0.1/ http://127.0.0.1:80 http://127.0.0.1:8080/x http://127.1/ http://127.0.1/ http://0/
http://0.0.0.0/ http://127.127.127.127/ http://2130706433/ http://017700000001/ http://0x7f000001/
http://0x7f.0x0.0x0.0x1/ http://0177.0.0.1/ http://0177.0.0.01/ http://0x7f.1/ http://127.0x1/
http://00000000177.0.0.1/ http://127.0.0.1./ http://127.000.000.001/ http://4294967295/
http://[::1]/ http://[::]/ http://[0:0:0:0:0:0:0:1]/ http://[0000::1]:80/ http://[::ffff:127.0.0.1]/
http://[::ffff:7f00:1]/ http://[0:0:0:0:0:ffff:127.0.0.1]/ http://[::127.0.0.1]/
http://[64:ff9b::127.0.0.1]/ http://[64:ff9b::7f00:1]/ http://[64:ff9b:1::7f00:1]/
http://[2002:7f00:1::]/ http://[2001:0:4136:e378:8000:63bf:80ff:fffe]/ http://[::1%25lo]/
http://[::1%lo]/ http://[fe80::1%25eth0]/ http://[2606:4700::5efe:7f00:1]/ http://[::ffff:0:127.0.0.1]/
http://localhost/ http://LOCALHOST/ http://localhost./ http://localhost:80/ http://foo.localhost/
http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ/ http://①②⑦.⓪.⓪.①/ http://127。0。0。1/ http://127．0．0．1/ http://１２７.0.0.1/
http://ⅼocalhost/ http://locaⅼhost/
""")
INSIDE = urls("""
http://10.0.0.1/ http://10.255.255.255/ http://172.16.0.1/ http://172.31.255.255/ http://192.168.0.1/
http://100.64.0.1/ http://100.100.100.200/latest/meta-data/ http://169.254.169.254/latest/meta-data/
http://169.254.170.2/v2/credentials http://2852039166/ http://0xa9fea9fe/ http://0xA9.0xFE.0xA9.0xFE/
http://0251.0376.0251.0376/ http://169.254.43518/ http://169.16689662/ http://425.510.425.510/
http://7147006462/ http://0251.254.169.254/ http://[::ffff:169.254.169.254]/ http://[::ffff:a9fe:a9fe]/
http://[fd00:ec2::254]/ http://[fe80::a9fe:a9fe]/ http://[64:ff9b::a9fe:a9fe]/ http://[fec0::1]/
http://[2002:a9fe:a9fe::]/ http://168.63.129.16/ http://192.0.0.192/ http://192.0.2.1/ http://198.18.0.1/
http://198.51.100.7/ http://203.0.113.9/ http://192.88.99.1/ http://224.0.0.1/ http://239.255.255.250/
http://240.0.0.1/ http://255.255.255.255/ http://[ff02::1]/ http://[2001:db8::1]/ http://[3fff::1]/
http://[5f00::1]/ http://[4000::1]/ http://[100::1]/ http://metadata.google.internal/ http://metadata/
http://kubernetes.default.svc.local/ http://router.lan/ http://nas.home.arpa/ http://x.onion/
http://docker.for.mac.localhost/ http://intranet/ http://printer.local:631/
""")
CONFUSING = urls("""
http://example.com@127.0.0.1/ http://127.0.0.1@example.com/ http://user:pass@example.com/ http://@example.com/
http://example.com%40127.0.0.1/ http://example.com%2f@127.0.0.1/ http://127.0.0.1%23.example.com/
http://example.com\\@127.0.0.1/ http://example.com\\.127.0.0.1/ http:\\\\127.0.0.1/ http:///127.0.0.1/
http://%31%32%37.0.0.1/ http://127%2e0%2e0%2e1/ http://[::1/ http://::1/ http://[]/ http://[1]/
http://[127.0.0.1]/ http://[::1]x/ http://[::1].example.com/ http://exa%6dple.com/ http://a:b:c/
http://example.com:80:80/ http://example.com:99999/ http://example.com:-1/ http://example.com:0/
http://example.com:+80/ http://example.com:８０/ http://example..com/ http://.example.com/ http://-a.com/
http://1.1.1.1:80@127.0.0.1/ http://1.1.1.1&@127.0.0.1/ //127.0.0.1/
http:127.0.0.1/ http:/127.0.0.1/ file:///etc/passwd gopher://127.0.0.1:6379/_x dict://127.0.0.1:11211/
ftp://example.com/ data:text/html,x javascript:alert(1) jar:http://127.0.0.1!/ ldap://x.com/ ws://x.com/
http://１.0x7f/ http://1.2.3/ http://1.2.3.4.5/ http://256.256.256.256/ http://1.1.1.0x/ http://08.1.1.1/
http://a.b.c.0x1f/ http://example.123/ http://127.0.0.1.1/ example.com http:// https://? http://#x
http://xn--/ http://a_b..c/ http://exam\u200bple.com/ http://example.com\u202e/ http://exa\u00admple.com\u2028/
""")


@pytest.mark.parametrize("text", LOOPBACK + INSIDE)
def test_no_spelling_of_an_inner_address_is_let_through(text: str) -> None:
    denied(text)


@pytest.mark.parametrize("text", CONFUSING)
def test_what_programs_read_differently_is_refused(text: str) -> None:
    denied(text)


@pytest.mark.parametrize(
    "text",
    [
        "http://example.com/\r\nHost: x",
        "http://exam\tple.com/",
        "http://a.com/\x00",
        "http://a b.com/",
        f"https://example.com/{'a' * 5000}",
        "http://" + "a" * 300 + ".com/",
        "",
        " ",
        "http://\ud800.com/",
    ],
)
def test_control_characters_and_long_urls_are_refused(text: str) -> None:
    denied(text)


@pytest.mark.parametrize("port", [22, 25, 110, 6000, 6379, 6667, 11211])
def test_ports_of_other_protocols_are_refused(port: int) -> None:
    assert str(port) in denied(f"https://example.com:{port}/")


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("https://Example.COM", "https://example.com/"),
        ("HTTP://example.com:80?q=a", "http://example.com/?q=a"),
        ("https://example.com.:443/a/../b#frag", "https://example.com/a/../b"),
        ("http://1.1.1.1:8080/x", "http://1.1.1.1:8080/x"),
        ("http://[2606:4700:0:0::1111]/", "http://[2606:4700::1111]/"),
        ("http://[64:ff9b::101:101]/", "http://[64:ff9b::101:101]/"),  # DNS64's 1.1.1.1
        (
            "https://bücher.example.org/straße?q=ü",
            "https://xn--bcher-kva.example.org/stra%C3%9Fe?q=%C3%BC",
        ),
        ("https://faß.de/", "https://xn--fa-hia.de/"),  # not fass.de, which is someone else's
        ("https://例え.jp/", "https://xn--r8jz45g.jp/"),
        ("https://e.org/a%20b%2Fc?x=%zz&y=[1]|2", "https://e.org/a%20b%2Fc?x=%zz&y=[1]|2"),
        (" https://e.org/ ", "https://e.org/"),
        ("http://1.1.1.1#@127.0.0.1:8080@x/", "http://1.1.1.1/"),  # a fragment by every reading
    ],
)
def test_ordinary_urls_get_one_spelling(text: str, read: str) -> None:
    url = parse_url(text)
    check_url(url, NOWHERE)
    assert str(url) == read


def test_a_redirect_is_read_as_strictly() -> None:
    base = parse_url("https://example.com/a/b?c")
    assert str(follow(base, "../d")) == "https://example.com/d"
    assert str(follow(base, "//other.org/x")) == "https://other.org/x"
    assert str(follow(parse_url("http://example.com/"), "https://x.org/")) == "https://x.org/"
    for location in (
        "http://example.com/",
        "//user@x.org/",
        "file:///etc/passwd",
        "http:x",
        "//[::1",
    ):
        with pytest.raises(PolicyDenied):
            follow(base, location)


# -------------------------------------------------------------------------------- the allow-list


def test_an_allowed_service_is_one_host_and_one_port() -> None:
    egress = Egress.parse(["127.0.0.1:8888", "searx.local:80", "[::1]:9000", "localhost:1"])
    for text in (
        *("http://127.0.0.1:8888/x", "http://searx.local/", "http://[::1]:9000/"),
        *("http://SEARX.local.:80/", "http://localhost:1/"),
    ):
        check_url(parse_url(text), egress)
    for text in (
        *("http://127.0.0.1/", "http://127.0.0.2:8888/", "https://searx.local/", "http://[::1]/"),
        "http://x.searx.local/",
    ):
        with pytest.raises(PolicyDenied):
            check_url(parse_url(text), egress)
    egress.check("searx.local", 80, "192.168.1.5")
    with pytest.raises(PolicyDenied, match=r"192\.168\.1\.5"):
        egress.check("searx.local", 81, "192.168.1.5")


@pytest.mark.parametrize(
    "entry", ["127.0.0.1", "a:b", "http://x:1", "x:1/y", "*:80", "x:0", "", ":80"]
)
def test_an_entry_that_is_none_is_refused(entry: str) -> None:
    with pytest.raises(PolicyDenied):
        Egress.parse([entry])


# -------------------------------------------------------------------------------------- fuzzed


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)))
def test_only_what_the_world_calls_global_is_let_through(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    assert check_address(address) == check_address(str(address))
    if not check_address(address):
        assert address.is_global
        assert not address.is_multicast
        assert not address.is_reserved or address in ipaddress.ip_network("64:ff9b::/96")


@given(st.ip_addresses(v=4), st.data())
def test_no_way_to_write_a_number_hides_an_address(
    address: ipaddress.IPv4Address, data: st.DataObject
) -> None:
    """Each part decimal, octal or hexadecimal, the last ones joined, as inet_aton takes them."""
    count = data.draw(st.integers(1, 4))
    packed = address.packed
    numbers = [*packed[: count - 1], int.from_bytes(packed[count - 1 :], "big")]
    ways = st.sampled_from(["{:d}", "0{:o}", "0x{:x}", "0X{:X}", "00{:o}", "0x00{:x}"])
    host = ".".join(data.draw(ways).format(number) for number in numbers)
    try:
        url = parse_url(f"http://{host}/")
    except PolicyDenied:
        return
    assert url.address == address, "read as another address than inet_aton would"


@given(st.ip_addresses(v=4))
def test_ipv4_inside_ipv6_is_never_a_way_in(address: ipaddress.IPv4Address) -> None:
    number = int(address)
    for base in ("::", "::ffff:0:0", "64:ff9b:1::", "::ffff:0:0:0", "2606:4700::5efe:0:0"):
        inside = ipaddress.IPv6Address(int(ipaddress.IPv6Address(base)) | number)
        assert check_address(inside)
    assert check_address(ipaddress.IPv6Address(0x2002 << 112 | number << 80))
    nat64 = ipaddress.IPv6Address(int(ipaddress.IPv6Address("64:ff9b::")) | number)
    assert bool(check_address(nat64)) == bool(check_address(address))


PIECES = st.sampled_from(
    [
        "http://",
        "https://",
        "127.0.0.1",
        "example.com",
        "localhost",
        "[::1]",
        "@",
        ":",
        "/",
        "\\",
        "#",
        "?",
        "%",
        "%00",
        ".",
        "0x7f",
        "..",
        "[",
        "]",
        " ",
        "\t",
        "。",
        "①",
        "ß",
        "xn--",
        "80",
        "//",
        "&",
    ]
)


@given(st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=10).map("".join)))
def test_what_is_accepted_reads_the_same_everywhere(text: str) -> None:
    for candidate in (text, "http://" + text, "http://a.example/" + text):
        try:
            url = parse_url(candidate)
        except PolicyDenied:
            continue
        assert parse_url(str(url)) == url
        assert str(url).isascii() and str(url).isprintable() and " " not in str(url)
        parts, other = urlsplit(str(url)), other_parser(str(url))
        assert parts.username is None and other.auth is None
        assert parts.hostname == url.host == (other.host or "").strip("[]")
        assert (parts.port or {"http": 80, "https": 443}[parts.scheme]) == url.port
