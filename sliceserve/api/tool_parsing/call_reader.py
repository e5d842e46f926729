"""One call in JSON, read a character at a time."""

from collections.abc import Callable, Collection

# Models write either, whichever their format asks for.
_ARGUMENTS = ("arguments", "parameters")
_MAX_KEY = 64
_WHITESPACE = " \t\r\n"
_BRACKETS = {"{": 1, "[": 1, "}": -1, "]": -1}


class CallReader:
    """Reads {"name": …, "arguments": {…}}, its keys in any order, others passed over.

    ``names`` are the functions that there are. Once the call is ``certain``, its name and the
    beginning of its arguments are known; what comes then may break off, but not turn out to be
    something else. Arguments are taken as they are written: what is between their braces is not
    checked, for a caller can say better than a parser what is wrong with them.
    """

    def __init__(self, names: Collection[str]) -> None:
        self.name: str | None = None
        self.certain = False
        self.done = False
        self._names = names
        self._chars: list[str] = []
        self._num_taken = 0
        self._arguments: list[str] = []
        self._has_arguments = False
        self._word = ""
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._step: Callable[[str], bool] = self._opening

    @property
    def text(self) -> str:
        """All that was read."""
        return "".join(self._chars)

    def read(self, char: str) -> bool:
        """Take the next character; False: it cannot be the call's."""
        if self.done or not self._step(char):
            return False
        self._chars.append(char)
        if self.done and not self._has_arguments:
            # Functions without parameters are called so.
            self._arguments.append("{}")
        self.certain = self.name is not None and bool(self._arguments)
        return True

    def take_arguments(self) -> str:
        """The arguments' text that has come since the last time."""
        new = "".join(self._arguments[self._num_taken :])
        self._num_taken = len(self._arguments)
        return new

    def _opening(self, char: str) -> bool:
        self._step = self._before_key
        return char == "{"

    def _before_key(self, char: str) -> bool:
        if char == '"':
            self._word, self._step = "", self._in_key
        elif char == "}":
            return self._close()
        return char in _WHITESPACE or char == '"'

    def _in_key(self, char: str) -> bool:
        if char == '"':
            self._step = self._colon
            return True
        self._word += char
        # A key as long as a page is something else.
        return char != "\\" and len(self._word) <= _MAX_KEY

    def _colon(self, char: str) -> bool:
        if char == ":":
            self._step = self._before_value
        return char in _WHITESPACE or char == ":"

    def _before_value(self, char: str) -> bool:
        if char in _WHITESPACE:
            return True
        key = self._word
        if key == "name":
            self._word, self._step = "", self._in_name
            return char == '"' and self.name is None
        if key in _ARGUMENTS:
            if char != "{" or self._has_arguments:
                return False
            self._has_arguments = True
            self._step = self._in_arguments
            return self._in_arguments(char)
        self._step = self._in_other
        return self._in_other(char)

    def _in_name(self, char: str) -> bool:
        if char == '"':
            self.name, self._step = self._word, self._after_value
            return self._word in self._names
        self._word += char
        return any(name.startswith(self._word) for name in self._names)

    def _in_arguments(self, char: str) -> bool:
        self._arguments.append(char)
        self._nest(char)
        if self._depth == 0 and not self._in_string:
            self._step = self._after_value
        return True

    def _in_other(self, char: str) -> bool:
        """A value that is nobody's business: up to a comma or brace that is not inside it."""
        if self._depth == 0 and not self._in_string and char in ",}":
            return self._after_value(char)
        self._nest(char)
        return self._depth >= 0

    def _after_value(self, char: str) -> bool:
        if char == ",":
            self._step = self._before_key
        elif char == "}":
            return self._close()
        else:
            self._step = self._after_value
        return char in _WHITESPACE or char == ","

    def _close(self) -> bool:
        self.done = True
        return self.name is not None

    def _nest(self, char: str) -> None:
        """Keep count of strings and brackets."""
        if self._escaped:
            self._escaped = False
        elif self._in_string:
            self._escaped = char == "\\"
            self._in_string = char != '"'
        elif char == '"':
            self._in_string = True
        else:
            self._depth += _BRACKETS.get(char, 0)
