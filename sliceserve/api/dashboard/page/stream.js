// Server-sent events over fetch: unlike EventSource it can send a key, and says why it was refused.

const FIRST_PAUSE_MS = 1000;
const LONGEST_PAUSE_MS = 15000;
// A line that brings nothing for so long is dead, or the server too busy to be asked.
const SILENCE_MS = 15000;

/** Events of `url` until `stop`, over as many connections as it takes.
 *
 * `onEvent(kind, data)` gets each, `onState(state, detail)` what the line is like: "connecting",
 * "live", "lost" (another try comes), "locked" (a key is wanted; `unlock` goes on), "absent". */
export class Stream {
  constructor(url, onEvent, onState) {
    this.url = url;
    this.onEvent = onEvent;
    this.onState = onState;
    this.key = "";
    this.pause = FIRST_PAUSE_MS;
  }

  async start() {
    this.onState("connecting");
    for (;;) {
      const refused = await this.connect();
      if (refused) return;
      this.onState("lost");
      await this.wait();
    }
  }

  /** Go on with another key. */
  unlock(key) {
    this.key = key;
    this.pause = FIRST_PAUSE_MS;
    this.start();
  }

  /** Do not wait for the next try. */
  hurry() {
    this.wake?.();
  }

  wait() {
    const pause = this.pause * (0.75 + Math.random() / 2);
    this.pause = Math.min(2 * this.pause, LONGEST_PAUSE_MS);
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, pause);
      this.wake = () => (clearTimeout(timer), resolve());
    });
  }

  /** One connection, to its end. True if another would be in vain. */
  async connect() {
    const abort = new AbortController();
    let watchdog;
    const heard = () => {
      clearTimeout(watchdog);
      watchdog = setTimeout(() => abort.abort(), SILENCE_MS);
    };
    heard();
    try {
      const headers = this.key ? { Authorization: `Bearer ${asBytes(this.key)}` } : {};
      const response = await fetch(this.url, { headers, signal: abort.signal, cache: "no-store" });
      if (response.status === 401) return this.end("locked", this.key !== "");
      if (response.status === 404) return this.end("absent");
      if (!response.ok) return false;
      await this.read(response.body, heard);
    } catch {
      // Lost: the caller tries again.
    } finally {
      clearTimeout(watchdog);
    }
    return false;
  }

  end(state, detail) {
    this.onState(state, detail);
    return true;
  }

  async read(body, heard) {
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      heard();
      const events = (text + value).split("\n\n");
      text = events.pop();
      for (const event of events) {
        const [, kind, data] = /^event: (.*)\ndata: (.*)$/.exec(event);
        this.pause = FIRST_PAUSE_MS;
        this.onEvent(kind, JSON.parse(data));
      }
    }
  }
}

/** A header carries bytes; those of UTF-8, each as the character of its number. */
function asBytes(key) {
  return String.fromCharCode(...new TextEncoder().encode(key));
}
