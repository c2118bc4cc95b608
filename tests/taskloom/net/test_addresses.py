"""Addresses."""

from __future__ import annotations

import pytest

from taskloom.errors import AddressError, CommError
from taskloom.net.addresses import Address, is_here, is_loopback, parse_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("tcp://127.0.0.1:8786", Address("tcp", "127.0.0.1", 8786)),
        ("tcp://localhost", Address("tcp", "localhost", 8786)),
        (" tls://host.example.org:1 ", Address("tls", "host.example.org", 1)),
        ("TLS://Node_7.rack-3:65535", Address("tls", "Node_7.rack-3", 65535)),
        ("tls://[::1]:0", Address("tls", "::1", 0)),
        ("tls://[2001:db8::7]", Address("tls", "2001:db8::7", 8786)),
        ("tls://[fe80::1%eth0]:99", Address("tls", "fe80::1%eth0", 99)),
        ("tls://0.0.0.0:0/", Address("tls", "0.0.0.0", 0)),
        ("inproc://scheduler-1.x:y", Address("inproc", "scheduler-1.x:y", 0)),
    ],
)
def test_addresses_are_taken_apart(text, address):
    found = parse_address(text)
    assert found == address
    assert parse_address(str(found)) == found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "does not say how to talk there"),
        ("host:8786", "write tcp://host:8786 for this machine, tls://host:8786 for another one"),
        ("tpc://host:1", "begins with tpc://; known are tcp://, tls:// and inproc://; did you mean tcp://host:1"),
        ("ssl://host:1", "begins with ssl://"),
        ("http://host:1", "do not talk by HTTP. Write tls://host:1"),
        ("kube://ns/name", "begins with kube://"),
        ("tcp://", "has no host"),
        ("tcp://:8786", "has no host"),
        ("tcp://host:", "the port ''"),
        ("tcp://host:abc", "the port 'abc'; a port is a number from 0 to 65535"),
        ("tcp://host:65536", "the port '65536'"),
        ("tcp://host:-1", "the port '-1'"),
        ("tcp://host:٣", "the port"),
        ("tcp://host:1/path", "something behind host and port"),
        ("tcp://host:1?a=b", "something behind host and port"),
        ("tcp://me@host:1", "names a user"),
        ("tcp://me:word@host:1", "names a user"),
        ("tls://2001:db8::7:80", r"an IPv6 address stands in brackets: tls://\[2001:db8::7:80\]:port"),
        ("tls://[2001:db8::7", "a bracket .* not closed"),
        ("tls://[2001:db8::7]80", "'80' behind the bracket"),
        ("tls://[host]:80", "'host' in brackets, which is no IPv6 address"),
        ("tls://1.2.3:80", "'1.2.3', which is no IPv4 address"),
        ("tls://300.1.1.1:80", "no IPv4 address"),
        ("tls://my host:80", "no name of a machine"),
        ("tls://-host:80", "no name of a machine"),
        ("tls://a..b:80", "no name of a machine"),
        ("tls://" + "a" * 300, "no name of a machine"),
        ("inproc://", "needs a name"),
        ("inproc://a/b", "needs a name"),
        (("tcp", 1), "an address is a string"),
        (None, "an address is a string"),
    ],
)
def test_what_is_no_address_says_why(text, words):
    with pytest.raises(AddressError, match=words) as caught:
        parse_address(text)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, CommError)


def test_the_port_can_be_asked_for():
    assert parse_address("tls://host", default_port=5).port == 5
    with pytest.raises(AddressError, match="has no port; write tls://host:port"):
        parse_address("tls://host", default_port=None)


def test_loopback():
    inside = ["127.0.0.1", "127.255.0.9", "::1", "::ffff:127.0.0.1"]
    outside = ["0.0.0.0", "10.0.0.1", "192.168.1.1", "::", "fe80::1%lo", "::ffff:10.0.0.1", "8.8.8.8"]
    assert [is_loopback(host) for host in inside] == [True] * 4
    assert [is_loopback(host) for host in outside] == [False] * 7


def test_what_can_only_be_this_machine():
    here = ["127.0.0.1", "::1", "localhost", "LocalHost", "localhost.", "a.localhost"]
    assert [is_here(host) for host in here] == [True] * 6
    elsewhere = ["10.0.0.1", "0.0.0.0", "::", "node7", "localhost.example.com", "notlocalhost"]
    assert [is_here(host) for host in elsewhere] == [False] * 6
