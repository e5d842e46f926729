"""The crowd of `benchmarks/endurance.py`, small: 100 streams over HTTP and 20 split sockets."""

import argparse
import asyncio
import importlib
from pathlib import Path

import pytest

from sliceserve.cli.local_server import local_server

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def endurance():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("endurance")


@pytest.mark.e2e
def test_a_crowd_gets_its_answers_and_leaves_nothing(endurance, tiny_model):
    options = argparse.Namespace(http=100, split=20, max_tokens=8, minutes=3.0, model=tiny_model)
    with local_server(["--model", tiny_model, "--cuts", "3", "--profiles", "off"]) as server:
        result = asyncio.run(endurance.endure(server, options))
    assert not endurance.failed(result), result
    assert result["http"] + result["left_early"] == 100
    assert (result["split"], result["mixed_up"]) == (20, 0)
    assert result["left_early"] > 0


def census(endurance, **counts):
    nothing = dict.fromkeys(endurance.Census.__dataclass_fields__, 0)
    return endurance.Census(**nothing | counts)


def test_what_is_held_for_longer_than_before_is_left_behind(endurance):
    before = census(endurance, fds=9, sockets=2, tasks=3, rss_mb=100)
    after = census(endurance, fds=12, sockets=1, tasks=3, rss_mb=900, live=1)
    assert endurance.left_behind(before, after) == {"fds": 3, "live": 1}
    assert endurance.left_behind(before, before) == {}


@pytest.mark.parametrize("wrong", [{"errors": 1}, {"mixed_up": 1}, {"left_behind": {"fds": 1}}])
def test_a_broken_promise_is_a_failure(endurance, wrong):
    well = {"errors": 0, "mixed_up": 0, "left_behind": {}}
    assert endurance.failed(well | wrong) and not endurance.failed(well)
