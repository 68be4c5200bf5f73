import assert from "node:assert/strict";
import { test } from "node:test";

import { recorder, setUp } from "./fake.mjs";

const bytes = (text) => Uint8Array.from(text.replace(/\s/g, "").match(/../g) ?? [], (pair) => parseInt(pair, 16));
const utf8 = (text) => new TextEncoder().encode(text);
const hex = (data) => Buffer.from(data).toString("hex");

/** A joined channel with the join_ref and the next ref of the protocol's example. */
function example(t, topic = "room:a") {
  const env = setUp(t);
  env.open();
  const { channel, joinRef } = env.joined(topic);
  assert.equal(joinRef, "1");
  env.socket.ref = 17;
  return { env, channel };
}

for (const [name, payload] of [
  ["an ArrayBuffer", Uint8Array.of(0, 255).buffer],
  ["a Uint8Array", Uint8Array.of(0, 255)],
  ["a part of a larger buffer", Uint8Array.of(9, 0, 255, 9).subarray(1, 3)],
  ["a DataView", new DataView(Uint8Array.of(9, 0, 255).buffer, 1)],
  ["a Uint16Array", Uint16Array.of(0xff00)],
  ["a Buffer of Node's", Buffer.from([0, 255])],
]) {
  test(`${name} is sent as the protocol's example says`, (t) => {
    const { env, channel } = example(t);
    channel.push("bin", payload);
    assert.equal(hex(env.server.take()), hex(bytes("00 01 02 06 03  31  3138  726f6f6d3a61  62696e  00ff")));
  });
}

test("an empty payload is a frame without data", (t) => {
  const { env, channel } = example(t);
  channel.push("bin", new ArrayBuffer(0));
  assert.equal(hex(env.server.take()), hex(bytes("00 01 02 06 03  31  3138  726f6f6d3a61  62696e")));
});

test("topics and events are UTF-8, and their lengths are counted in bytes", (t) => {
  const { env, channel } = example(t, "zimmer:ü");
  channel.push("größe", Uint8Array.of(1));
  const frame = env.server.take();
  assert.deepEqual([...frame.subarray(0, 5)], [0, 1, 2, 9, 7]);
  assert.equal(hex(frame.subarray(5)), hex([...utf8("1"), ...utf8("18"), ...utf8("zimmer:ü"), ...utf8("größe"), 1]));
});

test("255 bytes of topic and event fit, 256 throw an error that names the field", (t) => {
  const { env, channel } = example(t);
  channel.push("e".repeat(255), Uint8Array.of(1));
  assert.equal(env.server.take()[4], 255);
  assert.throws(() => channel.push("é".repeat(128), Uint8Array.of(1)), {
    name: "RangeError",
    message: /^event of a binary message has 256 bytes, at most 255 fit: éé/,
  });
  assert.deepEqual(env.server.sent, []);
  channel.push("é".repeat(128), { text: "has no such limit" });
  assert.deepEqual(env.server.take()[4], { text: "has no such limit" });
  const long = env.joined("t".repeat(256)).channel;
  assert.throws(() => long.push("e", Uint8Array.of(1)), /^RangeError: topic of a binary message has 256 bytes/);
});

test("too long an event throws from push(), even when the push would have to wait for the join", (t) => {
  const env = setUp(t);
  const channel = env.socket.channel("room:a");
  channel.join();
  assert.throws(() => channel.push("e".repeat(256), new ArrayBuffer(1)), RangeError);
});

test("binary params of a join go out as a binary join", (t) => {
  const env = setUp(t);
  env.open();
  env.socket.channel("room:a", () => Uint8Array.of(7)).join();
  assert.equal(hex(env.server.take()), hex(bytes("00 01 01 06 08  31 31 726f6f6d3a61 7068785f6a6f696e 07")));
});

test("a binary push arrives with an ArrayBuffer as payload", (t) => {
  const { env, channel } = example(t);
  const calls = recorder();
  channel.on("binp", calls.as("binp"));
  env.server.deliverBytes(bytes("00 01 06 04  31  726f6f6d3a61  62696e70  00ff"));
  const [[, payload, ref, joinRef]] = calls.all;
  assert.ok(payload instanceof ArrayBuffer);
  assert.equal(hex(payload), "00ff");
  assert.deepEqual([ref, joinRef], [null, "1"]);
});

test("a binary reply answers its push with an ArrayBuffer", async (t) => {
  const { env, channel } = example(t);
  const push = channel.push("bin", new ArrayBuffer(0));
  env.server.deliverBytes(bytes("01 01 02 06 02  31  3138  726f6f6d3a61  6f6b  00ff"));
  const response = await push;
  assert.ok(response instanceof ArrayBuffer);
  assert.equal(hex(response), "00ff");
});

test("a binary reply with another status rejects", async (t) => {
  const { env, channel } = example(t);
  const push = channel.push("bin");
  env.server.deliverBytes(bytes("01 01 02 06 05  31  3138  726f6f6d3a61  6572726f72  01"));
  await assert.rejects(push.then(), (error) => error.status === "error" && hex(error.response) === "01");
});

test("a binary broadcast has no refs", (t) => {
  const { env, channel } = example(t);
  const calls = recorder();
  channel.on("größe", calls.as("event"));
  env.server.deliverBytes([2, 6, 7, ...utf8("room:a"), ...utf8("größe"), 1, 2, 3]);
  const [[, payload, ref, joinRef]] = calls.all;
  assert.deepEqual([...new Uint8Array(payload)], [1, 2, 3]);
  assert.deepEqual([ref, joinRef], [null, "1"]);
});

test("an empty join_ref counts as none, another one as outdated", (t) => {
  const { env, channel } = example(t);
  const calls = recorder();
  channel.on("b", (payload) => calls.as("b")(hex(payload)));
  env.server.deliverBytes([0, 0, 6, 1, ...utf8("room:a"), ...utf8("b"), 1]);
  env.server.deliverBytes([0, 1, 6, 1, ...utf8("9"), ...utf8("room:a"), ...utf8("b"), 2]);
  env.server.deliverBytes([0, 0, 6, 1, ...utf8("room:a"), ...utf8("b")]);
  assert.deepEqual(calls.all, [["b", "01"], ["b", ""]]);
});

test("a topic that begins with a byte order mark keeps it", (t) => {
  const { env, channel } = example(t, "\uFEFFa");
  const calls = recorder();
  channel.on("b", calls.as("b"));
  env.server.deliverBytes([2, 4, 1, ...utf8("\uFEFFa"), ...utf8("b")]);
  assert.equal(calls.all.length, 1);
});

test("frames that arrive as a view of a buffer are understood", (t) => {
  const { env, channel } = example(t);
  const calls = recorder();
  channel.on("b", (payload) => calls.as("b")(hex(payload)));
  env.server.onmessage({ data: Buffer.from([2, 6, 1, ...utf8("room:ab"), 5]) });
  assert.deepEqual(calls.all, [["b", "05"]]);
});

for (const [what, frame] of [
  ["empty", []],
  ["of an unknown kind", [3, 1, 1, 65, 66]],
  ["shorter than its header", [0, 1]],
  ["shorter than its fields", [2, 6, 4, 65]],
]) {
  test(`a binary frame that is ${what} is reported, and the connection goes on`, (t) => {
    const { env, channel } = example(t);
    env.server.deliverBytes(frame);
    assert.match(env.reported.shift().message, /^binary frame /);
    assert.ok(channel.canPush());
  });
}
