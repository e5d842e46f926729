"""Whatever arrives, the server answers with a sentence, forgets it, and serves the others on."""

import contextlib
import json
import math
import random
import struct
import zlib

import msgspec
import pytest
import pytest_asyncio
from correctness import (
    CODEC,
    GREEDY,
    PACKET_BYTES,
    RawLine,
    altered_model,
    api,
    dialer,
    hello_of,
    raw_line,
    split_client,
    tokens_of,
    undisturbed,
)

from sliceserve.client import AsyncSplitLLM, ConnectionRefused, RequestFailed
from sliceserve.configs import DEFAULT_MODEL
from sliceserve.transport import messages as wire
from sliceserve.transport.frames import MAX_FRAME_BYTES, DataFrame, encode
from sliceserve.transport.link import CloseCode, LinkClosed

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.model,
    pytest.mark.timeout(600),
    pytest.mark.asyncio(loop_scope="session"),
]

TOO_MANY = 8192


@pytest_asyncio.fixture(loop_scope="session")
async def others(server, heads, cases):
    """A good client at work beside the bad one, and a check of what is left."""
    async with undisturbed(server, await heads(8), cases[0]):
        yield


async def test_clients_that_do_not_fit(server, others, heads, tmp_path):
    other = altered_model(tmp_path / "other", config={"rms_norm_eps": 1e-3})
    options = {"api_key": server.api_key, "codec": "float32"}
    for changes, code, words in (
        ({"model": str(other)}, "fingerprint_mismatch", "give both sides the same model"),
        ({"split": 9}, "cut_not_offered", "8, 15, 22"),
        ({"api_key": "wrong"}, "unauthorized", "check the API key"),
    ):
        with pytest.raises(ConnectionRefused, match=words) as refused:
            await AsyncSplitLLM(server.url, **(options | changes)).start()
        assert refused.value.code == code
    hello = hello_of((await heads(8)).info)
    for changes, code in (
        ({"fingerprint": ""}, "fingerprint_mismatch"),
        ({"cut": 0}, "cut_not_offered"),
        ({"cut": 2**31}, "cut_not_offered"),
        ({"codec": "zip/1"}, "unsupported_codec"),
        ({"protocol": 99}, "unsupported_protocol"),
        ({"resume_token": "guess"}, "invalid_resume_token"),
    ):
        async with contextlib.aclosing(RawLine(await dialer(server)())) as line:
            await line.send(msgspec.structs.replace(hello, **changes))
            assert (await line.receive(wire.Error)).code == code
            assert await line.closed() == CloseCode.PROTOCOL_ERROR


async def test_prompts_longer_than_the_context(server, others, heads):
    head = await heads(8)
    async with split_client(head, dialer(server)) as session:
        with pytest.raises(RequestFailed, match="at most 8192 tokens") as failed:
            await tokens_of(session, [5] * TOO_MANY, GREEDY)
        assert failed.value.code == "context_length_exceeded"
    # A client that does not check.
    async with raw_line(server, hello_of(head.info)) as line:
        for num_prompt, outputs in ((TOO_MANY, []), (2**32 - 1, []), (8000, [5] * 192)):
            sampling = {"max_tokens": TOO_MANY}
            await line.send(opening(num_prompt=num_prompt, outputs=outputs, sampling=sampling))
            error = await line.receive(wire.Error)
            assert (error.request_id, error.code) == (1, "context_length_exceeded")
    async with api(server) as http:
        body = {"model": DEFAULT_MODEL, "prompt": [5] * TOO_MANY, "max_tokens": 1}
        await expect_refusal(http, "/v1/completions", body, 400, "context_length_exceeded")
        message = {"role": "user", "content": "so on and " * TOO_MANY}
        body = {"model": DEFAULT_MODEL, "messages": [message]}
        await expect_refusal(http, "/v1/chat/completions", body, 400, "context_length_exceeded")


def forged(fields, kind=0xC0):
    """A data frame with a right CRC over anything."""
    body = bytes((kind,)) + fields
    return body[:1] + zlib.crc32(body).to_bytes(4, "little") + body[1:]


def frame(start, *packets):
    return encode(DataFrame(1, start, packets))


