"""Requests over /v1/split: the ordinary run, hostile frames, lost lines."""

import asyncio

import pytest
import websockets
from split_peer import connect, dial, hello

from sliceserve.api.split import SplitLimits
from sliceserve.engine.messages import AppendPackets, Cancel, Detach, Moved, Open
from sliceserve.scheduler.plan import SampledToken
from sliceserve.transport import messages
from sliceserve.transport.frames import DataFrame, encode
from sliceserve.transport.messages import Credit, Drain, Error, Opened, Token, Want, Welcome


async def test_a_request_from_open_to_its_last_token(serve, fake, tokenizer):
    engine = fake("Hi")
    async with connect(await serve(engine)) as peer:
        await peer.open(num_prompt=3, temperature=0.5, seed=4)
        opened = await peer.receive(Opened)
        assert (opened.request_id, opened.next_position, opened.credit) == (1, 0, 64)
        await peer.data(0, 3)
        first = await peer.receive(Token)
        assert (first.position, first.finish_reason, first.server_us) == (3, None, 2000)
        await peer.data(3, 1)
        assert (await peer.receive(Token)).position == 4
        await peer.data(4, 1)
        last = await peer.receive(Token)
        assert (last.position, last.token_id, last.finish_reason) == (5, 2, "stop")
        token = peer.welcome.resume_token
    (opening,) = engine.sent(Open)
    assert opening.request_id == f"{token}:1"
    assert (opening.entry_layer, opening.codec, opening.num_prompt) == (3, "float32/1", 3)
    assert (opening.sampling.temperature, opening.sampling.seed) == (0.5, 4)
    # It has ended: there is nothing to cancel or to keep.
    assert not engine.sent(Cancel) and not engine.sent(Detach)


async def test_logprobs_travel(serve, fake):
    async with connect(await serve(fake())) as peer:
        await peer.open(num_prompt=1, logprobs=2)
        await peer.data(0, 1)
        await peer.receive(Opened)
        token = await peer.receive(Token)
        assert token.logprob == -0.5
        assert [top.logprob for top in token.top] == [-0.5, -1.5]


async def test_credit_is_told_when_it_rises(serve, fake):
    engine = fake("x")
    async with connect(await serve(engine)) as peer:
        await peer.open(num_prompt=5)
        assert (await peer.receive(Opened)).credit == 64
        name = engine.sent(Open)[0].request_id
        engine.tell(name, num_computed=2, credit=64)
        engine.tell(name, num_computed=4, credit=66)
        assert (await peer.receive(Credit)).credit == 66
        engine.tell(name, num_computed=5, credit=66, start=5, tokens=[SampledToken(7)])
        assert (await peer.receive(Token)).position == 5
        engine.tell(name, num_computed=6, credit=70, start=6, tokens=[SampledToken(7)])
        assert (await peer.receive(Token)).position == 6
        assert (await peer.receive(Credit)).credit == 70


async def test_a_request_that_waits_is_opened_with_no_credit(serve, fake):
    engine = fake("x")
    engine.window = 0
    async with connect(await serve(engine)) as peer:
        await peer.open(num_prompt=5)
        assert (await peer.receive(Opened)).credit == 0
        (opening,) = engine.sent(Open)
        assert opening.may_queue
        engine.tell(opening.request_id, credit=21)
        assert (await peer.receive(Credit)).credit == 21


async def test_repeated_and_overlapping_frames_change_nothing(serve, fake):
    async with connect(await serve(fake("abc"))) as peer:
        await peer.open(num_prompt=3)
        for start, count in ((0, 3), (0, 3), (1, 2), (0, 1)):
            await peer.data(start, count)
        await peer.receive(Opened)
        assert (await peer.receive(Token)).position == 3
        await peer.data(2, 2)
        assert (await peer.receive(Token)).position == 4


