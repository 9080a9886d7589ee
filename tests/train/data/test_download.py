"""Downloads from a web server that misbehaves in every way end as images or reasons, and never lead inside."""

import socket
from dataclasses import replace

import pytest

from tests.train.data.d3_server import BAD_REDIRECTS, KINDS, LIMITS, Server, download_all
from train.data.download import DownloadLimits
from train.data.synthetic import synthetic_record


def test_downloads_end_as_images_or_reasons(server: Server) -> None:
    """Each thing that goes wrong on the web has its reason; what is passing is tried again, what is not is not."""
    results = download_all(
        [f"{server.url}/{kind}/{index}" for index, kind in enumerate(KINDS)] + ["no url", "ftp://x/y"], LIMITS
    )
    by_kind = dict(zip([*KINDS[:10], "ok", "ok", "words", "ftp"], results, strict=True))
    for kind in ("ok", "moved", "busy"):
        assert isinstance(by_kind[kind], bytes)
    assert by_kind["gone"] == "dead link 404"
    assert by_kind["html"].startswith("not an image")
    assert by_kind["halfimage"].startswith("not an image")
    assert by_kind["huge"] == "larger than 200000 bytes"
    assert by_kind["cut"] == "broke off"
    assert by_kind["loop"] == "too many redirects"
    assert by_kind["words"] == by_kind["ftp"] == "invalid URL"
    assert server.asked["/busy/3"] == server.asked["/cut/6"] == 2
    assert server.asked["/gone/2"] == server.asked["/html/4"] == 1


@pytest.mark.parametrize("kind", BAD_REDIRECTS)
def test_a_redirect_that_cannot_be_followed_is_a_dead_link(kind: str, server: Server) -> None:
    """A redirect to what is no URL, to a port that there is not, or to nowhere ends its link at once."""
    (reason,) = download_all([f"{server.url}/{kind}/1"], LIMITS)
    assert str(reason).startswith("dead link: redirect")
    assert server.asked == {f"/{kind}/1": 1}


def test_placeholders_are_no_images(server: Server) -> None:
    """What a host puts in the place of a deleted image, a few pixels, is refused as tiny."""
    assert download_all([f"{server.url}/pixel/1"], LIMITS) == ["tiny: 8x8"]


@pytest.mark.slow
def test_a_server_that_does_not_answer_is_a_timeout(server: Server) -> None:
    """Each try has its time; after the last one the reason is `timeout`."""
    assert download_all([f"{server.url}/slow/1"], replace(LIMITS, timeout_s=1)) == ["timeout"]
    assert server.asked["/slow/1"] <= LIMITS.attempts


PUBLIC, PRIVATE = (
    "93.184.215.14",
    ["127.0.0.1", "10.0.0.8", "169.254.169.254", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "fd00::1"],
)


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_are_refused_by_default(address: str, server: Server) -> None:
    """A URL from the data set cannot make the machine ask its own network, whatever form the name's address has."""
    strict = replace(LIMITS, allow_private=False)
    assert not DownloadLimits().allow_private
    assert download_all(["http://images.example/1"], strict, resolve=lambda _host, _port: [address]) == [
        "address is not public"
    ]
    literal = f"[{address}]" if ":" in address else address
    assert download_all([f"http://{literal}:{server.server_port}/ok/1"], strict) == ["address is not public"]
    assert server.asked == {}


def test_a_name_is_looked_up_once_and_connected_to_where_it_was_checked(server: Server) -> None:
    """A name server that says a public address first and a private one later (DNS rebinding) is asked once, and its
    first answer is used.
    """
    answers, asked = [["127.0.0.1"], ["127.0.0.2"]], []

    def resolve(host: str, _port: int) -> list[str]:
        asked.append(host)
        return answers[min(len(asked), len(answers)) - 1]

    found = download_all([f"http://images.example:{server.server_port}/ok/1"], LIMITS, resolve=resolve)
    assert found == [synthetic_record(1).images["real"]]
    assert asked == ["images.example"]
    assert server.hosts == [f"images.example:{server.server_port}"]


def test_a_redirect_to_a_private_address_is_refused(server: Server) -> None:
    """The address is checked at every hop: a public page cannot send the downloader to the machine's own network."""

    def resolve(host: str, _port: int) -> list[str]:
        return {"outside.example": ["127.0.0.1"], "inside.example": ["0.0.0.0"]}[host]

    urls = [f"http://outside.example:{server.server_port}/away/1"]
    # The test's own server has a private address: 0.0.0.0, refused always, stands for what is refused.
    assert download_all(urls, LIMITS, resolve=resolve) == ["address is not public"]
    assert list(server.asked) == ["/away/1"]


def test_names_without_an_address_are_told_from_silent_name_servers() -> None:
    """No such name is final; a name server that does not answer is tried again."""
    tried: list[str] = []

    def resolve(host: str, _port: int) -> list[str]:
        tried.append(host)
        raise socket.gaierror(socket.EAI_AGAIN if host == "silent.example" else socket.EAI_NONAME, "no answer")

    assert download_all(["http://gone.example/1", "http://silent.example/1"], LIMITS, resolve=resolve) == [
        "unknown host",
        "name server does not answer",
    ]
    assert sorted(tried) == ["gone.example", "silent.example", "silent.example"]
