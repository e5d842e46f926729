"""The split endpoint over a real engine: tokens of the whole model, whatever the line does."""

import pytest
from split_peer import connect

from sliceserve.configs import SamplingParams
from sliceserve.engine import messages as engine_messages
from sliceserve.engine.generation import ThinGenerator
from sliceserve.transport.frames import DataFrame
from sliceserve.transport.messages import Credit, Error, Opened, Token, Want

CUT = 3
PROMPT = list(b"Slices of a model")
SAMPLING = SamplingParams(max_tokens=12, temperature=0.9, seed=11, ignore_eos=True)


@pytest.fixture
async def whole(make_engine):
    return await make_engine(max_tokens_per_step=8, credit_window=8)


@pytest.fixture
async def expected(whole):
    generated = ThinGenerator(whole).generate(PROMPT, SAMPLING)
    return [step.token.token_id async for step in generated]


class Head:
    """Packets of the layers below the cut, for tokens as they come."""

    def __init__(self, engine):
        self.engine = engine
        self.packets = []
        self.outputs = engine.open(
            engine_messages.Open(request_id="head", num_prompt=len(PROMPT), prompt=PROMPT)
        )

    async def packets_until(self, position):
        while len(self.packets) < position:
            self.packets += (await anext(self.outputs)).packets
        return self.packets[:position]

    def push(self, token_id):
        position = len(self.packets)
        self.engine.send(engine_messages.AppendTokens("head", position, [token_id]))


async def attach(peer, tokens):
    """Open the request, with the tokens that are known; the answer."""
    await peer.open(
        num_prompt=len(PROMPT),
        outputs=tokens,
        max_tokens=SAMPLING.max_tokens,
        temperature=SAMPLING.temperature,
        seed=SAMPLING.seed,
        ignore_eos=True,
    )
    return await peer.receive(Opened)


async def send_known(peer, head, tokens, opened):
    """All that the server lacks, within its credit, until it says the next token."""
    known = await head.packets_until(len(PROMPT) + len(tokens))
    sent, credit = opened.next_position, opened.credit
    while True:
        stop = min(len(known), credit)
        if sent < stop:
            # A position too many at the front: repeats are ignored.
            start = max(0, sent - 1)
            await peer.send(DataFrame(1, start, known[start:stop]))
            sent = stop
        message = await peer.receive()
        if isinstance(message, Token):
            return message
        assert isinstance(message, Credit)
        credit = message.credit


async def test_a_split_request_survives_lost_lines(serve, make_engine, whole, expected):
    served = await serve(whole)
    head = Head(await make_engine(stop=CUT))
    token, tokens = None, []
    while len(tokens) < SAMPLING.max_tokens:
        async with connect(served, fingerprint=whole.info.fingerprint, resume_token=token) as peer:
            token = peer.welcome.resume_token
            opened = await attach(peer, tokens)
            # What was sent before the line was lost is still there.
            assert opened.next_position == (len(PROMPT) + len(tokens) - 1 if tokens else 0)
            for _ in range(4):
                sampled = await send_known(peer, head, tokens, opened)
                assert sampled.position == len(PROMPT) + len(tokens)
                tokens.append(sampled.token_id)
                head.push(sampled.token_id)
                opened = Opened(
                    request_id=1,
                    next_position=sampled.position,
                    credit=sampled.position + 1,
                )
            if len(tokens) < SAMPLING.max_tokens:
                peer.lose()
    assert tokens == expected
    assert sampled.finish_reason == "length"
    assert sampled.server_us > 0
    assert (await whole.stats()).num_live == 0


async def test_packets_need_not_wait_for_the_answer_to_open(serve, make_engine, whole, expected):
    served = await serve(whole)
    head = Head(await make_engine(stop=CUT))
    packets = await head.packets_until(len(PROMPT))
    async with connect(served, fingerprint=whole.info.fingerprint) as peer:
        await peer.open(num_prompt=4, max_tokens=1)
        await peer.send(DataFrame(1, 0, packets[:4]))
        assert (await peer.receive(Opened)).next_position == 0
        assert (await peer.receive(Token)).position == 4
        # More than there is room for: nothing of it is taken, and all wanted again.
        await peer.open(
            request_id=2,
            num_prompt=len(PROMPT),
            max_tokens=SAMPLING.max_tokens,
            temperature=SAMPLING.temperature,
            seed=SAMPLING.seed,
        )
        await peer.send(DataFrame(2, 0, packets))
        opened = await peer.receive(Opened)
        assert opened.credit < len(PROMPT)
        assert await peer.receive(Want) == Want(request_id=2, next_position=0)


async def test_hostile_packets_end_their_request_alone(serve, make_engine, whole, expected):
    served = await serve(whole)
    head = Head(await make_engine(stop=CUT))
    packets = await head.packets_until(len(PROMPT))
    async with connect(served, fingerprint=whole.info.fingerprint) as peer:

        async def outcome(frame, outputs=()):
            opened = await attach(peer, outputs)
            assert opened.next_position == 0
            await peer.send(frame)
            return await peer.receive()

        for frame, code in [
            (DataFrame(1, 0, [b"", *packets[1:4]]), "invalid_packet"),
            (DataFrame(1, 0, [packets[0], packets[1][:-1]]), "invalid_packet"),
            (DataFrame(1, 2**31, packets[:1]), "protocol_error"),
        ]:
            error = await outcome(frame)
            assert isinstance(error, Error), error
            assert (error.code, error.request_id) == (code, 1)
        assert isinstance(await outcome(DataFrame(1, 4, packets[:2])), Want)
        sampled = await send_known(peer, head, [], Opened(request_id=1, next_position=0, credit=8))
        assert sampled.token_id == expected[0]


@pytest.mark.parametrize(
    ("opening", "code"),
    [
        ({"num_prompt": 0}, "invalid_request"),
        ({"num_prompt": 2**32 - 1}, "context_length_exceeded"),
        ({"outputs": [2**32 - 1]}, "invalid_request"),
        ({"outputs": [5] * 50}, "invalid_request"),
    ],
)
async def test_openings_that_cannot_be_served(serve, whole, opening, code):
    served = await serve(whole)
    async with connect(served, fingerprint=whole.info.fingerprint) as peer:
        await peer.open(**opening)
        error = await peer.receive(Error)
        assert (error.code, error.request_id) == (code, 1)
        await peer.open()
        await peer.receive(Opened)
