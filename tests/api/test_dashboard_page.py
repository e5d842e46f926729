"""/dashboard in a real browser."""

import asyncio
import re

import httpx
import msgspec
import pytest
from browser import has_sideways_scroll, picture, start_browser, until
from crowd import NUM_PROMPT, gather
from prometheus_client.parser import text_string_to_metric_families

from sliceserve.api.dashboard.figures import Counts, Rates, State
from sliceserve.api.dashboard.readings import Readings

pytestmark = pytest.mark.timeout(240)

NUM_CLIENTS = 200
PARTS = ("head", "encode", "link", "queue", "tail", "sample")
SHOWN = "#view:not([hidden])"


@pytest.fixture
async def browser():
    async with start_browser() as browser:
        yield browser


async def in_all_looks(page, name):
    """Pictures in light, dark and on a phone, which must not scroll sideways."""
    for scheme in ("light", "dark"):
        await page.emulate_media(color_scheme=scheme)
        await picture(page, f"{name}-{scheme}")
    await page.set_viewport_size({"width": 360, "height": 740})
    await page.wait_for_timeout(200)
    assert not await has_sideways_scroll(page)
    await picture(page, f"{name}-phone")
    await page.click("#tables")
    assert not await has_sideways_scroll(page)
    await page.click("#tables")
    await page.set_viewport_size({"width": 1360, "height": 900})


def words_of(text):
    return re.findall(r"\b(?:NaN|undefined|null|Infinity|\[object)\b", text)


async def test_with_nobody_there(serve, fake, browser):
    served = await serve(fake())
    page = await browser.open(served.url)
    await page.wait_for_selector("#welcome:not([hidden])")
    assert f"--server {served.url} --split 3" in await page.inner_text("#commands")
    assert await page.inner_text("#clients-number") == "0"
    assert await page.inner_text("#errors-number") == "0"
    assert await page.inner_text("#model") == "tiny"
    assert await page.title() == "tiny · SliceServe"
    await until(page, "document.querySelectorAll('.dot.c1').length > 0")
    assert words_of(await page.inner_text("body")) == []
    await in_all_looks(page, "empty")
    browser.expect_quiet(served.url)


async def test_themes_and_motion(serve, fake, browser):
    served = await serve(fake())
    page = await browser.open(served.url, color_scheme="light", reduced_motion="reduce")
    await page.wait_for_selector(SHOWN)

    async def paper():
        return await page.evaluate("getComputedStyle(document.body).backgroundColor")

    light = await paper()
    await page.emulate_media(color_scheme="dark")
    dark = await paper()
    assert light != dark
    await page.click("#theme")
    assert (await page.inner_text("#theme"), await paper()) == ("Theme: light", light)
    # What was chosen outlives the page.
    await page.reload()
    assert (await page.inner_text("#theme"), await paper()) == ("Theme: light", light)
    await page.click("#theme")
    await page.emulate_media(color_scheme="light")
    assert (await page.inner_text("#theme"), await paper()) == ("Theme: dark", dark)
    await page.wait_for_selector('#link[data-state="live"]')
    moves = "getComputedStyle(document.querySelector('#link .dot')).animationName"
    assert await page.evaluate(moves) == "none"
    await page.emulate_media(reduced_motion="no-preference")
    assert await page.evaluate(moves) == "breathe"
    browser.expect_quiet(served.url)


async def test_with_200_clients_it_shows_what_metrics_say(serve, make_engine, browser):
    engine = await make_engine(max_requests=256)
    served = await serve(engine)
    page = await browser.open(served.url)
    await page.wait_for_selector(SHOWN)
    async with httpx.AsyncClient(base_url=served.url, timeout=120) as http:
        async with gather(served, engine, NUM_CLIENTS) as crowd:
            request = {"model": "tiny", "prompt": "Slices", "max_tokens": 8, "ignore_eos": True}
            talking = asyncio.create_task(crowd.talk(num_tokens=6, num_requests=2))
            for _ in range(4):
                assert (await http.post("/v1/completions", json=request)).status_code == 200
            assert (await http.post("/v1/completions", json={**request, "n": 0})).status_code == 400
            await until(page, "document.querySelector('#clients-number').innerText > 0")
            await talking
            await expect_equal(page, http)
            await in_all_looks(page, "load")
            await expect_equal(page, http)
        # They go, and the page sees them go.
        await until(page, "document.querySelector('#clients-number').innerText == '0'")
        await expect_equal(page, http)
    browser.expect_quiet(served.url)


