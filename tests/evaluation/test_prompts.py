"""Rows that share a beginning are computed, coded and counted as whole sequences are."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sliceserve.codec.base import Run
from sliceserve.codec.registry import build_codec
from sliceserve.configs import CodecConfig
from sliceserve.evaluation.coding import Runs, Traffic, decode, encode, traffic_of_prompts
from sliceserve.evaluation.prompts import Prompt, grouped
from sliceserve.transport.frames import DataFrame
from sliceserve.transport.frames import encode as encode_frame
from sliceserve.transport.link import wire_bytes

ITEMS = [
    Prompt([5, 6, 7], ([8, 9], [], [10])),
    Prompt([11]),
    Prompt(list(range(20, 60)), (list(range(60, 80)), [3])),
]


def test_sequences_are_rows_of_whole_sequences():
    assert ITEMS[0].rows == [5, 6, 7, 8, 9, 10]
    assert list(ITEMS[0].sequences()) == [[0, 1, 2, 3, 4], [0, 1, 2], [0, 1, 2, 5]]
    assert list(ITEMS[1].sequences()) == [[0]]


@given(st.lists(st.integers(1, 9), max_size=12), st.integers(1, 20))
def test_groups_are_all_prompts_in_order(lengths, max_rows):
    prompts = [Prompt(list(range(length))) for length in lengths]
    groups = list(grouped(prompts, max_rows))
    assert [prompt for _, group in groups for prompt in group] == prompts
    end = 0
    for rows, group in groups:
        assert rows.start == end
        end = rows.stop
        num_rows = sum(prompt.num_rows for prompt in group)
        assert num_rows == rows.stop - rows.start
        assert num_rows <= max_rows or len(group) == 1


@torch.inference_mode()
@pytest.mark.parametrize("rows_per_pass", [1, 30, 1000])
def test_branches_are_computed_as_whole_sequences_are(tiny, whole, monkeypatch, rows_per_pass):
    monkeypatch.setitem(whole.run.__globals__["_ROWS_PER_PASS"], "cpu", rows_per_pass)
    hidden = whole.embed(ITEMS)
    whole.run(hidden, 0, 4, ITEMS)
    whole.run(hidden, 4, 6, ITEMS)
    logits = whole.decoder.logits(hidden)
    first = 0
    for prompt in ITEMS:
        for sequence in prompt.sequences():
            ids = torch.tensor([[prompt.rows[row] for row in sequence]])
            expected = tiny[1](ids).logits[0]
            rows = [first + row for row in sequence]
            torch.testing.assert_close(logits[rows], expected, rtol=1e-3, atol=1e-3)
        first += prompt.num_rows


class Differences:
    """Codes a row as its difference from the decoded row before it, plus its token."""

    predicts = True
    hidden_size = 4

    def encode(self, hidden, runs=()):
        assert sum(run.num_rows for run in runs) == len(hidden)
        packets, row = [], 0
        for run in runs:
            assert len(run.token_ids) == run.num_rows
            for token_id in run.token_ids:
                before = torch.zeros(4) if run.previous is None else run.previous
                packets.append((hidden[row] - before + token_id).numpy().tobytes())
                run.previous = hidden[row].clone()
                row += 1
        return packets

    def decode(self, packets, out, runs=()):
        row = 0
        for run in runs:
            assert not run.token_ids
            for _ in range(run.num_rows):
                if run.previous is None:
                    run.previous = torch.zeros(4)
                # In place, as a codec may.
                run.previous += torch.frombuffer(bytearray(packets[row]), dtype=torch.float32)
                out[row] = run.previous
                row += 1


@pytest.mark.parametrize("rows_per_call", [1, 1000])
def test_a_branch_is_coded_as_what_follows_its_beginning(monkeypatch, rows_per_call):
    monkeypatch.setattr("sliceserve.evaluation.coding._ROWS_PER_CALL", rows_per_call)
    codec = Differences()
    hidden = torch.arange(4.0 * sum(p.num_rows for p in ITEMS)).view(-1, 4).square()
    sent, received = Runs(ITEMS, with_token_ids=True), Runs(ITEMS, with_token_ids=False)
    packets = encode(codec, hidden, sent)
    decoded = torch.empty_like(hidden)
    decode(codec, packets, decoded, received)
    first = 0
    for prompt in ITEMS:
        ids = torch.tensor(prompt.rows)
        for sequence in prompt.sequences():
            rows = [first + row for row in sequence]
            run = Run(len(rows), ids[sequence].tolist())
            end = sent.ends.pop(0)
            assert [packets[row] for row in rows] == codec.encode(hidden[rows], [run])
            torch.testing.assert_close(end.previous, hidden[rows[-1]])
            # The token is what a decoder has no way to know here.
            added = ids[sequence].float().cumsum(0).unsqueeze(1)
            torch.testing.assert_close(decoded[rows], hidden[rows] + added)
        first += prompt.num_rows
    assert not sent.ends


def test_a_codec_without_memory_needs_no_runs():
    codec = build_codec(CodecConfig(name="bfloat16"), 8)
    hidden = torch.randn(sum(p.num_rows for p in ITEMS), 8)
    decoded = torch.empty_like(hidden)
    packets = encode(codec, hidden, Runs(ITEMS, with_token_ids=True))
    decode(codec, packets, decoded, Runs(ITEMS, with_token_ids=False))
    assert packets == codec.encode(hidden)
    torch.testing.assert_close(decoded, hidden.bfloat16().float())


def test_every_byte_of_the_frames_counts():
    """Two sequences of 3 and 2 packets, at most 2 to a frame."""
    prompts = [Prompt([1], ([2, 3], [4]))]
    packets = [b"\0" * size for size in (10, 120, 11, 12)]
    first, second, third, fourth = packets
    frames = [
        DataFrame(1, 0, [first, second]),
        DataFrame(1, 2, [third]),
        DataFrame(1, 0, [first, fourth]),
    ]
    sent = traffic_of_prompts(packets, prompts, tokens_per_frame=2)
    num_bytes = sum(wire_bytes(len(encode_frame(frame)), from_client=True) for frame in frames)
    assert sent == Traffic(5, 10 + 120 + 11 + 10 + 12, num_bytes)
    assert sent.rate(hidden_size=4) == 8 * num_bytes / (5 * 4)
    assert sent + sent == Traffic(10, 2 * sent.packet_bytes, 2 * num_bytes)
