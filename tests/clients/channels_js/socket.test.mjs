import assert from "node:assert/strict";
import { test } from "node:test";

import { Socket } from "../../../starlette_channels/static/channels.js";
import { FakeWebSocket, recorder, setUp } from "./fake.mjs";

// ------------------------------------------------------------------------------------------------------------ URL

for (const [params, query] of [
  [{}, "vsn=2.0.0"],
  [{ user: "ann" }, "user=ann&vsn=2.0.0"],
  [{ a: { b: 1, c: { d: true } } }, "a%5Bb%5D=1&a%5Bc%5D%5Bd%5D=true&vsn=2.0.0"],
  [{ list: ["x", { y: 1 }] }, "list%5B0%5D=x&list%5B1%5D%5By%5D=1&vsn=2.0.0"],
  [{ "ü&=": "ä &=+" }, "%C3%BC%26%3D=%C3%A4%20%26%3D%2B&vsn=2.0.0"],
  [{ none: null, missing: undefined, empty: {}, zero: 0, blank: "" }, "zero=0&blank=&vsn=2.0.0"],
  [{ vsn: "1.0.0" }, "vsn=1.0.0&vsn=2.0.0"],
]) {
  test(`params ${JSON.stringify(params)} become ${query}`, () => {
    const socket = new Socket("ws://h/socket", { params, transport: FakeWebSocket });
    assert.equal(socket.endPointURL(), `ws://h/socket/websocket?${query}`);
  });
}

for (const [endPoint, page, url] of [
  ["ws://h/socket", null, "ws://h/socket/websocket"],
  ["wss://h/socket/", null, "wss://h/socket/websocket"],
  ["http://h/socket", null, "ws://h/socket/websocket"],
  ["https://h/socket", null, "wss://h/socket/websocket"],
  ["/socket", "http://page:8000/x", "ws://page:8000/socket/websocket"],
  ["/socket", "https://page/x", "wss://page/socket/websocket"],
  ["//other/socket", "https://page/x", "wss://other/socket/websocket"],
]) {
  test(`the end point ${endPoint} ${page ? `on ${page} ` : ""}is ${url}`, (t) => {
    if (page) {
      globalThis.location = new URL(page);
      t.after(() => delete globalThis.location);
    }
    assert.equal(new Socket(endPoint).endPointURL(), `${url}?vsn=2.0.0`);
  });
}

test("a relative end point without a page is refused with the fix", () => {
  assert.throws(() => new Socket("/socket").endPointURL(), /give a ws:\/\/ or wss:\/\/ URL/);
});

test("another vsn is sent as given", () => {
  assert.equal(new Socket("ws://h/s", { vsn: "2.0.1+x" }).endPointURL(), "ws://h/s/websocket?vsn=2.0.1%2Bx");
});

test("params that are a function are asked anew for each connection", (t) => {
  let count = 0;
  const env = setUp(t, { params: () => ({ count: ++count }) });
  env.open().shut();
  env.tick(250);
  assert.deepEqual(env.connections.map(({ url }) => new URL(url).searchParams.get("count")), ["1", "2"]);
});

for (const [authToken, protocols] of [
  [undefined, []],
  [null, []],
  ["", []],
  [() => null, []],
  ["secret", ["phoenix", "base64url.bearer.phx.c2VjcmV0"]],
  [() => "secrets", ["phoenix", "base64url.bearer.phx.c2VjcmV0cw"]],
  ["??>>~~", ["phoenix", "base64url.bearer.phx.Pz8-Pn5-"]],
  ["ü?", ["phoenix", "base64url.bearer.phx.w7w_"]],
]) {
  test(`the auth token ${authToken} is offered as ${protocols.at(-1) ?? "nothing"}, and is not in the URL`, (t) => {
    const { protocols: offered, url } = setUp(t, { authToken }).open();
    assert.deepEqual(offered, protocols);
    assert.equal(url, "ws://server/socket/websocket?vsn=2.0.0");
  });
}

