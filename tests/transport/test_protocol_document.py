"""docs/protocol.md says what the code does."""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sliceserve.configs import SamplingParams
from sliceserve.scheduler.prefix import block_digests
from sliceserve.transport.frames import DataFrame, MessageType, decode, encode
from sliceserve.transport.link import CloseCode
from sliceserve.transport.messages import Control, Credit


@pytest.fixture(scope="module")
def document() -> str:
    return (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")


def dumps(document: str) -> list[bytes]:
    """The bytes at the start of each line of each ```hexdump block."""
    blocks = re.findall(r"```hexdump\n(.*?)```", document, re.DOTALL)
    lines = [re.findall(r"^((?:[0-9a-f]{2} )+)", block, re.MULTILINE) for block in blocks]
    return [bytes.fromhex("".join(block)) for block in lines]


def test_the_dumps_are_the_bytes_of_the_code(document: str) -> None:
    credit = Credit(request_id=3, credit=300)
    one = DataFrame(3, 17, [b"\x01\x02\x03"])
    several = DataFrame(3, 300, [b"\x01\x02\x03", b"\xff"])
    assert dumps(document) == [encode(credit), encode(one), encode(several)]
    assert [decode(dump) for dump in dumps(document)] == [credit, one, several]


def test_the_table_lists_every_message_and_field(document: str) -> None:
    rows = re.findall(r"^\| (\d+) \| ([A-Z]\w+) \| [^|]+ \| ([^|]*)\|$", document, re.MULTILINE)
    described = {(int(number), name): fields for number, name, fields in rows}
    for kind in Control.__subclasses__():
        fields = described.pop((MessageType[kind.__name__.upper()].value, kind.__name__))
        expected = [
            (field.name, "" if field.required else "?") for field in msgspec.structs.fields(kind)
        ]
        assert re.findall(r"`(\w+)`(\??)", fields) == expected
    assert not described
    for kind in (MessageType.PACKET, MessageType.PACKETS):
        assert f"| {kind.value} | data frame" in document


def test_the_digest_is_that_of_the_code(document: str) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", document, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    assert [names["first"].digest()] == block_digests([b"\x01", b"\x02\x03", b"\xff"], 2)


def test_the_text_lists_every_setting_of_sampling(document: str) -> None:
    for field in SamplingParams.__slots__:
        assert f"`{field}`" in document, field


def test_the_table_lists_every_close_code(document: str) -> None:
    assert {int(code) for code in re.findall(r"^\| (1\d{3}) \|", document, re.MULTILINE)} == {
        code.value for code in CloseCode
    }
