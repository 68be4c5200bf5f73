// socket.shared: one channel for several parts of a page, and what is said of two channels that take the same topic.

import assert from "node:assert/strict";
import { test } from "node:test";

import { Presence } from "../../../starlette_channels/static/channels.js";
import { idle, observe, recorder, setUp } from "./fake.mjs";

/** As setUp, with what is warned of. */
function prepare(t, options) {
  const warnings = [];
  t.mock.method(console, "warn", (text) => warnings.push(text));
  return Object.assign(setUp(t, options), { warnings });
}

const events = (server) => server.sent.map((frame) => frame[3]);

test("two channels of one topic are warned of, with both ways out", (t) => {
  const env = prepare(t);
  const { channel: first } = env.joined();
  env.socket.channel("room:a").join();
  assert.equal(first.state, "closed");
  assert.equal(env.warnings.length, 1);
  assert.match(env.warnings[0], /"room:a" is joined once more .* leave\(\).* socket\.shared\("room:a"\)/);
});

test("a channel after the other was left, of another topic, or not joined, is not warned of", (t) => {
  const env = prepare(t);
  const { channel } = env.joined();
  env.socket.channel("room:a");
  channel.leave();
  env.server.sent.length = 0;
  env.joined("room:b");
  env.server.sent.length = 0;
  env.joined("room:a");
  assert.deepEqual(env.warnings, []);
});

test("the first to join joins the topic, and the last to leave leaves it", (t) => {
  const env = prepare(t);
  env.open();
  const [one, two, three] = [1, 2, 3].map(() => env.socket.shared("room:a", { token: "x" }));
  assert.deepEqual([one.state, two.state], ["closed", "closed"]);
  one.join();
  two.join();
  assert.deepEqual(env.server.sent.map((frame) => frame.slice(2)), [["room:a", "phx_join", { token: "x" }]]);
  env.server.answer("room:a", "phx_join");
  three.join();
  assert.deepEqual([one.state, two.state, three.state], ["joined", "joined", "joined"]);
  two.leave();
  one.leave();
  assert.deepEqual(events(env.server), []);
  assert.deepEqual([one.state, two.state, three.state], ["closed", "closed", "joined"]);
  three.leave();
  assert.deepEqual(events(env.server), ["phx_leave"]);
  assert.deepEqual(env.socket.channels, []);
  assert.deepEqual(env.warnings, []);
});

test("leaving twice counts once", (t) => {
  const env = prepare(t);
  env.open();
  const [one, two] = [env.socket.shared("room:a"), env.socket.shared("room:a")];
  one.join();
  two.join();
  env.server.answer("room:a", "phx_join");
  const left = recorder();
  one.leave().receive("ok", left.as("left"));
  one.leave().receive("ok", left.as("left"));
  assert.equal(left.all.length, 2);
  assert.equal(two.state, "joined");
});

test("one that never joined may leave, and changes nothing", (t) => {
  const env = prepare(t);
  env.open();
  const [one, two] = [env.socket.shared("room:a"), env.socket.shared("room:a")];
  one.join();
  env.server.answer("room:a", "phx_join");
  two.leave();
  assert.deepEqual([one.state, two.state], ["joined", "closed"]);
  assert.throws(() => two.join(), /use a new socket\.shared\(\)/);
  assert.throws(() => env.socket.shared("room:a").push("x"), /before join\(\)/);
});

test("everyone has the answer to the join, whenever they come, and each one anew after a rejoin", async (t) => {
  const env = prepare(t);
  env.open();
  const calls = recorder();
  const early = env.socket.shared("room:a");
  const waiting = env.socket.shared("room:a");
  const seen = [observe(early.join().receive("ok", calls.as("early"))), observe(waiting.join().receive("ok", calls.as("waiting")))];
  env.server.answer("room:a", "phx_join", "ok", { n: 1 });
  const late = env.socket.shared("room:a");
  seen.push(observe(late.join().receive("ok", calls.as("late"))));
  assert.deepEqual(calls.take(), [["early", { n: 1 }], ["waiting", { n: 1 }], ["late", { n: 1 }]]);
  await idle();
  assert.deepEqual(seen.map(({ value }) => value), [{ n: 1 }, { n: 1 }, { n: 1 }]);
  waiting.leave();
  env.server.shut();
  env.tick(250);
  env.server.accept();
  env.server.answer("room:a", "phx_join", "ok", { n: 2 });
  assert.deepEqual(calls.take(), [["early", { n: 2 }], ["late", { n: 2 }]]);
  const latest = env.socket.shared("room:a");
  assert.deepEqual(await latest.join(), { n: 2 });
});

test("who comes while the connection is lost waits for the next answer", async (t) => {
  const env = prepare(t);
  env.open();
  const one = env.socket.shared("room:a");
  one.join();
  env.server.answer("room:a", "phx_join", "ok", { n: 1 });
  env.server.shut();
  const seen = observe(env.socket.shared("room:a").join());
  await idle();
  assert.equal(seen.state, "pending");
  env.tick(250);
  env.server.accept();
  env.server.answer("room:a", "phx_join", "ok", { n: 2 });
  await idle();
  assert.deepEqual(seen.value, { n: 2 });
});