def opening(**changed):
    """An Open for request 1 with fields that the types of this side would not let pass."""
    fields = {"request_id": 1, "num_prompt": 3, "sampling": {}, **changed}
    return b"\x03" + msgspec.msgpack.encode(fields)


PACKET = bytes(PACKET_BYTES)
FRAME = encode(DataFrame(1, 0, [PACKET] * 3))
NOISE = random.Random(5)
NO_MESSAGES = {
    "nothing": b"",
    "an unknown type": b"\x7f",
    "noise": NOISE.randbytes(4000),
    "noise after the type of a frame": b"\x80" + NOISE.randbytes(4000),
    "noise after the type of Open": b"\x03" + NOISE.randbytes(4000),
    "a header alone": FRAME[:8],
    "half a header": FRAME[:3],
    "a frame without a request": forged(b"\x80\x00\x00"),
    "a truncated frame": FRAME[:-1],
    "a wrong CRC": FRAME[:-1] + b"\x01",
    "nested without end": b"\x03" + b"\x91" * 100_000,
    "a map that claims 4 Gi entries": b"\x03\xdf\xff\xff\xff\xff",
    "what servers send": encode(wire.Drain(seconds=1.0)),
    "another Hello": encode(wire.Hello(fingerprint="", codec=CODEC)),
}


async def test_bytes_that_are_no_message_end_their_connection(server, others, heads):
    hello = hello_of((await heads(8)).info)
    for what, data in NO_MESSAGES.items():
        async with raw_line(server, hello) as line:
            # There is a request to lose with the connection.
            await line.send(opening())
            await line.receive(wire.Opened)
            await line.send(data)
            error = await line.receive(wire.Error)
            assert (error.code, error.request_id) == ("protocol_error", None), what
            assert error.message.startswith("received "), what
            assert await line.closed() == CloseCode.PROTOCOL_ERROR, what
    async with raw_line(server, hello) as line:
        # The server hangs up at the length, and does not read the rest: that may break the line
        # before its last word has come.
        with contextlib.suppress(LinkClosed):
            await line.send(bytes(2 * MAX_FRAME_BYTES))
        assert await line.closed() in (CloseCode.MESSAGE_TOO_BIG, CloseCode.ABNORMAL)
    # Before Hello.
    async with contextlib.aclosing(RawLine(await dialer(server)())) as line:
        await line.send(FRAME)
        assert (await line.receive(wire.Error)).code == "protocol_error"
        assert await line.closed() == CloseCode.PROTOCOL_ERROR


BAD_FRAMES = {
    "lengths that do not add up": (forged(b"\x01\x00\x02\x01\x05abc"), "protocol_error"),
    "no packets": (forged(b"\x01\x00\x00"), "protocol_error"),
    "no position": (forged(b"\x01", 0x80), "protocol_error"),
    "more packets than bytes": (forged(b"\x01\x00\x80\x04" + bytes(9)), "protocol_error"),
    "too many packets": (forged(b"\x01\x00\xff\xff\x03\x00\x00"), "protocol_error"),
    "huge lengths": (forged(b"\x01\x00\x02" + b"\xff\xff\xff\xff\x0f" * 2), "protocol_error"),
    "a number with leading zeros": (forged(b"\x01\x80\x00" + PACKET, 0x80), "protocol_error"),
    "positions past 32 bits": (
        forged(b"\x01\xff\xff\xff\xff\x0f\x02\x01\x01ab"),
        "protocol_error",
    ),
    "packets beyond the credit": (frame(5000, PACKET), "protocol_error"),
    "garbage": (frame(0, b"garbage"), "invalid_packet"),
    "an empty packet": (frame(0, b""), "invalid_packet"),
    "noise of the right length": (frame(0, PACKET, b"\xff" * PACKET_BYTES), "invalid_packet"),
    "a packet of NaN": (frame(0, struct.pack("<576f", *[math.nan] * 576)), "invalid_packet"),
    "one infinity": (frame(0, struct.pack("<576f", math.inf, *[0.0] * 575)), "invalid_packet"),
    "packets of tokens to come": (frame(0, *[PACKET] * 4), "invalid_request"),
}
BAD_OPENINGS = {
    "a wrong type": opening(num_prompt="three"),
    "no tokens": opening(num_prompt=0),
    "an unknown field": opening(colour="red"),
    "a temperature below 0": opening(sampling={"temperature": -1.0}),
    "a temperature of NaN": opening(sampling={"temperature": float("nan")}),
    "an output outside the vocabulary": opening(outputs=[49152]),
    "more outputs than wanted": opening(outputs=[5, 5], sampling={"max_tokens": 2}),
}


