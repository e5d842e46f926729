"""docs/grafana/sliceserve.json asks for what a server exposes."""

import json
import re
from itertools import combinations
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from sliceserve.api.metrics import Metrics, RequestTimer
from sliceserve.client.stats import SessionStats
from sliceserve.transport.messages import Times

SAMPLES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


@pytest.fixture(scope="module")
def board():
    path = Path(__file__).parents[2] / "docs" / "grafana" / "sliceserve.json"
    return json.loads(path.read_text(encoding="utf-8"))


def queries(board):
    """Every PromQL expression, with the names of the labels that its legend shows."""
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"], re.findall(r"{{(\w+)}}", target["legendFormat"])
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"], []


def exercised():
    """What an API counts that has met everything once."""
    metrics = Metrics()
    for path in ("thin", "split"):
        timer = RequestTimer(metrics, path, "default", 5)
        timer.token(1)
        timer.token(1)
        timer.finish("stop")
        metrics.count_error(path, "overloaded", may_retry=True)
    metrics.count_uplink(100)
    metrics.count_downlink(100)
    metrics.count_packets(1, 8)
    metrics.count_times(Times(num_tokens=1, head_us=1))
    metrics.split_sessions.labels(3).inc()
    return metrics.expose(None).decode()


async def exposed(serve, make_engine):
    """Labels of every sample that servers and gateways have, by its name."""
    served = await serve(await make_engine())
    async with httpx.AsyncClient(base_url=served.url) as client:
        text = (await client.get("/metrics")).text
    gateway = Metrics(serves_split=False).expose(None, SessionStats(hidden_size=8)).decode()
    labels = {}
    for source in (text, gateway, exercised()):
        for family in text_string_to_metric_families(source):
            for ending in SAMPLES.get(family.type, ()):
                labels.setdefault(family.name + ending, set())
            for sample in family.samples:
                labels.setdefault(sample.name, set()).update(sample.labels)
    return labels


async def test_every_query_names_series_that_there_are(board, serve, make_engine):
    labels = await exposed(serve, make_engine)
    asked = list(queries(board))
    assert len(asked) > 40
    for expression, shown in asked:
        names = re.findall(r"sliceserve:\w+", expression)
        assert names, expression
        for name in names:
            assert name in labels, expression
            grouped = re.findall(r"by \(([\w, ]+)\)", expression)
            wanted = {label.strip() for group in grouped for label in group.split(",")} | set(shown)
            # Prometheus itself adds where a sample comes from.
            assert wanted <= labels[name] | {"instance"}, expression


async def test_no_series_is_forgotten(board, serve, make_engine):
    """Each has its panel, but for those that are parts of others."""
    names = {
        name for expression, _ in queries(board) for name in re.findall(r"\w+:\w+", expression)
    }
    shown = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in names}
    exposed_names = await exposed(serve, make_engine)
    there = {re.sub(r"_(total|bucket|sum|count|created)$", "", name) for name in exposed_names}
    left_out = {
        # The histograms of steps have them too.
        "sliceserve:engine_steps",
        "sliceserve:engine_tokens",
        # Queue, prefill and decode are shown, which it is the sum of.
        "sliceserve:request_inference_time_seconds",
    }
    assert there - shown == left_out


async def test_the_document_tells_of_every_series(serve, make_engine):
    document = Path(__file__).parents[2] / "docs" / "operating.md"
    told = set(re.findall(r"`(\w+)(?:{[\w,]+})?`", document.read_text(encoding="utf-8")))
    endings = r"_(bucket|sum|count|created)$"
    for name in await exposed(serve, make_engine):
        series = re.sub(endings, "", name.removeprefix("sliceserve:"))
        assert {series, f"{series}_total"} & told, name


def test_the_board_can_be_imported(board):
    assert board["title"] and board["uid"] and board["schemaVersion"] >= 36
    assert {v["name"] for v in board["templating"]["list"]} == {"datasource", "instance"}
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        position = panel["gridPos"]
        assert position["x"] >= 0 and position["x"] + position["w"] <= 24, panel["title"]
        if panel["type"] == "row":
            continue
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["title"] and panel["description"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        for target in panel["targets"]:
            for opening, closing in ("()", "[]", "{}"):
                assert target["expr"].count(opening) == target["expr"].count(closing)
    for one, other in combinations([panel["gridPos"] for panel in panels], 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)
