import assert from "node:assert/strict";
import { test } from "node:test";

import { ChannelError } from "../../../starlette_channels/static/channels.js";
import { idle, observe, recorder, setUp } from "./fake.mjs";

test("a push is sent with its own ref and the join's, and its answer reaches the hooks of that status", (t) => {
  const { channel, joinRef } = setUpJoined(t);
  const calls = recorder();
  channel.push("new_msg", { body: "hi" }).receive("ok", calls.as("ok")).receive("error", calls.as("error"));
  const { ref, payload } = t.env.server.answer("room:a", "new_msg", "ok", { id: 1 });
  assert.deepEqual(payload, { body: "hi" });
  assert.notEqual(ref, joinRef);
  assert.deepEqual(calls.all, [["ok", { id: 1 }]]);
});

test("a hook that is registered after the answer runs at once", (t) => {
  const { channel } = setUpJoined(t);
  const push = channel.push("new_msg");
  t.env.server.answer("room:a", "new_msg", "error", { reason: "no" });
  const calls = recorder();
  push.receive("ok", calls.as("ok")).receive("error", calls.as("error"));
  assert.deepEqual(calls.all, [["error", { reason: "no" }]]);
});

test("a second answer to the same push is ignored", (t) => {
  const { channel, joinRef } = setUpJoined(t);
  const calls = recorder();
  channel.push("new_msg").receive("ok", calls.as("ok"));
  const { ref } = t.env.server.answer("room:a", "new_msg");
  t.env.server.deliver(joinRef, ref, "room:a", "phx_reply", { status: "ok", response: {} });
  assert.equal(calls.all.length, 1);
});

test("awaiting a push gives the response to ok", async (t) => {
  const { channel } = setUpJoined(t);
  const push = channel.push("add", { a: 1 });
  t.env.server.answer("room:a", "add", "ok", { sum: 2 });
  assert.deepEqual(await push, { sum: 2 });
  assert.deepEqual(await push, { sum: 2 }, "again");
});

test("awaiting a push before the answer works too, and receive() still does", async (t) => {
  const { channel } = setUpJoined(t);
  const calls = recorder();
  const push = channel.push("add").receive("ok", calls.as("ok"));
  const seen = observe(push);
  await idle();
  assert.equal(seen.state, "pending");
  t.env.server.answer("room:a", "add", "ok", [1, 2]);
  assert.deepEqual(calls.all, [["ok", [1, 2]]]);
  await idle();
  assert.deepEqual(seen, { state: "resolved", value: [1, 2] });
});

for (const [status, response, message] of [
  ["error", { reason: "unauthorized" }, '"add" on "room:a": error: unauthorized'],
  ["error", {}, '"add" on "room:a": error'],
  ["error", null, '"add" on "room:a": error'],
  ["created", { id: 1 }, '"add" on "room:a": created'],
  ["constructor", {}, '"add" on "room:a": constructor'],
]) {
  test(`the answer ${status} ${JSON.stringify(response)} rejects an awaited push with a ChannelError`, async (t) => {
    const { channel } = setUpJoined(t);
    const push = channel.push("add");
    t.env.server.answer("room:a", "add", status, response);
    await assert.rejects(push.then(), (error) => {
      assert.ok(error instanceof ChannelError && error instanceof Error);
      assert.equal(error.name, "ChannelError");
      assert.equal(error.message, message);
      assert.equal(error.status, status);
      assert.deepEqual(error.response, response);
      assert.equal(error.topic, "room:a");
      assert.equal(error.event, "add");
      return true;
    });
  });
}

test("a push without an answer times out, for hooks and for awaiters", async (t) => {
  const { channel } = setUpJoined(t, { timeout: 4000 });
  const calls = recorder();
  const push = channel.push("add").receive("timeout", calls.as("timeout"));
  const seen = observe(push);
  t.env.tick(3999);
  assert.deepEqual(calls.all, []);
  t.env.tick(1);
  assert.deepEqual(calls.all, [["timeout", {}]]);
  await idle();
  assert.equal(seen.error.status, "timeout");
  assert.equal(seen.error.message, '"add" on "room:a": no answer within 4000 ms');
});

