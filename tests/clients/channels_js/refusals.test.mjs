// socket.onRefused: what a page hears of a server that refuses it with a code, and what it can do about that.

import assert from "node:assert/strict";
import { test } from "node:test";

import { idle, observe, recorder, setUp } from "./fake.mjs";

/** Connects, and is accepted and closed at once, as by `ConnectError(reason, close=code)`. */
function refuse(env, code = 4401, reason = "expired") {
  if (!env.socket.conn) env.socket.connect();
  env.server.accept();
  env.server.shut(code, reason);
}

test("a refusal is told with its code and reason, after the end of the connection", (t) => {
  const env = setUp(t);
  const calls = recorder();
  env.socket.onRefused(calls.as("refused"));
  env.socket.onClose(({ code }) => calls.as("closed")(code));
  refuse(env);
  assert.deepEqual(calls.all, [["closed", 4401], ["refused", { code: 4401, reason: "expired" }]]);
  assert.equal(env.socket.connectionState(), "closed");
});

test("without an answer to it the socket tries again, after pauses that grow although it is accepted each time", (t) => {
  const env = setUp(t);
  const calls = recorder();
  env.socket.onRefused(calls.as("refused"));
  refuse(env);
  for (const [index, pause] of [250, 500, 1000, 2000, 4000, 5000, 5000].entries()) {
    env.tick(pause - 1);
    assert.equal(env.connections.length, index + 1);
    env.tick(1);
    assert.equal(env.connections.length, index + 2);
    refuse(env);
  }
  assert.equal(calls.all.length, 8);
});

test("without a callback it is as if the connection had been lost", (t) => {
  const env = setUp(t);
  refuse(env);
  env.tick(250);
  assert.equal(env.connections.length, 2);
});

for (const [answer, what] of [[undefined, "undefined"], [null, "null"], [0, "0"], ["", "an empty text"], [true, "true"]]) {
  test(`the answer ${what} is no reason to give up`, (t) => {
    const env = setUp(t);
    env.socket.onRefused(() => answer);
    refuse(env);
    env.tick(250);
    assert.equal(env.connections.length, 2);
  });
}

test("false makes it give up, until connect() is called", (t) => {
  const env = setUp(t);
  const states = recorder();
  env.socket.onStateChange(states.as("state"));
  env.socket.onRefused(({ code }) => code !== 4401);
  refuse(env);
  env.tick(1_000_000);
  assert.equal(env.connections.length, 1);
  env.socket.connect();
  env.server.accept();
  env.server.deliver(null, null, "x", "y", {});
  assert.ok(env.socket.isConnected());
  assert.deepEqual(states.all.map(([, state]) => state), ["connecting", "open", "closed", "connecting", "open"]);
});

test("one callback that says false is enough", (t) => {
  const env = setUp(t);
  env.socket.onRefused(() => false);
  env.socket.onRefused(() => true);
  refuse(env);
  env.tick(1_000_000);
  assert.equal(env.connections.length, 1);
});

test("a callback may say so of some codes only", (t) => {
  const env = setUp(t);
  env.socket.onRefused(({ code }) => code !== 4403);
  refuse(env, 4401);
  env.tick(250);
  refuse(env, 4403);
  env.tick(1_000_000);
  assert.equal(env.connections.length, 2);
});

test("a promise is waited for: then it tries again, or gives up", async (t) => {
  const env = setUp(t, { authToken: () => token });
  let token = "old";
  let renew;
  env.socket.onRefused(() => new Promise((resolve) => (renew = resolve)));
  refuse(env);
  env.tick(60_000);
  assert.equal(env.connections.length, 1);
  token = "new";
  renew();
  await idle();
  env.tick(250);
  assert.equal(env.connections.length, 2);
  assert.equal(atob(env.server.protocols[1].replace("base64url.bearer.phx.", "")), "new");
  refuse(env);
  renew(false);
  await idle();
  env.tick(1_000_000);
  assert.equal(env.connections.length, 2);
});

test("a promise that fails is reported, and no reason to give up", async (t) => {
  const env = setUp(t);
  env.socket.onRefused(async () => {
    throw new Error("no network");
  });
  refuse(env);
  await idle();
  env.tick(250);
  assert.equal(env.connections.length, 2);
  assert.match(String(env.reported.shift()), /no network/);
});

