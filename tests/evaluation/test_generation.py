"""Greedy text is that of transformers, and every token of it passes through the codec."""

import random

import pytest
import torch

from sliceserve.codec.registry import build_codec
from sliceserve.configs import CodecConfig
from sliceserve.evaluation.generation import Channel, generate
from sliceserve.evaluation.prompts import shared

NUM_TOKENS = 12


def prompts(num, common=0, seed=0):
    rng = random.Random(seed)
    beginning = [rng.randrange(3, 300) for _ in range(common)]
    return [
        beginning + [rng.randrange(3, 300) for _ in range(rng.randrange(1, 30))] for _ in range(num)
    ]


def by_transformers(tiny, prompt, change=None, cut=3):
    """Greedy tokens of a model that sees the whole sequence anew for each; ``change`` is done to
    what enters layer ``cut``."""
    model, tokens = tiny[1], list(prompt)
    hook = model.model.layers[cut].register_forward_pre_hook(
        lambda layer, args: (change(args[0]) if change else args[0], *args[1:])
    )
    with torch.inference_mode():
        for _ in range(NUM_TOKENS):
            tokens.append(model(torch.tensor([tokens])).logits[0, -1].argmax().item())
    hook.remove()
    new = tokens[len(prompt) :]
    end = new.index(2) if 2 in new else len(new)
    return " ".join(f"w{i}" for i in new[:end])


def channel(name, cut=3):
    return Channel(build_codec(CodecConfig(name=name), 72), cut, tokens_per_frame=512)


@pytest.mark.parametrize("common", [0, 20])
def test_texts_are_those_of_transformers(tiny, whole, common):
    asked = prompts(5, common)
    texts = generate(whole, asked, (), NUM_TOKENS)
    assert texts == [by_transformers(tiny, prompt) for prompt in asked]


def test_a_lossless_codec_changes_nothing(whole):
    asked = prompts(4, common=5)
    sent = channel("float32")
    texts = generate(whole, asked, (), NUM_TOKENS, sent)
    assert texts == generate(whole, asked, (), NUM_TOKENS)
    assert sent.prompts.num_tokens == sum(map(len, asked))
    # The last token of an answer goes nowhere.
    assert sent.generated.num_tokens == sum(len(text.split()) - 1 for text in texts)
    assert sent.generated.packet_bytes == 4 * 72 * sent.generated.num_tokens
    assert sent.generated.rate(72) > sent.prompts.rate(72)


@pytest.mark.parametrize("common", [0, 20])
def test_every_token_passes_through_the_codec(tiny, whole, common):
    """A coarse enough change shows in the text; it must be the one of a model that is changed at
    the cut for every token."""
    codec = build_codec(CodecConfig(name="int8"), 72)

    def change(hidden):
        decoded = torch.empty_like(hidden[0])
        codec.decode(codec.encode(hidden[0]), decoded)
        return decoded.unsqueeze(0)

    asked = prompts(6, common, seed=1)
    texts = generate(whole, asked, (), NUM_TOKENS, Channel(codec, 3, 512))
    assert texts == [by_transformers(tiny, prompt, change) for prompt in asked]
    assert texts != generate(whole, asked, (), NUM_TOKENS)


class Cumulative:
    """A lossless codec of what is new since the token before."""

    predicts = True
    hidden_size = 72
    wire_id = "cumulative/1"

    def encode(self, hidden, runs=()):
        packets, row = [], 0
        for run in runs:
            assert len(run.token_ids) == run.num_rows
            for _ in range(run.num_rows):
                before = torch.zeros(72) if run.previous is None else run.previous
                packets.append(torch.cat([before, hidden[row]]).numpy().tobytes())
                run.previous = hidden[row].clone()
                row += 1
        return packets

    def decode(self, packets, out, runs=()):
        row = 0
        for run in runs:
            for _ in range(run.num_rows):
                before, now = torch.frombuffer(bytearray(packets[row]), dtype=torch.float32).view(
                    2, 72
                )
                assert torch.equal(
                    before, torch.zeros(72) if run.previous is None else run.previous
                )
                out[row] = run.previous = now.clone()
                row += 1


@pytest.mark.parametrize("common", [0, 7])
def test_runs_go_on_from_token_to_token(whole, common):
    asked = prompts(3, common)
    texts = generate(whole, asked, (), NUM_TOKENS, Channel(Cumulative(), 2, 512))
    assert texts == generate(whole, asked, (), NUM_TOKENS)


def test_text_ends_before_a_stop_string(whole):
    asked = prompts(3)
    whole_texts = generate(whole, asked, (), NUM_TOKENS)
    word = whole_texts[0].split()[4]
    stopped = generate(whole, asked, (word,), NUM_TOKENS)
    assert stopped == [text.split(word)[0] for text in whole_texts]


def test_long_prompts_lose_their_beginning(whole):
    (long,) = prompts(1, common=400)
    limit = whole.spec.max_position_embeddings
    assert generate(whole, [long], (), NUM_TOKENS) == generate(
        whole, [long[-(limit - NUM_TOKENS) :]], (), NUM_TOKENS
    )
    assert len(generate(whole, [long], (), 10 * limit)[0].split()) <= limit // 2


@pytest.mark.parametrize(
    ("sequences", "common", "branches"),
    [
        ([[1, 2, 3], [1, 2, 4, 5]], [1, 2], [[3], [4, 5]]),
        ([[1, 2], [1, 2]], [1], [[2], [2]]),
        ([[1], [1, 2]], [], [[1], [1, 2]]),
        ([[7, 8, 9]], [7, 8], [[9]]),
    ],
)
def test_common_beginnings_come_once(sequences, common, branches):
    prompt = shared(sequences)
    assert (prompt.token_ids, prompt.branches) == (common, branches)
