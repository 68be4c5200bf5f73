/** One function a scenario, for any module with the names of phoenix.js: `client(user)` makes a connected Socket. */

import assert from "node:assert/strict";
import { Mailbox, ask, bytes, errors, events, joins, numbers, outcome, soon } from "./harness.mjs";

export async function join({ client }) {
  const channel = client("ann", { tags: ["a", "b"], more: { deep: "é" } }).channel("room:lobby", {});
  const welcome = events(channel, "welcome");
  const [status, response] = await outcome(channel.join());
  assert.equal(status, "ok");
  assert.deepEqual(response, { you: "ann", topic: "room:lobby", tags: { 0: "a", 1: "b" } });
  assert.deepEqual(await welcome.next(), { to: "ann" });
  assert.equal(channel.state, "joined");
}

export async function refusedJoin({ client }) {
  const socket = client("ann");
  const channel = socket.channel("room:private", { password: "guess" });
  assert.deepEqual(await outcome(channel.join()), ["error", { reason: "unauthorized" }]);
  channel.leave();
  const second = socket.channel("room:private", { password: "sesame" });
  assert.equal((await outcome(second.join()))[0], "ok");
  const nowhere = socket.channel("nowhere:1", {});
  assert.deepEqual(await outcome(nowhere.join()), ["error", { reason: "unmatched topic" }]);
}

export async function refusedJoinIsTriedAgain({ client }) {
  let password = "guess";
  const channel = client("ann").channel("room:private", () => ({ password }));
  const answers = joins(channel);
  assert.deepEqual(await answers.next(), ["error", { reason: "unauthorized" }]);
  password = "sesame";
  let answer;
  while ((answer = await answers.next())[0] !== "ok") assert.equal(answer[0], "error");
  assert.equal(answer[1].you, "ann");
}

export async function authToken({ client }) {
  for (const authToken of ["ann", "ab~", "a.longer-one_with/what+is=allowed"]) {
    const [status, response] = await outcome(client("", {}, { authToken }).channel("room:token", {}).join());
    assert.deepEqual([status, response.you], ["ok", authToken]);
  }
}

export async function refusedConnection({ client }) {
  const socket = client("");
  const closed = new Mailbox("the end of the connection");
  socket.onClose(closed.put);
  await closed.next();
  await closed.next(); // it tries again, and is refused again
  assert.equal(socket.isConnected(), false);
}

export async function refusedWithACode({ client }) {
  const token = { now: "expired" };
  const socket = client("ann", {}, { params: () => ({ user: "ann", token: token.now }) });
  const closed = new Mailbox("the end of the connection");
  socket.onClose(({ code, reason }) => closed.put([code, reason]));
  const answers = joins(socket.channel("room:token", {}));
  const refusal = await closed.next();
  // Over long-polling the library says so whatever the answer.
  assert.ok([[4401, "expired token"], [1008, "forbidden"]].some((one) => String(one) === String(refusal)), refusal);
  if (refusal[0] !== 4401) return; // it does not come back by itself
  assert.deepEqual(await closed.next(), refusal); // it tries again, and is refused again
  token.now = "fresh";
  assert.equal((await answers.next())[0], "ok");
}

export async function giveUpAfterARefusal({ client }) {
  const socket = client("ann", { token: "expired" });
  if (!socket.onRefused) return; // ours
  const refused = new Mailbox("the refusal");
  socket.onRefused((refusal) => (refused.put(refusal), false));
  const join = socket.channel("room:token", {}).join();
  assert.deepEqual(await refused.next(), { code: 4401, reason: "expired token" });
  await assert.rejects(join.then(), ({ status, reason }) => status === "refused" && reason === "expired token");
  await new Promise((resolve) => setTimeout(resolve, 300)); // ten tries, if it had not given up
  assert.equal(refused.size, 0);
  assert.equal(socket.connectionState(), "closed");
}

export async function pushes({ client }) {
  const channel = client("ann").channel("room:pushes", {});
  assert.equal((await outcome(channel.join()))[0], "ok");
  const everything = { text: "grüße 🙂", number: 1.5, list: [1, null, { a: [] }], yes: true };
  assert.deepEqual(await outcome(channel.push("echo", everything)), ["ok", everything]);
  assert.deepEqual(await outcome(channel.push("refuse", {})), ["error", { reason: "not today" }]);
  assert.equal((await outcome(channel.push("ignore", {}, 150)))[0], "timeout");
  assert.deepEqual(await outcome(channel.push("unknown", {})), ["error", { reason: "unmatched event" }]);
  const [status, { reason }] = await outcome(channel.push("say", { body: 5 }));
  assert.deepEqual([status, reason], ["error", "invalid payload"]);
  assert.deepEqual(await outcome(channel.push("echo", { alive: true })), ["ok", { alive: true }]);
}

