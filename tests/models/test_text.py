import pytest
from tokenizers import Tokenizer, decoders, models

from sliceserve.models.text import TextStream

hypothesis = pytest.importorskip("hypothesis")
given, st = hypothesis.given, hypothesis.strategies

PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]


def symbol(byte: int) -> str:
    """The character that stands for a byte in GPT-2's vocabulary."""
    if byte in PRINTABLE:
        return chr(byte)
    return chr(256 + sum(b not in PRINTABLE for b in range(byte)))


class Backend:
    """The part of a tokenizer that a TextStream needs."""

    def __init__(self, backend: Tokenizer) -> None:
        self.backend = backend

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return self.backend.decode(ids, skip_special_tokens=skip_special_tokens)


def byte_level() -> Backend:
    """Ids 0 to 255 are bytes, then come words, half an emoji, and two special tokens."""
    words = ["Ġhello", "ab", "bc", "stop", "".join(map(symbol, "😀".encode()[:2]))]
    symbols = [symbol(byte) for byte in range(256)] + words
    backend = Tokenizer(models.BPE({s: i for i, s in enumerate(symbols)}, []))
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|start|>", "<|end|>"])
    return Backend(backend)


def byte_fallback() -> Backend:
    """Llama 2's way: words with "▁" for a space, whose first is dropped, and bytes."""
    symbols = [f"<0x{byte:02X}>" for byte in range(256)] + ["▁a", "b", "▁", "<unk>"]
    vocab = {s: i for i, s in enumerate(symbols)}
    backend = Tokenizer(models.BPE(vocab, [], byte_fallback=True, unk_token="<unk>"))
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return Backend(backend)


TOKENIZER = byte_level()
FALLBACK = byte_fallback()


def stream(
    tokenizer: Backend, ids: list[int], stop: list[str], **options
) -> tuple[list[str], TextStream]:
    text = TextStream(tokenizer, stop, **options)
    pieces = [text.push(i) for i in ids]
    return [*pieces, text.finish()], text


def cut(text: str, stop: list[str]) -> str:
    """The longest beginning of ``text`` in which no stop string is complete, less the stop string
    that the next character completes."""
    for end in range(len(text) + 1):
        complete = [s for s in stop if text[:end].endswith(s)]
        if complete:
            return text[: end - max(map(len, complete))]
    return text


token_ids = st.lists(st.integers(0, 262) | st.integers(256, 262) | st.sampled_from(b"abcsto"))


@given(ids=token_ids)
def test_pieces_add_up_to_the_decoded_text(ids):
    pieces, text = stream(TOKENIZER, ids, [])
    assert "".join(pieces) == TOKENIZER.decode(ids)
    assert not text.stopped


@given(ids=token_ids, data=st.data())
def test_pieces_end_before_the_first_complete_stop_string(ids, data):
    full = TOKENIZER.decode(ids)
    places = st.integers(0, len(full))
    parts = st.builds(lambda start, size: full[start : start + size], places, st.integers(1, 5))
    some_text = st.text("abcstop h", min_size=1, max_size=5)
    stop = data.draw(st.lists((parts | some_text).filter(bool), max_size=4))
    pieces, text = stream(TOKENIZER, ids, stop)
    assert "".join(pieces) == cut(full, stop)
    assert text.stopped == any(s in full for s in stop)


def test_text_is_shown_as_soon_as_it_cannot_become_a_stop_string():
    pieces, text = stream(TOKENIZER, list(b"a sto stop b"), ["stop"])
    assert pieces == ["a", " ", "", "", "", "sto ", "", "", "", "", "", "", ""]
    assert text.stopped


def test_a_stop_string_may_lie_inside_one_token():
    pieces, text = stream(TOKENIZER, [256], ["ell"])
    assert pieces == [" h", ""]
    assert text.stopped


def test_a_stop_string_that_began_and_did_not_end_is_given_back_at_the_end():
    pieces, text = stream(TOKENIZER, list(b"abc sto"), ["stop"])
    assert pieces[-1] == "sto"
    assert "".join(pieces) == "abc sto"
    assert not text.stopped


def test_of_two_stop_strings_the_one_complete_first_counts():
    pieces, _ = stream(TOKENIZER, list(b"xabcd"), ["abcd", "bc"])
    assert "".join(pieces) == "xa"


def test_of_stop_strings_with_one_end_the_longest_counts():
    pieces, _ = stream(TOKENIZER, list(b"xabcd"), ["d", "bcd", "cd"])
    assert "".join(pieces) == "xa"


def test_a_character_in_several_tokens_comes_whole():
    pieces, _ = stream(TOKENIZER, list("é😀!".encode()), [])
    assert pieces == ["", "é", "", "", "", "😀", "!", ""]


def test_an_incomplete_character_is_a_replacement_at_the_end():
    pieces, _ = stream(TOKENIZER, list("a😀".encode()[:-1]), [])
    assert pieces == ["a", "", "", "", "\ufffd"]


def test_special_tokens_have_no_text():
    pieces, _ = stream(TOKENIZER, [261, *b"hi", 262], [])
    assert pieces == ["", "h", "i", "", ""]


def test_only_the_first_space_is_dropped():
    ids = [256, 256, 257, 256]
    pieces, _ = stream(FALLBACK, ids, [])
    assert pieces == ["a", " a", "b", " a", ""]
    assert "".join(pieces) == FALLBACK.decode(ids)


def test_a_byte_that_spoils_the_ones_before_it_does_not_end_the_stream():
    # Decoded with the invalid byte after it, the "A" that was shown becomes a replacement too.
    ids = [0x41, 0xE2, 257, 256]
    pieces, _ = stream(FALLBACK, ids, [])
    assert pieces[0] == "A"
    assert "".join(pieces).endswith("b a")


def test_a_stop_string_is_shown_if_it_is_wanted():
    pieces, text = stream(TOKENIZER, list(b"xabcd"), ["d", "bc"], include_stop=True)
    assert "".join(pieces) == "xabc"
    assert text.stopped


def test_stop_strings_of_the_first_tokens_do_not_count():
    pieces, text = stream(TOKENIZER, list(b"stop, stop!"), ["stop"], min_tokens=4)
    assert "".join(pieces) == "stop, "
    assert text.stopped
    pieces, text = stream(TOKENIZER, list(b"stop, stop!"), ["op"], min_tokens=10)
    assert "".join(pieces) == "stop, stop!"


def test_special_tokens_are_shown_if_they_are_wanted():
    pieces, _ = stream(TOKENIZER, [261, *b"hi"], [], skip_special_tokens=False)
    assert pieces == ["<|start|>", "h", "i", ""]


def test_characters_are_counted_before_they_are_shown():
    text = TextStream(TOKENIZER, ["stop"])
    counts = []
    for token_id in "sé sto".encode():
        text.push(token_id)
        counts.append(text.num_characters)
    assert counts == [1, 1, 2, 3, 4, 5, 6]


def test_an_empty_stop_string_is_refused():
    with pytest.raises(ValueError, match="empty"):
        TextStream(TOKENIZER, ["stop", ""])
