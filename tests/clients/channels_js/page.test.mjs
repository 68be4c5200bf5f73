// What a browser's page adds: it is hidden and shown, goes offline and online, and is kept for the back button.

import assert from "node:assert/strict";
import { test } from "node:test";

import { recorder, setUp } from "./fake.mjs";

function setUpPage(t, options) {
  const page = new EventTarget();
  const listening = new Set();
  globalThis.document = Object.assign(new EventTarget(), { visibilityState: "visible" });
  globalThis.addEventListener = (type, listener, { signal }) => {
    listening.add(type);
    signal.addEventListener("abort", () => listening.delete(type));
    page.addEventListener(type, listener, { signal });
  };
  t.after(() => {
    delete globalThis.document;
    delete globalThis.addEventListener;
  });
  const env = setUp(t, options);
  return Object.assign(Object.create(env, {}), {
    fire: (type) => page.dispatchEvent(new Event(type)),
    show(state) {
      document.visibilityState = state;
      document.dispatchEvent(new Event("visibilitychange"));
    },
    listening,
    env,
  });
}

test("a hidden page does not reconnect, and does so at once when it is shown", (t) => {
  const { env, show } = setUpPage(t);
  env.open();
  show("hidden");
  env.server.shut();
  env.tick(600_000);
  assert.equal(env.connections.length, 1);
  show("visible");
  assert.equal(env.connections.length, 2);
  env.server.accept();
  assert.ok(env.socket.isConnected());
});

test("a page that is shown, or comes online, does not wait for the next try", (t) => {
  const { env, show, fire } = setUpPage(t, { reconnectAfterMs: () => 60_000 });
  env.open().shut();
  show("visible");
  assert.equal(env.connections.length, 2);
  env.server.refuse();
  fire("online");
  assert.equal(env.connections.length, 3);
  env.server.accept();
  env.tick(120_000 - 1);
  assert.equal(env.connections.length, 3, "the waiting try is off");
});

test("coming online while hidden does not reconnect", (t) => {
  const { env, show, fire } = setUpPage(t);
  env.open();
  show("hidden");
  env.server.shut();
  fire("online");
  env.tick(60_000);
  assert.equal(env.connections.length, 1);
});

test("an attempt that has just begun is kept, an old one is given up for a new one", (t) => {
  const { env, show, fire } = setUpPage(t, { reconnectAfterMs: () => 500 });
  const calls = recorder();
  env.socket.onClose((event) => calls.as("close")(event.code));
  env.open().shut();
  calls.take();
  env.tick(500);
  fire("online");
  show("visible");
  assert.equal(env.connections.length, 2);
  env.tick(1000);
  const stuck = env.server;
  show("visible");
  assert.equal(env.connections.length, 3);
  assert.deepEqual(calls.take(), [["close", 1006]]);
  stuck.refuse();
  env.server.accept();
  env.tick(20_000);
  assert.ok(env.socket.isConnected());
  assert.equal(env.connections.length, 3);
});

test("a connection that only looks alive is tried when the page is shown", (t) => {
  const { env, show } = setUpPage(t, { heartbeatIntervalMs: 5000 });
  env.open();
  env.tick(1000);
  show("visible");
  show("visible");
  const [, ref] = env.server.take();
  assert.deepEqual(env.server.sent, [], "one heartbeat");
  env.server.deliver(null, ref, "phoenix", "phx_reply", { status: "ok", response: {} });
  env.tick(4999);
  assert.deepEqual(env.server.sent, [], "it took the place of the next one");
  show("visible");
  env.server.take();
  env.tick(5000);
  assert.deepEqual(env.server.closedWith, [1000, "heartbeat timeout"]);
});

test("after coming back the tries are counted anew", (t) => {
  const tries = [];
  const { env, fire } = setUpPage(t, { reconnectAfterMs: (count) => tries.push(count) && 100 });
  env.open().shut();
  env.tick(100);
  env.server.refuse();
  fire("online");
  env.server.refuse();
  assert.deepEqual(tries, [1, 2, 1]);
});

test("a callback may disconnect when a stuck attempt is given up", (t) => {
  const { env, fire } = setUpPage(t);
  env.socket.connect();
  env.socket.onClose(() => env.socket.disconnect());
  env.tick(2000);
  fire("online");
  env.tick(60_000);
  assert.equal(env.connections.length, 1);
});

test("the page is watched again after disconnect() and connect()", (t) => {
  const { env, fire, listening } = setUpPage(t, { reconnectAfterMs: () => 60_000 });
  env.open();
  env.socket.disconnect();
  env.server.shut(1005);
  env.open().shut();
  assert.deepEqual(listening, new Set(["online", "pagehide", "pageshow"]));
  fire("online");
  assert.equal(env.connections.length, 3);
});

test("a connect() that throws leaves no listener on the page", (t) => {
  const params = () => {
    throw new Error("no token");
  };
  const { env, fire, listening } = setUpPage(t, { params });
  assert.throws(() => env.socket.connect(), /no token/);
  fire("online");
  assert.deepEqual(listening, new Set());
});

test("nothing happens for a socket that is not wanted: never connected, disconnected, or told goodbye", (t) => {
  const { env, show, fire, listening } = setUpPage(t);
  const wake = () => {
    show("visible");
    for (const type of ["online", "pagehide", "pageshow"]) fire(type);
    env.tick(60_000);
  };
  wake();
  assert.equal(env.connections.length, 0);
  env.open();
  env.socket.disconnect();
  env.server.shut(1005);
  wake();
  assert.equal(env.connections.length, 1);
  env.open();
  env.socket.disconnect();
  env.server.shut(1000);
  wake();
  assert.equal(env.connections.length, 2);
  assert.deepEqual(listening, new Set(), "and no listener is left on the page");
});

test("a page that is put away closes its connection, and opens it when it is back", (t) => {
  const { env, fire } = setUpPage(t);
  const { channel } = env.joined();
  const old = env.server;
  fire("pagehide");
  assert.deepEqual(old.closedWith, [undefined, undefined]);
  assert.equal(channel.state, "errored");
  env.tick(600_000);
  fire("online");
  assert.equal(env.connections.length, 1);
  fire("pageshow");
  assert.equal(env.connections.length, 2);
  env.server.accept();
  env.server.answer("room:a", "phx_join");
  old.shut(1005);
  assert.equal(channel.state, "joined");
});

test("a page that is put away while waiting to reconnect does so when it is back", (t) => {
  const { env, fire } = setUpPage(t);
  env.open().shut();
  fire("pagehide");
  env.tick(60_000);
  assert.equal(env.connections.length, 1);
  fire("pageshow");
  assert.equal(env.connections.length, 2);
});

test("disconnect() and connect() are heeded while the page is put away", (t) => {
  const { env, fire } = setUpPage(t);
  env.open();
  fire("pagehide");
  env.socket.disconnect();
  fire("pageshow");
  assert.equal(env.connections.length, 1);
  env.open();
  fire("pagehide");
  env.open().shut();
  env.tick(250);
  assert.equal(env.connections.length, 4);
});

test("the pageshow that follows every load does nothing", (t) => {
  const { env, fire } = setUpPage(t);
  env.open();
  fire("pageshow");
  assert.deepEqual(env.server.sent, []);
  assert.equal(env.connections.length, 1);
});
