"""What a codec costs the answer: every token's hidden state passes through it at the cut.

Compares the next-token distributions of the model, cut and coded, with those of the same model
uncut, over windows of 512 tokens in float32. KL is in nats, bits are counted over whole packets
(frames not included). The last line is JSON.

    python benchmarks/codec_quality.py --data wikitext2_dev.jsonl --cuts 8,15 --sparsity 0.2,0.5,0.8

DATA has one JSON object a line, with the field ``text``.
"""

import argparse
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sliceserve.codec.base import Codec
from sliceserve.codec.registry import build_codec
from sliceserve.configs import DEFAULT_MODEL, CodecConfig, SlicerConfig
from sliceserve.engine.kv_cache import KVCache
from sliceserve.kernels.paged_attention import AttentionBatch
from sliceserve.models.decoder import Decoder
from sliceserve.models.resolve import resolve_model
from sliceserve.models.spec import ModelSpec
from sliceserve.models.tokenizer import Tokenizer
from sliceserve.scheduler.blocks import Segment

_WINDOW = 512


class Model:
    """The whole decoder over one window at a time."""

    def __init__(self, path: Path) -> None:
        spec, device = ModelSpec.load(path), torch.device("cpu")
        self.hidden_size = spec.hidden_size
        self.num_layers = spec.num_layers
        self._decoder = Decoder.load(path, spec, 0, spec.num_layers, torch.float32, device)
        whole = Segment(0, spec.num_layers, num_blocks=1)
        self._cache = KVCache([whole], _WINDOW, spec, torch.float32, device)

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        return self._decoder.embed(token_ids)

    def run(self, hidden: torch.Tensor, first: int, stop: int) -> torch.Tensor:
        """Layers ``[first, stop)`` over (T, hidden_size), in place."""
        num_rows = hidden.shape[0]
        rows = torch.arange(num_rows)
        batch = AttentionBatch(
            query_starts=torch.tensor([0, num_rows], dtype=torch.int32),
            context_lens=torch.tensor([num_rows], dtype=torch.int32),
            block_tables=torch.zeros(1, 1, dtype=torch.int32),
            max_query_len=num_rows,
            max_context_len=num_rows,
        )
        self._decoder.forward(hidden, first, stop, rows, rows, self._cache, batch)
        return hidden

    def logprobs(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._decoder.logits(hidden).log_softmax(-1)  # (T, vocab)


@dataclass
class Score:
    """Sums over tokens."""

    num_tokens: int = 0
    num_predicted: int = 0
    num_bytes: int = 0
    kl: float = 0.0
    num_same: int = 0
    nll: float = 0.0
    nll_uncut: float = 0.0

    def add(
        self, token_ids: torch.Tensor, coded: torch.Tensor, uncut: torch.Tensor, num_bytes: int
    ) -> None:
        """One window: ids (T,), log-probabilities (T, vocab) twice."""
        following = token_ids[1:, None]
        self.num_tokens += len(token_ids)
        self.num_predicted += len(following)
        self.num_bytes += num_bytes
        self.kl += (uncut.exp() * (uncut - coded)).sum().item()
        self.num_same += int((coded.argmax(-1) == uncut.argmax(-1)).sum())
        self.nll -= coded[:-1].gather(1, following).sum().item()
        self.nll_uncut -= uncut[:-1].gather(1, following).sum().item()

    def summary(self, hidden_size: int) -> dict[str, float]:
        change = torch.tensor((self.nll - self.nll_uncut) / self.num_predicted).exp().item() - 1
        return {
            "bits_per_element": 8 * self.num_bytes / self.num_tokens / hidden_size,
            "kl": self.kl / self.num_tokens,
            "ppl_change": change,
            "top1": self.num_same / self.num_tokens,
        }


@torch.inference_mode()
def measure(model: Model, codec: Codec, cut: int, windows: list[torch.Tensor]) -> dict[str, float]:
    score = Score()
    for token_ids in windows:
        hidden = model.run(model.embed(token_ids), 0, cut)
        packets = codec.encode(hidden)
        decoded = torch.empty_like(hidden)
        codec.decode(packets, decoded)
        uncut = model.logprobs(model.run(hidden, cut, model.num_layers))
        coded = model.logprobs(model.run(decoded, cut, model.num_layers))
        score.add(token_ids, coded, uncut, sum(map(len, packets)))
    return score.summary(model.hidden_size)


def read_windows(data: Path, tokenizer: Tokenizer, num_tokens: int) -> list[torch.Tensor]:
    ids: list[int] = []
    with data.open() as lines:
        for line in lines:
            ids += tokenizer.encode(json.loads(line)["text"])
            if len(ids) >= num_tokens:
                break
    return list(torch.tensor(ids[:num_tokens]).split(_WINDOW))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--tokens", type=int, default=1536)
    parser.add_argument("--cuts", default="8,15")
    parser.add_argument("--sparsity", default="0.2,0.5,0.8")
    options = parser.parse_args()
    path = resolve_model(options.model)
    model = Model(path)
    windows = read_windows(options.data, Tokenizer.load(path), options.tokens)
    results: list[dict[str, Any]] = []
    cuts, sparsities = options.cuts.split(","), options.sparsity.split(",")
    for cut, sparsity in itertools.product(map(int, cuts), map(float, sparsities)):
        config = CodecConfig(slicer=SlicerConfig(sparsity=sparsity))
        codec = build_codec(config, model.hidden_size)
        quality = measure(model, codec, cut, windows)
        results.append({"cut": cut, "sparsity": sparsity, **quality})
        print(results[-1], flush=True)
    print(json.dumps({"model": options.model, "tokens": options.tokens, "results": results}))


if __name__ == "__main__":
    main()
