"""The whole decoder over many sequences, a range of layers at a time."""

from collections.abc import Callable, Sequence

import torch

from sliceserve.calibration import profiles_of
from sliceserve.codec.base import Codec
from sliceserve.codec.profile import Predictor, Profile
from sliceserve.codec.registry import build_codec
from sliceserve.configs import CodecConfig, LayerConfig, ModelConfig
from sliceserve.engine.build import offered_cuts, pick_device, pick_dtype
from sliceserve.evaluation.errors import EvaluationError
from sliceserve.evaluation.prompts import Layout, Prompt, grouped
from sliceserve.models.decoder import Decoder, KVCaches
from sliceserve.models.embeddings import read_embeddings
from sliceserve.models.resolve import resolve_model
from sliceserve.models.spec import ModelSpec
from sliceserve.models.tokenizer import Tokenizer

# Enough rows for matrix products at full speed.
_ROWS_PER_PASS = {"cpu": 1024, "cuda": 8192}


class WholeModel:
    """Layers, embedding and tokenizer of a model. Raises ModelError for one that cannot be run.

    Rows of hidden states are those of the prompts, one after the other, of the model's dtype on
    its device.
    """

    def __init__(self, config: ModelConfig) -> None:
        self.name = config.model
        self.path = resolve_model(config.model, config.trust_remote_code)
        self.spec = ModelSpec.load(self.path)
        self.device, self.dtype = pick_device(config), pick_dtype(config)
        self.tokenizer = Tokenizer.load(self.path, config.trust_remote_code)
        self._profiles: dict[tuple[int, Predictor], Profile] = {}
        self._embeddings = read_embeddings(self.path)
        self.decoder = Decoder.load(
            self.path, self.spec, 0, self.spec.num_layers, self.dtype, self.device
        )

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def codec(self, config: CodecConfig, cut: int) -> Codec:
        """The codec that ``config`` names, for hidden states that enter layer ``cut``.

        The calibrated one takes the profile of this machine's cache, and makes it where there is
        none, which takes minutes. Raises CalibrationError.
        """
        if config.name != "calibrated":
            return build_codec(config, self.spec.hidden_size)
        predictor: Predictor = "none" if config.calibrated.hide_tokens else "state"
        if (cut, predictor) not in self._profiles:
            # Calibration follows gradients, wherever the codec is asked for.
            with torch.inference_mode(False), torch.enable_grad():
                self._profiles |= profiles_of(self.path, [cut], [predictor])
        profile = self._profiles[cut, predictor]
        return build_codec(config, self.spec.hidden_size, profile, self._embeddings)

    def check_cut(self, cut: int | None) -> int:
        """``cut``, or the middle one of those that a server offers where it is None. Raises
        EvaluationError for one that leaves no layer on either side."""
        if cut is None:
            cuts = offered_cuts(LayerConfig(), self.spec.num_layers)
            return cuts[len(cuts) // 2]
        if not 1 <= cut < self.spec.num_layers:
            raise EvaluationError(
                f"{self.name} cannot be split at layer {cut}: it has {self.spec.num_layers} "
                f"layers, so a split is 1 to {self.spec.num_layers - 1}"
            )
        return cut

    def embed(self, prompts: Sequence[Prompt]) -> torch.Tensor:
        """(T, hidden_size): what enters layer 0."""
        ids = torch.tensor([i for prompt in prompts for i in prompt.rows], device=self.device)
        return self.decoder.embed(ids)

    def run(
        self,
        hidden: torch.Tensor,
        first: int,
        stop: int,
        prompts: Sequence[Prompt],
        advance: Callable[[], None] = lambda: None,
    ) -> None:
        """Layers ``[first, stop)`` on (T, hidden_size), in place. ``advance`` is called for each
        prompt."""
        for rows, group in grouped(prompts, _ROWS_PER_PASS[self.device.type]):
            cache = _OneLayer(rows.stop - rows.start, self.spec, self.dtype, self.device)
            self.forward(hidden[rows], first, stop, Layout.of_prompts(group, self.device), cache)
            for _ in group:
                advance()

    def forward(
        self, hidden: torch.Tensor, first: int, stop: int, layout: Layout, cache: KVCaches
    ) -> None:
        """Layers ``[first, stop)`` on the rows of ``layout``, in place, in one pass."""
        self.decoder.forward(
            hidden, first, stop, layout.positions, layout.slots, cache, layout.attention
        )


class _OneLayer:
    """Keys and values of one layer at a time: whole sequences need none of the layers before."""

    def __init__(
        self, num_tokens: int, spec: ModelSpec, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (num_tokens, 1, spec.num_kv_heads, spec.head_dim)
        keys = torch.empty(shape, dtype=dtype, device=device)
        self._pair = keys, torch.empty_like(keys)

    def __getitem__(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self._pair
