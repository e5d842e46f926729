// The charts: what is on each, and the number above it.

import { ChartCard } from "./charts.js";
import { text } from "./dom.js";
import { bytes, number, percent, plural, seconds, whole } from "./format.js";

const sum = (table) => Object.values(table).reduce((total, n) => total + n, 0);
const PERCENTILES = (name) => [
  { key: `${name}_p50`, label: "half below", kind: "c1" },
  { key: `${name}_p99`, label: "99 % below", kind: "c2 dashed" },
];

// `now` words the number, `sub` what stands under it, both of an event's data.
const CARDS = [
  {
    id: "clients",
    title: "Clients",
    series: "sliceserve:split_sessions, num_requests_live",
    lines: [
      { key: "sessions", label: "split clients", kind: "c1" },
      { key: "live", label: "live requests", kind: "c2 dashed" },
    ],
    format: whole,
    now: ({ state }) => whole(sum(state.sessions)),
    sub: ({ state }) => `split, and ${plural(state.live, "request")} live in all`,
  },
  {
    id: "tokens",
    title: "Tokens per second",
    series: "sliceserve:generation_tokens_total",
    lines: [
      { key: "split_per_s", label: "split", kind: "c1" },
      { key: "thin_per_s", label: "thin", kind: "c2 dashed" },
    ],
    format: number,
    now: ({ short }) => number(short.tokens_per_s),
    sub: ({ total }) => `${whole(total.split_tokens + total.thin_tokens)} since start`,
  },
  {
    id: "batch",
    title: "Batch size",
    series: "sliceserve:iteration_requests, engine_busy_seconds_total",
    lines: [{ key: "requests_per_step", label: "requests in a pass", kind: "c1" }],
    format: number,
    now: ({ short }) => number(short.requests_per_step),
    sub: ({ short }) =>
      `${number(short.rows_per_step)} rows in a pass, engine ${percent(short.busy)} busy`,
  },
  {
    id: "queue",
    title: "Queue",
    series: "sliceserve:num_requests_queued, num_requests_waiting, num_requests_detached",
    lines: [
      { key: "queued", label: "for admission", kind: "c1" },
      { key: "waiting", label: "for memory", kind: "c2 dashed" },
    ],
    format: whole,
    now: ({ state }) => whole(state.queued + state.waiting),
    sub: ({ state, total }) =>
      `waiting; ${whole(state.detached)} detached, ${whole(total.num_preempted)} preemptions`,
  },
  {
    id: "first",
    title: "Time to first token",
    series: "sliceserve:time_to_first_token_seconds",
    lines: PERCENTILES("first_token"),
    format: seconds,
    now: ({ short }) => seconds(short.first_token.p50),
    sub: ({ short }) => `${plural(short.first_token.count, "answer")} begun`,
  },
  {
    id: "inter",
    title: "Between two tokens",
    series: "sliceserve:inter_token_latency_seconds",
    lines: PERCENTILES("inter_token"),
    format: seconds,
    now: ({ short }) => seconds(short.inter_token.p50),
    sub: ({ short }) => `${plural(short.inter_token.count, "token")} after the first`,
  },
  {
    id: "bytes",
    title: "Uplink per token",
    series: "sliceserve:split_uplink_bytes_total / split_uplink_tokens_total",
    lines: [{ key: "uplink_bytes_per_token", label: "bytes for a hidden state", kind: "c1" }],
    format: bytes,
    now: ({ short }) => bytes(short.uplink_bytes_per_token),
    sub: ({ total }) =>
      total.fp16_bytes_per_token == null
        ? "no hidden states yet"
        : `of ${bytes(total.fp16_bytes_per_token)} in fp16, the dotted line`,
    reference: ({ total }) => total.fp16_bytes_per_token,
  },
  {
    id: "errors",
    title: "Errors",
    series: "sliceserve:request_errors_total",
    lines: [{ key: "errors", label: "in 10 seconds", kind: "c3" }],
    format: whole,
    now: ({ long }) => whole(sum(long.errors)),
    sub: ({ total }) => `in the last minute; ${whole(sum(total.errors))} since start`,
  },
];

// A gateway has no split clients: it is one.
const GATEWAY_CLIENTS = {
  ...CARDS[0],
  title: "Requests",
  series: "sliceserve:num_requests_live",
  lines: [{ key: "live", label: "live", kind: "c1" }],
  now: ({ state }) => whole(state.live),
  sub: ({ state }) => `live, ${whole(state.running)} of them running here`,
};

export function makeCards(host, role) {
  const specs = role === "gateway" ? [GATEWAY_CLIENTS, ...CARDS.slice(1)] : CARDS;
  const cards = specs.map((spec) => ({ ...spec, chart: new ChartCard(spec) }));
  host.append(...cards.map(({ chart }) => chart.node));
  return {
    update(sample, points, interval, span) {
      for (const { chart, now, sub, reference } of cards) {
        text(chart.number, now(sample));
        text(chart.unit, sub(sample));
        chart.update(points, interval, span, reference?.(sample) ?? null);
      }
    },
  };
}