test("a refusal reaches everyone, those who come later too, and so does the join that succeeds", async (t) => {
  const env = prepare(t);
  env.open();
  const calls = recorder();
  const join = (name) => {
    const holder = env.socket.shared("room:a");
    return observe(holder.join().receive("error", calls.as(name)).receive("ok", calls.as(name)));
  };
  const seen = [join("one")];
  env.server.answer("room:a", "phx_join", "error", { reason: "full" });
  seen.push(join("two"));
  await idle();
  assert.deepEqual(seen.map(({ error }) => error.reason), ["full", "full"]);
  assert.deepEqual(calls.take(), [["one", { reason: "full" }], ["two", { reason: "full" }]]);
  env.tick(10_000);
  env.server.answer("room:a", "phx_join");
  assert.deepEqual(calls.take(), [["one", {}], ["two", {}]]);
});

test("a join that finds no server is rejected in the time of each", async (t) => {
  const env = prepare(t);
  env.socket.connect();
  const [one, two] = [env.socket.shared("room:a"), env.socket.shared("room:a")];
  const seen = [observe(one.join(1000)), observe(two.join(3000))];
  env.tick(1000);
  await idle();
  assert.deepEqual(seen.map(({ state }) => state), ["rejected", "pending"]);
  env.tick(2000);
  await idle();
  assert.deepEqual(seen.map(({ error }) => error.status), ["timeout", "timeout"]);
});

test("each has its own listeners, which go with it", (t) => {
  const env = prepare(t);
  env.open();
  const [one, two] = [env.socket.shared("room:a"), env.socket.shared("room:a")];
  const calls = recorder();
  one.on("news", calls.as("one"));
  const ref = two.on("news", calls.as("two"));
  two.on("news", calls.as("two again"));
  one.join();
  const { joinRef } = env.server.answer("room:a", "phx_join");
  env.server.deliver(joinRef, null, "room:a", "news", { n: 1 });
  assert.deepEqual(calls.take().map(([name]) => name), ["one"], "the second has not joined yet");
  two.join();
  env.server.deliver(null, null, "room:a", "news", { n: 2 });
  assert.deepEqual(calls.take().map(([name]) => name), ["one", "two", "two again"]);
  two.off("news", ref);
  env.server.deliver(null, null, "room:a", "news", { n: 3 });
  assert.deepEqual(calls.take().map(([name]) => name), ["one", "two again"]);
  one.leave();
  one.on("news", calls.as("one"));
  env.server.deliver(null, null, "room:a", "news", { n: 4 });
  assert.deepEqual(calls.take(), [["two again", { n: 4 }, null, joinRef]]);
});

test("a listener may leave, for itself or for another one, in the middle of an event", (t) => {
  const env = prepare(t);
  env.open();
  const holders = [1, 2, 3].map(() => env.socket.shared("room:a"));
  const calls = recorder();
  for (const holder of holders) holder.join();
  env.server.answer("room:a", "phx_join");
  holders[0].on("news", () => {
    calls.as("first")();
    holders[0].leave();
    holders[1].leave();
  });
  holders[1].on("news", calls.as("second"));
  holders[2].on("news", calls.as("third"));
  env.server.deliver(null, null, "room:a", "news", {});
  assert.deepEqual(calls.all.map(([name]) => name), ["first", "third"]);
  assert.equal(holders[2].state, "joined");
});

test("a listener that throws is reported, and the others hear the event", (t) => {
  const env = prepare(t);
  env.open();
  const [one, two] = [env.socket.shared("room:a"), env.socket.shared("room:a")];
  const calls = recorder();
  one.on("news", () => {
    throw new Error("broken");
  });
  two.on("news", calls.as("two"));
  one.join();
  two.join();
  env.server.answer("room:a", "phx_join");
  env.server.deliver(null, null, "room:a", "news", {});
  assert.equal(calls.all.length, 1);
  assert.match(String(env.reported.shift()), /broken/);
});

test("each is told of the end: of its own leaving, and of an end by the server, once", (t) => {
  const env = prepare(t);
  env.open();
  const calls = recorder();
  const holders = ["one", "two", "three"].map((name) => {
    const holder = env.socket.shared("room:a");
    holder.onClose(calls.as(name));
    holder.join();
    return holder;
  });
  const { joinRef } = env.server.answer("room:a", "phx_join");
  holders[0].leave();
  assert.deepEqual(calls.take().map(([name]) => name), ["one"]);
  env.server.deliver(joinRef, joinRef, "room:a", "phx_close", {});
  assert.deepEqual(calls.take().map(([name]) => name), ["two", "three"]);
  assert.deepEqual(holders.map(({ state }) => state), ["closed", "closed", "closed"]);
  for (const holder of holders) holder.leave();
  assert.deepEqual(calls.take(), []);
  env.server.sent.length = 0;
  env.socket.shared("room:a").join();
  assert.deepEqual(events(env.server), ["phx_join"], "a new one joins anew");
});

