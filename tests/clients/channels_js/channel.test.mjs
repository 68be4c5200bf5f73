import assert from "node:assert/strict";
import { test } from "node:test";

import { idle, observe, recorder, setUp } from "./fake.mjs";

test("a join goes through joining to joined, and can be awaited", async (t) => {
  const env = setUp(t);
  env.open();
  const channel = env.socket.channel("room:a", { token: "x" });
  assert.equal(channel.state, "closed");
  const push = channel.join();
  assert.equal(channel.state, "joining");
  const [joinRef, ref, ...rest] = env.server.sent[0];
  assert.equal(joinRef, ref, "the join_ref is the ref of the join");
  assert.equal(channel.joinRef(), ref);
  assert.deepEqual(rest, ["room:a", "phx_join", { token: "x" }]);
  env.server.answer("room:a", "phx_join", "ok", { users: [] });
  assert.equal(channel.state, "joined");
  assert.ok(channel.isJoined() && channel.canPush());
  assert.deepEqual(await push, { users: [] });
});

test("joining the same channel a second time throws", (t) => {
  const env = setUp(t);
  const { channel } = env.joined();
  assert.throws(() => channel.join(), /join\(\) of "room:a" was called before/);
  channel.leave();
  assert.throws(() => channel.join(), /use a new socket\.channel\(\)/);
  const neverJoined = env.socket.channel("room:b");
  neverJoined.leave();
  assert.throws(() => neverJoined.join(), /was called before/);
});

test("a join before the connection is open is sent when it opens", async (t) => {
  const env = setUp(t);
  const channel = env.socket.channel("room:a");
  const push = channel.join();
  env.socket.connect();
  env.server.accept();
  env.server.answer("room:a", "phx_join", "ok", 1);
  assert.equal(await push, 1);
  assert.deepEqual(env.server.sent, [], "one join only");
});

test("a join waits through failed connections", async (t) => {
  const env = setUp(t);
  const push = env.socket.channel("room:a").join();
  env.socket.connect();
  env.server.refuse();
  env.tick(250);
  env.server.refuse();
  env.tick(500);
  env.server.accept();
  env.server.answer("room:a", "phx_join", "ok", 1);
  assert.equal(await push, 1);
});

test("a join that finds no server is rejected in its time, and joins when there is one", async (t) => {
  const env = setUp(t, { reconnectAfterMs: () => 1000 });
  const calls = recorder();
  const channel = env.socket.channel("room:a");
  const push = channel.join(5000).receive("timeout", calls.as("timeout")).receive("ok", calls.as("ok"));
  const seen = observe(push);
  env.socket.connect();
  for (let second = 0; second < 5; second += 1) {
    assert.deepEqual(calls.all, []);
    env.server.refuse();
    env.tick(1000);
  }
  await idle();
  assert.equal(seen.error.status, "timeout");
  assert.deepEqual(calls.take(), [["timeout", {}]]);
  env.server.accept();
  env.server.answer("room:a", "phx_join");
  assert.equal(channel.state, "joined");
  assert.deepEqual(calls.take(), [["ok", {}]]);
});

test("awaiting a join ends in its time even if every connection breaks before the answer", async (t) => {
  const env = setUp(t, { reconnectAfterMs: () => 500 });
  const channel = env.socket.channel("room:a");
  const seen = observe(channel.join(2000));
  env.socket.connect();
  for (let turn = 0; turn < 4; turn += 1) {
    assert.equal(seen.state, "pending");
    env.server.accept();
    env.server.shut();
    env.tick(500);
    await idle();
  }
  assert.equal(seen.error.status, "timeout");
});

test("a refused join rejects, and is tried again until the channel is left", async (t) => {
  const env = setUp(t);
  env.open();
  const calls = recorder();
  const channel = env.socket.channel("room:a");
  const push = channel.join().receive("error", calls.as("error"));
  const refusal = { reason: "unauthorized" };
  env.server.answer("room:a", "phx_join", "error", refusal);
  assert.equal(channel.state, "errored");
  await assert.rejects(push.then(), { status: "error", response: refusal });
  for (const ceiling of [1000, 2000, 4000, 8000, 10_000, 10_000]) {
    env.tick(ceiling / 2 - 1);
    assert.deepEqual(env.server.sent, []);
    env.tick(1);
    assert.equal(channel.state, "joining");
    env.server.answer("room:a", "phx_join", "error", refusal);
  }
  assert.equal(calls.all.length, 7, "the hook runs for each refusal");
  channel.leave();
  env.tick(60_000);
  assert.deepEqual(env.server.sent.filter((frame) => frame[2] === "room:a"), [], "nobody has to be told");
});