async def test_a_gap_is_answered_with_the_position_wanted(serve, fake):
    async with connect(await serve(fake())) as peer:
        await peer.open(num_prompt=9)
        await peer.receive(Opened)
        await peer.data(4, 2)
        assert (await peer.receive(Want)).next_position == 0


async def test_what_is_cached_of_a_prefix_is_not_wanted(serve, fake):
    engine = fake("abc", block_size=4)
    digests = [bytes([i]) * 16 for i in range(3)]
    engine.cached = set(digests[:2])
    async with connect(await serve(engine)) as peer:
        await peer.open(1, num_prompt=12, prefix=digests)
        assert (await peer.receive(Opened)).next_position == 8
        await peer.data(8, 4)
        assert (await peer.receive(Token)).position == 12
        await peer.open(2, num_prompt=12, prefix=digests[::-1])
        assert (await peer.receive(Opened)).next_position == 0
    assert [opening.prefix for opening in engine.sent(Open)] == [digests, digests[::-1]]


@pytest.mark.parametrize(
    ("block_size", "opening", "words"),
    [
        (4, {"num_prompt": 11, "prefix": [bytes(16)] * 3}, "3 blocks, but 11 positions"),
        (4, {"num_prompt": 2**32 - 1, "prefix": [bytes(16)] * 33}, "128 positions have at most 32"),
        (0, {"num_prompt": 11, "prefix": [bytes(16)]}, "at most 0"),
        (4, {"num_prompt": 11, "prefix": [bytes(15)]}, "length >= 16"),
        (4, {"num_prompt": 11, "prefix": [bytes(17)]}, "length <= 16"),
    ],
)
async def test_a_prefix_that_cannot_be_ends_its_request_alone(
    serve, fake, block_size, opening, words
):
    engine = fake(block_size=block_size)
    async with connect(await serve(engine)) as peer:
        await peer.open(7, **opening)
        error = await peer.receive(Error)
        assert (error.code, error.request_id) == ("invalid_request", 7)
        assert words in error.message
        assert not engine.sent(Open)
        await peer.open(7)
        await peer.receive(Opened)


async def test_cancel_ends_one_request_only(serve, fake, eventually):
    engine = fake("abc")
    async with connect(await serve(engine)) as peer:
        await peer.open(1)
        await peer.open(2)
        await peer.receive(Opened)
        await peer.receive(Opened)
        await peer.send(messages.Cancel(request_id=1))
        await peer.send(messages.Cancel(request_id=77))
        await peer.data(0, 3, request_id=2)
        assert (await peer.receive(Token)).request_id == 2
        token = peer.welcome.resume_token
        # The second may be waiting in the engine since an earlier connection.
        assert [c.request_id for c in engine.sent(Cancel)] == [f"{token}:1", f"{token}:77"]
        # What may have come early, behind an Open that was refused, is ignored.
        await peer.data(0, 3, request_id=1)
        await peer.data(peer.welcome.early_tokens, 3, request_id=1)
        error = await peer.receive(Error)
        assert (error.code, error.request_id) == ("unknown_request", 1)


async def test_a_refusal_of_the_engine_ends_the_request(serve, fake):
    engine = fake()
    engine.refusal = ("overloaded", "full", 1.5)
    async with connect(await serve(engine)) as peer:
        await peer.open(5)
        error = await peer.receive(Error)
        assert (error.code, error.message) == ("overloaded", "full")
        assert (error.request_id, error.retry_after_s) == (5, 1.5)
        engine.refusal = None
        await peer.open(5)
        await peer.receive(Opened)


async def test_bounds_of_one_connection(serve, fake):
    served = await serve(fake(), split_limits=SplitLimits(max_requests=2))
    async with connect(served) as peer:
        for request_id in (1, 2):
            await peer.open(request_id)
            await peer.receive(Opened)
        await peer.open(3)
        error = await peer.receive(Error)
        assert (error.code, error.request_id) == ("overloaded", 3)
        assert error.retry_after_s > 0
        # Opening again one that lives needs no further place.
        await peer.open(2)
        assert (await peer.receive(Opened)).request_id == 2


