"""Which model, in which arithmetic, which of its layers, and where its KV cache lives."""

from dataclasses import dataclass
from typing import Literal, get_args

from sliceserve.configs.settings import setting
from sliceserve.configs.validation import expect, expect_one_of

DEFAULT_MODEL = "smollm2-135m-instruct"

DtypeName = Literal["auto", "float32", "float16", "bfloat16"]
DeviceName = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The model that both sides of a cut must share, and the arithmetic of one of them."""

    model: str = setting(
        DEFAULT_MODEL,
        "A hub name, a folder with config.json and safetensors, a .gguf file, or the default "
        "model.",
        "Model",
    )
    dtype: DtypeName = setting(
        "auto",
        "Of weights and hidden states; auto is bfloat16 on a GPU, float32 on a CPU.",
        "Model",
    )
    device: DeviceName = setting("auto", "Where the layers run.", "Model")
    max_model_len: int | None = setting(
        None, "Most tokens of prompt and answer together.", "Model", shown="the model's limit"
    )
    trust_remote_code: bool = setting(False, "Run the code that comes with a model.", "Model")

    def __post_init__(self) -> None:
        expect_one_of("dtype", get_args(DtypeName), self.dtype)
        expect_one_of("device", get_args(DeviceName), self.device)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    """The paged KV cache: one pool of blocks per segment of layers.

    ``num_tokens`` is how many tokens each segment's pool holds. With ``prefix_cache`` the blocks
    of requests that have ended stay until others need them, and a request that begins with the
    same inputs takes them over.
    """

    block_size: int = setting(16, "Tokens in one block of the KV cache.", "Memory")
    num_tokens: int | None = setting(
        None,
        "Tokens that the KV cache holds, in each segment of layers.",
        "Memory",
        flag="kv-cache-tokens",
        shown="by --kv-cache-fraction",
    )
    memory_fraction: float = setting(
        0.3,
        "The KV cache's share of the memory that is free once the weights are loaded.",
        "Memory",
        flag="kv-cache-fraction",
    )
    prefix_cache: bool = setting(
        True, "Keep the KV cache of what has been computed for requests that begin alike.", "Memory"
    )
    prefix_packet_bytes: int = setting(
        1 << 30, "Most bytes of packets that are kept with it.", "Memory", shown="1 GiB"
    )

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
    clients. Entry layer 0 is offered to thin clients whenever ``first`` is 0.
    """

    first: int = setting(
        0,
        "Load the layers from this one on; above 0, split clients only.",
        "Split",
        flag="first-layer",
    )
    stop: int | None = setting(
        None, "A server has all layers from the first on: it samples.", flag=None
    )
    cuts: tuple[int, ...] | None = setting(
        None,
        'Layers at which split clients may enter, as "8,15,22".',
        "Split",
        shown="the quarters of the model",
    )