test("an answer after the timeout is ignored", (t) => {
  const { channel } = setUpJoined(t);
  const calls = recorder();
  channel.push("add", {}, 100).receive("ok", calls.as("ok")).receive("timeout", calls.as("timeout"));
  t.env.tick(100);
  t.env.server.answer("room:a", "add");
  assert.deepEqual(calls.all, [["timeout", {}]]);
});

test("a failed push that nobody awaits is no unhandled rejection", async (t) => {
  const unhandled = listenForUnhandled(t);
  const { channel } = setUpJoined(t);
  channel.push("a");
  channel.push("b").receive("ok", () => {});
  channel.push("c", {}, 100);
  t.env.server.answer("room:a", "a", "error");
  t.env.server.answer("room:a", "b", "error");
  t.env.tick(100);
  channel.leave();
  channel.push("d");
  await idle();
  assert.deepEqual(unhandled, []);
});

test("a failed push that was awaited and caught is no unhandled rejection, for each way to await", async (t) => {
  const unhandled = listenForUnhandled(t);
  const { channel } = setUpJoined(t);
  const caught = recorder();
  const push = channel.push("a");
  push.catch(caught.as("catch"));
  push.then(undefined, caught.as("then"));
  push.finally(caught.as("finally")).catch(() => {});
  const awaited = (async () => await push)().catch(caught.as("async"));
  t.env.server.answer("room:a", "a", "error");
  await awaited;
  await idle();
  assert.deepEqual(caught.all.map(([name]) => name).sort(), ["async", "catch", "finally", "then"]);
  assert.deepEqual(unhandled, []);
});

test("a failed push that is awaited and not caught is reported as any promise is", async (t) => {
  const unhandled = listenForUnhandled(t);
  const { channel } = setUpJoined(t);
  (async () => await channel.push("a"))();
  await idle();
  t.env.server.answer("room:a", "a", "error", { reason: "no" });
  await idle();
  assert.deepEqual(unhandled.map(({ status }) => status), ["error"]);
});

test("Promise.all and returning from an async function take pushes", async (t) => {
  const { channel } = setUpJoined(t);
  const send = async (event) => channel.push(event);
  const both = Promise.all([send("a"), channel.push("b")]);
  t.env.server.answer("room:a", "a", "ok", 1);
  t.env.server.answer("room:a", "b", "ok", 2);
  assert.deepEqual(await both, [1, 2]);
});

test("pushes before the join is done are sent after it, in order", (t) => {
  const env = setUp(t);
  env.open();
  const channel = env.socket.channel("room:a");
  channel.join();
  channel.push("one", { n: 1 });
  channel.push("two", { n: 2 });
  assert.equal(env.server.sent.length, 1);
  const { joinRef } = env.server.answer("room:a", "phx_join");
  assert.deepEqual(env.server.take().toSpliced(1, 1), [joinRef, "room:a", "one", { n: 1 }]);
  assert.deepEqual(env.server.take().toSpliced(1, 1), [joinRef, "room:a", "two", { n: 2 }]);
});

test("a buffered push that timed out is not sent any more", (t) => {
  const env = setUp(t);
  env.open();
  const channel = env.socket.channel("room:a");
  channel.join();
  const calls = recorder();
  channel.push("old", {}, 1000).receive("timeout", calls.as("timeout"));
  env.tick(1000);
  assert.deepEqual(calls.all, [["timeout", {}]]);
  env.server.answer("room:a", "phx_join");
  assert.deepEqual(env.server.sent, []);
});

test("the time of a buffered push counts anew when it is sent", (t) => {
  const env = setUp(t);
  env.open();
  const channel = env.socket.channel("room:a");
  channel.join();
  const calls = recorder();
  channel.push("slow", {}, 1000).receive("timeout", calls.as("timeout"));
  env.tick(900);
  env.server.answer("room:a", "phx_join");
  env.tick(999);
  assert.deepEqual(calls.all, []);
  env.tick(1);
  assert.equal(calls.all.length, 1);
});

