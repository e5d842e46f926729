// The page: its parts, the line to the server, and what to say when that is lost.

import { makeCards } from "./cards.js";
import { el, show, text } from "./dom.js";
import { duration, plural, whole } from "./format.js";
import { updatePanels } from "./panels.js";
import { Stream } from "./stream.js";

const find = (id) => document.getElementById(id);
const KEY = "sliceserve.key";
const LINK_WORDS = { connecting: "Connecting", live: "Live", draining: "Draining", lost: "Not connected", locked: "Locked", absent: "Switched off" };

let cards = null;
let about = null;
let points = [];
let heardAt = null;
let ended = false;

const stream = new Stream("dashboard/events", onEvent, onState);

function onEvent(kind, data) {
  if (kind === "about") {
    about = data;
    ended = false;
    document.body.classList.toggle("gateway", about.role === "gateway");
    cards ??= makeCards(find("charts"), about.role);
  } else if (kind === "end") {
    ended = true;
  } else if (kind === "sample") {
    onSample(data);
  }
}

function onSample(sample) {
  const { state, point, history } = sample;
  // A worker that has taken over knows its own past alone; what was seen here is kept.
  const known = new Set(points.map(({ at }) => at));
  points = [...points, ...(history.length ? history : [point]).filter(({ at }) => !known.has(at))]
    .filter(({ at }) => at >= point.at - about.history_s)
    .sort((a, b) => a.at - b.at);
  heardAt = new Date();
  find("door").hidden = true;
  find("view").hidden = false;
  find("lock").hidden = !stream.key;
  if (stream.key) remember(stream.key);
  setLink(state.draining ? "draining" : "live");
  setBanner(state.draining ? `The server is shutting down: ${plural(state.live, "request")} may still end.` : "");
  text(find("model"), about.model);
  document.title = `${about.model} · SliceServe`;
  showFacts(state);
  showWelcome(sample);
  const span = spanOf(points);
  text(find("charts-title"), span === 60 ? "The last minute" : `The last ${span / 60} minutes`);
  cards.update(sample, points, about.interval_s, span);
  updatePanels(sample, about);
}

/** Whole minutes, in seconds, that hold what there is to show. */
function spanOf(points) {
  const minutes = Math.ceil((points.at(-1).at - points[0].at) / 60 - 0.02);
  return 60 * Math.min(Math.max(1, minutes), about.history_s / 60);
}

function showFacts(state) {
  const layers = about.first_layer ? `${about.first_layer} to ${about.num_layers}` : about.num_layers;
  const facts = {
    role: about.role,
    version: about.version,
    ...(about.num_layers ? { layers, runs: `${about.dtype} on ${about.device}` } : {}),
    workers: whole(state.workers),
    up: duration(state.uptime),
  };
  show(find("facts"), facts, () =>
    Object.entries(facts).map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, String(value)))),
  );
}

function showWelcome({ state, total }) {
  const used = total.split_tokens + total.thin_tokens + state.live;
  find("welcome").hidden = used > 0;
  const here = location.origin;
  const ways = {};
  if (about.cuts?.length) {
    const middle = about.cuts[Math.floor(about.cuts.length / 2)];
    ways["a split client"] = `sliceserve chat --server ${here} --split ${middle}`;
  }
  if (about.thin !== false) {
    const body = JSON.stringify({ model: about.model, messages: [{ role: "user", content: "Hello!" }] });
    ways["any client"] = `curl ${here}/v1/chat/completions -H 'Content-Type: application/json' -d '${body}'`;
  }
  show(find("commands"), ways, () =>
    Object.entries(ways).flatMap(([who, words]) => [el("dt", {}, who), el("dd", {}, el("code", {}, words))]),
  );
}

function onState(state, wasRefused) {
  if (state === "connecting" && heardAt) return;
  setLink(state);
  if (state === "lost") setBanner(lostWords());
  if (state === "absent") setBanner("This server has no dashboard any more.");
  if (state === "locked") lock(wasRefused);
  document.body.classList.toggle("stale", state !== "connecting" && heardAt !== null);
}

function lostWords() {
  const why = ended ? "The server has ended." : "The server does not answer.";
  const seen = heardAt ? ` What you see is from ${heardAt.toLocaleTimeString("en-GB")}.` : "";
  return `${why}${seen} This page goes on by itself as soon as it is back.`;
}

function setLink(state) {
  find("link").dataset.state = state;
  text(find("link-text"), LINK_WORDS[state]);
  if (state === "live" || state === "draining") document.body.classList.remove("stale");
}

function setBanner(words) {
  find("banner").hidden = !words;
  text(find("banner"), words);
}

// Keys: in this tab alone, and never in an address.

function remember(key) {
  try {
    sessionStorage.setItem(KEY, key);
  } catch {
    // The key is then asked for after each reload.
  }
}

function remembered() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return "";
  }
}

function lock(wasRefused) {
  remember("");
  setBanner("");
  find("view").hidden = true;
  find("lock").hidden = true;
  find("door").hidden = false;
  find("key").setAttribute("aria-invalid", String(wasRefused));
  text(find("refusal"), wasRefused ? "The server does not know this key." : "");
  find("key").value = "";
  find("key").focus();
}

find("door").addEventListener("submit", (event) => {
  event.preventDefault();
  text(find("refusal"), "");
  stream.unlock(find("key").value);
});
find("lock").addEventListener("click", () => {
  remember("");
  location.reload();
});
find("tables").addEventListener("click", ({ currentTarget: button }) => {
  const shown = document.body.classList.toggle("tables");
  button.setAttribute("aria-pressed", String(shown));
});
addEventListener("online", () => stream.hurry());

stream.key = remembered();
stream.start();