export async function pushesBeforeTheJoinIsDone({ client }) {
  const channel = client("ann").channel("room:early", {});
  const joining = outcome(channel.join());
  const early = [1, 2, 3].map((n) => outcome(channel.push("echo", { n })));
  assert.equal((await joining)[0], "ok");
  assert.deepEqual(await Promise.all(early), [1, 2, 3].map((n) => ["ok", { n }]));
}

export async function broadcasts({ client }) {
  const [ann, bob] = ["ann", "bob"].map((user) => client(user).channel("room:chat", {}));
  const [annHears, bobHears] = [ann, bob].map((channel) => events(channel, "said"));
  const arrivals = events(ann, "joined");
  assert.equal((await outcome(ann.join()))[0], "ok");
  assert.equal((await outcome(bob.join()))[0], "ok");
  assert.deepEqual(await arrivals.next(), { user: "bob" });
  assert.deepEqual(await outcome(ann.push("say", { body: "hello" })), ["ok", { body: "hello" }]);
  const said = { user: "ann", body: "hello" };
  assert.deepEqual([await annHears.next(), await bobHears.next()], [said, said]);
  bob.push("whisper", { body: "psst" });
  assert.deepEqual(await annHears.next(), { user: "bob", body: "psst" });
  await outcome(bob.push("echo", {})); // whatever bob was to hear has come before this
  assert.equal(bobHears.size, 0);
}

export async function binary({ client }) {
  const [ann, bob] = ["ann", "bob"].map((user) => client(user).channel("room:bytes", {}));
  const [pushed, heard] = [events(ann, "pushed"), events(bob, "bytes")];
  assert.equal((await outcome(ann.join()))[0], "ok");
  assert.equal((await outcome(bob.join()))[0], "ok");
  const [status, response] = await outcome(ann.push("bytes", bytes(0, 1, 255, 128)));
  assert.equal(status, "ok");
  assert.deepEqual(numbers(response), [128, 255, 1, 0]);
  assert.deepEqual(numbers(await pushed.next()), [0, 1]);
  assert.deepEqual(numbers(await heard.next()), [0, 1, 255, 128]);
  const [misfit, { reason }] = await outcome(ann.push("bytes", { not: "bytes" }));
  assert.deepEqual([misfit, reason], ["error", "invalid payload"]);
}

export async function leave({ client }) {
  const annSocket = client("ann");
  const frames = new Mailbox("a frame");
  const [ann, bob] = [annSocket.channel("room:leave", {}), client("bob").channel("room:leave", {})];
  const [departures, bobHears] = [events(bob, "left"), events(bob, "said")];
  assert.equal((await outcome(bob.join()))[0], "ok");
  assert.equal((await outcome(ann.join()))[0], "ok");
  assert.equal((await outcome(ann.leave()))[0], "ok");
  assert.equal(ann.state, "closed");
  assert.deepEqual(await departures.next(), { user: "ann", reason: "left" });
  annSocket.onMessage((message) => (frames.put(message), message.payload));
  bob.push("say", { body: "without ann" });
  await bobHears.next();
  const other = annSocket.channel("room:elsewhere", {});
  assert.equal((await outcome(other.join()))[0], "ok");
  for (let frame = {}; frame.topic !== "room:elsewhere"; ) {
    frame = await frames.next(); // at most the answers to the leave, and then that to the join
    assert.notEqual(frame.event, "said");
  }
}

export async function disconnect({ client }) {
  const socket = client("ann");
  const [ann, bob] = [socket.channel("room:gone", {}), client("bob").channel("room:gone", {})];
  const departures = events(bob, "left");
  assert.equal((await outcome(bob.join()))[0], "ok");
  assert.equal((await outcome(ann.join()))[0], "ok");
  await soon(new Promise((resolve) => socket.disconnect(resolve)), "the end of the connection");
  assert.deepEqual(await departures.next(), { user: "ann", reason: "closed" });
  assert.equal(socket.isConnected(), false);
}

