// What is not a line over time: cuts, blocks, parts of a token's time, percentiles, totals.

import { bar, el, show, text } from "./dom.js";
import { bytes, number, percent, plural, seconds, whole } from "./format.js";

const PARTS = {
  head: "layers on the device",
  encode: "codec on the device",
  link: "network, both ways",
  queue: "waits for a pass",
  tail: "layers on the server",
  sample: "chooses the token",
};

const find = (id) => document.getElementById(id);

export function updatePanels(sample, about) {
  showCuts(sample.state.sessions, about);
  showParts(sample.long.parts, sample.total.parts);
  show(find("kv"), sample.state.kv, (segments) =>
    segments.length ? segments.map(kvRow) : nothing("This server tells nothing of its blocks."),
  );
  showUplink(sample.long, sample.total);
  showLatency(sample.long, sample.total);
  showPrefix(sample.long, sample.total);
  showEnds(sample.total);
  showTotals(sample.total);
}

function nothing(words) {
  return el("p", { class: "nothing" }, words);
}

function showCuts(sessions, about) {
  find("cuts-card").hidden = about.role === "gateway";
  const cuts = [...new Set([...(about.cuts ?? []), ...Object.keys(sessions).map(Number)])];
  const rows = cuts.sort((a, b) => a - b).map((cut) => [cut, sessions[cut] ?? 0]);
  const all = rows.reduce((total, [, n]) => total + n, 0);
  text(find("cuts-note"), all ? "" : "none is connected");
  show(find("cuts"), [rows, about.num_layers], () =>
    rows.length
      ? [cutsKey(), ...rows.map(([cut, n]) => cutRow(cut, n, all, about.num_layers))]
      : nothing("This server offers no cut."),
  );
}

function cutsKey() {
  const entry = (kind, words) => el("span", { class: "entry" }, el("i", { class: `swatch box ${kind}` }), words);
  return el("p", { class: "legend" }, entry("device", "layers on the device"), entry("server", "here"));
}

function cutRow(cut, n, all, numLayers) {
  const words = `${cut} of ${numLayers} layers on the device: ${plural(n, "client")}`;
  const layers = bar(words, [[cut, "device"], [numLayers - cut, "server"]], numLayers);
  const share = el("span", { class: "share" }, all ? percent(n / all) : "");
  const count = el("span", { class: "count", "data-cut": cut }, whole(n));
  return el("div", { class: n ? "cut" : "cut none" }, el("span", { class: "label" }, `cut ${cut}`), layers, count, share);
}

function kvRow({ segment, num_blocks: all, num_used: used, num_cached: cached }) {
  const words = `layers ${segment}: ${whole(used)} used, ${whole(cached)} cached, of ${whole(all)}`;
  return el(
    "div",
    { class: "row", "data-segment": segment },
    el("span", { class: "label" }, `layers ${segment.replace("-", "–")}`),
    bar(words, [[used, "used"], [cached, "cached"]], all),
    el(
      "p",
      { class: "detail" },
      el("b", {}, whole(used)), " used, ",
      el("b", {}, whole(cached)), " with cached prefixes, of ",
      el("b", {}, whole(all)),
    ),
  );
}

function showParts(recent, total) {
  const some = Object.keys(recent).length > 0;
  const parts = some ? recent : total;
  text(find("parts-note"), some ? "mean of the last minute" : "mean since start");
  show(find("parts"), [parts], () => {
    const known = Object.keys(PARTS).filter((part) => part in parts);
    if (!known.length) return nothing("No client has told yet where its tokens' time went.");
    const whole = known.reduce((sum, part) => sum + parts[part], 0);
    const words = known.map((part) => `${part} ${seconds(parts[part])}`).join(", ");
    const rows = known.map((part) =>
      el(
        "div",
        { class: "part", "data-part": part },
        el("i", { class: `swatch box part-${part}` }),
        el("dt", {}, part, el("span", { class: "what" }, PARTS[part])),
        el("dd", {}, el("b", {}, seconds(parts[part])), el("span", { class: "share" }, percent(parts[part] / whole))),
      ),
    );
    return [
      el("p", { class: "number" }, seconds(whole), el("small", {}, " a token")),
      bar(words, known.map((part) => [parts[part], `part-${part}`]), whole),
      el("dl", { class: "parts" }, ...rows),
    ];
  });
}

