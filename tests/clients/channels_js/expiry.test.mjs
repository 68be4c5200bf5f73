// What the client does about an identity that expires.

import assert from "node:assert/strict";
import { test } from "node:test";

import { idle, recorder, setUp } from "./fake.mjs";

const expiring = (env, seconds) => env.server.deliver(null, null, "phoenix", "expiring", { seconds });
const answer = (env, status, response) => env.server.answer("phoenix", "refresh", status, response);

test("refresh() sends what it is given, and resolves with the seconds that follow", async (t) => {
  const env = setUp(t);
  env.open();
  const refreshed = env.socket.refresh({ token: "new" });
  assert.deepEqual(answer(env, "ok", { seconds: 900 }).payload, { token: "new" });
  assert.deepEqual(await refreshed, { seconds: 900 });
});

test("refresh() is rejected with what the server answers, after the timeout, or when the connection ends", async (t) => {
  const env = setUp(t, { timeout: 5000 });
  await assert.rejects(env.socket.refresh(), { name: "ChannelError", status: "closed", event: "refresh" });
  env.open();
  const refused = env.socket.refresh({});
  answer(env, "error", { reason: "stolen token" });
  await assert.rejects(refused, { status: "error", response: { reason: "stolen token" }, topic: "phoenix" });
  const late = env.socket.refresh({});
  env.tick(5000);
  await assert.rejects(late, { status: "timeout" });
  const lost = env.socket.refresh({});
  env.server.shut();
  await assert.rejects(lost, { status: "closed" });
});

test("onExpiring() is told how much time is left", (t) => {
  const env = setUp(t);
  const calls = recorder();
  env.socket.onExpiring(calls.as("expiring"));
  env.open();
  expiring(env, 60);
  assert.deepEqual(calls.all, [["expiring", { seconds: 60 }]]);
  assert.deepEqual(env.server.sent, [], "without the option refresh nothing is sent");
});

test("the option refresh is asked when the server gives notice, and its result is sent", async (t) => {
  let asked = 0;
  const env = setUp(t, { refresh: async () => ({ token: `token ${(asked += 1)}` }) });
  env.open();
  assert.equal(asked, 0);
  expiring(env, 60);
  await idle();
  assert.deepEqual(answer(env, "ok", { seconds: 900 }).payload, { token: "token 1" });
  await idle();
  env.tick(60_000);
  expiring(env, 60);
  await idle();
  env.server.sent = env.server.sent.filter(([, , , event]) => event !== "heartbeat");
  assert.deepEqual(answer(env, "ok", { seconds: 900 }).payload, { token: "token 2" });
});

test("a refresh that fails is tried again while there is time", async (t) => {
  let asked = 0;
  const refresh = () => {
    asked += 1;
    if (asked === 1) throw new Error("no network");
    return { token: "t" };
  };
  const env = setUp(t, { refresh, heartbeatIntervalMs: 1e6 });
  env.open();
  expiring(env, 60);
  await idle();
  assert.deepEqual(env.server.sent, []);
  env.tick(20_000);
  await idle();
  answer(env, "error", { reason: "refused" });
  await idle();
  env.tick(13_333);
  assert.equal(asked, 2);
  env.tick(1);
  assert.equal(asked, 3);
  await idle();
  answer(env, "ok", { seconds: 900 });
  await idle();
  env.tick(60_000);
  await idle();
  assert.equal(asked, 3);
});

test("what was fetched for a connection that is lost meanwhile is not sent on the next one", async (t) => {
  let give;
  const env = setUp(t, { refresh: () => new Promise((resolve) => (give = resolve)) });
  env.open();
  expiring(env, 60);
  env.server.shut(4001, "expired");
  env.tick(250);
  env.server.accept();
  give({ token: "late" });
  await idle();
  env.tick(60_000);
  assert.deepEqual(env.server.sent.filter(([, , , event]) => event === "refresh"), []);
});

test("4001, with which an expired identity is closed, is a reason to come back", (t) => {
  const env = setUp(t);
  env.open();
  env.server.shut(4001, "expired");
  env.tick(250);
  assert.equal(env.connections.length, 2);
});
