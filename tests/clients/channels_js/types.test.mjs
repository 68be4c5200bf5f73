// channels.d.ts says what channels.js does, and TypeScript understands it.

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

import * as channels from "../../../starlette_channels/static/channels.js";
import { FakeWebSocket } from "./fake.mjs";

const path = (name) => fileURLToPath(new URL(name, import.meta.url));
const TSC = path("../node_modules/typescript/bin/tsc");
const DECLARATIONS = ["channels", "presence"].map((name) => path(`../../../starlette_channels/static/${name}.d.ts`));

function tsc(...args) {
  const flags = ["--noEmit", "--strict", "--exactOptionalPropertyTypes", "--target", "es2022", "--types", ""];
  const done = spawnSync(process.execPath, [TSC, ...flags, ...args], { encoding: "utf8" });
  assert.equal(done.error, undefined);
  assert.equal(done.status, 0, `${done.stdout}${done.stderr}`);
}

test("a user's program type-checks, and its mistakes do not", () => {
  tsc("--module", "esnext", "--moduleResolution", "bundler", path("types.ts"));
});

test("the declarations are valid by themselves, without the types of a browser", () => {
  tsc("--module", "nodenext", "--moduleResolution", "nodenext", "--lib", "es2022", ...DECLARATIONS);
});

const declared = new Map(
  [...DECLARATIONS.map((file) => readFileSync(file, "utf8")).join("").matchAll(/^export class (\w+).*?\{\n(.*?)^\}/gms)].map(([, name, body]) => [
    name,
    {
      methods: new Set([...body.matchAll(/^ {2}(\w+)(?:<[^(]*>)?\(/gm)].map(([, method]) => method)),
      fields: [...body.matchAll(/^ {2}readonly (\w+)/gm)].map(([, field]) => field),
    },
  ]),
);

test("exactly the classes that exist are declared", () => {
  assert.deepEqual([...declared.keys()].sort(), Object.keys(channels).sort());
});

for (const [name, { methods }] of declared) {
  test(`exactly the public methods of ${name} are declared`, () => {
    const existing = Object.getOwnPropertyNames(channels[name].prototype).filter((method) => !method.startsWith("_"));
    methods.delete("constructor");
    assert.deepEqual([...methods].sort(), existing.filter((method) => method !== "constructor").sort());
  });
}

test("the declared fields exist", () => {
  const socket = new channels.Socket("ws://h/s", { transport: FakeWebSocket });
  const channel = socket.channel("room:a");
  const push = new channels.Push(channel, "event");
  const error = new channels.ChannelError(push, "error", {});
  const presence = new channels.Presence(channel);
  for (const object of [socket, channel, push, error, presence]) {
    const { fields } = declared.get(object.constructor.name);
    assert.ok(fields.length > 0);
    for (const field of fields) assert.ok(field in object, `${object.constructor.name}.${field}`);
  }
});
