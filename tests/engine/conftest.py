"""A tiny random Llama, and engines over it."""

import pytest
import torch
from predictive import WIRE_ID, PredictiveCodec

from sliceserve.codec.registry import known_codecs
from sliceserve.configs import (
    CacheConfig,
    CodecConfig,
    EngineConfig,
    LayerConfig,
    ModelConfig,
    SchedulerConfig,
)
from sliceserve.engine import build, runner
from sliceserve.engine.build import build_engine

NUM_LAYERS = 6
HIDDEN_SIZE = 72


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A folder with a random Llama of 6 layers in float32, and its transformers model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=100,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=12,
        max_position_embeddings=256,
        initializer_range=0.3,
        eos_token_id=2,
        bos_token_id=1,
    )
    model = LlamaForCausalLM(config).eval()
    path = tmp_path_factory.mktemp("tiny-llama")
    model.save_pretrained(path)
    return path, model


@pytest.fixture(scope="session")
def greedy(tiny_model):
    """Tokens that transformers chooses after a prompt."""
    _, model = tiny_model

    def generate(prompt, num_tokens):
        with torch.inference_mode():
            out = model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=num_tokens,
                min_new_tokens=num_tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        return out[0, len(prompt) :].tolist()

    return generate


@pytest.fixture
def make_engine(tiny_model):
    """Engines over the tiny model; every one must end with no block in use."""
    made = []

    def make(
        first=0,
        stop=None,
        cuts=(1, 3, 5),
        codec="float32",
        num_tokens=1024,
        prefix_cache=True,
        tensor_parallel=1,
        **scheduler,
    ):
        path, _ = tiny_model
        config = EngineConfig(
            model=ModelConfig(model=str(path), dtype="float32", device="cpu"),
            layers=LayerConfig(first=first, stop=stop, cuts=cuts),
            cache=CacheConfig(num_tokens=num_tokens, block_size=8, prefix_cache=prefix_cache),
            scheduler=SchedulerConfig(**scheduler),
            profiles="off",
            tensor_parallel=tensor_parallel,
        )
        made.append(build_engine(config, CodecConfig(name=codec)))
        return made[-1]

    yield make
    for engine in made:
        engine.close()
        engine.check()
        stats = engine.stats()
        assert stats.num_live == 0
        assert stats.held_packet_bytes == 0
        assert all(s.num_free == s.num_blocks for s in stats.segments)


@pytest.fixture
def codec(monkeypatch):
    """All engines made from now on speak this codec, heads as encoder."""
    codec = PredictiveCodec(HIDDEN_SIZE)
    plain = runner.codec_for_wire
    monkeypatch.setattr(build, "known_codecs", lambda: [*known_codecs(), WIRE_ID])
    monkeypatch.setattr(build, "build_codec", lambda *_: codec)
    monkeypatch.setattr(
        runner, "codec_for_wire", lambda name, d: codec if name == WIRE_ID else plain(name, d)
    )
    return codec
