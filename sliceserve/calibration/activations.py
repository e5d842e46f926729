"""Runs a model over text, and keeps what passes its cuts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

# Called with how many windows are done.
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Activations:
    """At one cut, float32 on the CPU: the hidden states of W windows (W, WINDOW, d), and, for the
    first V of them, gradients (V, WINDOW, d) of the negative log-likelihood of tokens drawn from
    the model's own predictions, summed over the window, by its hidden states. Their second moments
    are the Fisher information: by how much an error at the cut changes the answer."""

    hidden: torch.Tensor
    gradients: torch.Tensor


class _Reached(Exception):
    """The deepest cut has been passed: the rest of the model is not needed."""


def collect(
    path: Path,
    windows: torch.Tensor,
    cuts: Sequence[int],
    num_gradients: int,
    progress: Progress,
) -> dict[int, Activations]:
    """Hidden states of ``windows`` (W, WINDOW) int64 at each cut, and the gradients of the first
    ``num_gradients`` windows."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = _load(path, dtype).to(device).eval()
    model.requires_grad_(False)
    generator = torch.Generator(device).manual_seed(0)
    passing = _Passing(model, cuts)
    hidden: dict[int, list[torch.Tensor]] = {cut: [] for cut in cuts}
    gradients: dict[int, list[torch.Tensor]] = {cut: [] for cut in cuts}
    for i, window in enumerate(windows):
        with_gradient = i < num_gradients
        states = passing.run(window[None].to(device), generator if with_gradient else None)
        for cut in cuts:
            hidden[cut].append(states[cut].detach()[0].float().cpu())
            if with_gradient:
                gradient = states[cut].grad
                assert gradient is not None
                gradients[cut].append(gradient[0].float().cpu())
        progress(i + 1)
    return {cut: Activations(torch.stack(hidden[cut]), torch.stack(gradients[cut])) for cut in cuts}


def _load(path: Path, dtype: torch.dtype) -> Any:
    """Without transformers' own progress bar: the caller shows one."""
    had_bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        return AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    finally:
        if had_bar:
            logging.enable_progress_bar()


class _Passing:
    """Catches the residual stream where it enters the layers ``cuts``."""

    def __init__(self, model: Any, cuts: Sequence[int]) -> None:
        self._model = model
        self._first, self._last = min(cuts), max(cuts)
        self._states: dict[int, torch.Tensor] = {}
        self._keeps_gradients = False
        for cut in cuts:
            model.model.layers[cut].register_forward_pre_hook(self._catch(cut))

    def run(
        self, token_ids: torch.Tensor, generator: torch.Generator | None
    ) -> dict[int, torch.Tensor]:
        """(1, T) → the states at each cut, (1, T, d); with a generator to draw tokens, their
        ``grad`` is set."""
        self._states = {}
        self._keeps_gradients = generator is not None
        if generator is None:
            with torch.no_grad():
                try:
                    self._model(token_ids)
                except _Reached:
                    return self._states
        with torch.enable_grad():
            last = self._model.model(token_ids).last_hidden_state  # (1, T, d)
        # The last step by hand, without a graph over the vocabulary: the loss has the gradient
        # p - [token is drawn] by the logits.
        with torch.no_grad():
            head = self._model.get_output_embeddings().weight
            slope = (last[0] @ head.T).float().softmax(-1)  # (T, vocab)
            # By inversion: multinomial draws a number for every entry of the vocabulary.
            cumulative = slope.cumsum(-1)
            uniform = torch.rand(len(slope), 1, device=slope.device, generator=generator)
            drawn = torch.searchsorted(cumulative, uniform * cumulative[:, -1:])
            slope.scatter_add_(1, drawn, torch.full_like(drawn, -1, dtype=slope.dtype))
            slope = slope.to(head.dtype) @ head
        last.backward(slope[None])
        return self._states

    def _catch(self, cut: int) -> Callable[[Any, tuple[Any, ...]], tuple[Any, ...]]:
        def hook(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            state = inputs[0]
            if not self._keeps_gradients:
                self._states[cut] = state
                if cut == self._last:
                    raise _Reached
                return inputs
            if cut == self._first:
                state = state.detach().requires_grad_()
            state.retain_grad()
            self._states[cut] = state
            return (state, *inputs[1:])

        return hook
