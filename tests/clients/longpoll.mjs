/** One function a scenario for clients that poll: `client(user)` makes one, unless another of the `transports` is given. */

import assert from "node:assert/strict";
import { Mailbox, ask, bytes, events, joins, outcome, soon } from "./harness.mjs";

export async function pollersAndWebSocketsHearEachOther({ client, transports }) {
  const sockets = [client("ann"), client("bob", {}, { transport: transports.WebSocket })];
  const [ann, bob] = sockets.map((socket) => socket.channel("room:mixed", {}));
  const [annHears, bobHears] = [ann, bob].map((channel) => events(channel, "said"));
  assert.equal((await outcome(ann.join()))[0], "ok");
  assert.equal((await outcome(bob.join()))[0], "ok");
  for (const [channel, user] of [[ann, "ann"], [bob, "bob"]]) {
    assert.equal((await outcome(channel.push("say", { body: "grüße 🙂" })))[0], "ok");
    const said = { user, body: "grüße 🙂" };
    assert.deepEqual([await annHears.next(), await bobHears.next()], [said, said]);
  }
}

export async function bytesToTheServer({ client }) {
  const channel = client("ann").channel("room:bytes", {});
  assert.equal((await outcome(channel.join()))[0], "ok");
  assert.deepEqual(await outcome(channel.push("sum", bytes(0, 1, 255, 128))), ["ok", { sum: 384 }]);
}

export async function moreMessagesThanFitABatch({ client }) {
  const channel = client("ann").channel("room:many", {});
  assert.equal((await outcome(channel.join()))[0], "ok");
  const sent = Array.from({ length: 250 }, (_, n) => ({ n }));
  const answers = await Promise.all(sent.map((payload) => outcome(channel.push("echo", payload))));
  assert.deepEqual(answers, sent.map((payload) => ["ok", payload]));
}

export async function quietForSeveralWindows({ client }) {
  const socket = client("ann");
  const closed = new Mailbox("the end of the session");
  socket.onClose(closed.put);
  const channel = socket.channel("room:quiet", {});
  assert.equal((await outcome(channel.join()))[0], "ok");
  await new Promise((resolve) => setTimeout(resolve, 2_500)); // the server's window is a second
  assert.deepEqual(await outcome(channel.push("echo", { alive: true })), ["ok", { alive: true }]);
  assert.equal(closed.size, 0);
}

export async function kickedWhilePolling({ client }) {
  const [annSocket, bobSocket] = [client("ann-to-kick"), client("bob")];
  const closed = new Mailbox("the end of the session");
  annSocket.onClose(closed.put);
  const [ann, bob] = [annSocket.channel("room:kick", {}), bobSocket.channel("room:kick", {})];
  const [answers, annHears] = [joins(ann), events(ann, "said")];
  assert.equal((await answers.next())[0], "ok");
  assert.equal((await outcome(bob.join()))[0], "ok");
  bob.push("kick", { user: "ann-to-kick" });
  assert.equal((await closed.next()).code, 3410);
  assert.equal((await answers.next())[0], "ok"); // and back again
  bob.push("say", { body: "welcome back" });
  assert.deepEqual(await annHears.next(), { user: "bob", body: "welcome back" });
}

export async function fallsBackAndReturns({ client, transports }) {
  let blocked = true;
  const kinds = new Mailbox("a way to connect");
  class Proxy {
    /** A WebSocket that may get no answer, as behind a proxy that lets none through. */
    constructor(...given) {
      kinds.put(blocked ? "blocked" : "WebSocket");
      if (!blocked) return new transports.WebSocket(...given);
      this.readyState = 0;
    }
    close() {
      this.onclose?.({ code: 1006 });
    }
  }
  const socket = client("ann", {}, { transport: Proxy, longPollFallbackMs: 100 });
  const channel = socket.channel("room:proxy", {});
  const answers = joins(channel);
  assert.equal(await kinds.next(), "blocked");
  assert.equal((await answers.next())[0], "ok");
  assert.equal(socket.transport, transports.LongPoll);
  assert.deepEqual(await outcome(channel.push("echo", { over: "long-poll" })), ["ok", { over: "long-poll" }]);
  blocked = false;
  await soon(new Promise((resolve) => socket.disconnect(resolve)), "the end of the session");
  socket.replaceTransport(Proxy);
  socket.connect();
  assert.equal(await kinds.next(), "WebSocket");
  assert.equal((await answers.next())[0], "ok");
  assert.deepEqual(await outcome(channel.push("echo", { over: "WebSocket" })), ["ok", { over: "WebSocket" }]);
}

export async function sessionGoneWithTheServer({ client }) {
  const channel = client("ann").channel("room:restart", {});
  const answers = joins(channel);
  assert.equal((await answers.next())[0], "ok");
  await ask("stop the server and start it again");
  assert.equal((await answers.next())[0], "ok");
  assert.deepEqual(await outcome(channel.push("echo", { back: true })), ["ok", { back: true }]);
}