def corrupt(index, data=None):
    data = bytearray(data or encode(DataFrame(1, 0, [b"packet"])))
    data[index] ^= 1
    return bytes(data)


@pytest.mark.parametrize(
    "hostile",
    [
        b"",
        b"\x00",
        b"\xff" * 100,
        b"\x03" + b"\xc1" * 10,
        "text",
        corrupt(-1),
        corrupt(3),
        encode(DataFrame(1, 0, [b"packet"]))[:-1],
        encode(hello()),
        encode(Drain(seconds=1.0)),
        encode(Opened(request_id=1, next_position=0, credit=9)),
    ],
)
async def test_a_broken_message_ends_its_connection_alone(serve, fake, hostile):
    engine = fake("abc")
    served = await serve(engine)
    async with connect(served) as peer, connect(served) as bystander:
        await bystander.open()
        await bystander.receive(Opened)
        await peer.open()
        await peer.receive(Opened)
        await peer.send(hostile)
        error = await peer.receive(Error)
        assert (error.code, error.request_id) == ("protocol_error", None)
        assert await peer.closed() == 1002
        # The client may come back with a whole message.
        assert [d.request_id for d in engine.sent(Detach)] == [f"{peer.welcome.resume_token}:1"]
        await bystander.data(0, 3)
        assert (await bystander.receive(Token)).position == 3


async def test_a_message_that_is_too_large_ends_its_connection(serve, fake, eventually):
    engine = fake()
    async with connect(await serve(engine)) as peer:
        await peer.open()
        await peer.receive(Opened)
        await peer.send(bytes(peer.welcome.max_frame_bytes + 1))
        assert await peer.closed() == 1009
        await eventually(lambda: len(engine.sent(Detach)) == 1)


async def test_an_invalid_open_ends_that_request_alone(serve, fake):
    async with connect(await serve(fake())) as peer:
        sampling = messages.SamplingParams(temperature=2.0, seed=0)
        good = encode(messages.Open(request_id=4, num_prompt=1, sampling=sampling))
        assert good.count(b"temperature\xcb\x40") == 1
        await peer.send(good.replace(b"temperature\xcb\x40", b"temperature\xcb\xc0"))
        error = await peer.receive(Error)
        assert error.request_id == 4
        assert "temperature" in error.message
        await peer.send(good)
        await peer.receive(Opened)


async def test_a_lost_line_is_taken_up_again(serve, fake, eventually):
    engine = fake("abcdef")
    served = await serve(engine)
    async with connect(served) as peer:
        token = peer.welcome.resume_token
        await peer.open(num_prompt=3)
        await peer.receive(Opened)
        await peer.data(0, 3)
        sampled = (await peer.receive(Token)).token_id
        peer.lose()
    await eventually(lambda: len(engine.sent(Detach)) == 1)
    assert not engine.sent(Cancel)
    async with connect(served, resume_token=token) as peer:
        assert peer.welcome.resume_token == token
        await peer.open(num_prompt=3, outputs=[sampled])
        opened = await peer.receive(Opened)
        assert opened.next_position == 3
        await peer.data(3, 1)
        assert (await peer.receive(Token)).position == 4
    first, second = engine.sent(Open)
    assert first.request_id == second.request_id
    assert second.outputs == [sampled]


async def test_a_return_before_the_loss_was_noticed(serve, fake, eventually):
    engine = fake("abcdef")
    served = await serve(engine)
    async with connect(served) as old:
        await old.open()
        await old.receive(Opened)
        async with connect(served, resume_token=old.welcome.resume_token) as new:
            await new.open()
            await new.receive(Opened)
            assert await old.closed() == 1008
            await asyncio.sleep(0.05)
            # The old connection's end has not touched what the new one took over.
            kinds = [type(c) for c in engine.commands]
            assert kinds == [Open, Detach, Open]
            await new.data(0, 3)
            assert (await new.receive(Token)).position == 3


