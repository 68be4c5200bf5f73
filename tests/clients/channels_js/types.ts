// Not run: tsc --strict must accept this use of channels.d.ts, and refuse each line after @ts-expect-error.

import {
  Channel,
  ChannelError,
  Presence,
  Push,
  Socket,
  type ChannelState,
  type CloseInfo,
  type ConnectionState,
  type Message,
  type PresenceState,
  type Refusal,
  type TransportFailure,
  type WebSocketLike,
} from "../../../starlette_channels/static/channels.js";

interface Joined {
  users: string[];
}
interface NewMsg {
  body: string;
}
interface UserParams {
  user: string;
}
const params: UserParams = { user: "ann" };

const socket = new Socket("/socket", {
  params,
  timeout: 5000,
  heartbeatIntervalMs: 20_000,
  reconnectAfterMs: (tries) => tries.toFixed().length * 100,
  rejoinAfterMs: () => Math.random() * 1000,
  logger: (kind, message, data) => console.log(`${kind}: ${message}`, data),
  transport: WebSocket,
  authToken: "secret",
  vsn: "2.0.0",
  binaryType: "arraybuffer",
});
new Socket("/socket");
new Socket("/socket", { params: () => params, debug: true, logger: undefined });
new Socket("/socket", { authToken: () => localStorage.getItem("token") });
new Socket("/socket", {
  encode: (message, done) => done(message.topic),
  decode: (_data, done) => done({ topic: "t", event: "e", payload: 1 }),
});
// @ts-expect-error an end point is needed
new Socket();
// @ts-expect-error the option is called heartbeatIntervalMs
new Socket("/socket", { heartbeatMs: 20_000 });
// @ts-expect-error a list of delays is not a function
new Socket("/socket", { reconnectAfterMs: [1, 2, 3] });
// @ts-expect-error a token is a string
new Socket("/socket", { authToken: 7 });
// @ts-expect-error it must be a class
new Socket("/socket", { transport: "websocket" });

// Connecting and watching
socket.connect();
// @ts-expect-error params belong to the constructor
socket.connect({ user: "ann" });
const refs: string[] = [
  socket.onOpen(() => {}),
  socket.onClose((event) => console.log(event.code + 1, event.reason.length, event.wasClean)),
  socket.onClose((event: CloseEvent) => console.log(event.code)),
  socket.onClose((event: CloseInfo) => console.log(event.code)),
  socket.onClose(() => {}),
  socket.onError((error: Event) => console.log(error.type)),
  socket.onError((error, _transport, established) => console.log(error, established + 1)),
  socket.onMessage((message: Message) => console.log(message.topic, message.payload.anything)),
  socket.onStateChange((state) => console.log(state === "open")),
];
socket.off(refs);
// @ts-expect-error a list of refs
socket.off(refs[0]);
refs.push(socket.onRefused(({ code, reason }) => code === 4401 && reason.length > 0));
socket.onRefused((refusal: Refusal) => console.log(refusal.code + 1));
socket.onRefused(async () => false);
// @ts-expect-error a code is a number
socket.onRefused(({ code }) => code.length);
// @ts-expect-error no such event
socket.onOpened(() => {});
// @ts-expect-error no such state
socket.onStateChange((state) => state === "opened");
socket.onExpiring(({ seconds }) => console.log(seconds.toFixed(1)));
socket.refresh({ token: "t" }).then(({ seconds }) => console.log(seconds === null ? "for ever" : seconds.toFixed(1)));
new Socket("/socket", { refresh: async () => ({ token: "t" }) });
// @ts-expect-error what is sent is an object
new Socket("/socket", { refresh: () => "token" });
// @ts-expect-error it is told how the connection ended
socket.onClose((event: string) => event);
const state: ConnectionState = socket.connectionState();
const open: boolean = socket.isConnected();
const conn: WebSocketLike | null = socket.conn;
const url: string = socket.endPointURL();
const scheme: "ws" | "wss" = socket.protocol();
const pinged: boolean = socket.ping((rtt) => console.log(rtt.toFixed(1)));
socket.push({ topic: "t", event: "e", payload: {}, ref: socket.makeRef() });
// @ts-expect-error a message has an event
socket.push({ topic: "t", payload: {} });
socket.disconnect();
socket.disconnect(() => {}, 4000, "bye");
socket.disconnect(null, 4000);
// @ts-expect-error the callback comes first
socket.disconnect(4000);