export async function crash({ client }) {
  const socket = client("ann");
  const [channel, other] = [socket.channel("room:crash", {}), socket.channel("room:calm", {})];
  const [failures, calm] = [errors(channel), errors(other)];
  const answers = joins(channel);
  assert.equal((await answers.next())[0], "ok");
  assert.equal((await outcome(other.join()))[0], "ok");
  const first = channel.joinRef();
  channel.push("crash", {});
  await failures.next();
  assert.equal((await answers.next())[0], "ok"); // it has joined again by itself
  assert.notEqual(channel.joinRef(), first);
  assert.deepEqual(await outcome(channel.push("echo", { again: true })), ["ok", { again: true }]);
  assert.deepEqual(await outcome(other.push("echo", {})), ["ok", {}]);
  assert.equal(calm.size, 0);
}

export async function crashAnswersWhatIsAwaited({ client }) {
  const channel = client("ann").channel("room:crash", {});
  if (!channel.push.length || !("then" in Object.getPrototypeOf(channel.joinPush))) return; // ours
  await channel.join();
  const began = Date.now();
  const waiting = [channel.push("ignore", {}), channel.push("crash", {}), channel.push("echo", {})];
  for (const push of waiting.slice(0, 2)) {
    await assert.rejects(push.then(), ({ status, reason }) => status === "error" && reason === "channel_crash");
  }
  assert.ok(Date.now() - began < 2_000, "not after the five seconds of the timeout");
}

export async function stoppedByTheServer({ client }) {
  const channel = client("ann").channel("room:stop", {});
  const closed = new Mailbox("the end of the channel");
  channel.onClose(closed.put);
  assert.equal((await outcome(channel.join()))[0], "ok");
  channel.push("stop", {});
  await closed.next();
  assert.equal(channel.state, "closed");
}

export async function heartbeats({ client }) {
  const socket = client("ann", {}, { heartbeatIntervalMs: 500 });
  const beats = new Mailbox("the answer to a heartbeat");
  const closed = new Mailbox("the end of the connection");
  socket.onClose(closed.put);
  socket.onMessage(({ topic, event, payload }) => {
    if (topic === "phoenix" && event === "phx_reply") beats.put(payload.status);
    return payload;
  });
  for (let n = 0; n < 2; n++) assert.equal(await beats.next(), "ok");
  assert.equal(closed.size, 0);
}

export async function kicked({ client }) {
  const [annSocket, bobSocket] = [client("ann-to-kick"), client("bob")];
  const closed = new Mailbox("the end of the connection");
  annSocket.onClose(closed.put);
  const [ann, bob] = [annSocket.channel("room:kick", {}), bobSocket.channel("room:kick", {})];
  const answers = joins(ann);
  const annHears = events(ann, "said");
  assert.equal((await answers.next())[0], "ok");
  assert.equal((await outcome(bob.join()))[0], "ok");
  bob.push("kick", { user: "ann-to-kick" });
  assert.equal((await closed.next()).code, 1001);
  assert.equal((await answers.next())[0], "ok"); // and back again
  bob.push("say", { body: "welcome back" });
  assert.deepEqual(await annHears.next(), { user: "bob", body: "welcome back" });
}

async function everybodyComesBack({ client }, what) {
  const users = ["ann", "bob", "cat", "dan", "eve"];
  const sockets = users.map((user) => client(user));
  const channels = sockets.flatMap((socket) => ["room:one", "room:two"].map((topic) => socket.channel(topic, {})));
  const answers = channels.map(joins);
  const heard = channels.map((channel) => events(channel, "said"));
  for (const box of answers) assert.equal((await box.next())[0], "ok");
  for (const round of [1, 2]) {
    await ask(what);
    for (const box of answers) assert.equal((await box.next())[0], "ok");
    for (const [index, channel] of channels.slice(0, 2).entries()) {
      const body = `round ${round}, room ${index}`;
      assert.deepEqual(await outcome(channel.push("say", { body })), ["ok", { body }]);
    }
    for (const [index, box] of heard.entries()) {
      assert.deepEqual(await box.next(), { user: "ann", body: `round ${round}, room ${index % 2}` });
    }
  }
}

export const serverKilled = (context) => everybodyComesBack(context, "kill the server and start it again");
export const serverRestarted = (context) => everybodyComesBack(context, "stop the server and start it again");

export async function pushedWhileTheServerIsAway({ client }) {
  const channel = client("ann").channel("room:away", {});
  const [answers, failures] = [joins(channel), errors(channel)];
  assert.equal((await answers.next())[0], "ok");
  await ask("kill the server");
  await failures.next();
  const late = outcome(channel.push("echo", { written: "offline" }));
  await ask("start the server");
  assert.deepEqual(await late, ["ok", { written: "offline" }]);
}

