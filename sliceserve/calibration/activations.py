"""Runs a model over text, and keeps what passes its cuts."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

# Sets of tokens that are drawn for each window. The layers below the cut, and what the vocabulary
# costs, are shared by all of them.
DRAWS = 4

# Called with how many windows are done.
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Activations:
    """At one cut, float32 on the CPU: the hidden states of W windows (W, WINDOW, d), and, for the
    first V of them, gradients (V, WINDOW, DRAWS, d) of the negative log-likelihood of tokens drawn
    from the model's own predictions, summed over the window, by its hidden states. Their second
    moments are the Fisher information: by how much an error at the cut changes the answer."""

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
        token_ids = window[None].to(device)
        if i < num_gradients:
            drawn = passing.gradients(token_ids, generator)
            for cut in cuts:
                gradients[cut].append(drawn[cut].float().cpu())
        else:
            passing.run(token_ids)
        for cut in cuts:
            hidden[cut].append(passing.states[cut].detach()[0].float().cpu())
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
    """Catches the residual stream where it enters the layers ``cuts``: ``states`` are those of the
    last run, (1, T, d) at each cut."""

    def __init__(self, model: Any, cuts: Sequence[int]) -> None:
        self._model = model
        self._first, self._last = min(cuts), max(cuts)
        self.states: dict[int, torch.Tensor] = {}
        for cut in cuts:
            model.model.layers[cut].register_forward_pre_hook(self._catch(cut))

    def run(self, token_ids: torch.Tensor) -> None:
        """(1, T), up to the deepest cut."""
        with torch.no_grad(), contextlib.suppress(_Reached):
            self._model(token_ids)

    def gradients(
        self, token_ids: torch.Tensor, generator: torch.Generator
    ) -> dict[int, torch.Tensor]:
        """(1, T) → at each cut (T, DRAWS, d), for tokens that are drawn by ``generator``."""
        with torch.enable_grad():
            last = self._model.model(token_ids).last_hidden_state  # (1, T, d)
        # The last step by hand, without a graph over the vocabulary: by the logits, the loss has
        # the gradient p - [token is drawn].
        with torch.no_grad():
            head = self._model.get_output_embeddings().weight
            p = (last[0] @ head.T).float().softmax(-1)  # (T, vocab)
            expected = p.to(head.dtype) @ head
            # By inversion: multinomial draws a number for every entry of the vocabulary.
            cumulative = p.cumsum(-1)
            uniform = torch.rand(len(p), DRAWS, device=p.device, generator=generator)
            drawn = torch.searchsorted(cumulative, uniform * cumulative[:, -1:])
        gradients: dict[int, list[torch.Tensor]] = {cut: [] for cut in self.states}
        for tokens in drawn.T:
            found = torch.autograd.grad(
                last, list(self.states.values()), (expected - head[tokens])[None], retain_graph=True
            )
            for cut, gradient in zip(self.states, found, strict=True):
                gradients[cut].append(gradient[0])
        return {cut: torch.stack(of_cut, dim=1) for cut, of_cut in gradients.items()}

    def _catch(self, cut: int) -> Callable[[Any, tuple[Any, ...]], tuple[Any, ...]]:
        def hook(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            state = inputs[0]
            if torch.is_grad_enabled() and cut == self._first:
                state = state.detach().requires_grad_()
            self.states[cut] = state
            if not torch.is_grad_enabled() and cut == self._last:
                raise _Reached
            return (state, *inputs[1:])

        return hook
