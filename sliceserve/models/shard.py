"""The part of a model that one of several ranks computes.

Every layer is divided as Megatron-LM divides it (Shoeybi et al., 2019, arXiv 1909.08053): each rank
has some of the attention heads and some of the MLP's columns, and sums of all ranks follow the
attention and the MLP, two per layer. Between them every rank holds the whole residual stream.
"""

from dataclasses import replace

import torch

from sliceserve.models.errors import ModelError
from sliceserve.models.spec import ModelSpec


class Shard:
    """Part ``rank`` of ``size`` equal ones. This class is the whole; where there are more ranks, a
    subclass joins them."""

    rank = 0
    size = 1

    def device(self, kind: str) -> torch.device:
        """Where this rank computes, ``kind`` being "cpu" or "cuda"."""
        return torch.device(kind)

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of all ranks' ``x``, in its place."""
        return x

    def gather(self, x: torch.Tensor, width: int) -> torch.Tensor:
        """Each rank's columns of a tensor (n, width), divided as ``vocabulary`` is → the tensor, on
        rank 0; elsewhere what comes back means nothing."""
        return x

    def minimum(self, value: int) -> int:
        """The smallest of all ranks' values."""
        return value

    def local(self, spec: ModelSpec) -> ModelSpec:
        """``spec`` with the heads and MLP columns of this rank alone."""
        return replace(
            spec,
            num_heads=_length(self.heads(spec)),
            num_kv_heads=_length(self.kv_heads(spec)),
            intermediate_size=_length(self.columns(spec)),
        )

    def heads(self, spec: ModelSpec) -> slice:
        return self._part(spec.num_heads)

    def kv_heads(self, spec: ModelSpec) -> slice:
        """Those that this rank's heads share; with more ranks than KV heads, several ranks hold
        the same."""
        if self.size <= spec.num_kv_heads:
            return self._part(spec.num_kv_heads)
        head = self.rank * spec.num_kv_heads // self.size
        return slice(head, head + 1)

    def columns(self, spec: ModelSpec) -> slice:
        """Of the MLP; they may divide unevenly."""
        return self._part(spec.intermediate_size)

    def vocabulary(self, spec: ModelSpec) -> slice:
        """Token ids whose logits this rank computes, as many on every rank but the last ones."""
        count, total = self.largest(spec.vocab_size), spec.vocab_size
        return slice(min(self.rank * count, total), min((self.rank + 1) * count, total))

    def largest(self, count: int) -> int:
        """How many of ``count`` a rank has at most."""
        return -(-count // self.size)

    def _part(self, count: int) -> slice:
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)


def times(part: slice, width: int) -> slice:
    """The rows of heads ``part``, each ``width`` rows."""
    return slice(part.start * width, part.stop * width)


def expect_divisible(spec: ModelSpec, size: int) -> None:
    """Raise ModelError unless ``size`` ranks get equally many heads each, and whole KV heads."""
    fitting = [n for n in range(1, spec.num_heads + 1) if _divides(spec, n)]
    if size not in fitting:
        raise ModelError(
            f"tensor_parallel {size} does not divide this model: it has {spec.num_heads} attention "
            f"heads and {spec.num_kv_heads} KV heads, which take {', '.join(map(str, fitting))}"
        )


def _divides(spec: ModelSpec, size: int) -> bool:
    fewer, more = sorted((spec.num_kv_heads, size))
    return spec.num_heads % size == 0 and more % fewer == 0


def _length(part: slice) -> int:
    return part.stop - part.start