test("an auth token that is a function is asked anew for each connection", (t) => {
  let count = 0;
  const env = setUp(t, { authToken: () => `a${++count}` });
  env.open().shut();
  env.tick(250);
  const tokens = env.connections.map(({ protocols }) => atob(protocols[1].replace("base64url.bearer.phx.", "")));
  assert.deepEqual(tokens, ["a1", "a2"]);
});

// ----------------------------------------------------------------------------------------- connecting, closing

test("connect() opens one connection, however often it is called", (t) => {
  const env = setUp(t);
  env.socket.connect();
  env.socket.connect();
  assert.equal(env.socket.connectionState(), "connecting");
  assert.equal(env.socket.isConnected(), false);
  env.server.accept();
  env.socket.connect();
  assert.equal(env.connections.length, 1);
  assert.equal(env.socket.connectionState(), "open");
  assert.equal(env.socket.isConnected(), true);
  assert.equal(env.server.binaryType, "arraybuffer");
});

test("onOpen, onError, onClose, onMessage and onStateChange tell what happens, until off()", (t) => {
  const env = setUp(t);
  const calls = recorder();
  const { socket } = env;
  const refs = [
    socket.onOpen(calls.as("open")),
    socket.onError(calls.as("error")),
    socket.onClose(calls.as("close")),
    socket.onMessage(calls.as("message")),
    socket.onStateChange(calls.as("state")),
  ];
  socket.connect();
  env.server.accept();
  env.server.deliver(null, null, "room:a", "msg", { n: 1 });
  const message = { join_ref: null, ref: null, topic: "room:a", event: "msg", payload: { n: 1 } };
  assert.deepEqual(calls.take(), [["state", "connecting"], ["state", "open"], ["open"], ["message", message]]);
  env.server.refuse();
  const [error, state, close] = calls.take();
  assert.deepEqual([error[0], error[1].type, error[2], error[3]], ["error", "error", socket.transport, 1]);
  assert.deepEqual(state, ["state", "closed"]);
  assert.deepEqual([close[0], close[1].code], ["close", 1006]);
  socket.off(refs);
  env.tick(250);
  env.server.accept();
  env.server.deliver(null, null, "room:a", "msg", {});
  env.server.refuse();
  assert.deepEqual(calls.all, []);
});

test("a callback that throws is reported; the others run and the connection lives", (t) => {
  const failure = new Error("mine");
  const bad = () => {
    throw failure;
  };
  const env = setUp(t, { logger: bad });
  const calls = recorder();
  for (const name of ["onOpen", "onError", "onClose", "onMessage", "onStateChange"]) {
    env.socket[name](bad);
    env.socket[name](calls.as(name));
  }
  env.joined();
  env.server.refuse();
  env.tick(250);
  env.server.accept();
  assert.ok(env.socket.isConnected());
  const called = new Set(calls.all.map(([name]) => name));
  assert.deepEqual(called, new Set(["onStateChange", "onOpen", "onMessage", "onError", "onClose"]));
  assert.ok(env.reported.splice(0).every((error) => error === failure));
});

test("disconnect() closes for good, and calls back when closed", (t) => {
  const env = setUp(t);
  const { channel } = env.joined();
  const calls = recorder();
  env.socket.onStateChange(calls.as("state"));
  env.socket.onClose(calls.as("close"));
  env.socket.disconnect(calls.as("done"), 4001, "bye");
  assert.deepEqual(env.server.closedWith, [4001, "bye"]);
  assert.equal(env.socket.connectionState(), "closing");
  assert.deepEqual(calls.take(), [["state", "closing"]]);
  env.server.shut(4001, "bye");
  assert.deepEqual(calls.take().map(([name]) => name), ["state", "close", "done"]);
  assert.equal(channel.state, "errored");
  env.tick(120_000);
  assert.equal(env.connections.length, 1);
});

