"""Hidden states for measuring codecs."""

import torch

from sliceserve.configs import (
    CacheConfig,
    ClientConfig,
    CodecConfig,
    EngineConfig,
    LayerConfig,
)
from sliceserve.engine.build import offered_cuts, pick_device
from sliceserve.engine.in_process import InProcessEngine
from sliceserve.engine.messages import Cancel, Open
from sliceserve.models.resolve import resolve_model
from sliceserve.models.spec import ModelSpec
from sliceserve.models.tokenizer import Tokenizer

_TEXT = """\
The ferry left the harbour at a quarter past six, when the fog had just begun to lift. On deck a
few people stood with paper cups in their hands and watched the lighthouse grow small. An old man
explained to his granddaughter how the tides move 400 million tonnes of water in and out of the bay
twice a day, and that the sailors of his youth, who had no engines, knew every current by name.
"How did they remember them all?" she asked. "They sang," he said; "there was a verse for each."
Later that morning the wind turned to the west, the sea rose, and nobody was singing any more.
"""
_BLOCK_SIZE = 16


def cut_of(config: ClientConfig) -> int:
    """``config.split``, or the middle one of the default cuts. Raises ModelError."""
    path = resolve_model(config.model.model, config.model.trust_remote_code)
    cuts = offered_cuts(LayerConfig(), ModelSpec.load(path).num_layers)
    return config.split or cuts[len(cuts) // 2]


async def model_states(config: ClientConfig, num_tokens: int) -> tuple[torch.Tensor, list[int]]:
    """(num_tokens, hidden_size) float32 on the device of ``config``: what enters layer ``cut_of``
    for a short English text, without its first token, whose state is unlike all others; and the
    token ids. Raises ModelError."""
    path = resolve_model(config.model.model, config.model.trust_remote_code)
    spec = ModelSpec.load(path)
    token_ids = Tokenizer.load(path).encode(_TEXT)
    # A short tokenizer's text is said again until it is long enough.
    token_ids = (token_ids * (1 + num_tokens // len(token_ids)))[: num_tokens + 1]
    engine = InProcessEngine(
        EngineConfig(
            model=config.model,
            layers=LayerConfig(stop=cut_of(config)),
            cache=CacheConfig(num_tokens=len(token_ids) + _BLOCK_SIZE, block_size=_BLOCK_SIZE),
        ),
        # A head that encodes nothing away: its packets are the hidden states themselves.
        CodecConfig(name="float32"),
    )
    packets: list[bytes] = []
    try:
        await engine.start()
        request = Open(request_id="text", num_prompt=len(token_ids), prompt=token_ids)
        async for output in engine.open(request):
            packets += output.packets
            if len(packets) == len(token_ids):
                engine.send(Cancel("text"))
                break
    finally:
        await engine.stop()
    states = torch.frombuffer(bytearray(b"".join(packets)), dtype=torch.float32)
    states = states.view(len(token_ids), spec.hidden_size)[1:]
    return states.to(pick_device(config.model)), token_ids[1:]


def heavy_tailed(hidden_size: int, num_tokens: int, device: str, seed: int = 0) -> torch.Tensor:
    """(num_tokens, hidden_size) float32 on ``device``: Student's t with 3 degrees of freedom,
    whose scale differs from channel to channel by a log-normal factor."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(num_tokens, hidden_size, generator=generator)
    chi_squared = torch.randn(3, num_tokens, hidden_size, generator=generator).square().sum(0)
    scale = torch.randn(hidden_size, generator=generator).mul(0.5).exp()
    return (scale * normal / (chi_squared / 3).sqrt()).to(device)
