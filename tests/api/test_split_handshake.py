"""Who may connect to /v1/split, and what they are told."""

import httpx
import msgspec
import pytest
import websockets
from split_peer import connect, dial, hello

from sliceserve.api.split import SplitLimits
from sliceserve.transport.messages import OLDEST_VERSION, PROTOCOL_VERSION, SUBPROTOCOL, Bye, Error


async def test_welcome_says_what_was_chosen(serve, fake):
    served = await serve(fake(), split_limits=SplitLimits(max_requests=9, resume_timeout_s=7.0))
    async with connect(served, cut=5, codec="slicer/1") as peer:
        welcome = peer.welcome
        assert peer.socket.subprotocol == SUBPROTOCOL
        assert (welcome.cut, welcome.codec, welcome.model) == (5, "slicer/1", "tiny")
        assert (welcome.num_layers, welcome.max_model_len) == (6, 128)
        assert (welcome.max_requests, welcome.resume_timeout_s) == (9, 7.0)
        assert len(welcome.resume_token) >= 43
    async with connect(served, cut=None) as other:
        assert other.welcome.cut == 3
        assert other.welcome.resume_token != welcome.resume_token


async def test_an_old_client_is_told_nothing_that_it_does_not_know(serve, fake):
    served = await serve(fake(block_size=16))
    async with connect(served) as peer:
        assert (peer.welcome.protocol, peer.welcome.block_size) == (PROTOCOL_VERSION, 16)
    async with dial(served) as peer:
        await peer.send(hello(protocol=OLDEST_VERSION))
        welcome = msgspec.msgpack.decode((await peer.socket.recv())[1:])
        assert welcome.keys().isdisjoint({"block_size", "protocol"})
        await peer.open()
        opened = msgspec.msgpack.decode((await peer.socket.recv())[1:])
        assert opened.keys() == {"request_id", "next_position", "credit"}


async def test_info_before_connecting(serve, fake):
    served = await serve(fake())
    async with httpx.AsyncClient(base_url=served.url) as client:
        info = (await client.get("/v1/split/info")).json()
    assert info == {
        "model": "tiny",
        "fingerprint": "f" * 64,
        "protocol": PROTOCOL_VERSION,
        "num_layers": 6,
        "cuts": [1, 3, 5],
        "codecs": ["float32/1", "slicer/1"],
        "profiles": [],
        "thin": True,
        "max_model_len": 128,
    }


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"fingerprint": "abc"}, "fingerprint_mismatch", ["ffffffffffff", "abc", "same model"]),
        ({"cut": 2}, "cut_not_offered", ["layer 2", "1, 3, 5"]),
        ({"codec": "zip/1"}, "unsupported_codec", ["zip/1", "slicer/1"]),
        ({"protocol": 0}, "unsupported_protocol", ["versions 1 to 4", "0"]),
        ({"protocol": 5}, "unsupported_protocol", ["versions 1 to 4", "5"]),
        ({"resume_token": "guess"}, "invalid_resume_token", ["Welcome"]),
        ({"resume_token": "a:" + "b" * 41}, "invalid_resume_token", ["Welcome"]),
    ],
)
async def test_a_mismatch_is_refused_with_what_differs(serve, fake, changes, code, words):
    async with dial(await serve(fake())) as peer:
        await peer.send(hello(**changes))
        error = await peer.receive(Error)
        assert error.code == code
        assert error.request_id is None
        assert all(word in error.message for word in words)
        assert await peer.closed() == 1002


async def test_a_server_without_cuts_takes_no_split_clients(serve, fake):
    async with dial(await serve(fake(cuts=[]))) as peer:
        await peer.send(hello(cut=None))
        assert (await peer.receive(Error)).code == "cut_not_offered"


@pytest.mark.parametrize("first", [Bye(), b"", b"\xff", b"\x01junk", "text"])
async def test_the_first_message_must_be_hello(serve, fake, first):
    async with dial(await serve(fake())) as peer:
        await peer.send(first)
        assert (await peer.receive(Error)).code == "protocol_error"
        assert await peer.closed() == 1002


async def test_hello_must_come_soon(serve, fake):
    served = await serve(fake(), split_limits=SplitLimits(hello_timeout_s=0.05))
    async with dial(served) as peer:
        assert "Hello" in (await peer.receive(Error)).message
        assert await peer.closed() == 1002


@pytest.mark.parametrize(
    ("settings", "status", "code"),
    [
        ({}, 401, "invalid_api_key"),
        ({"additional_headers": {"Authorization": "Bearer no"}}, 401, "invalid_api_key"),
        (
            {"additional_headers": {"Authorization": "Bearer sesame"}, "subprotocols": ["chat"]},
            400,
            "invalid_value",
        ),
    ],
)
async def test_refused_before_the_upgrade(serve, fake, settings, status, code):
    served = await serve(fake(), api_keys={"sesame": "a"})
    with pytest.raises(websockets.InvalidStatus) as refused:
        async with dial(served, **settings):
            pass
    assert refused.value.response.status_code == status
    assert code.encode() in refused.value.response.body


async def test_the_key_opens_the_socket(serve, fake):
    served = await serve(fake(), api_keys={"sesame": "a"})
    async with dial(served, additional_headers={"Authorization": "Bearer sesame"}) as peer:
        await peer.send(hello())
        assert (await peer.receive()).cut == 3