test("disconnect() without a connection calls back at once", (t) => {
  const env = setUp(t);
  const calls = recorder();
  env.socket.disconnect(calls.as("done"));
  assert.deepEqual(calls.all, [["done"]]);
});

test("disconnect() does not wait for ever for a server that is gone", (t) => {
  const env = setUp(t);
  env.open();
  const calls = recorder();
  env.socket.disconnect(calls.as("done"));
  env.tick(1499);
  assert.deepEqual(calls.all, []);
  env.tick(1);
  assert.deepEqual(calls.all, [["done"]]);
  assert.equal(env.socket.connectionState(), "closed");
});

test("disconnect() twice is one disconnect, and does not harm the next connection", (t) => {
  const env = setUp(t);
  env.open();
  const calls = recorder();
  env.socket.onStateChange(calls.as("state"));
  env.socket.disconnect(calls.as("first"));
  env.socket.disconnect(calls.as("second"));
  env.socket.connect();
  env.server.accept();
  const states = ["closing", "closed", "connecting", "open"].map((state) => ["state", state]);
  assert.deepEqual(calls.all, [...states.slice(0, 2), ["first"], ["second"], ...states.slice(2)]);
  env.tick(1500);
  assert.ok(env.socket.isConnected());
});

test("an attempt that disconnect() cut short is no error", (t) => {
  const env = setUp(t);
  const calls = recorder();
  env.socket.onError(calls.as("error"));
  env.socket.connect();
  env.socket.disconnect();
  env.server.refuse();
  assert.deepEqual(calls.all, []);
});

test("disconnect() while connecting or while waiting to reconnect ends it", (t) => {
  const env = setUp(t);
  env.socket.connect();
  env.socket.disconnect();
  env.server.refuse();
  env.tick(60_000);
  env.open().shut();
  env.socket.disconnect();
  env.tick(60_000);
  assert.equal(env.connections.length, 2);
});

test("connect() after disconnect() works, channels included", (t) => {
  const env = setUp(t);
  const { channel } = env.joined();
  env.socket.disconnect();
  env.server.shut(1005);
  env.open();
  env.server.answer("room:a", "phx_join");
  assert.equal(channel.state, "joined");
});

test("connect() while the old connection is still closing opens a new one, and the old one is not heard", (t) => {
  const env = setUp(t);
  const { channel } = env.joined();
  const calls = recorder();
  env.socket.onClose((event) => calls.as("close")(event.code));
  const old = env.server;
  env.socket.disconnect(calls.as("done"));
  env.socket.connect();
  assert.equal(env.connections.length, 2);
  assert.deepEqual(calls.take(), [["close", 1006], ["done"]]);
  env.server.accept();
  env.server.answer("room:a", "phx_join");
  old.deliver(null, null, "room:a", "phx_close", {});
  old.shut(1005);
  env.tick(5000);
  assert.deepEqual(calls.all, []);
  assert.equal(channel.state, "joined");
  assert.equal(env.connections.length, 2);
});

test("a close code that WebSocket refuses throws from disconnect(), and the connection ends all the same", (t) => {
  const env = setUp(t);
  const server = env.open();
  const close = server.close.bind(server);
  server.close = (code, reason) => {
    if (code === 1001) throw new DOMException("invalid code", "InvalidAccessError");
    close(code, reason);
  };
  assert.throws(() => env.socket.disconnect(undefined, 1001), { name: "InvalidAccessError" });
  env.tick(1500);
  assert.equal(env.socket.connectionState(), "closed");
  assert.deepEqual(server.closedWith, [undefined, undefined]);
  env.tick(60_000);
  assert.equal(env.connections.length, 1);
});