async def test_bad_requests_end_alone(server, others, heads):
    async with raw_line(server, hello_of((await heads(8)).info)) as line:

        async def refused(data, code, what):
            await line.send(data)
            error = await line.receive(wire.Error)
            assert (error.request_id, error.code) == (1, code), what
            assert len(error.message) > 10, what

        for what, (frame, code) in BAD_FRAMES.items():
            await refused(FRAME, "unknown_request", what)
            await line.send(opening())
            await line.receive(wire.Opened)
            await refused(frame, code, what)
        for what, data in BAD_OPENINGS.items():
            await refused(data, "invalid_request", what)
        # Not every absurd hidden state is bad input: these overflow, and nobody else may notice.
        for packet in (PACKET, struct.pack("<576f", *[3e38] * 576)):
            await line.send(opening(sampling={"max_tokens": 1}))
            await line.receive(wire.Opened)
            await line.send(DataFrame(1, 0, [packet] * 3))
            assert (await line.receive(wire.Token)).finish_reason == "length"


async def expect_refusal(http, path, body, status, code, param=None):
    """An error in OpenAI's shape."""
    content = body if isinstance(body, bytes) else json.dumps(body)
    answer = await http.post(path, content=content, headers={"Content-Type": "application/json"})
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param), error
    assert len(error["message"]) > 10


async def test_bad_bodies(server, others):
    completion, chat = "/v1/completions", "/v1/chat/completions"
    text = {"model": DEFAULT_MODEL, "prompt": "Hello", "max_tokens": 4}
    talk = {"model": DEFAULT_MODEL, "messages": [{"role": "user", "content": "Hello"}]}
    bad_role = {"messages": [{"role": "wizard", "content": "Hello"}]}
    async with api(server) as http:
        for path, body, status, code, param in (
            (completion, b"{", 400, "invalid_json", None),
            (completion, b"\xff\xfe", 400, "invalid_json", None),
            (completion, [], 400, "invalid_json", None),
            (completion, b"[" * 100_000, 400, "invalid_request", None),
            (completion, {}, 400, "missing_required_parameter", "model"),
            (completion, {**text, "model": "gpt-9"}, 404, "model_not_found", "model"),
            (completion, {**text, "wisdom": 1}, 400, "unknown_parameter", "wisdom"),
            (completion, {**text, "max_tokens": "4"}, 400, "invalid_type", "max_tokens"),
            (completion, {**text, "max_tokens": 0}, 400, "invalid_value", None),
            (completion, {**text, "temperature": -1}, 400, "invalid_value", "temperature"),
            (completion, {**text, "seed": 2**80}, 400, "invalid_value", "seed"),
            (completion, {**text, "prompt": []}, 400, "invalid_value", "prompt"),
            (completion, {**text, "prompt": [[]]}, 400, "invalid_value", None),
            (completion, {**text, "prompt": [-1]}, 400, "invalid_type", "prompt"),
            (completion, {**text, "prompt": [49152]}, 400, "invalid_value", "prompt"),
            (
                completion,
                {**text, "logit_bias": {"5": 101}},
                400,
                "invalid_value",
                "logit_bias.5",
            ),
            (chat, {**talk, "messages": []}, 400, "invalid_value", "messages"),
            (chat, {**talk, **bad_role}, 400, "invalid_value", "messages[0].role"),
            (chat, {**talk, "stream": "yes"}, 400, "invalid_type", "stream"),
        ):
            await expect_refusal(http, path, body, status, code, param)
        # Refusals come with a status, even where a stream was asked for.
        streamed = {**text, "prompt": [5] * TOO_MANY, "stream": True}
        await expect_refusal(http, completion, streamed, 400, "context_length_exceeded")
        http.headers["Authorization"] = "Bearer wrong"
        await expect_refusal(http, completion, text, 401, "invalid_api_key")