// Channels
const room: Channel = socket.channel("room:lobby", { token: "x" });
socket.channel("room:lobby", () => ({ token: "x" }));
socket.channel("room:lobby", params);
const shared: Channel = socket.shared("room:lobby", { token: "x" });
shared.join<Joined>().then(({ users }) => users.length);
// @ts-expect-error a topic is a string
socket.shared(7);
// @ts-expect-error params are an object
socket.channel("room:lobby", "token");
// @ts-expect-error a topic is a string
socket.channel(7);
const topic: string = room.topic;
const roomState: ChannelState = room.state;
// @ts-expect-error the state is not the application's to set
room.state = "joined";
const ref: number = room.on("new_msg", (msg) => console.log(msg.body));
room.on<NewMsg>("new_msg", ({ body }) => body.toUpperCase());
room.on("new_msg", ({ body }: NewMsg) => body.toUpperCase());
room.on<ArrayBuffer>("image", (data, messageRef, joinRef) => console.log(data.byteLength, messageRef, joinRef));
room.on("new_msg", async () => {});
// @ts-expect-error no such member
room.on<NewMsg>("new_msg", (msg) => msg.text);
// @ts-expect-error a callback is needed
room.on("new_msg");
room.off("new_msg", ref);
room.off("new_msg");
// @ts-expect-error the ref of on() is a number
room.off("new_msg", "1");
const closeRef: number = room.onClose(() => {});
room.off("phx_close", closeRef);
room.onError((reason: TransportFailure) => reason.reason === "heartbeat_timeout");
room.onMessage = (event, payload) => (event === "secret" ? payload.inner : payload);
const flags: boolean[] = [room.canPush(), room.isClosed(), room.isErrored(), room.isJoined(), room.isJoining()];
const joinRef: string | null = room.joinRef();

// As in phoenix.js
room
  .join()
  .receive("ok", (response) => console.log(response.users))
  .receive("error", ({ reason }) => console.log(reason))
  .receive("timeout", () => {});
room.push("new_msg", { body: "hi" }, 10_000).receive("ok", () => {}).receive("created", ({ id }) => console.log(id));
room.leave().receive("ok", () => {});
// @ts-expect-error a callback is needed
room.push("new_msg", {}).receive("ok");

// Promise style
export async function chat(): Promise<Joined> {
  const joined = await room.join<Joined>();
  joined.users.push("me");
  // @ts-expect-error no such member
  joined.members;
  const anything = await room.join(5000);
  console.log(anything.whatever);

  const msg: NewMsg = { body: "hi" };
  const reply = await room.push<{ id: number }>("new_msg", msg);
  reply.id.toFixed();
  // @ts-expect-error an id is a number
  reply.id.toUpperCase();
  const image: ArrayBuffer = await room.push<ArrayBuffer>("image", new Uint8Array([1, 2]));
  await room.push("image", new DataView(image));
  await room.push("typing");
  await room.push("typing", null);
  // @ts-expect-error a payload is an object or bytes
  await room.push("typing", "yes");
  // @ts-expect-error an event is needed
  await room.push({ body: "hi" });
  await room.leave();

  const typed: Push<Joined> = room.push<Joined>("state").receive("ok", (response) => response.users.length);
  const promise: Promise<Joined> = typed.then((response) => response);
  const like: PromiseLike<Joined> = typed;
  const [first, second] = await Promise.all([typed, like]);
  const orNull: Joined | null = await typed.catch(() => null);
  const same: Joined = await typed.finally(() => {});
  console.log(first.users, second.users, orNull, same, await promise);
  return typed;
}

// Who is there
const presence = new Presence<{ status: string }>(socket.channel("room:lobby"), { events: { state: "s", diff: "d" } });
presence.onJoin((key, current, { metas }) => console.log(key.length, current?.metas, metas[0]?.status.length));
presence.onLeave((key, current, left) => console.log(key, current.metas.length, left.metas[0]?.phx_ref.length));
presence.onSync(() => {});
const lengths: number[] = presence.list((_key, { metas }) => metas.length);
const there: PresenceState<{ status: string }> = Presence.syncState({}, presence.state);
Presence.syncDiff(there, { joins: {}, leaves: {} }, (key) => key.length);
console.log(lengths, Presence.list(there)[0]?.metas, presence.inPendingSyncState());
// @ts-expect-error no such field
presence.onJoin((_key, _current, { metas }) => metas[0].mood);
// @ts-expect-error a channel is needed
new Presence(socket);

try {
  await chat();
} catch (error) {
  if (!(error instanceof ChannelError)) throw error;
  const standard: Error = error;
  if (error.status === "timeout" || error.status === "banned") console.log(error.topic, error.event, standard.message);
  console.log(error.response.reason, error.reason, error.detail, error.payload === error.response);
  const refusal = error as ChannelError<{ reason: string }>;
  refusal.response.reason.toUpperCase();
  // @ts-expect-error no such member
  refusal.response.code;
}
// @ts-expect-error made by pushes only
new ChannelError();

export { conn, flags, joinRef, open, pinged, roomState, scheme, state, topic, url };