test("a params function that throws: connect() throws, a reconnect is reported and tried again", (t) => {
  let broken = true;
  const params = () => {
    if (broken) throw new Error("no token");
    return {};
  };
  const env = setUp(t, { params });
  assert.throws(() => env.socket.connect(), /no token/);
  env.tick(60_000);
  assert.equal(env.connections.length, 0);
  broken = false;
  env.open().shut();
  broken = true;
  env.tick(250);
  assert.equal(env.connections.length, 1);
  assert.equal(env.reported.shift().message, "no token");
  broken = false;
  env.tick(500);
  assert.equal(env.connections.length, 2);
});

test("without any WebSocket class, connect() says what to do", () => {
  const socket = new Socket("ws://h/s", { transport: undefined });
  socket.transport = undefined;
  assert.throws(() => socket.connect(), /option `transport`/);
  assert.equal(socket.connectionState(), "closed");
});

// --------------------------------------------------------------------------------------------------- reconnecting

test("the default delay is random below a ceiling that doubles up to 10 seconds", (t) => {
  const env = setUp(t);
  env.open();
  for (const [index, ceiling] of [500, 1000, 2000, 4000, 8000, 10_000, 10_000].entries()) {
    env.server.refuse();
    env.tick(ceiling / 2 - 1);
    assert.equal(env.connections.length, index + 1);
    env.tick(1);
    assert.equal(env.connections.length, index + 2);
  }
});

test("a server that says how long to stay away is obeyed, then tries are made as ever", (t) => {
  const tries = [];
  const env = setUp(t, { reconnectAfterMs: (count) => tries.push(count) && 100 });
  env.open().shut(1012, "restart retry_after=7.50");
  env.tick(7874); // 5 % more, as the jitter is from nothing to 10 %
  assert.equal(env.connections.length, 1);
  env.tick(1);
  assert.equal(env.connections.length, 2);
  assert.deepEqual(tries, []);
  env.server.refuse();
  env.tick(100);
  assert.equal(env.connections.length, 3);
  assert.deepEqual(tries, [2]);
});

for (const reason of ["restart", "retry_after=", "retry_after=soon", "no_retry_after=3", "retry_after=-3"]) {
  test(`the reason "${reason}" asks for nothing`, (t) => {
    const env = setUp(t, { reconnectAfterMs: () => 100 });
    env.open().shut(1012, reason);
    env.tick(100);
    assert.equal(env.connections.length, 2);
  });
}

test("a server that asks its clients back at once gets them back at once", (t) => {
  const env = setUp(t, { reconnectAfterMs: () => 100 });
  env.open().shut(1012, "restart retry_after=0.00");
  env.tick(0);
  assert.equal(env.connections.length, 2);
});

test("the jitter is full: a delay can be anything from nothing to the ceiling", (t) => {
  setUp(t);
  const socket = new Socket("ws://h/s");
  for (const [random, delay] of [[0, 0], [0.25, 500], [0.999, 1998]]) {
    t.mock.method(Math, "random", () => random);
    assert.equal(socket.reconnectAfterMs(3), delay);
    assert.equal(socket.rejoinAfterMs(2), delay);
  }
});

test("the tries are counted anew after disconnect()", (t) => {
  const tries = [];
  const env = setUp(t, { reconnectAfterMs: (count) => tries.push(count) && 100 });
  env.open().shut();
  env.tick(100);
  env.server.refuse();
  env.socket.disconnect();
  env.open().shut();
  assert.deepEqual(tries, [1, 2, 1]);
});

test("a function of the application's decides the delay by the number of the try", (t) => {
  const tries = [];
  const env = setUp(t, { reconnectAfterMs: (count) => tries.push(count) && count * 100 });
  env.open();
  env.server.deliver(null, null, "x", "y", {});
  for (const delay of [100, 200, 300]) {
    env.server.refuse();
    env.tick(delay - 1);
    assert.equal(env.socket.conn, null);
    env.tick(1);
    assert.equal(env.socket.connectionState(), "connecting");
  }
  assert.deepEqual(tries, [1, 2, 3]);
});