function showUplink(recent, total) {
  const rates = recent.uplink_bytes_per_token == null ? total : recent;
  const { uplink_bytes_per_token: sent, fp16_bytes_per_token: fp16 } = rates;
  text(find("uplink-note"), rates === recent ? "mean of the last minute" : "mean since start");
  show(find("uplink"), [sent, fp16, total.uplink_bytes_per_token], () => {
    if (sent == null || fp16 == null) return nothing("No hidden state has crossed the line yet.");
    const line = (label, n, kind) =>
      el("div", { class: "row pair" }, el("span", { class: "label" }, label), bar(`${label}: ${bytes(n)}`, [[n, kind]], Math.max(sent, fp16)), el("b", {}, bytes(n)));
    return [
      el("p", { class: "number" }, number(Math.max(fp16 / sent, sent / fp16)), el("small", {}, fp16 < sent ? " times as many bytes" : " times fewer bytes")),
      line("sent", sent, "used"),
      line("fp16", fp16, "muted"),
      el("p", { class: "detail" }, "A hidden state with everything around it: ", el("b", { id: "uplink-total" }, bytes(total.uplink_bytes_per_token)), " since start."),
    ];
  });
}

function showLatency(recent, total) {
  const names = { first_token: "Time to first token", inter_token: "Between two tokens", request: "Whole request" };
  const groups = Object.entries(names).map(([key, name]) => [name, recent[key], total[key]]);
  show(find("latency"), groups, () => {
    const head = el("tr", {}, ...["", "p50", "p90", "p99", "count"].map((h) => el("th", { scope: "col" }, h)));
    const bodies = groups.map(([name, minute, start]) =>
      el(
        "tbody",
        {},
        el("tr", { class: "group" }, el("th", { scope: "rowgroup", colspan: "5" }, name)),
        percentileRow("last minute", minute),
        percentileRow("since start", start),
      ),
    );
    const caption = el("caption", { class: "quiet" }, "Percentiles of latency");
    return el("table", {}, caption, el("thead", {}, head), ...bodies);
  });
}

function percentileRow(span, { p50, p90, p99, count }) {
  const cells = [seconds(p50), seconds(p90), seconds(p99), whole(count)].map((words) => el("td", {}, words));
  return el("tr", {}, el("th", { scope: "row" }, span), ...cells);
}

function showPrefix(recent, total) {
  show(find("prefix"), [recent.prefix_hit_rate, total.prefix_hits, total.prefix_queries], () => {
    if (!total.prefix_queries) return nothing("No prompt has been looked up yet.");
    const hits = percent(total.prefix_hit_rate);
    return [
      el("p", { class: "number" }, hits, el("small", {}, " of prompt positions were there")),
      bar(`${hits} since start`, [[total.prefix_hits, "used"]], total.prefix_queries),
      el("p", { class: "detail" }, el("b", {}, whole(total.prefix_hits)), " of ", el("b", {}, whole(total.prefix_queries)), " since start; ", el("b", {}, percent(recent.prefix_hit_rate)), " in the last minute."),
    ];
  });
}

function showEnds({ ended, errors }) {
  const rows = (counts, kind) =>
    Object.entries(counts)
      .filter(([, n]) => n)
      .sort(([, a], [, b]) => b - a)
      .map(([name, n]) => el("div", { class: kind }, el("dt", {}, name), el("dd", {}, whole(n))));
  show(find("ends"), [ended, errors], () => {
    const [good, bad] = [rows(ended, "good"), rows(errors, "bad")];
    if (!bad.length) bad.push(el("div", {}, el("dt", { class: "nothing" }, "no errors"), el("dd", {}, "0")));
    return el("dl", { class: "totals" }, ...good, ...bad);
  });
}

function showTotals(total) {
  const rows = {
    "tokens for split clients": whole(total.split_tokens),
    "tokens for thin clients": whole(total.thin_tokens),
    "prompt tokens": whole(total.prompt_tokens),
    "hidden states": whole(total.uplink_tokens),
    "bytes up": bytes(total.uplink_bytes),
    "bytes down": bytes(total.downlink_bytes),
    "forward passes": whole(total.num_steps),
    preemptions: whole(total.num_preempted),
  };
  show(find("totals"), rows, () =>
    Object.entries(rows).map(([name, words]) => el("div", {}, el("dt", {}, name), el("dd", { "data-total": name }, words))),
  );
}