test("the first outcome of a join stays that of its promise", async (t) => {
  const env = setUp(t);
  env.open();
  const channel = env.socket.channel("room:a");
  const push = channel.join();
  const calls = recorder();
  push.receive("ok", calls.as("ok"));
  env.server.answer("room:a", "phx_join", "ok", { n: 1 });
  env.server.shut();
  env.tick(250);
  env.server.accept();
  env.server.answer("room:a", "phx_join", "ok", { n: 2 });
  assert.deepEqual(calls.all, [["ok", { n: 1 }], ["ok", { n: 2 }]], "hooks see every rejoin");
  assert.deepEqual(await push, { n: 1 });
  env.server.shut();
  env.tick(250);
  env.server.accept();
  env.server.answer("room:a", "phx_join", "error", { n: 3 });
  assert.deepEqual(await push, { n: 1 });
});

test("a join without an answer times out: the server is told to forget it, and it is tried again", async (t) => {
  const env = setUp(t);
  env.open();
  const channel = env.socket.channel("room:a");
  const push = channel.join(3000);
  const first = env.server.take();
  env.tick(3000);
  assert.equal(channel.state, "errored");
  await assert.rejects(push.then(), { status: "timeout" });
  const leave = env.server.take();
  assert.deepEqual(leave.toSpliced(1, 1), [first[0], "room:a", "phx_leave", {}]);
  env.server.deliver(first[0], first[1], "room:a", "phx_reply", { status: "ok", response: {} });
  assert.equal(channel.state, "errored", "a late answer does not count");
  const calls = recorder();
  channel.on("msg", calls.as("msg"));
  env.server.deliver(first[0], null, "room:a", "msg", {});
  assert.deepEqual(calls.all, [], "nor does what the late join pushes");
  env.tick(500);
  const second = env.server.answer("room:a", "phx_join");
  assert.notEqual(second.joinRef, first[0]);
  assert.equal(channel.state, "joined");
});

test("params that are a function are asked anew for each join", (t) => {
  const env = setUp(t);
  let count = 0;
  env.open();
  env.socket.channel("room:a", () => ({ count: ++count })).join();
  assert.deepEqual(env.server.answer("room:a", "phx_join").payload, { count: 1 });
  env.server.shut();
  env.tick(250);
  env.server.accept();
  assert.deepEqual(env.server.answer("room:a", "phx_join").payload, { count: 2 });
});

test("a params function that throws is reported, fails the join, and is asked again", async (t) => {
  const env = setUp(t);
  env.open();
  let broken = true;
  const params = () => {
    if (broken) throw new Error("no token yet");
    return { token: 1 };
  };
  const channel = env.socket.channel("room:a", params);
  const seen = observe(channel.join());
  assert.equal(env.reported.shift().message, "no token yet");
  await idle();
  assert.deepEqual(seen.error.response, { reason: "no token yet" });
  broken = false;
  env.tick(500);
  assert.deepEqual(env.server.answer("room:a", "phx_join").payload, { token: 1 });
  assert.equal(channel.state, "joined");
});

test("events reach their callbacks with payload, ref and join_ref, until these are removed", (t) => {
  const env = setUp(t);
  const { channel, joinRef } = env.joined();
  const calls = recorder();
  const first = channel.on("msg", calls.as("first"));
  channel.on("msg", calls.as("second"));
  channel.on("other", calls.as("other"));
  env.server.deliver(joinRef, null, "room:a", "msg", { n: 1 });
  assert.deepEqual(calls.take(), [["first", { n: 1 }, null, joinRef], ["second", { n: 1 }, null, joinRef]]);
  channel.off("msg", first);
  env.server.deliver(null, null, "room:a", "msg", { n: 2 });
  assert.deepEqual(calls.take(), [["second", { n: 2 }, null, joinRef]]);
  channel.off("msg");
  env.server.deliver(null, null, "room:a", "msg", {});
  env.server.deliver(null, null, "room:b", "other", {});
  assert.deepEqual(calls.take(), []);
  env.server.deliver(null, null, "room:a", "other", {});
  assert.equal(calls.take().length, 1);
});