test("a buffered push is sent once, not after each rejoin", (t) => {
  const env = setUp(t);
  env.open();
  const channel = env.socket.channel("room:a");
  channel.join();
  channel.push("once");
  env.server.answer("room:a", "phx_join");
  assert.equal(env.server.take()[3], "once");
  env.server.shut();
  env.tick(250);
  env.server.accept();
  env.server.answer("room:a", "phx_join");
  assert.deepEqual(env.server.sent, []);
});

test("a push made while the connection is lost is sent after the rejoin", (t) => {
  const { channel } = setUpJoined(t);
  t.env.server.shut();
  channel.push("later", { n: 1 });
  t.env.tick(250);
  t.env.server.accept();
  const { joinRef } = t.env.server.answer("room:a", "phx_join");
  assert.deepEqual(t.env.server.take().toSpliced(1, 1), [joinRef, "room:a", "later", { n: 1 }]);
});

test("a push in flight when the connection is lost for good times out", async (t) => {
  const { channel } = setUpJoined(t);
  const seen = observe(channel.push("a"));
  const buffered = (t.env.socket.disconnect(), observe(channel.push("b")));
  t.env.server.shut(1005);
  t.env.tick(10_000);
  await idle();
  assert.equal(seen.error.status, "timeout");
  assert.equal(buffered.error.status, "timeout");
});

for (const how of ["leave", "phx_close"]) {
  test(`awaited pushes of a channel that ended by ${how} are rejected at once, hooks get their timeout`, async (t) => {
    const { channel, joinRef } = setUpJoined(t);
    const calls = recorder();
    const inFlight = observe(channel.push("a").receive("timeout", calls.as("a")));
    if (how === "leave") channel.leave();
    else t.env.server.deliver(joinRef, joinRef, "room:a", "phx_close", {});
    const tooLate = observe(channel.push("b").receive("timeout", calls.as("b")));
    await idle();
    assert.equal(inFlight.error.status, "closed");
    assert.equal(inFlight.error.message, '"a" on "room:a": the channel was closed');
    assert.equal(tooLate.error.status, "closed");
    assert.deepEqual(calls.take(), []);
    t.env.tick(10_000);
    assert.deepEqual(calls.take(), [["a", {}], ["b", {}]]);
  });
}

test("a crash of the channel rejects what is awaited at once, hooks get their timeout, and buffered pushes are sent", async (t) => {
  const { channel, joinRef } = setUpJoined(t);
  const calls = recorder();
  const other = t.env.joined("room:b").channel;
  const inFlight = channel.push("a").receive("timeout", calls.as("a")).receive("error", calls.as("a"));
  const seen = observe(inFlight);
  t.env.server.take();
  const elsewhere = observe(other.push("b"));
  t.env.server.deliver(joinRef, joinRef, "room:a", "phx_error", { reason: "channel_crash" });
  const buffered = observe(channel.push("c"));
  await idle();
  assert.deepEqual([seen.error.status, seen.error.reason], ["error", "channel_crash"]);
  assert.equal(seen.error.message, '"a" on "room:a": error: channel_crash');
  assert.equal(elsewhere.state, "pending");
  assert.deepEqual(calls.take(), []);
  t.env.server.answer("room:b", "b", "ok", 2);
  t.env.tick(500);
  t.env.server.answer("room:a", "phx_join");
  t.env.server.answer("room:a", "c", "ok", 3);
  await idle();
  assert.deepEqual([elsewhere.value, buffered.value], [2, 3]);
  t.env.tick(10_000);
  assert.deepEqual(calls.take(), [["a", {}]]);
});

test("a crash without a payload, or of an earlier join, does no harm", async (t) => {
  const { channel, joinRef } = setUpJoined(t);
  const seen = observe(channel.push("a"));
  t.env.server.deliver("999", "999", "room:a", "phx_error", { reason: "channel_crash" });
  await idle();
  assert.equal(seen.state, "pending");
  t.env.server.deliver(joinRef, joinRef, "room:a", "phx_error", null);
  await idle();
  assert.deepEqual([seen.error.status, seen.error.response, seen.error.reason], ["error", {}, undefined]);
});

