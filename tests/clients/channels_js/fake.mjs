// A WebSocket whose other side is the test, and a clock that moves when the test says so.

import assert from "node:assert/strict";

import { Socket } from "../../../starlette_channels/static/channels.js";

export class FakeWebSocket {
  readyState = 0;
  sent = [];
  closedWith = null;

  constructor(url, protocols) {
    this.url = url;
    this.protocols = protocols;
  }

  send(data) {
    assert.equal(this.readyState, 1, "sent on a WebSocket that is not open");
    this.sent.push(typeof data === "string" ? JSON.parse(data) : new Uint8Array(data));
  }

  close(code, reason) {
    if (this.readyState >= 2) return;
    this.readyState = 2;
    this.closedWith = [code, reason];
  }

  // The other side's doings

  accept() {
    this.readyState = 1;
    this.onopen({ type: "open" });
  }

  deliver(...frame) {
    this.onmessage({ data: JSON.stringify(frame) });
  }

  deliverBytes(bytes) {
    this.onmessage({ data: Uint8Array.from(bytes).buffer });
  }

  shut(code = 1006, reason = "") {
    this.readyState = 3;
    this.onclose({ type: "close", code, reason, wasClean: code !== 1006 });
  }

  refuse() {
    this.onerror({ type: "error" });
    this.shut();
  }

  // What was sent, taken away

  take() {
    assert.ok(this.sent.length > 0, "nothing was sent");
    return this.sent.shift();
  }

  /** Takes the next frame, which must be of this topic and event, and answers it. */
  answer(topic, event, status = "ok", response = {}) {
    const [joinRef, ref, ...rest] = this.take();
    assert.deepEqual(rest.slice(0, 2), [topic, event]);
    this.deliver(joinRef, ref, topic, "phx_reply", { status, response });
    return { joinRef, ref, payload: rest[2] };
  }
}

/**
 * A socket with its fake connections, under mocked timers and with Math.random() = 0.5. Whatever the library reports
 * must be taken out of `reported` by the test: at its end the list has to be empty.
 */
export function setUp(t, options = {}, endPoint = "ws://server/socket") {
  t.mock.timers.enable({ apis: ["setTimeout", "Date"], now: Date.UTC(2026, 0) });
  t.mock.method(Math, "random", () => 0.5);
  const reported = [];
  t.mock.method(console, "error", (error) => reported.push(error));
  t.after(() => assert.deepEqual(reported, [], "errors were reported"));

  const connections = [];
  class Transport extends FakeWebSocket {
    constructor(...args) {
      super(...args);
      connections.push(this);
    }
  }
  const socket = new Socket(endPoint, { transport: Transport, ...options });
  return {
    socket,
    connections,
    reported,
    /** Lets time pass. A timer that is set meanwhile counts from the end of it. */
    tick: (ms) => t.mock.timers.tick(ms),
    /** The latest connection. */
    get server() {
      return connections.at(-1);
    },
    /** Connects and opens. */
    open() {
      socket.connect();
      this.server.accept();
      return this.server;
    },
    /** Connects, opens, and joins the topic. */
    joined(topic = "room:a", params = {}) {
      if (!socket.isConnected()) this.open();
      const channel = socket.channel(topic, params);
      const push = channel.join();
      const { joinRef } = this.server.answer(topic, "phx_join");
      assert.equal(channel.state, "joined");
      return { channel, push, joinRef };
    },
  };
}

/** Everything that is due without time passing has happened, unhandled rejections included. */
export async function idle() {
  for (let turn = 0; turn < 3; turn += 1) await new Promise((resolve) => setImmediate(resolve));
}

/** A record of calls: `const calls = recorder(); on(calls.as("a")); assert.deepEqual(calls.all, [["a", 1]])`. */
export function recorder() {
  const all = [];
  return { all, as: (name) => (...args) => void all.push([name, ...args]), take: () => all.splice(0) };
}

/** What becomes of a promise or thenable, observed without touching it again. */
export function observe(thenable) {
  const seen = { state: "pending" };
  thenable.then(
    (value) => Object.assign(seen, { state: "resolved", value }),
    (error) => Object.assign(seen, { state: "rejected", error }),
  );
  return seen;
}