test("a delay function that throws is reported, and replaced by five seconds; Infinity means never", (t) => {
  let delay = () => {
    throw new Error("mine");
  };
  const env = setUp(t, { reconnectAfterMs: () => delay() });
  env.open().shut();
  assert.equal(env.reported.shift().message, "mine");
  env.tick(4999);
  assert.equal(env.connections.length, 1);
  env.tick(1);
  assert.equal(env.connections.length, 2);
  delay = () => Infinity;
  env.server.refuse();
  env.tick(3_600_000);
  assert.equal(env.connections.length, 2);
  env.socket.disconnect();
});

test("the backoff begins anew once the server has said something, not when it merely accepts", (t) => {
  const tries = [];
  const env = setUp(t, { reconnectAfterMs: (count) => tries.push(count) && 100 });
  env.open().shut();
  env.tick(100);
  env.server.accept();
  env.server.shut();
  env.tick(100);
  env.server.accept();
  env.server.deliver(null, null, "x", "y", {});
  env.server.shut();
  assert.deepEqual(tries, [1, 2, 1]);
});

for (const code of [1001, 1002, 1005, 1006, 1008, 1009, 1011, 1012, 1013, 4000]) {
  test(`a close with ${code} by the server is followed by a new connection`, (t) => {
    const env = setUp(t);
    env.open().shut(code);
    env.tick(250);
    assert.equal(env.connections.length, 2);
  });
}

test("a close with 1000 by the server is no goodbye: proxies close with it too", (t) => {
  const env = setUp(t);
  const { channel } = env.joined();
  env.server.shut(1000);
  assert.equal(channel.state, "errored");
  env.tick(250);
  env.server.accept();
  env.server.answer("room:a", "phx_join");
  assert.equal(channel.state, "joined");
});

test("connect() while waiting for the next try connects now, once", (t) => {
  const env = setUp(t);
  env.open().shut();
  env.socket.connect();
  assert.equal(env.connections.length, 2);
  env.tick(10_000);
  assert.equal(env.connections.length, 2);
});

test("connect() and disconnect() from the callbacks of a lost connection are heeded", (t) => {
  const env = setUp(t);
  const { channel } = env.joined();
  let act = () => env.socket.connect();
  channel.onError(() => act());
  env.server.shut();
  assert.equal(env.connections.length, 2);
  env.tick(10_000);
  assert.equal(env.connections.length, 2);
  env.server.accept();
  env.server.answer("room:a", "phx_join");
  act = () => env.socket.disconnect();
  env.server.shut();
  env.tick(60_000);
  assert.equal(env.connections.length, 2);
});

test("connect() in the disconnect callback does not leave two connections", (t) => {
  const env = setUp(t);
  env.open();
  env.socket.disconnect(() => env.socket.connect());
  env.socket.connect();
  assert.equal(env.connections.length, 2);
});

// ------------------------------------------------------------------------------------------------------ heartbeat

test("a heartbeat is sent every 30 seconds, and its answer keeps the connection", (t) => {
  const env = setUp(t);
  env.open();
  for (let turn = 0; turn < 3; turn += 1) {
    env.tick(29_999);
    assert.deepEqual(env.server.sent, []);
    env.tick(1);
    const [joinRef, ref, ...rest] = env.server.take();
    assert.equal(joinRef, null);
    assert.deepEqual(rest, ["phoenix", "heartbeat", {}]);
    env.server.deliver(null, ref, "phoenix", "phx_reply", { status: "ok", response: {} });
  }
  assert.equal(env.connections.length, 1);
});