/** Somebody in the hall, whose list can be waited for: it is right when it is what the server says. */
async function inTheHall({ client, Presence }, user) {
  const socket = client(user);
  const channel = socket.channel("hall:1", {});
  const presence = new Presence(channel);
  const changes = new Mailbox(`a change of the list of ${user}`);
  presence.onSync(() => changes.put(null));
  const answers = joins(channel);
  assert.equal((await answers.next())[0], "ok");
  const sorted = (state) =>
    Object.entries(state)
      .map(([key, { metas, called }]) => [key, called, metas.map((meta) => `${meta.phx_ref} ${meta.status}`).sort()])
      .sort();
  const short = () => presence.list((key, { metas }) => `${key}: ${metas.map(({ status }) => status).sort()}`).sort();
  return {
    socket,
    channel,
    answers,
    presence,
    /** Wait for this list, and see that the server has the same. */
    async has(...expected) {
      while (short().join("; ") !== expected.join("; ")) await changes.next();
      const [, state] = await outcome(channel.push("who", {}));
      assert.deepEqual(sorted(presence.state), sorted(state));
    },
  };
}

export async function presences(context) {
  const ann = await inTheHall(context, "ann");
  await ann.has("ann: here");
  const ben = await inTheHall(context, "ben");
  for (const one of [ann, ben]) await one.has("ann: here", "ben: here");
  assert.equal(ann.presence.state.ben.called, "Ben");
  await outcome(ben.channel.push("status", { status: "busy" }));
  for (const one of [ann, ben]) await one.has("ann: here", "ben: busy");
  const again = await inTheHall(context, "ben");
  for (const one of [ann, ben, again]) await one.has("ann: here", "ben: busy,here");
  ben.socket.disconnect();
  for (const one of [ann, again]) await one.has("ann: here", "ben: here");
  await outcome(again.channel.push("hide", {}));
  for (const one of [ann, again]) await one.has("ann: here");
  again.channel.leave();
  await ann.has("ann: here");
}

export async function presencesAfterACrash(context) {
  const ann = await inTheHall(context, "ann");
  const ben = await inTheHall(context, "ben");
  await ann.has("ann: here", "ben: here");
  const left = new Mailbox("that ben is gone");
  ann.presence.onLeave((key) => left.put(key));
  ben.channel.push("crash", {});
  assert.equal(await left.next(), "ben");
  for (const one of [ann, ben]) await one.has("ann: here", "ben: here");
}

async function presencesComeBack(context, wish) {
  const everybody = [];
  for (const user of ["ann", "ben", "cid"]) everybody.push(await inTheHall(context, user));
  for (const one of everybody) await one.has("ann: here", "ben: here", "cid: here");
  await ask(wish);
  for (const { answers } of everybody) while ((await answers.next())[0] !== "ok");
  for (const one of everybody) await one.has("ann: here", "ben: here", "cid: here");
}

export const presencesAfterAKill = (context) => presencesComeBack(context, "kill the server and start it again");
export const presencesAfterARestart = (context) => presencesComeBack(context, "stop the server and start it again");

export async function unsafeKey({ client }) {
  const channel = client("__proto__").channel("hall:1", {});
  assert.deepEqual(await outcome(channel.join()), ["error", { reason: "unsafe_key" }]);
}

export async function expiredIdentity({ client }) {
  let asked = 0;
  const refresh = () => (asked++ === 0 ? { seconds: 1 } : new Promise(() => {}));
  const socket = client("ann", { seconds: 2 }, { refresh });
  const [begins, ends] = [new Mailbox("a connection"), new Mailbox("the end of the connection")];
  const notices = new Mailbox("the notice, or the answer to the refresh");
  socket.onOpen(begins.put);
  socket.onClose(({ code }) => ends.put(code));
  socket.onMessage(({ topic, event, payload }) => topic === "phoenix" && notices.put([event, payload]));
  await begins.next();
  const [event, { seconds }] = await notices.next();
  assert.equal(event, "expiring");
  assert.ok(seconds <= 2);
  if (!socket.refresh) socket.push({ topic: "phoenix", event: "refresh", payload: { seconds: 1 }, ref: "r" });
  assert.deepEqual(await notices.next(), ["phx_reply", { status: "ok", response: { seconds: 1 } }]);
  assert.equal((await notices.next())[0], "expiring");
  assert.ok([4001, 3410].includes(await ends.next())); // the latter is what polls are told of any session that is over
  await begins.next();
}
