"""Which model, in which arithmetic, which of its layers, and where its KV cache lives."""

from dataclasses import dataclass
from typing import Literal, get_args

from sliceserve.configs.validation import expect, expect_one_of

DEFAULT_MODEL = "smollm2-135m-instruct"

DtypeName = Literal["auto", "float32", "float16", "bfloat16"]
DeviceName = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The model that both sides of a cut must share.

    ``model`` is an alias, a directory with safetensors and ``config.json``, a ``.gguf`` file or a
    hub name. ``dtype`` "auto" is bfloat16 on a GPU and float32 on a CPU. ``max_model_len`` is in
    tokens; None is the model's own limit.
    """

    model: str = DEFAULT_MODEL
    dtype: DtypeName = "auto"
    device: DeviceName = "auto"
    max_model_len: int | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        expect_one_of("dtype", get_args(DtypeName), self.dtype)
        expect_one_of("device", get_args(DeviceName), self.device)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    """The paged KV cache: one pool of blocks per segment of layers.

    ``num_tokens`` is how many tokens each segment's pool holds; None sizes it from
    ``memory_fraction`` of what the device has free once the weights are loaded. With
    ``prefix_cache`` the blocks of requests that have ended stay until others need them, and a
    request that begins with the same inputs takes them over; ``prefix_packet_bytes`` bounds the
    packets that are kept with them.
    """

    block_size: int = 16
    num_tokens: int | None = None
    memory_fraction: float = 0.3
    prefix_cache: bool = True
    prefix_packet_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        expect(1 <= self.block_size <= 4096, "block_size", "1 to 4096 tokens", self.block_size)
        expect(
            self.num_tokens is None or self.num_tokens >= self.block_size,
            "num_tokens of the KV cache",
            f"at least one block of {self.block_size}",
            self.num_tokens,
        )
        packet_bytes = self.prefix_packet_bytes
        expect(packet_bytes >= 0, "prefix_packet_bytes", "0 or more", packet_bytes)
        fraction = self.memory_fraction
        expect(0 < fraction < 1, "memory_fraction", "above 0 and below 1", fraction)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerConfig:
    """Layers ``[first, stop)`` that an engine runs, and the cuts at which rows may enter.

    ``stop`` None is the model's last layer. ``cuts`` are the entry layers offered to split
    clients; None offers the quarters of the model (8, 15 and 22 of 30 layers). Entry layer 0 is
    offered to thin clients whenever ``first`` is 0.
    """

    first: int = 0
    stop: int | None = None
    cuts: tuple[int, ...] | None = None