test("a missing answer to the heartbeat closes with 1000, and connects again all the same", (t) => {
  const env = setUp(t, { heartbeatIntervalMs: 1000 });
  const { channel } = env.joined();
  const calls = recorder();
  channel.onError((reason) => calls.as("channel")(reason));
  env.socket.onClose((event) => calls.as("socket")(event.code, event.reason));
  env.tick(1000);
  env.tick(999);
  assert.equal(env.server.closedWith, null);
  env.tick(1);
  const old = env.server;
  assert.deepEqual(old.closedWith, [1000, "heartbeat timeout"]);
  assert.deepEqual(calls.take(), [
    ["channel", { source: "transport", reason: "heartbeat_timeout" }],
    ["socket", 1000, "heartbeat timeout"],
  ]);
  env.tick(250);
  assert.equal(env.connections.length, 2);
  env.server.accept();
  old.shut(1000);
  env.server.answer("room:a", "phx_join");
  assert.equal(channel.state, "joined");
  assert.deepEqual(calls.all, []);
});

test("an answer with another ref does not count for the heartbeat", (t) => {
  const env = setUp(t, { heartbeatIntervalMs: 1000 });
  env.open();
  env.tick(1000);
  const [, ref] = env.server.take();
  env.server.deliver(null, Number(ref), "phoenix", "phx_reply", { status: "ok", response: {} });
  env.tick(1000);
  assert.notEqual(env.server.closedWith, null);
});

test("a heartbeat that a lost connection did not answer is not missed on the next one", (t) => {
  const env = setUp(t, { heartbeatIntervalMs: 1000 });
  env.open();
  const calls = recorder();
  env.socket.ping(calls.as("rtt"));
  const [, ref] = env.server.take();
  env.tick(1000);
  env.server.take();
  env.server.shut();
  env.tick(250);
  env.server.accept();
  env.server.deliver(null, ref, "phoenix", "phx_reply", { status: "ok", response: {} });
  env.tick(750);
  assert.equal(env.server.closedWith, null);
  assert.deepEqual(env.server.sent, []);
  env.tick(250);
  assert.equal(env.server.sent.length, 1);
  assert.deepEqual(calls.all, [], "nor is its ping answered");
});

test("a heartbeat that falls due while the server closes is not kept for later", (t) => {
  const env = setUp(t, { heartbeatIntervalMs: 1000 });
  env.open().readyState = 2;
  env.tick(1000);
  env.server.shut();
  env.tick(250);
  env.server.accept();
  assert.deepEqual(env.server.sent, []);
});

test("no heartbeat is sent, or missed, on a connection that is closing or closed", (t) => {
  const env = setUp(t, { heartbeatIntervalMs: 1000 });
  const server = env.open();
  env.tick(1000);
  server.take();
  env.socket.disconnect();
  env.tick(1400);
  server.shut(1005);
  env.tick(60_000);
  assert.deepEqual(server.sent, []);
  assert.equal(env.connections.length, 1);
});

test("ping() measures a round trip, or says that it cannot", (t) => {
  const env = setUp(t);
  const calls = recorder();
  assert.equal(env.socket.ping(calls.as("rtt")), false);
  env.open();
  assert.equal(env.socket.ping(calls.as("rtt")), true);
  env.tick(42);
  const [, ref, topic, event] = env.server.take();
  assert.deepEqual([topic, event], ["phoenix", "heartbeat"]);
  env.server.deliver(null, ref, "phoenix", "phx_reply", { status: "ok", response: {} });
  env.server.deliver(null, ref, "phoenix", "phx_reply", { status: "ok", response: {} });
  assert.deepEqual(calls.all, [["rtt", 42]]);
});

// ------------------------------------------------------------------------------------------------ messages, logs

test("messages of no channel wait for the connection, and are sent before the joins", (t) => {
  const env = setUp(t);
  env.socket.channel("room:a").join();
  env.socket.push({ topic: "t", event: "e", payload: { n: 1 }, ref: "x" });
  env.open();
  assert.deepEqual(env.server.take(), [null, "x", "t", "e", { n: 1 }]);
  env.server.answer("room:a", "phx_join");
});