for (const [response, reason, detail, message] of [
  [{ reason: "invalid payload", detail: "Expected `str`" }, "invalid payload", "Expected `str`", "error: invalid payload (Expected `str`)"],
  [{ reason: { code: 7 }, detail: 8 }, { code: 7 }, 8, "error"],
  [{ detail: "only" }, undefined, "only", "error (only)"],
  ["text", undefined, undefined, "error"],
  [[1], undefined, undefined, "error"],
  [7, undefined, undefined, "error"],
]) {
  test(`the error of the answer ${JSON.stringify(response)} carries reason, detail and payload`, async (t) => {
    const { channel } = setUpJoined(t);
    const seen = observe(channel.push("add"));
    t.env.server.answer("room:a", "add", "error", response);
    await idle();
    assert.deepEqual([seen.error.reason, seen.error.detail], [reason, detail]);
    assert.equal(seen.error.payload, seen.error.response);
    assert.equal(seen.error.message, `"add" on "room:a": ${message}`);
  });
}

test("buffered pushes of a channel that is left are rejected, and never sent", async (t) => {
  const env = setUp(t);
  env.open();
  const channel = env.socket.channel("room:a");
  channel.join();
  const seen = observe(channel.push("a"));
  channel.leave();
  await idle();
  assert.equal(seen.error.status, "closed");
  assert.deepEqual(env.server.sent.map((frame) => frame[3]), ["phx_join", "phx_leave"]);
});

test("pushing before join() throws", (t) => {
  const env = setUp(t);
  const channel = env.socket.channel("room:a");
  assert.throws(() => channel.push("a"), /push\("a"\) on "room:a" before join\(\)/);
});

test("a payload that cannot be encoded throws from push(), and leaves nothing behind", (t) => {
  const { channel } = setUpJoined(t);
  const loop = {};
  loop.loop = loop;
  assert.throws(() => channel.push("a", loop), TypeError);
  t.env.tick(10_000);
  assert.equal(channel.state, "joined");
  assert.deepEqual(t.env.server.sent, []);
});

test("a buffered payload that cannot be encoded is reported and fails, and the others are sent", async (t) => {
  const env = setUp(t);
  env.open();
  const channel = env.socket.channel("room:a");
  channel.join();
  const calls = recorder();
  const seen = observe(channel.push("big", { n: 1n }).receive("error", calls.as("error")));
  channel.push("good");
  env.server.answer("room:a", "phx_join");
  assert.equal(env.server.take()[3], "good");
  assert.match(calls.all[0][1].reason, /BigInt/);
  await idle();
  assert.equal(seen.error.status, "error");
  assert.match(String(env.reported.shift()), /BigInt/);
});

test("a hook that throws is reported and does not keep the others from running", async (t) => {
  const { channel } = setUpJoined(t);
  const calls = recorder();
  const failure = new Error("mine");
  const push = channel
    .push("a")
    .receive("ok", () => {
      throw failure;
    })
    .receive("ok", calls.as("ok"));
  t.env.server.answer("room:a", "a");
  assert.deepEqual(calls.all, [["ok", {}]]);
  assert.deepEqual(await push, {});
  assert.deepEqual(t.env.reported.splice(0), [failure]);
  push.receive("ok", () => {
    throw failure;
  });
  assert.deepEqual(t.env.reported.splice(0), [failure]);
});

test("where the platform has reportError, it gets the errors of callbacks", (t) => {
  const { channel } = setUpJoined(t);
  const failure = new Error("mine");
  const got = [];
  globalThis.reportError = (error) => got.push(error);
  t.after(() => delete globalThis.reportError);
  channel.on("a", () => {
    throw failure;
  });
  t.env.server.deliver(null, null, "room:a", "a", {});
  assert.deepEqual(got, [failure]);
});

function setUpJoined(t, options) {
  t.env = setUp(t, options);
  return t.env.joined();
}

function listenForUnhandled(t) {
  const unhandled = [];
  const others = process.listeners("unhandledRejection");
  process.removeAllListeners("unhandledRejection");
  process.on("unhandledRejection", (error) => unhandled.push(error));
  t.after(() => {
    process.removeAllListeners("unhandledRejection");
    for (const other of others) process.on("unhandledRejection", other);
  });
  return unhandled;
}