test("the ref 0 removes one callback, not all", (t) => {
  const { channel } = setUp(t).joined();
  const calls = recorder();
  assert.equal(channel.on("msg", calls.as("first")), 0);
  channel.on("msg", calls.as("second"));
  channel.off("msg", 0);
  channel.trigger("msg", {});
  assert.deepEqual(calls.all.map(([name]) => name), ["second"]);
});

test("a callback that removes itself does not make another one miss the event", (t) => {
  const { channel } = setUp(t).joined();
  const calls = recorder();
  const ref = channel.on("msg", () => channel.off("msg", ref));
  channel.on("msg", calls.as("second"));
  channel.trigger("msg", {});
  assert.equal(calls.all.length, 1);
});

test("messages of an earlier join are dropped", (t) => {
  const env = setUp(t);
  const { channel, joinRef } = env.joined();
  const calls = recorder();
  channel.on("msg", calls.as("msg"));
  channel.onError(calls.as("error"));
  channel.onClose(calls.as("close"));
  for (const event of ["msg", "phx_error", "phx_close"]) {
    env.server.deliver(`${joinRef}0`, null, "room:a", event, {});
  }
  assert.deepEqual(calls.all, []);
  assert.equal(channel.state, "joined");
});

test("after a crash on the server the channel rejoins with backoff, and with a new join_ref", (t) => {
  const env = setUp(t);
  const { channel, joinRef } = env.joined();
  const calls = recorder();
  channel.onError(calls.as("error"));
  env.server.deliver(joinRef, joinRef, "room:a", "phx_error", { reason: "channel_crash" });
  assert.equal(channel.state, "errored");
  assert.deepEqual(calls.all, [["error", { reason: "channel_crash" }, joinRef, joinRef]]);
  env.tick(499);
  assert.deepEqual(env.server.sent, []);
  env.tick(1);
  const again = env.server.answer("room:a", "phx_join");
  assert.notEqual(again.joinRef, joinRef);
  assert.equal(channel.state, "joined");
  env.server.deliver(joinRef, null, "room:a", "phx_close", {});
  assert.equal(channel.state, "joined", "what the old one had to say is dropped");
  env.server.deliver(again.joinRef, again.joinRef, "room:a", "phx_error", {});
  env.tick(500);
  env.server.answer("room:a", "phx_join");
  assert.equal(channel.state, "joined", "the backoff began anew after the successful join");
});

test("a crash while joining is tried again too", async (t) => {
  const env = setUp(t);
  env.open();
  const channel = env.socket.channel("room:a");
  const push = channel.join();
  const [joinRef] = env.server.take();
  env.server.deliver(joinRef, joinRef, "room:a", "phx_error", { reason: "channel_crash" });
  assert.equal(channel.state, "errored");
  env.server.deliver(joinRef, joinRef, "room:a", "phx_reply", { status: "ok", response: 1 });
  assert.equal(channel.state, "errored", "what it had to say before does not count");
  env.tick(500);
  env.server.answer("room:a", "phx_join", "ok", 2);
  assert.equal(await push, 2);
});

test("the rejoin delay is random by default, and a function of the application's is taken as it is", (t) => {
  const tries = [];
  const env = setUp(t, { rejoinAfterMs: (count) => tries.push(count) && 77 });
  const { channel, joinRef } = env.joined();
  env.server.deliver(joinRef, joinRef, "room:a", "phx_error", {});
  for (let turn = 0; turn < 3; turn += 1) {
    env.tick(76);
    assert.deepEqual(env.server.sent, []);
    env.tick(1);
    env.server.answer("room:a", "phx_join", "error");
  }
  assert.deepEqual(tries.splice(0), [1, 2, 3, 4]);
  env.server.shut();
  env.tick(250);
  env.server.accept();
  env.server.answer("room:a", "phx_join", "error");
  assert.deepEqual(tries, [1], "a new connection begins anew, and a lost one does not count");
  channel.leave();
});

