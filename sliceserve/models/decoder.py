"""The decoder of Llama and its relatives, for any range of layers, over a paged KV cache."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch

from sliceserve.kernels.linear import PackedLinear
from sliceserve.kernels.paged_attention import AttentionBatch, paged_attention
from sliceserve.kernels.rms_norm import add_rms_norm, rms_norm
from sliceserve.kernels.rotary import apply_rotary
from sliceserve.kernels.silu_mul import silu_mul
from sliceserve.kernels.store_kv import store_kv
from sliceserve.models.rotary import cos_sin_table
from sliceserve.models.shard import Shard, times
from sliceserve.models.spec import ModelSpec
from sliceserve.models.weights import ALL, WeightReader

_EMBEDDING = "model.embed_tokens.weight"


class KVCaches(Protocol):
    """Keys and values of each layer, by its number in the model: two tensors
    (num_blocks, block_size, num_kv_heads, head_dim) of the decoder's dtype, with the KV heads of
    its shard."""

    def __getitem__(self, layer: int, /) -> tuple[torch.Tensor, torch.Tensor]: ...


class Decoder:
    """Layers ``[first, stop)`` of a model; ``embed`` where ``first`` is 0, ``logits`` where
    ``stop`` is the model's last layer. Call it under ``torch.inference_mode``.

    It holds the part ``shard`` of every layer, and ranks call ``forward`` and ``logits`` together,
    with the same arguments but their own caches. Rank 0 alone can ``embed``.
    """

    def __init__(
        self, spec: ModelSpec, first: int, stop: int, weights: WeightReader, shard: Shard
    ) -> None:
        if not 0 <= first < stop <= spec.num_layers:
            raise ValueError(
                f"layers [{first}, {stop}) are not a range of a model of {spec.num_layers} layers"
            )
        self.spec = spec
        self.first = first
        self.stop = stop
        self._shard = shard
        self._layers = [_Layer(spec, i, weights, shard) for i in range(first, stop)]
        if first == 0 and shard.rank == 0:
            self._embedding = weights.tensor(_EMBEDDING, spec.vocab_size, spec.hidden_size)
        if stop == spec.num_layers:
            self._norm = weights.tensor("model.norm.weight", spec.hidden_size)
            self._lm_head = self._load_lm_head(weights)
        self._cos_sin = cos_sin_table(spec, weights.device)

    @classmethod
    def load(
        cls,
        path: Path,
        spec: ModelSpec,
        first: int,
        stop: int,
        dtype: torch.dtype,
        device: torch.device,
        shard: Shard | None = None,
    ) -> Decoder:
        """Read the weights of layers ``[first, stop)``, and no others, from a model's folder; of
        them the part ``shard``, if there is one.

        Raises ModelError naming the tensor and file that is missing or does not fit ``spec``.
        """
        with WeightReader(path, dtype, device) as weights:
            return cls(spec, first, stop, weights, shard or Shard())

    def _load_lm_head(self, weights: WeightReader) -> PackedLinear:
        spec, rows = self.spec, self._shard.vocabulary(self.spec)
        if self._shard.size == 1 and self.first == 0 and spec.tie_word_embeddings:
            return PackedLinear(self._embedding)
        name = _EMBEDDING if spec.tie_word_embeddings else "lm_head.weight"
        return PackedLinear(weights.tensor(name, spec.vocab_size, spec.hidden_size, rows=rows))

    def embed(self, token_ids: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """(T,) int64 → (T, hidden_size), in ``out`` if given: the residual stream that enters
        layer 0."""
        return torch.index_select(self._embedding, 0, token_ids, out=out)

    def forward(
        self,
        hidden: torch.Tensor,
        first: int,
        stop: int,
        positions: torch.Tensor,
        slots: torch.Tensor,
        caches: KVCaches,
        batch: AttentionBatch,
    ) -> None:
        """Run layers ``[first, stop)``, a range within this decoder's, on ``hidden`` in place.

        hidden: (T, hidden_size), the residual stream; may be the first rows of a larger tensor.
        positions: (T,) int64, each token's position in its sequence. slots: (T,) int64, where its
        key and value go in the caches of these layers (``store_kv``). ``batch`` says which rows
        and cached keys belong to one sequence; its block tables hold for all of these layers.
        """
        layers = self._layers[first - self.first : stop - self.first]
        delta = None
        for i, layer in enumerate(layers, start=first):
            x = layer.enter(hidden, delta)  # (T, hidden_size)
            x = layer.attend(x, self._cos_sin, positions, slots, caches[i], batch)
            delta = layer.feed_forward(x, hidden)
        if delta is not None:
            hidden += delta

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(n, hidden_size), the stream that left the last layer → (n, vocab_size) float32, on rank
        0 alone."""
        x = rms_norm(hidden, self._norm, self.spec.rms_norm_eps)
        return self._shard.gather(self._lm_head(x), self.spec.vocab_size).float()


