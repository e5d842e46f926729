"""A model for lm-evaluation-harness: cut, with every token passing through a codec.

    python -m sliceserve.evaluation.harness --tasks arc_easy --model sliceserve \\
        --model_args model=smollm2-135m-instruct,split=15,codec=slicer,bits_per_element=3

is the command `lm_eval` with this model in its registry. In a program, importing this module puts
it there.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

# The harness fills its registry when it is empty: alone in it, this model would hide all others.
import lm_eval.models  # noqa: F401
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from sliceserve.configs import ClientConfig
from sliceserve.configs.loading import load_config
from sliceserve.evaluation.errors import EvaluationError
from sliceserve.evaluation.generation import Channel, generate
from sliceserve.evaluation.model import WholeModel
from sliceserve.evaluation.points import Point, Sweep, choose_on_sample, run_coded
from sliceserve.evaluation.prompts import Prompt
from sliceserve.evaluation.scoring import Question, fit, in_blocks, likelihoods
from sliceserve.evaluation.states import capture
from sliceserve.models.files import read_json

logger = logging.getLogger(__name__)

# The harness' own default for a task that names none.
_MAX_TOKENS = 256


@register_model("sliceserve")
class SliceServeLM(TemplateLM):
    """``split`` None is the middle one of the default cuts. ``codec`` "none" leaves the model
    uncut; settings of a codec that are not given here come from the environment. With
    ``bits_per_element`` they are chosen on the first requests, and stay.

    Generation is greedy, ``batch_size`` texts at a time. Raises ConfigError, ModelError and
    EvaluationError.
    """

    def __init__(
        self,
        model: str | None = None,
        split: int | None = None,
        codec: str | None = None,
        bits_per_element: float | None = None,
        dtype: str = "float32",
        device: str | None = None,
        batch_size: int | str = 16,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        given = {
            "model.model": model,
            "model.dtype": dtype,
            # The harness names a GPU whether there is one or not.
            "model.device": "cpu" if device == "cpu" else "auto",
            "split": split,
            "codec.name": None if codec == "none" else codec,
        }
        settings = {key: value for key, value in given.items() if value is not None}
        config = load_config(ClientConfig, overrides=settings)
        self._whole = WholeModel(config.model)
        self._sweep = Sweep(
            cuts=[self._whole.check_cut(config.split)],
            codecs=[] if codec == "none" else [config.codec],
            budgets=[] if bits_per_element is None else [float(bits_per_element)],
        )
        self._point: Point | None = None
        self._max_length = self._whole.spec.max_position_embeddings
        self._texts_at_a_time = int(batch_size) if str(batch_size).isdigit() else 16
        self._bos = read_json(self._whole.path / "config.json").get("bos_token_id")

    @property
    def eot_token_id(self) -> int:
        if not self._whole.spec.eos_token_ids:
            raise EvaluationError(f"{self._whole.name} has no token that ends a text")
        return self._whole.spec.eos_token_ids[0]

    @property
    def prefix_token_id(self) -> int:
        return self.eot_token_id if self._bos is None else self._bos

    @property
    def tokenizer_name(self) -> str:
        return str(self._whole.path)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        tokens = self._whole.tokenizer.encode(string, add_special_tokens is not False)
        # A chat template has written the first token itself.
        return tokens[1:] if tokens[:2] == [self._bos] * 2 else tokens

    def chat_template(self, chat_template: bool | str = False) -> str:
        """A note of what was applied, for the results; the harness asks for no more."""
        return "the model's own" if chat_template else ""

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        tokens = self._whole.tokenizer.chat_prompt(chat_history, add_generation_prompt)
        return self._whole.tokenizer.decode(tokens, skip_special_tokens=False)

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        return [self._rolling(request.args[0]) for request in requests]

    def _rolling(self, text: str) -> float:
        windows = get_rolling_token_windows(
            self.tok_encode(text), self.prefix_token_id, self._max_length, context_len=1
        )
        pairs = [(("", text), *make_disjoint_window(window)) for window in windows]
        return sum(logprob for logprob, _ in self._loglikelihood_tokens(pairs))

    @torch.inference_mode()
    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        # Requests with one context make one question.
        places: dict[tuple[int, ...], list[int]] = {}
        continuations = []
        for i, (_, context, continuation) in enumerate(requests):
            context, continuation = fit(context, continuation, self._max_length)
            places.setdefault(tuple(context), []).append(i)
            continuations.append(continuation)
        questions = [
            Question(context, [continuations[i] for i in indices])
            for context, indices in places.items()
        ]
        self._choose([question.prompt for question in questions])
        found = [
            (likelihood.logprob, likelihood.is_greedy)
            for here in in_blocks(questions)
            for of_question in likelihoods(
                self._whole,
                self._final([question.prompt for question in questions[here]]),
                questions[here],
            )
            for likelihood in of_question
        ]
        order = [i for indices in places.values() for i in indices]
        return [pair for _, pair in sorted(zip(order, found, strict=True))]

    def _final(self, prompts: Sequence[Prompt]) -> torch.Tensor:
        """What leaves the last layer."""
        last = self._whole.spec.num_layers
        end = last if self._point is None else self._point.cut
        states = capture(self._whole, prompts, [end], _bar)[end]
        if self._point is None:
            return states
        tokens_per_frame = self._sweep.tokens_per_frame
        return run_coded(self._whole, prompts, states, self._point, tokens_per_frame, _bar)[0]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        prompts = [self.tok_encode(request.args[0]) for request in requests]
        self._choose(list(map(Prompt, prompts)))
        groups: dict[tuple[tuple[str, ...], int], list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(_ending(request.args[1]), []).append(i)
        texts = [""] * len(requests)
        with _bar("texts", len(requests)) as advance:
            for (until, max_tokens), members in groups.items():
                for start in range(0, len(members), self._texts_at_a_time):
                    some = members[start : start + self._texts_at_a_time]
                    asked = [prompts[i] for i in some]
                    made = generate(self._whole, asked, until, max_tokens, self._channel(), advance)
                    for i, text in zip(some, made, strict=True):
                        texts[i] = text
        return texts

    def _channel(self) -> Channel | None:
        if self._point is None:
            return None
        codec = self._whole.codec(self._point.codec, self._point.cut)
        return Channel(codec, self._point.cut, self._sweep.tokens_per_frame)

    def _choose(self, prompts: Sequence[Prompt]) -> None:
        if self._sweep.codecs and self._point is None:
            (self._point,) = choose_on_sample(self._whole, prompts, self._sweep, _bar)
            logger.info("operating point: %s", self._point)


@contextmanager
def _bar(description: str, total: int) -> Iterator[Callable[[], None]]:
    """As the harness shows its own progress."""
    with tqdm(total=total, desc=description) as bar:
        yield lambda: bar.update() and None


def _ending(settings: dict[str, Any]) -> tuple[tuple[str, ...], int]:
    """Stop strings and the most tokens. Raises EvaluationError where sampling is asked for."""
    if settings.get("do_sample") and settings.get("temperature", 1.0) > 0:
        raise EvaluationError(
            "this task samples its answers, and here they are greedy; add "
            "--gen_kwargs do_sample=False,temperature=0"
        )
    until = settings.get("until") or ()
    names = ("max_gen_toks", "max_new_tokens", "max_tokens")
    given = [settings[name] for name in names if settings.get(name) is not None]
    stop = (until,) if isinstance(until, str) else tuple(until)
    return stop, int(given[0]) if given else _MAX_TOKENS


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
