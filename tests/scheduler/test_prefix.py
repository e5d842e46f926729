import pytest

from sliceserve.scheduler.prefix import DIGEST_BYTES, block_digests


@pytest.mark.parametrize("inputs", [list(range(40)), [bytes([i]) * i for i in range(40)]])
def test_a_digest_covers_all_inputs_up_to_its_blocks_end(inputs):
    digests = block_digests(inputs, 16)
    assert [len(digest) for digest in digests] == [DIGEST_BYTES] * 2
    assert block_digests(inputs[:32], 16) == digests
    assert block_digests(inputs[:31], 16) == digests[:1]
    for changed in (0, 15, 16, 31, 32):
        other = block_digests([*inputs[:changed], inputs[changed + 1], *inputs[changed + 1 :]], 16)
        assert [a == b for a, b in zip(other, digests, strict=True)] == [changed > 15, changed > 31]


def test_where_one_packet_ends_counts():
    assert block_digests([b"ab", b"c"], 2) != block_digests([b"a", b"bc"], 2)


def test_digests_are_the_same_on_every_machine():
    assert block_digests([1, 2], 2)[0].hex() == "2cc5e4d47c5f3c5fbe635a5a5b7bb392"
    assert block_digests([b"\x01", b""], 2)[0].hex() == "6e55cbd3f8401f277fb771b508329e98"