test("each is told of a crash and of a lost connection", (t) => {
  const env = prepare(t);
  env.open();
  const calls = recorder();
  for (const name of ["one", "two"]) {
    const holder = env.socket.shared("room:a");
    holder.onError(calls.as(name));
    holder.join();
  }
  const { joinRef } = env.server.answer("room:a", "phx_join");
  env.server.deliver(joinRef, joinRef, "room:a", "phx_error", { reason: "channel_crash" });
  assert.deepEqual(calls.take().map(([name, { reason }]) => [name, reason]), [["one", "channel_crash"], ["two", "channel_crash"]]);
  env.tick(10_000);
  env.server.answer("room:a", "phx_join");
  env.server.shut();
  assert.deepEqual(calls.take().map(([name]) => name), ["one", "two"]);
});

test("a push goes over the shared channel, and is awaited by who pushed", async (t) => {
  const env = prepare(t);
  env.open();
  const [one, two] = [env.socket.shared("room:a"), env.socket.shared("room:a")];
  one.join();
  const buffered = observe(one.push("early"));
  env.server.answer("room:a", "phx_join");
  env.server.answer("room:a", "early", "ok", 1);
  two.join();
  const answered = observe(two.push("hello", { n: 1 }));
  one.leave();
  env.server.answer("room:a", "hello", "ok", 2);
  const tooLate = observe(one.push("late"));
  await idle();
  assert.deepEqual([buffered.value, answered.value, tooLate.error.status], [1, 2, "closed"]);
  assert.deepEqual(events(env.server), []);
});

test("params that differ are warned of once, and the same ones are not", (t) => {
  const env = prepare(t);
  env.open();
  env.socket.shared("room:a", { a: 1, b: { c: [1, 2] } }).join();
  for (const params of [{ b: { c: [1, 2] }, a: 1 }, () => ({ a: 1, b: { c: [1, 2] } }), { a: 1, b: { c: [1, 2] }, d: undefined }]) {
    env.socket.shared("room:a", params).join();
  }
  assert.deepEqual(env.warnings, []);
  for (const params of [{ a: 2 }, undefined, { a: 1, b: { c: { 0: 1, 1: 2 } } }, { a: 1, b: null }]) {
    const holder = env.socket.shared("room:a", params);
    holder.join();
    assert.equal(env.warnings.length, 1);
    assert.match(env.warnings.pop(), /socket\.shared\("room:a"\): the params differ/);
  }
  assert.equal(env.server.sent.length, 1);
});

test("params that are a function are asked anew for each join", (t) => {
  const env = prepare(t);
  let count = 0;
  env.open();
  env.socket.shared("room:a", () => ({ count: ++count })).join();
  const [first] = env.server.sent;
  env.server.answer("room:a", "phx_join");
  env.server.shut();
  env.tick(250);
  env.server.accept();
  assert.equal(env.server.sent[0][4].count, first[4].count + 1);
});

test("a channel that takes the topic away from those who share it is warned of, and ends it for all", (t) => {
  const env = prepare(t);
  env.open();
  const calls = recorder();
  for (const name of ["one", "two"]) {
    const holder = env.socket.shared("room:a");
    holder.onClose(calls.as(name));
    holder.join();
  }
  env.server.answer("room:a", "phx_join");
  env.socket.channel("room:a").join();
  assert.deepEqual(calls.all.map(([name]) => name), ["one", "two"]);
  assert.equal(env.warnings.length, 1);
});

test("a presence of a shared channel keeps its list", (t) => {
  const env = prepare(t);
  env.open();
  const holder = env.socket.shared("room:a");
  const presence = new Presence(holder);
  holder.join();
  const { joinRef } = env.server.answer("room:a", "phx_join");
  env.server.deliver(joinRef, null, "room:a", "presence_state", { ann: { metas: [{ phx_ref: "1" }] } });
  env.server.deliver(null, null, "room:a", "presence_diff", { joins: { bob: { metas: [{ phx_ref: "2" }] } }, leaves: {} });
  assert.deepEqual(presence.list((key) => key), ["ann", "bob"]);
});

test("a component that is mounted, unmounted and mounted again joins anew", (t) => {
  const env = prepare(t);
  env.open();
  for (let mounted = 0; mounted < 3; mounted += 1) {
    const holder = env.socket.shared("room:a");
    holder.join();
    holder.leave();
  }
  env.socket.shared("room:a").join();
  assert.deepEqual(events(env.server), ["phx_join", "phx_leave", "phx_join", "phx_leave", "phx_join", "phx_leave", "phx_join"]);
  assert.deepEqual(env.warnings, []);
});