test("after a lost connection all channels rejoin at once when it is back", (t) => {
  const env = setUp(t);
  const a = env.joined("room:a");
  const b = env.joined("room:b");
  const calls = recorder();
  a.channel.onError(calls.as("a"));
  b.channel.onError(calls.as("b"));
  env.server.shut(1012);
  const reason = { source: "transport", reason: "connection_closed" };
  assert.deepEqual(calls.all.map((call) => call.slice(0, 2)), [["a", reason], ["b", reason]]);
  assert.equal(a.channel.state, "errored");
  env.tick(250);
  env.server.accept();
  env.server.answer("room:a", "phx_join");
  env.server.answer("room:b", "phx_join");
  assert.ok(a.channel.isJoined() && b.channel.isJoined());
  env.tick(20_000);
  assert.deepEqual(env.server.sent, [], "once");
});

test("a channel that was not joined is not joined by a connection, a crash, or a close", (t) => {
  const env = setUp(t);
  const channel = env.socket.channel("room:a");
  const calls = recorder();
  channel.onError(calls.as("error"));
  env.open();
  env.server.deliver(null, null, "room:a", "phx_error", {});
  assert.equal(calls.all.length, 1);
  assert.equal(channel.state, "closed");
  env.server.shut();
  env.tick(250);
  env.server.accept();
  env.tick(20_000);
  assert.deepEqual(env.server.sent, []);
});

test("a rejoin that was waiting when the connection broke is not sent twice", (t) => {
  const env = setUp(t);
  const { joinRef } = env.joined();
  env.server.deliver(joinRef, joinRef, "room:a", "phx_error", {});
  env.server.shut();
  env.tick(250);
  env.server.accept();
  env.server.answer("room:a", "phx_join");
  env.tick(20_000);
  assert.deepEqual(env.server.sent, []);
});

test("leaving tells the server, and is done here at once", async (t) => {
  const env = setUp(t);
  const { channel, joinRef } = env.joined();
  const calls = recorder();
  channel.onClose(calls.as("close"));
  channel.on("msg", calls.as("msg"));
  const push = channel.leave().receive("ok", calls.as("left"));
  assert.equal(channel.state, "closed");
  assert.deepEqual(env.socket.channels, []);
  const [leaveJoinRef, ref, ...rest] = env.server.take();
  assert.equal(leaveJoinRef, joinRef);
  assert.deepEqual(rest, ["room:a", "phx_leave", {}]);
  assert.deepEqual(calls.take(), [["close", "leave", undefined, joinRef], ["left", {}]]);
  assert.deepEqual(await push, {});
  env.server.deliver(null, null, "room:a", "msg", {});
  env.server.deliver(joinRef, ref, "room:a", "phx_reply", { status: "ok", response: {} });
  env.server.deliver(joinRef, joinRef, "room:a", "phx_close", {});
  channel.leave();
  env.tick(60_000);
  assert.deepEqual(calls.all, []);
  assert.deepEqual(env.server.sent.filter((frame) => frame[3] !== "heartbeat"), []);
});

test("leaving while joining ends the awaited join, and a later answer changes nothing", async (t) => {
  const env = setUp(t);
  env.open();
  const channel = env.socket.channel("room:a");
  const calls = recorder();
  const seen = observe(channel.join().receive("timeout", calls.as("timeout")));
  channel.leave();
  await idle();
  assert.equal(seen.error.status, "closed");
  const [joinRef, ref] = env.server.take();
  assert.deepEqual(env.server.take().toSpliced(1, 1), [joinRef, "room:a", "phx_leave", {}]);
  env.server.deliver(joinRef, ref, "room:a", "phx_reply", { status: "ok", response: {} });
  env.tick(20_000);
  assert.equal(channel.state, "closed");
  assert.deepEqual(calls.all, []);
  assert.deepEqual(env.server.sent, []);
});

test("leaving without a connection sends nothing, then or later", (t) => {
  const env = setUp(t);
  const { channel } = env.joined();
  env.server.shut();
  channel.leave();
  env.tick(250);
  env.server.accept();
  assert.deepEqual(env.server.sent, []);
});

test("leaving a channel that was never joined does not end another one of the topic", (t) => {
  const env = setUp(t);
  const { channel } = env.joined();
  env.socket.channel("room:a").leave();
  assert.deepEqual(env.server.sent, []);
  assert.equal(channel.state, "joined");
});

