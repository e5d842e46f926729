"""Greedy text of several prompts at once, every token of which may pass through a codec."""

from collections.abc import Callable, Sequence

import torch

from sliceserve.codec.base import Codec, Run
from sliceserve.engine.kv_cache import KVCache
from sliceserve.evaluation.coding import (
    Runs,
    Traffic,
    decode,
    encode,
    traffic,
    traffic_of_prompts,
)
from sliceserve.evaluation.model import WholeModel
from sliceserve.evaluation.prompts import Layout, Prompt, shared
from sliceserve.models.text import TextStream
from sliceserve.scheduler.blocks import Segment


class Channel:
    """A codec between the head and the tail of sequences that grow.

    ``prompts`` and ``generated`` are what a client sends: prompts in frames of
    ``tokens_per_frame``, generated tokens in frames of their own.
    """

    def __init__(self, codec: Codec, cut: int, tokens_per_frame: int) -> None:
        self.cut = cut
        self.prompts = Traffic()
        self.generated = Traffic()
        self._codec = codec
        self._tokens_per_frame = tokens_per_frame

    def start(self, hidden: torch.Tensor, prompt: Prompt) -> None:
        """The rows of ``prompt``, in place, each of whose branches is the beginning of a
        sequence."""
        self._sent = Runs([prompt], with_token_ids=True)
        self._received = Runs([prompt], with_token_ids=False)
        packets = encode(self._codec, hidden, self._sent)
        decode(self._codec, packets, hidden, self._received)
        self.prompts += traffic_of_prompts(packets, [prompt], self._tokens_per_frame)

    def go_on(
        self,
        hidden: torch.Tensor,
        sequences: Sequence[int],
        token_ids: Sequence[int],
        positions: Sequence[int],
    ) -> None:
        """A row for each of some sequences, in place: its next token."""
        sent = self._follow(self._sent, sequences, token_ids)
        packets = self._codec.encode(hidden, sent)
        self._codec.decode(packets, hidden, self._follow(self._received, sequences, token_ids))
        for packet, position in zip(packets, positions, strict=True):
            self.generated += traffic([packet], 1, position)

    def _follow(self, runs: Runs, sequences: Sequence[int], token_ids: Sequence[int]) -> list[Run]:
        for i, token_id in zip(sequences, token_ids, strict=True):
            runs.ends[i] = runs.follow(runs.ends[i], [token_id])
        return [runs.ends[i] for i in sequences]


@torch.inference_mode()
def generate(
    model: WholeModel,
    prompts: Sequence[Sequence[int]],
    until: Sequence[str],
    max_tokens: int,
    channel: Channel | None = None,
    advance: Callable[[], None] = lambda: None,
) -> list[str]:
    """The greedy text after each prompt, up to a token that ends an answer, the first of ``until``
    or ``max_tokens``. What prompts have in common at their beginning is computed once.

    Where prompt and answer do not fit the model, the prompt loses its beginning; an answer never
    takes more than half of the model's positions. ``advance`` is called for each complete text.
    """
    limit = model.spec.max_position_embeddings
    max_tokens = min(max_tokens, limit // 2)
    prompt = shared([prompt[max(0, len(prompt) + max_tokens - limit) :] for prompt in prompts])
    growing = _Sequences(model, prompt, max_tokens, channel)
    streams = [TextStream(model.tokenizer, until) for _ in prompts]
    texts = [""] * len(prompts)
    live = list(range(len(prompts)))
    sampled = growing.start()
    for num_sampled in range(1, max_tokens + 1):
        going_on = []
        for i, token_id in zip(live, sampled, strict=True):
            ends = token_id in model.tokenizer.eos_token_ids
            if not ends:
                texts[i] += streams[i].push(token_id)
            if ends or streams[i].stopped or num_sampled == max_tokens:
                texts[i] += streams[i].finish()
                advance()
            else:
                going_on.append((i, token_id))
        if not going_on:
            break
        live = [i for i, _ in going_on]
        sampled = growing.grow(live, [token_id for _, token_id in going_on])
    return texts


class _Sequences:
    """Sequences over one KV cache, which grow by a token at a time."""

    def __init__(
        self, model: WholeModel, prompt: Prompt, max_tokens: int, channel: Channel | None
    ) -> None:
        self._model = model
        self._prompt = prompt
        self._channel = channel
        # The slot of each token of each sequence.
        self._tables = list(prompt.sequences())
        self._num_slots = prompt.num_rows
        most = prompt.num_rows + max_tokens * len(self._tables)
        whole = Segment(0, model.spec.num_layers, num_blocks=most)
        self._cache = KVCache([whole], 1, model.spec, model.dtype, model.device)

    def start(self) -> list[int]:
        """Compute the prompts; the likeliest token after each."""
        layout = Layout.of_prompts([self._prompt], self._model.device)

        def send(channel: Channel, hidden: torch.Tensor) -> None:
            channel.start(hidden, self._prompt)

        hidden = self._run(self._prompt.rows, layout, send)
        return self._likeliest(hidden[[table[-1] for table in self._tables]])

    def grow(self, sequences: Sequence[int], token_ids: Sequence[int]) -> list[int]:
        """Add a token to each of some sequences; the likeliest token after each."""
        tables = [self._tables[i] for i in sequences]
        for table in tables:
            table.append(self._num_slots)
            self._num_slots += 1
        positions = [len(table) - 1 for table in tables]
        layout = Layout.of_tables(tables, [1] * len(tables), self._model.device)

        def send(channel: Channel, hidden: torch.Tensor) -> None:
            channel.go_on(hidden, sequences, token_ids, positions)

        return self._likeliest(self._run(token_ids, layout, send))

    def _run(
        self,
        token_ids: Sequence[int],
        layout: Layout,
        send: Callable[[Channel, torch.Tensor], None],
    ) -> torch.Tensor:
        """(T, hidden_size): what leaves the last layer; what enters the cut is sent before."""
        model, last = self._model, self._model.spec.num_layers
        hidden = model.decoder.embed(torch.tensor(token_ids, device=model.device))
        if self._channel is None:
            model.forward(hidden, 0, last, layout, self._cache)
        else:
            model.forward(hidden, 0, self._channel.cut, layout, self._cache)
            send(self._channel, hidden)
            model.forward(hidden, self._channel.cut, last, layout, self._cache)
        return hidden

    def _likeliest(self, hidden: torch.Tensor) -> list[int]:
        tokens: list[int] = self._model.decoder.logits(hidden).argmax(-1).tolist()
        return tokens
