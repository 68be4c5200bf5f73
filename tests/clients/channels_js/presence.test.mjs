import assert from "node:assert/strict";
import { test } from "node:test";

import { Presence as Theirs } from "phoenix";

import { Presence } from "../../../starlette_channels/static/channels.js";
import { recorder, setUp } from "./fake.mjs";

const meta = (phx_ref, fields = {}) => ({ phx_ref, ...fields });
const entry = (...refs) => ({ metas: refs.map((ref) => meta(ref)) });
const diff = (joins, leaves = {}) => ({ joins, leaves });
const plain = (state) => JSON.parse(JSON.stringify(state));

function present(t, options) {
  const env = setUp(t);
  const { channel, joinRef } = env.joined();
  const presence = new Presence(channel, options);
  const calls = recorder();
  presence.onJoin(calls.as("join"));
  presence.onLeave(calls.as("leave"));
  presence.onSync(calls.as("sync"));
  const tell = (event, payload, ref = null) => env.server.deliver(ref, null, "room:a", event, payload);
  return { ...env, env, channel, joinRef, presence, calls, tell };
}

test("a state and then diffs make the list", (t) => {
  const { presence, calls, tell } = present(t);
  tell("presence_state", { ann: entry("1") });
  assert.deepEqual(calls.take(), [["join", "ann", undefined, entry("1")], ["sync"]]);
  tell("presence_diff", diff({ ann: entry("2"), ben: entry("3") }));
  assert.deepEqual(plain(presence.state), { ann: entry("1", "2"), ben: entry("3") });
  assert.deepEqual(calls.take(), [
    ["join", "ann", entry("1"), entry("2")],
    ["join", "ben", undefined, entry("3")],
    ["sync"],
  ]);
  tell("presence_diff", diff({}, { ann: entry("1"), ben: entry("3") }));
  assert.deepEqual(calls.take(), [
    ["leave", "ann", entry("2"), entry("1")],
    ["leave", "ben", entry(), entry("3")],
    ["sync"],
  ]);
  assert.deepEqual(presence.list(), [entry("2")]);
  assert.deepEqual(presence.list((key, { metas }) => [key, metas.length]), [["ann", 1]]);
});

test("diffs that come before the state wait for it", (t) => {
  const { presence, calls, tell } = present(t);
  tell("presence_diff", diff({ ben: entry("2") }));
  assert.ok(presence.inPendingSyncState());
  assert.deepEqual(calls.take(), []);
  tell("presence_state", { ann: entry("1") });
  assert.ok(!presence.inPendingSyncState());
  assert.deepEqual(plain(presence.state), { ann: entry("1"), ben: entry("2") });
  assert.deepEqual(calls.take().map(([name]) => name), ["join", "join", "sync"]);
});

test("after a new join the list waits for the new state, and tells what is different", (t) => {
  const { env, presence, calls, tell } = present(t);
  tell("presence_state", { ann: entry("1"), ben: entry("2") });
  calls.take();
  env.server.shut();
  env.tick(1000);
  env.server.accept();
  env.server.answer("room:a", "phx_join");
  assert.ok(presence.inPendingSyncState());
  assert.deepEqual(presence.list().length, 2, "the old list is there until then");
  tell("presence_state", { ann: entry("3"), cid: entry("4") });
  assert.deepEqual(calls.take(), [
    ["join", "ann", entry("1"), entry("3")],
    ["join", "cid", undefined, entry("4")],
    ["leave", "ann", entry("3"), entry("1")],
    ["leave", "ben", entry(), entry("2")],
    ["sync"],
  ]);
  assert.deepEqual(plain(presence.state), { ann: entry("3"), cid: entry("4") });
});

test("events may have other names", (t) => {
  const { presence, tell } = present(t, { events: { state: "who", diff: "change" } });
  tell("who", { ann: entry("1") });
  tell("change", diff({ ben: entry("2") }));
  tell("presence_state", {});
  assert.deepEqual(Object.keys(presence.state), ["ann", "ben"]);
});

test("a callback that throws is reported, and the list stays right", (t) => {
  const { env, presence, tell } = present(t);
  presence.onJoin(() => { throw new Error("asked for"); });
  tell("presence_state", { ann: entry("1") });
  assert.deepEqual(env.reported.splice(0).map(({ message }) => message), ["asked for"]);
  assert.deepEqual(Object.keys(presence.state), ["ann"]);
});

test("keys that objects inherit are keys like others", (t) => {
  const { presence, tell } = present(t);
  const state = JSON.parse('{"__proto__": {"metas": [{"phx_ref": "1"}]}, "constructor": {"metas": [{"phx_ref": "2"}]}}');
  tell("presence_state", state);
  assert.deepEqual(presence.list((key) => key).sort(), ["__proto__", "constructor"]);
  tell("presence_diff", { joins: {}, leaves: state });
  assert.deepEqual(presence.list(), []);
});

test("without callbacks it works as well", () => {
  const state = Presence.syncState({}, { ann: entry("1") });
  assert.deepEqual(Presence.list(Presence.syncDiff(state, diff({}, { ann: entry("1"), ben: entry("2") }))), []);
});

test("whatever comes, the list and what is told of it are those of phoenix.js", () => {
  let seed = 1;
  const random = (below) => (seed = (seed * 48271) % 2147483647) % below;
  const keys = ["ann", "ben", "cid"];
  let ref = 0;
  let server = {};
  const step = () => {
    const joins = {};
    const leaves = {};
    for (const key of keys) {
      const metas = server[key]?.metas ?? [];
      const left = metas.filter(() => random(4) === 0);
      const joined = random(2) ? [meta(String((ref += 1)), { n: random(9) })] : [];
      if (left.length) leaves[key] = { metas: left };
      if (joined.length) joins[key] = { metas: joined };
      const rest = [...metas.filter((one) => !left.includes(one)), ...joined];
      server = { ...server, [key]: { metas: rest } };
      if (!rest.length) delete server[key];
    }
    return plain({ joins, leaves });
  };
  const states = new Map([[Presence, {}], [Theirs, {}]]);
  for (let round = 0; round < 2000; round += 1) {
    const change = step();
    const whole = round % 7 === 0;
    if (!whole && round % 5 === 0) continue; // a diff is lost: the next state heals that
    const told = [...states].map(([Kind, state]) => {
      const calls = [];
      const note = (name) => (...args) => calls.push(plain([name, args[0], args[1] ?? null, args[2]]));
      const next = whole
        ? Kind.syncState(state, plain(server), note("join"), note("leave"))
        : Kind.syncDiff(state, plain(change), note("join"), note("leave"));
      states.set(Kind, next);
      return { calls: calls.sort(), state: plain(next) };
    });
    assert.deepEqual(told[0], told[1], `round ${round}`);
    if (whole) {
      const refs = (state) => Object.fromEntries(keys.map((key) => [key, state[key]?.metas.map((one) => one.phx_ref).sort()]));
      assert.deepEqual(refs(told[0].state), refs(server));
    }
  }
});
