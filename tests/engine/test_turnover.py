"""When a full engine has room again: for everybody, and for a tenant at its own limit."""

import pytest

from sliceserve.engine.turnover import Turnovers


def test_a_tenant_at_its_own_limit_waits_for_its_own_requests():
    turnovers = Turnovers(["slow"])
    turnovers.begin("slow", 0.0)
    for i in range(50):
        turnovers.begin("fast", float(2 * i))
        turnovers.end("fast", 2 * i + 2.0)
    turnovers.end("slow", 100.0)
    turnovers.begin("slow", 100.0)
    assert turnovers.seconds_for(None, 1, 100.0) < 5
    assert turnovers.seconds_for("slow", 1, 100.0) == pytest.approx(100.0)
    assert turnovers.seconds_for("slow", 3, 100.0) == pytest.approx(300.0)


def test_idle_time_says_nothing():
    turnovers = Turnovers(["a"])
    for start in (0.0, 1000.0):
        turnovers.begin("a", start)
        turnovers.end("a", start + 10)
    assert turnovers.seconds_for("a", 1, 2000.0) == pytest.approx(10.0)


def test_before_any_has_ended_the_time_so_far_is_what_is_known():
    turnovers = Turnovers(["a"])
    turnovers.begin("a", 10.0)
    assert turnovers.seconds_for("a", 2, 40.0) == pytest.approx(60.0)
    assert turnovers.seconds_for(None, 1, 40.0) == pytest.approx(30.0)
