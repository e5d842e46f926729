"""A model's text, piece by piece, into what it says and the functions it calls."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from sliceserve.api.tool_parsing.call_reader import CallReader
from sliceserve.api.tool_parsing.formats import ToolFormat

# Characters between a marker and its call; with more, it marks none.
_MAX_HELD = 64


@dataclass(frozen=True, slots=True)
class CallDelta:
    """A piece of the ``index``-th call. The first has its id and name, and no arguments; each of
    the others has more of the arguments' JSON."""

    index: int
    arguments: str
    id: str | None = None
    name: str | None = None


@dataclass(slots=True)
class Call:
    id: str
    name: str
    arguments: str


class ToolParser:
    """Parses one answer. ``names`` are the functions that may be called; text that calls others is
    text.

    ``push`` and ``finish`` return the news in order: content (str) and calls (CallDelta). However
    the text is cut into pieces, the news add up to the same. Whatever turns out not to be a call is
    content, to the last character. Where there are calls, markers are left out, and so is
    whitespace that nothing but calls surrounds.
    """

    def __init__(self, form: ToolFormat, names: Collection[str]) -> None:
        self.num_calls = 0
        self._form = form
        self._names = names
        self._news: list[str | CallDelta] = []
        # What may yet become a marker, and whitespace that may yet stand between calls.
        self._held = ""
        self._blank: list[str] = []
        self._has_spoken = False
        self._reader: CallReader | None = None
        self._in_list = False
        self._step: Callable[[str], None] = self._at_start if form.bare else self._in_text

    def push(self, text: str) -> list[str | CallDelta]:
        """What the next piece of text brings."""
        for char in text:
            self._step(char)
        return self._take_news()

    def finish(self) -> list[str | CallDelta]:
        """What was held back. Call it once, at the end. A call that has broken off stays one."""
        if self._reader is not None:
            if not self._reader.certain:
                self._say(self._held + self._reader.text)
        # After a call, what is held is a part of a marker or a separator that nothing follows.
        elif self._step != self._after_call and self._held.strip() not in self._form.separators:
            self._say(self._held)
        if not self.num_calls:
            self._news += self._blank
        return self._take_news()

    def _at_start(self, char: str) -> None:
        if char.isspace():
            self._say(char)
        elif char == "{":
            self._begin_call(char)
        else:
            self._return_to_text(char)

    def _in_text(self, char: str) -> None:
        self._held += char
        while not self._form.marker.startswith(self._held):
            self._say(self._held[0])
            self._held = self._held[1:]
        if self._held == self._form.marker:
            self._in_list = False
            self._step = self._after_marker

    def _after_marker(self, char: str) -> None:
        if char == "[":
            self._held += char
            self._in_list = True
            self._step = self._before_call
        else:
            self._before_call(char)

    def _before_call(self, char: str) -> None:
        if char.isspace() and len(self._held) < _MAX_HELD:
            self._held += char
        else:
            self._begin_call(char)

    def _begin_call(self, char: str) -> None:
        self._reader = CallReader(self._names)
        self._step = self._in_call
        self._in_call(char)

    def _in_call(self, char: str) -> None:
        reader = self._reader
        assert reader is not None
        was_certain = reader.certain
        if not reader.read(char):
            self._reader = None
            if was_certain:
                self._step = self._after_call
                self._after_call(char)
            else:
                self._say(self._held + reader.text)
                self._held = ""
                self._return_to_text(char)
            return
        if reader.certain and not was_certain:
            self._news.append(CallDelta(self.num_calls, "", self._form.new_id(), reader.name))
            self.num_calls += 1
            self._held = ""
            self._blank.clear()
            self._has_spoken = False
        if reader.certain and (arguments := reader.take_arguments()):
            self._news.append(CallDelta(self.num_calls - 1, arguments))
        if reader.done:
            self._reader = None
            self._step = self._after_call

    def _after_call(self, char: str) -> None:
        if not self._held and char.isspace():
            self._say(char)
            return
        self._held += char
        form = self._form
        separators = (",",) if self._in_list else form.separators
        ends = ("]",) if self._in_list else (form.end,)
        if self._held in separators:
            self._step = self._before_call
        elif self._held in ends:
            # The end marker may follow that of a list, another call's that of a call.
            self._step = self._after_call if self._in_list else self._in_text
            self._in_list = False
            self._held = ""
        elif self._held == form.marker:
            self._step = self._after_marker
        elif not any(one.startswith(self._held) for one in (form.marker, *ends)):
            text, self._held = self._held, ""
            self._return_to_text(text)

    def _return_to_text(self, text: str) -> None:
        self._step = self._in_text
        for char in text:
            self._step(char)

    def _say(self, text: str) -> None:
        """Content; but whitespace waits until it is seen what it stands between."""
        if not self._has_spoken and text.isspace():
            self._blank.append(text)
        elif text:
            self._news += [*self._blank, text]
            self._blank.clear()
            self._has_spoken = True

    def _take_news(self) -> list[str | CallDelta]:
        """The news, in as few pieces as possible."""
        news: list[str | CallDelta] = []
        for one in self._news:
            last = news[-1] if news else None
            if isinstance(one, str) and isinstance(last, str):
                news[-1] = last + one
            elif (
                isinstance(one, CallDelta)
                and isinstance(last, CallDelta)
                and last.id is None is one.id
            ):
                news[-1] = CallDelta(one.index, last.arguments + one.arguments)
            else:
                news.append(one)
        self._news.clear()
        return news


def whole(news: Iterable[str | CallDelta]) -> tuple[str, list[Call]]:
    """What a parser's news add up to."""
    text: list[str] = []
    calls: list[Call] = []
    for one in news:
        if isinstance(one, str):
            text.append(one)
        elif one.id is not None and one.name is not None:
            calls.append(Call(one.id, one.name, one.arguments))
        else:
            calls[one.index].arguments += one.arguments
    return "".join(text), calls
