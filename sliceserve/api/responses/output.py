"""The items of a response as they grow, and what a stream says of it."""

import secrets
from collections.abc import Iterator

from sliceserve.api.responses.replies import (
    ArgumentsDelta,
    ArgumentsDone,
    Event,
    FunctionCall,
    ItemAdded,
    ItemDone,
    ItemStatus,
    OutputItem,
    OutputMessage,
    OutputText,
    PartAdded,
    PartDone,
    ResponseLogprob,
    TextDelta,
    TextDone,
)


class Output:
    """One item after the other: a message for text, a function call for each call. ``items`` are
    those that are done."""

    def __init__(self) -> None:
        self.items: list[OutputItem] = []
        self._open: _Message | _Call | None = None

    @property
    def has_calls(self) -> bool:
        """Whether a function has been called."""
        return any(isinstance(item, FunctionCall | _Call) for item in (*self.items, self._open))

    def text(self, text: str, logprobs: list[ResponseLogprob]) -> Iterator[Event]:
        """More text, with the logprobs of the tokens that were sampled for it."""
        if not isinstance(self._open, _Message):
            yield from self.close("completed")
            self._open = _Message(len(self.items))
            yield from self._open.begin()
        yield from self._open.add(text, logprobs)

    def call(self, call_id: str, name: str) -> Iterator[Event]:
        """A function is called; its arguments follow."""
        yield from self.close("completed")
        self._open = _Call(len(self.items), call_id, name)
        yield from self._open.begin()

    def arguments(self, text: str) -> Iterator[Event]:
        """More of the arguments of the last call."""
        assert isinstance(self._open, _Call)
        yield from self._open.add(text)

    def close(self, status: ItemStatus) -> Iterator[Event]:
        """The item that is open, if any, is done."""
        if self._open is not None:
            item, events = self._open.end(status)
            self.items.append(item)
            self._open = None
            yield from events

    def end(self, status: ItemStatus) -> Iterator[Event]:
        """Nothing follows. An answer without a word is an empty message."""
        if self._open is None and not self.items:
            yield from self.text("", [])
        yield from self.close(status)


class _Message:
    def __init__(self, index: int) -> None:
        self._id = f"msg_{secrets.token_hex(16)}"
        self._index = index
        self._pieces: list[str] = []
        self._logprobs: list[ResponseLogprob] = []

    def begin(self) -> Iterator[Event]:
        empty = OutputMessage(id=self._id, status="in_progress")
        yield ItemAdded(output_index=self._index, item=empty)
        yield PartAdded(item_id=self._id, output_index=self._index, part=OutputText(text=""))

    def add(self, text: str, logprobs: list[ResponseLogprob]) -> Iterator[Event]:
        self._pieces.append(text)
        self._logprobs += logprobs
        if text or logprobs:
            yield TextDelta(
                item_id=self._id, output_index=self._index, delta=text, logprobs=logprobs
            )

    def end(self, status: ItemStatus) -> tuple[OutputItem, list[Event]]:
        part = OutputText(text="".join(self._pieces), logprobs=self._logprobs)
        item = OutputMessage(id=self._id, status=status, content=[part])
        place = {"item_id": self._id, "output_index": self._index}
        return item, [
            TextDone(**place, text=part.text, logprobs=part.logprobs),
            PartDone(**place, part=part),
            ItemDone(output_index=self._index, item=item),
        ]


class _Call:
    def __init__(self, index: int, call_id: str, name: str) -> None:
        self._id = f"fc_{secrets.token_hex(16)}"
        self._index = index
        self._call_id = call_id
        self._name = name
        self._pieces: list[str] = []

    def _item(self, status: ItemStatus) -> FunctionCall:
        return FunctionCall(
            id=self._id,
            call_id=self._call_id,
            name=self._name,
            arguments="".join(self._pieces),
            status=status,
        )

    def begin(self) -> Iterator[Event]:
        yield ItemAdded(output_index=self._index, item=self._item("in_progress"))

    def add(self, text: str) -> Iterator[Event]:
        self._pieces.append(text)
        yield ArgumentsDelta(item_id=self._id, output_index=self._index, delta=text)

    def end(self, status: ItemStatus) -> tuple[OutputItem, list[Event]]:
        item = self._item(status)
        done = ArgumentsDone(item_id=self._id, output_index=self._index, arguments=item.arguments)
        return item, [done, ItemDone(output_index=self._index, item=item)]