test("refs count up, and are never used twice in a socket", (t) => {
  const env = setUp(t);
  assert.equal(env.socket.makeRef(), "1");
  assert.equal(env.socket.makeRef(), "2");
  const { channel } = env.joined();
  channel.push("a");
  env.server.shut();
  env.tick(250);
  env.server.accept();
  env.server.answer("room:a", "phx_join");
  channel.push("a");
  const refs = env.connections.flatMap(({ sent }) => sent.map(([, ref]) => Number(ref)));
  assert.equal(new Set(refs).size, refs.length);
});

test("what cannot be decoded is reported, and the connection goes on", (t) => {
  const env = setUp(t);
  const { channel } = env.joined();
  const calls = recorder();
  channel.on("msg", calls.as("msg"));
  for (const data of ["{nope", '{"topic":"room:a"}', "7", "null"]) env.server.onmessage({ data });
  assert.equal(env.reported.splice(0).length, 4);
  env.server.deliver(null, null, "room:a", "msg", {});
  assert.equal(calls.all.length, 1);
});

test("a channel that an earlier callback left does not get the message", (t) => {
  const env = setUp(t);
  env.open();
  const [one, two] = [env.socket.channel("t"), env.socket.channel("t")];
  const calls = recorder();
  one.on("msg", () => two.leave());
  two.on("msg", calls.as("two"));
  env.server.deliver(null, null, "t", "msg", {});
  assert.deepEqual(calls.all, []);
});

test("the logger is told of what goes out and comes in, but not of the params and the auth token", (t) => {
  const lines = [];
  const env = setUp(t, { logger: (...line) => lines.push(line), params: { token: "secret" }, authToken: "secret" });
  assert.equal(env.socket.hasLogger(), true);
  assert.equal(new Socket("ws://h/s").hasLogger(), false);
  const { joinRef } = env.joined("room:a", { n: 1 });
  env.server.deliver("99", null, "room:a", "old", {});
  env.server.shut();
  assert.deepEqual(lines.map(([kind]) => kind), ["transport", "push", "receive", "receive", "channel", "transport"]);
  assert.deepEqual(lines[1], ["push", `room:a phx_join (${joinRef}, ${joinRef})`, { n: 1 }]);
  assert.equal(lines[2][1], `ok room:a phx_reply (${joinRef})`);
  assert.ok(!JSON.stringify(lines).includes("secret"));
  assert.ok(!JSON.stringify(lines).includes(btoa("secret")));
});

test("debug logs to the console", (t) => {
  const log = t.mock.method(console, "log", () => {});
  setUp(t, { debug: true }).open();
  assert.match(log.mock.calls[0].arguments[0], /^transport: connected/);
});

test("what an encoder delivers after the connection was lost is not sent", (t) => {
  const later = [];
  const env = setUp(t, { encode: (message, done) => later.push(() => done(message.event)) });
  const old = env.open();
  env.socket.push({ topic: "t", event: "e", payload: {} });
  old.readyState = 2;
  later[0]();
  old.shut();
  env.tick(250);
  env.server.accept();
  later[0]();
  assert.deepEqual(env.connections.flatMap(({ sent }) => sent), []);
});

test("an encoder and a decoder of the application's are used, and may answer late", (t) => {
  const later = [];
  const env = setUp(t, {
    encode: (message, done) => done(JSON.stringify([message.event])),
    decode: (data, done) => later.push(() => done(JSON.parse(data))),
  });
  const calls = recorder();
  env.socket.onMessage(calls.as("message"));
  env.open();
  env.socket.push({ topic: "t", event: "e", payload: {} });
  assert.deepEqual(env.server.take(), ["e"]);
  const message = { topic: "t", event: "x", payload: 1 };
  env.server.onmessage({ data: JSON.stringify(message) });
  assert.deepEqual(calls.take(), []);
  later.shift()();
  assert.deepEqual(calls.take(), [["message", message]]);
  env.server.onmessage({ data: JSON.stringify(message) });
  env.server.shut();
  later.shift()();
  assert.deepEqual(calls.all, [], "the connection is gone");
});
