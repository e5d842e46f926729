"""Ranks that run in threads: together they compute what one decoder does, each from its part."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from families import COMMON, make_model

from sliceserve.models.decoder import Decoder
from sliceserve.models.errors import ModelError
from sliceserve.models.shard import Shard, expect_divisible
from sliceserve.models.spec import ModelSpec
from sliceserve.models.weights import WeightReader

CPU = torch.device("cpu")


class ThreadShard(Shard):
    """A rank whose peers share ``parts``, a list with a place for each, and a barrier."""

    def __init__(self, rank, parts, barrier):
        self.rank, self.size = rank, len(parts)
        self._parts, self._barrier = parts, barrier

    def all_reduce(self, x):
        return x.copy_(sum(self._exchange(x)))

    def gather(self, x, width):
        return torch.cat(self._exchange(x), dim=1)

    def _exchange(self, x):
        self._parts[self.rank] = x.clone()
        self._barrier.wait(timeout=30)
        parts = list(self._parts)
        self._barrier.wait(timeout=30)
        return parts


def shards(size):
    parts, barrier = [None] * size, threading.Barrier(size)
    return [ThreadShard(rank, parts, barrier) for rank in range(size)]


def load(path, shard):
    spec = ModelSpec.load(path)
    return Decoder.load(path, spec, 0, spec.num_layers, torch.float32, CPU, shard)


@pytest.mark.parametrize(
    ("family", "size"),
    [
        ("llama", 2),
        # Two ranks hold each KV head.
        ("llama", 4),
        ("llama-tied", 2),
        # Biases of row-parallel products count once.
        ("llama-bias", 2),
        ("mistral", 2),
        ("qwen2", 4),
        ("qwen3", 4),
    ],
)
def test_ranks_together_compute_the_model(family, size, tmp_path, runner):
    model = make_model(family)
    model.save_pretrained(tmp_path)
    ids = torch.randint(0, COMMON["vocab_size"], (13,))
    with torch.inference_mode():
        expected = model(ids.unsqueeze(0)).logits[0]
    ranks = shards(size)
    decoders = [load(tmp_path, shard) for shard in ranks]
    entering = decoders[0].embed(ids)

    @torch.inference_mode()
    def compute(shard):
        decoder = decoders[shard.rank]
        run = runner([decoder], len(ids), shard=shard)
        logits = []
        for rows in entering.clone().split([9, 1, 3]):
            run.run_layers(rows, [(decoder, 0, decoder.stop)])
            logits.append(decoder.logits(rows))
        return torch.cat(logits)

    with ThreadPoolExecutor(size) as pool:
        got, *_ = pool.map(compute, ranks)
    assert (got - expected).abs().max() < 1e-4 * expected.abs().max()


def test_a_rank_reads_no_more_than_its_part(tmp_path, monkeypatch):
    make_model("llama").save_pretrained(tmp_path)
    shapes = {}
    tensor = WeightReader.tensor

    def noting(reader, name, *shape, **part):
        read = tensor(reader, name, *shape, **part)
        shapes[name.removeprefix("model.layers.2.")] = tuple(read.shape)
        return read

    monkeypatch.setattr(WeightReader, "tensor", noting)
    load(tmp_path, shards(4)[3])
    # 4 heads and 2 KV heads of 8; 24 features, 20 columns in the MLP, 61 tokens.
    assert shapes.items() >= {
        ("self_attn.q_proj.weight", (8, 24)),
        ("self_attn.k_proj.weight", (8, 24)),
        ("self_attn.v_proj.weight", (8, 24)),
        ("self_attn.o_proj.weight", (24, 8)),
        ("mlp.gate_proj.weight", (5, 24)),
        ("mlp.up_proj.weight", (5, 24)),
        ("mlp.down_proj.weight", (24, 5)),
        ("lm_head.weight", (13, 24)),
    }
    assert "model.embed_tokens.weight" not in shapes


@pytest.mark.parametrize(("count", "size"), [(61, 4), (5, 4), (9, 3), (2, 1)])
def test_parts_cover_the_whole_once(tmp_path, count, size):
    make_model("llama").save_pretrained(tmp_path)
    spec = replace(ModelSpec.load(tmp_path), vocab_size=count, intermediate_size=count)
    for part in (Shard.vocabulary, Shard.columns):
        covered = [i for s in shards(size) for i in range(count)[part(s, spec)]]
        assert covered == list(range(count))


@pytest.mark.parametrize(
    ("family", "size", "words"),
    [
        ("llama", 3, "4 attention heads and 2 KV heads, which take 1, 2, 4"),
        ("llama", 8, "tensor_parallel 8 does not divide this model"),
    ],
)
def test_a_number_of_ranks_that_does_not_fit_is_refused(tmp_path, family, size, words):
    make_model(family).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=words):
        expect_divisible(ModelSpec.load(tmp_path), size)