async def expect_equal(page, http):
    """All that does not depend on the clock, once the page has seen the last of it."""
    readings = Readings(text_string_to_metric_families((await http.get("/metrics")).text))
    total, state = Rates.of(Counts.of(readings, 1.0)), State.of(readings, 0.0, draining=False)
    expected = await page.evaluate(_WORDS, msgspec.to_builtins([total, state]))
    assert expected["tokens for split clients"] == f"{NUM_CLIENTS * 12:,}"
    assert expected["hidden states"] == f"{NUM_CLIENTS * 2 * (NUM_PROMPT + 5):,}"
    assert expected["errors"] == "1" and set(expected["parts"]) == set(PARTS)
    shown = None
    for _ in range(100):
        shown = await page.evaluate(_SHOWN)
        if shown == expected:
            return
        await page.wait_for_timeout(100)
    assert shown == expected


# The figures in the page's own words, from /metrics …
_WORDS = """
async ([total, state]) => {
  const f = await import("/dashboard/format.js");
  const sum = (table) => Object.values(table).reduce((all, n) => all + n, 0);
  const ratio = total.uplink_bytes_per_token / total.fp16_bytes_per_token;
  const words = {
    clients: f.whole(sum(state.sessions)),
    cuts: Object.entries(state.sessions).map(([cut, n]) => `${cut}: ${f.whole(n)}`),
    kv: state.kv.map((s) => [s.segment, ...[s.num_used, s.num_cached, s.num_blocks].map(f.whole)]),
    errors: f.whole(sum(total.errors)),
    "fp16 to uplink": f.number(Math.max(ratio, 1 / ratio)) + (ratio > 1 ? " more" : " fewer"),
    "uplink since start": f.bytes(total.uplink_bytes_per_token),
    parts: Object.fromEntries(Object.entries(total.parts).map(([part, s]) => [part, f.seconds(s)])),
    "tokens for split clients": f.whole(total.split_tokens),
    "tokens for thin clients": f.whole(total.thin_tokens),
    "prompt tokens": f.whole(total.prompt_tokens),
    "hidden states": f.whole(total.uplink_tokens),
    "forward passes": f.whole(total.num_steps),
    "bytes up": f.bytes(total.uplink_bytes),
    prefix: f.percent(total.prefix_hit_rate),
    ended: f.whole(total.ended.length),
  };
  for (const key of ["first_token", "inter_token", "request"]) {
    const { p50, p90, p99, count } = total[key];
    words[key] = [...[p50, p90, p99].map(f.seconds), f.whole(count)];
  }
  return words;
}
"""

# … and as they stand there. All has happened within the last minute.
_SHOWN = """
() => {
  const text = (selector, root = document) => root.querySelector(selector)?.innerText ?? "";
  const texts = (selector, root) => [...root.querySelectorAll(selector)].map((n) => n.innerText);
  const all = (selector) => [...document.querySelectorAll(selector)];
  const rows = all("#latency tr").filter((row) => row.innerText.startsWith("since start"));
  const cells = rows.map((row) => texts("td", row));
  const total = Object.fromEntries(all("#totals dd").map((dd) => [dd.dataset.total, dd.innerText]));
  return {
    clients: text("#clients-number"),
    cuts: all("#cuts .count").map((n) => `${n.dataset.cut}: ${n.innerText}`),
    kv: all("#kv .row").map((row) => [row.dataset.segment, ...texts("b", row)]),
    errors: /([\\d,]+) since start/.exec(text("#errors-sub"))[1],
    "fp16 to uplink": text("#uplink .number").replace(" times as many", " more").replace(
      " times fewer", " fewer").replace(" bytes", ""),
    "uplink since start": text("#uplink-total"),
    parts: Object.fromEntries(all(".part").map((part) => [part.dataset.part, text("b", part)])),
    "tokens for split clients": total["tokens for split clients"],
    "tokens for thin clients": total["tokens for thin clients"],
    "prompt tokens": total["prompt tokens"],
    "hidden states": total["hidden states"],
    "forward passes": total["forward passes"],
    "bytes up": total["bytes up"],
    prefix: text("#prefix .number").split(" of")[0],
    ended: text("#ends .good dd"),
    first_token: cells[0],
    inter_token: cells[1],
    request: cells[2],
  };
}
"""


