"""Profiles that are found again, whole, by digest and by key; and nothing else is."""

import hashlib
import os
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sliceserve.codec.profile_store import ProfileKey, ProfileStore, digest_of, is_digest

KEY = ProfileKey("f" * 32, 15, "state", 1)
DATA = b"a profile"


@pytest.fixture
def store(tmp_path):
    return ProfileStore(tmp_path / "a" / "b")


def test_what_is_put_is_found_by_its_digest(store):
    digest = store.put(DATA)
    assert digest == hashlib.sha256(DATA).hexdigest() == digest_of(DATA)
    assert store.get(digest) == DATA == store.path(digest).read_bytes()
    assert ProfileStore(store.folder).get(digest) == DATA
    assert store.put(DATA) == digest
    assert [file.name for file in store.folder.iterdir()] == [f"{digest}.safetensors"]


def test_what_is_not_there(store):
    assert store.get("0" * 64) is None
    assert store.find(KEY) is None


@pytest.mark.parametrize("damage", [b"", DATA[:-1], DATA + b"x", b"another"])
def test_a_damaged_file_is_not_there_and_is_replaced(store, damage):
    digest = store.put(DATA)
    store.path(digest).write_bytes(damage)
    assert store.get(digest) is None
    assert store.put(DATA) == digest
    assert store.get(digest) == DATA


@given(st.text(max_size=70) | st.from_regex(r"[0-9a-f./]{63,65}", fullmatch=True))
def test_no_other_file_has_a_digest_for_a_name(text):
    store = ProfileStore(Path("/nowhere"))
    if is_digest(text):
        assert store.path(text).parent == store.folder
    else:
        with pytest.raises(ValueError, match="64 hex digits"):
            store.path(text)


@pytest.mark.parametrize("digest", ["", "../" * 20, "0" * 63 + "\n", "0" * 64 + "\n", "A" * 64])
def test_digests_from_a_wire_reach_no_other_files(store, digest):
    for use in (store.path, store.get):
        with pytest.raises(ValueError, match="64 hex digits"):
            use(digest)


def test_an_index_from_keys_to_digests(store):
    digest = store.put(DATA)
    store.assign(KEY, digest)
    assert store.find(KEY) == digest
    others = [
        ProfileKey("e" * 32, 15, "state", 1),
        ProfileKey("f" * 32, 5, "state", 1),
        ProfileKey("f" * 32, 15, "none", 1),
        ProfileKey("f" * 32, 15, "state", 2),
    ]
    assert [store.find(other) for other in others] == [None] * 4
    store.assign(KEY, "0" * 64)
    assert store.find(KEY) == "0" * 64
    (store.folder / f"{KEY.name}.digest").write_text("half a dig")
    assert store.find(KEY) is None


def test_a_write_that_fails_leaves_nothing(store, monkeypatch):
    def fail(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        store.put(DATA)
    assert list(store.folder.iterdir()) == []


def test_one_at_a_time_makes_what_the_others_wait_for(store):
    made = []

    def make():
        with store.locked("f"):
            if store.find(KEY) is None:
                time.sleep(0.05)
                made.append(threading.get_ident())
                store.assign(KEY, store.put(DATA))

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