class _Layer:
    """Attention and feed-forward of one layer. ``x`` is normalised, ``hidden`` the residual stream;
    what a block computes is added to the stream by the norm that follows it."""

    def __init__(self, spec: ModelSpec, index: int, weights: WeightReader, shard: Shard) -> None:
        d, head_dim, f = spec.hidden_size, spec.head_dim, spec.intermediate_size
        q_size, kv_size = spec.num_heads * head_dim, spec.num_kv_heads * head_dim
        q_rows = times(shard.heads(spec), head_dim)
        kv_rows = times(shard.kv_heads(spec), head_dim)
        columns = shard.columns(spec)
        # What is added once must not be in every term of a sum.
        is_first = shard.rank == 0
        prefix = f"model.layers.{index}"
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        self._spec = shard.local(spec)
        self._shard = shard
        self._window = spec.windows[index]
        self._input_norm = weights.tensor(f"{prefix}.input_layernorm.weight", d)
        self._post_norm = weights.tensor(f"{prefix}.post_attention_layernorm.weight", d)
        self._qkv = weights.linear(
            [
                (f"{attention}.q_proj", q_size, q_rows),
                (f"{attention}.k_proj", kv_size, kv_rows),
                (f"{attention}.v_proj", kv_size, kv_rows),
            ],
            d,
            bias=spec.qkv_bias,
        )
        self._output = weights.linear(
            [(f"{attention}.o_proj", d, ALL)], q_size, q_rows, bias=spec.output_bias and is_first
        )
        self._gate_up = weights.linear(
            [(f"{mlp}.gate_proj", f, columns), (f"{mlp}.up_proj", f, columns)],
            d,
            bias=spec.mlp_bias,
        )
        self._down = weights.linear(
            [(f"{mlp}.down_proj", d, ALL)], f, columns, bias=spec.mlp_bias and is_first
        )
        if spec.qk_norm:
            self._q_norm = weights.tensor(f"{attention}.q_norm.weight", head_dim)
            self._k_norm = weights.tensor(f"{attention}.k_norm.weight", head_dim)

    def enter(self, hidden: torch.Tensor, delta: torch.Tensor | None) -> torch.Tensor:
        eps = self._spec.rms_norm_eps
        if delta is None:
            return rms_norm(hidden, self._input_norm, eps)
        return add_rms_norm(delta, hidden, self._input_norm, eps)

    def attend(
        self,
        x: torch.Tensor,
        cos_sin: torch.Tensor,
        positions: torch.Tensor,
        slots: torch.Tensor,
        cache: tuple[torch.Tensor, torch.Tensor],
        batch: AttentionBatch,
    ) -> torch.Tensor:
        spec = self._spec
        heads = self._qkv(x).unflatten(-1, (-1, spec.head_dim))  # (T, H + 2·Hkv, D)
        q, k, v = heads.split((spec.num_heads, spec.num_kv_heads, spec.num_kv_heads), dim=1)
        if spec.qk_norm:
            q = rms_norm(q, self._q_norm, spec.rms_norm_eps)
            k = rms_norm(k, self._k_norm, spec.rms_norm_eps)
        apply_rotary(q, k, cos_sin, positions)
        store_kv(k, v, *cache, slots)
        mixed = paged_attention(q, *cache, batch, spec.head_dim**-0.5, self._window)  # (T, H, D)
        return self._shard.all_reduce(self._output(mixed.flatten(1)))

    def feed_forward(self, delta: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        x = add_rms_norm(delta, hidden, self._post_norm, self._spec.rms_norm_eps)
        return self._shard.all_reduce(self._down(silu_mul(self._gate_up(x))))
