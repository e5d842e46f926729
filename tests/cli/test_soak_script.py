"""What the soak makes of its samples."""

import argparse
import importlib.util
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "soak.py"


@pytest.fixture(scope="module")
def soak():
    spec = importlib.util.spec_from_file_location("soak", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["soak"] = module
    spec.loader.exec_module(module)
    return module


def sample(seconds, rss_mb):
    counts = {"fds": 9, "live": 2, "queued": 1, "packet_bytes": 7, "kv_used": 0.5, "preempted": 3}
    return {"seconds": seconds, "rss_mb": rss_mb, **counts}


@pytest.mark.parametrize("left", [0, 1])
def test_the_slope_is_that_after_the_warm_up(soak, left):
    options = argparse.Namespace(minutes=10, clients=1, warm_up=0.5)
    steep = [sample(s, 10 * s) for s in range(0, 300, 10)]
    slow = [sample(s, 100 + s / 3600) for s in range(300, 600, 10)]
    quiet = dict.fromkeys(("kv_cache_usage_perc", "num_requests_live", "num_requests_queued"), 0)
    tally = soak.Tally(errors=["odd"])
    result = soak.summarize([*steep, *slow], tally, quiet | {"held_packet_bytes": left}, options)
    assert result["rss_mb_per_hour"] == pytest.approx(1.0)
    assert result["rss_percent_per_hour"] == pytest.approx(1.0, abs=0.01)
    assert (result["samples"], result["errors"], result["all_free"]) == (30, 1, left == 0)