async def test_a_return_through_another_process(serve, fake):
    engine = fake("abc")
    async with connect(await serve(engine)) as peer:
        for request_id in (1, 2):
            await peer.open(request_id)
            await peer.receive(Opened)
        token = peer.welcome.resume_token
        engine._dispatch([Moved(f"{token}:1")])
        assert await peer.closed() == 1008
        # What has not moved yet waits; what has is another's.
        assert [c.request_id for c in engine.sent(Detach)] == [f"{token}:2"]
        assert not engine.sent(Cancel)


async def test_the_token_that_was_missed_follows_opened(serve, fake, tokenizer):
    engine = fake("abc")
    async with connect(await serve(engine)) as peer:
        await peer.open()
        await peer.receive(Opened)
        engine.tell(
            f"{peer.welcome.resume_token}:1",
            opened=True,
            wanted=4,
            credit=64,
            start=3,
            tokens=[SampledToken(9)],
        )
        assert (await peer.receive(Opened)).next_position == 4
        token = await peer.receive(Token)
        assert (token.position, token.token_id) == (3, 9)


async def test_bye_forgets_everything(serve, fake, eventually):
    engine = fake()
    async with connect(await serve(engine)) as peer:
        await peer.open()
        await peer.receive(Opened)
        await peer.send(messages.Bye())
        assert await peer.closed() == 1000
    assert len(engine.sent(Cancel)) == 1
    assert not engine.sent(Detach)


async def test_a_client_that_does_not_read_is_cut_off(serve, fake, eventually):
    engine = fake()
    served = await serve(engine, split_limits=SplitLimits(max_waiting=64))
    async with dial(served, max_queue=1) as peer:
        await peer.send(hello())
        token = (await peer.receive(Welcome)).resume_token
        await peer.open()
        await peer.receive(Opened)
        # More than the buffers of both sockets hold: megabytes of news, none of them read.
        for position in range(200_000):
            if engine.sent(Detach):
                break
            engine.tell(f"{token}:1", tokens=[SampledToken(position % 300)], start=position)
            if position % 50 == 0:
                await asyncio.sleep(0)
        await eventually(lambda: len(engine.sent(Detach)) == 1)
        peer.lose()


async def test_a_dead_engine_sends_its_clients_away(serve, fake):
    engine = fake()
    async with connect(await serve(engine)) as peer:
        await peer.open()
        await peer.receive(Opened)
        engine.die("out of smoke")
        # The client may take its requests to another server, or here again.
        await peer.receive(messages.Bye)
        assert await peer.closed() == 1011
        assert "engine" in peer.socket.close_reason


async def test_a_bug_ends_its_connection_with_an_error(serve, fake, monkeypatch):
    served = await serve(fake())
    monkeypatch.setattr(
        "sliceserve.api.split_request.SplitRequest.translate", lambda *_: iter([object()])
    )
    async with connect(served) as peer:
        await peer.open()
        assert (await peer.receive(Error)).code == "internal_error"
        assert await peer.closed() == 1011


async def test_a_drain_lets_live_requests_finish(serve, fake):
    engine = fake("ab")
    served = await serve(engine)
    async with connect(served) as peer:
        await peer.open(1)
        await peer.receive(Opened)
        served.shutdown.requested.set()
        assert (await peer.receive(Drain)).seconds == 5.0
        await peer.open(2)
        error = await peer.receive(Error)
        assert (error.code, error.request_id) == ("draining", 2)
        with pytest.raises(websockets.InvalidStatus) as refused:
            async with connect(served):
                pass
        assert refused.value.response.status_code == 503
        for start, count in ((0, 3), (3, 1), (4, 1)):
            await peer.data(start, count)
            token = await peer.receive(Token)
        assert token.finish_reason == "stop"
        await asyncio.wait_for(served.task, 10)
    assert len(engine.sent(AppendPackets)) == 3