test("a callback that throws is reported, and no reason to give up", (t) => {
  const env = setUp(t);
  env.socket.onRefused(() => {
    throw new Error("broken");
  });
  refuse(env);
  env.tick(250);
  assert.equal(env.connections.length, 2);
  assert.match(String(env.reported.shift()), /broken/);
});

test("an answer that comes too late is none: the page has connected anew, or for good", async (t) => {
  const env = setUp(t);
  const answers = [];
  env.socket.onRefused(() => new Promise((resolve) => answers.push(resolve)));
  refuse(env);
  env.socket.connect();
  env.server.accept();
  env.server.deliver(null, null, "x", "y", {});
  answers[0](false);
  await idle();
  env.server.shut(1006);
  env.tick(250);
  assert.equal(env.connections.length, 3, "it has not given up");
  refuse(env);
  env.socket.disconnect();
  answers[1](true);
  await idle();
  env.tick(1_000_000);
  assert.equal(env.connections.length, 3);
});

test("a callback may disconnect, or connect at once", (t) => {
  const env = setUp(t);
  let times = 0;
  env.socket.onRefused(() => (++times === 1 ? env.socket.connect() : env.socket.disconnect()));
  refuse(env);
  assert.equal(env.connections.length, 2);
  refuse(env);
  env.tick(1_000_000);
  assert.equal(env.connections.length, 2);
});

test("other ends are no refusals", (t) => {
  const env = setUp(t);
  const calls = recorder();
  env.socket.onRefused(calls.as("refused"));
  for (const code of [1000, 1001, 1005, 1006, 1008, 1011, 1012, 2999]) {
    env.socket.connect();
    env.server.accept();
    env.server.shut(code);
  }
  env.socket.connect();
  env.server.refuse();
  env.socket.connect();
  env.server.accept();
  env.server.deliver(null, null, "phoenix", "expiring", { seconds: 1 });
  env.server.shut(4001, "expired");
  env.socket.connect();
  env.server.accept();
  env.socket.disconnect(null, 4000);
  env.server.shut(4000);
  assert.deepEqual(calls.all, []);
});

test("the time that the reason asks for is waited", (t) => {
  const env = setUp(t);
  env.socket.onRefused(() => true);
  refuse(env, 4503, "busy retry_after=30");
  env.tick(29_999);
  assert.equal(env.connections.length, 1);
  env.tick(2_000);
  assert.equal(env.connections.length, 2);
});

test("channels join when the client is let in after all", async (t) => {
  const env = setUp(t);
  env.socket.onRefused(() => true);
  const channel = env.socket.channel("room:a");
  const seen = observe(channel.join());
  refuse(env);
  assert.equal(channel.state, "errored");
  env.tick(250);
  env.server.accept();
  env.server.answer("room:a", "phx_join", "ok", { you: "ann" });
  await idle();
  assert.deepEqual(seen, { state: "resolved", value: { you: "ann" } });
});

test("when it gives up, awaited joins and pushes are rejected as refused, with code and reason", async (t) => {
  const env = setUp(t);
  env.socket.onRefused(() => false);
  const channel = env.socket.channel("room:a");
  const shared = env.socket.shared("room:b");
  const seen = [observe(channel.join()), observe(channel.push("hello")), observe(shared.join())];
  refuse(env);
  await idle();
  for (const { error } of seen) {
    assert.deepEqual([error.status, error.reason, error.response], ["refused", "expired", { code: 4401, reason: "expired" }]);
  }
  assert.equal(seen[0].error.message, '"phx_join" on "room:a": refused: expired');
  env.socket.connect();
  env.server.accept();
  env.server.answer("room:a", "phx_join");
  env.server.answer("room:b", "phx_join");
  assert.deepEqual([channel.state, shared.state], ["joined", "joined"]);
});

test("off() removes the callback", (t) => {
  const env = setUp(t);
  const calls = recorder();
  env.socket.off([env.socket.onRefused(calls.as("refused"))]);
  refuse(env);
  assert.deepEqual(calls.all, []);
});