test("a close by the server ends the channel for good", (t) => {
  const env = setUp(t);
  const { channel, joinRef } = env.joined();
  const calls = recorder();
  channel.onClose(calls.as("close"));
  env.server.deliver(joinRef, joinRef, "room:a", "phx_close", {});
  assert.equal(channel.state, "closed");
  assert.deepEqual(env.socket.channels, []);
  assert.deepEqual(calls.all, [["close", {}, joinRef, joinRef]]);
  env.server.shut();
  env.tick(250);
  env.server.accept();
  assert.deepEqual(env.server.sent, []);
});

test("joining a topic again with another channel makes the older one leave first", (t) => {
  const env = setUp(t);
  const older = env.joined("room:a");
  const newer = env.socket.channel("room:a");
  assert.equal(older.channel.state, "joined", "not before the join");
  newer.join();
  assert.equal(older.channel.state, "closed");
  assert.deepEqual(env.server.take().toSpliced(1, 1), [older.joinRef, "room:a", "phx_leave", {}]);
  env.server.answer("room:a", "phx_join");
  assert.equal(newer.state, "joined");
});

test("a crashed channel does not come back to push out the one that took its topic", (t) => {
  const env = setUp(t);
  const older = env.joined("room:a");
  env.server.deliver(older.joinRef, older.joinRef, "room:a", "phx_error", {});
  const newer = env.socket.channel("room:a");
  newer.join();
  env.server.answer("room:a", "phx_join");
  env.tick(20_000);
  assert.equal(newer.state, "joined");
  assert.equal(older.channel.state, "closed");
  assert.deepEqual(env.server.sent, []);
});

test("onMessage sees every event once and may change payloads", (t) => {
  const env = setUp(t);
  const { channel, joinRef } = env.joined();
  const seen = [];
  channel.onMessage = (event, payload, ref, join) => {
    seen.push([event, ref, join]);
    return event === "msg" ? { changed: payload } : payload;
  };
  const calls = recorder();
  channel.on("msg", calls.as("msg"));
  env.server.deliver(null, null, "room:a", "msg", { n: 1 });
  assert.deepEqual(calls.all[0][1], { changed: { n: 1 } });
  const push = channel.push("a").receive("ok", calls.as("ok"));
  env.server.answer("room:a", "a", "ok", 1);
  assert.deepEqual(seen, [["msg", null, joinRef], ["phx_reply", push.ref, joinRef]]);
  assert.deepEqual(calls.all[1], ["ok", 1]);
});

for (const [what, hook] of [
  ["returns nothing", () => {}],
  ["throws", () => assert.fail("mine")],
]) {
  test(`an onMessage that ${what} is reported and loses the message, not the channel's state`, (t) => {
    const env = setUp(t);
    const { channel, joinRef } = env.joined();
    const calls = recorder();
    channel.on("msg", calls.as("msg"));
    channel.onMessage = hook;
    env.server.deliver(null, null, "room:a", "msg", { n: 1 });
    env.server.deliver(joinRef, joinRef, "room:a", "phx_error", {});
    assert.equal(channel.state, "errored");
    env.server.deliver(joinRef, joinRef, "room:a", "phx_close", {});
    assert.equal(channel.state, "closed");
    assert.deepEqual(calls.all, []);
    assert.equal(env.reported.splice(0).length, 3);
  });
}

test("a payload of null, a string or a list arrives as it is", (t) => {
  const env = setUp(t);
  const { channel } = env.joined();
  const calls = recorder();
  channel.on("msg", (payload) => calls.as("msg")(payload));
  for (const payload of [null, "", "text", [1], 0]) env.server.deliver(null, null, "room:a", "msg", payload);
  assert.deepEqual(calls.all.map(([, payload]) => payload), [null, "", "text", [1], 0]);
  env.server.deliver(null, channel.push("a").ref, "room:a", "phx_reply", null);
});

test("a callback that throws is reported; the other callbacks and channels go on", (t) => {
  const env = setUp(t);
  const { channel } = env.joined();
  const calls = recorder();
  const failure = new Error("mine");
  const bad = () => {
    throw failure;
  };
  for (const add of [(f) => channel.on("msg", f), (f) => channel.onError(f), (f) => channel.onClose(f)]) {
    add(bad);
    add(calls.as("good"));
  }
  env.server.deliver(null, null, "room:a", "msg", {});
  env.server.shut();
  assert.equal(channel.state, "errored");
  channel.leave();
  assert.equal(calls.all.length, 3);
  assert.deepEqual(env.reported.splice(0), [failure, failure, failure]);
});