async def test_by_keyboard(serve, fake, browser):
    served = await serve(fake())
    page = await browser.open(served.url)
    await until(page, "document.querySelectorAll('.dot.c1').length > 0")
    focus = "() => [document.activeElement.id || document.activeElement.className, "
    focus += "getComputedStyle(document.activeElement).outlineStyle]"
    seen = []
    for _ in range(12):
        await page.keyboard.press("Tab")
        name, outline = await page.evaluate(focus)
        assert outline == "solid", name
        seen.append(name)
    assert seen == ["skip", "tables", "theme", *["plot"] * 8, ""]
    # The last is the link to /metrics; the one before it a chart, which arrows read.
    await page.keyboard.press("Shift+Tab")
    await page.wait_for_timeout(2500)
    await page.keyboard.press("ArrowRight")
    when = page.locator("#errors-card .when")
    assert await when.inner_text() == "now"
    await page.keyboard.press("ArrowLeft")
    assert (await when.inner_text()).endswith("ago")
    # All charts are read at the same moment.
    assert await page.inner_text("#clients-card .when") == await when.inner_text()
    await page.keyboard.press("Escape")
    assert await when.inner_text() == ""
    # Charts say what they show, and are tables on request.
    label = await page.get_attribute("#clients-card .plot", "aria-label")
    assert "split clients: now 0, from 0 to 0" in label
    await page.focus("#tables")
    await page.keyboard.press("Space")
    await page.wait_for_selector("#clients-card .table table")
    assert await page.get_attribute("#tables", "aria-pressed") == "true"
    await page.focus(".skip")
    await page.keyboard.press("Enter")
    assert (await page.evaluate(focus))[0] == "figures"
    # Whoever listens is told when the line is lost, and not of every figure.
    live = "[...document.querySelectorAll('[aria-live], [role=status], [role=alert]')]"
    assert await page.evaluate(f"{live}.map((node) => node.id)") == ["banner", "refusal"]
    browser.expect_quiet(served.url)


async def test_a_key_is_asked_for(serve, fake, browser):
    served = await serve(fake(), api_keys={"sésame": "default"})
    page = await browser.open(served.url)
    await page.wait_for_selector("#door:not([hidden])")
    assert await page.is_hidden("#view")
    assert await page.evaluate("document.activeElement.id") == "key"
    await picture(page, "key")
    await page.keyboard.type("guess")
    await page.keyboard.press("Enter")
    await until(page, "document.querySelector('#refusal').innerText != ''")
    assert await page.get_attribute("#key", "aria-invalid") == "true"
    await page.keyboard.type("sésame")
    await page.keyboard.press("Enter")
    await page.wait_for_selector(SHOWN)
    # This tab remembers it, and forgets it when told to.
    await page.reload()
    await page.wait_for_selector(SHOWN)
    await page.click("#lock")
    await page.wait_for_selector("#door:not([hidden])")
    assert not [url for url in browser.urls if "same" in url or "?" in url]
    # The browser itself notes each answer with 401.
    assert {"401" in complaint for complaint in browser.complaints} == {True}


async def test_it_says_so_when_the_line_is_lost_and_comes_back(serve, fake, browser):
    served = await serve(fake())
    page = await browser.open(served.url)
    await page.wait_for_selector('#link[data-state="live"]')
    served.shutdown.requested.set()
    await served.task
    await page.wait_for_selector('#link[data-state="lost"]')
    banner = await page.inner_text("#banner")
    assert banner.startswith("The server") and "What you see is from" in banner
    assert await page.evaluate("document.body.classList.contains('stale')")
    await picture(page, "lost")
    again = await serve(fake(), port=int(served.url.rpartition(":")[2]))
    await page.wait_for_selector('#link[data-state="live"]')
    assert await page.is_hidden("#banner")
    assert again.url == served.url
