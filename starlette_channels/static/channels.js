/**
 * Channels over one WebSocket: the browser side of starlette_channels, speaking Phoenix's wire protocol 2.0.0.
 *
 *     import { Socket } from "/socket/channels.js";
 *
 *     const socket = new Socket("/socket", { params: { user: "ann" } });
 *     socket.connect();
 *
 *     const room = socket.channel("room:lobby");
 *     room.on("new_msg", ({ body }) => console.log(body));
 *     await room.join();
 *     await room.push("new_msg", { body: "hello" });
 *
 * Names and behaviour are those of phoenix.js 1.8, so a project moves to `npm install phoenix` by changing its import
 * (and using `.receive()` where it awaited). Needs no build step; runs in browsers of 2022 or later and in Node 22.
 * Types and options: channels.d.ts. Names that begin with _ are nobody else's business.
 */

import { SharedChannel } from "./shared.js";

export { Presence } from "./presence.js";

const VSN = "2.0.0";
const SYSTEM = "phoenix"; // the topic of the connection itself
const STATES = ["connecting", "open", "closing", "closed"]; // in the order of WebSocket.readyState
const [OPEN, CLOSED] = [1, 3];
const NORMAL_CLOSE = 1000;
const CLOSE_PATIENCE_MS = 1500; // a dead peer never answers a close frame
const FRESH_ATTEMPT_MS = 1000; // "online" and "visible" often come together: one new attempt is enough
const [JOIN, LEAVE, REPLY, ERROR, CLOSE] = ["phx_join", "phx_leave", "phx_reply", "phx_error", "phx_close"];

// ------------------------------------------------------------------------------------------------- small helpers

function report(error) {
  if (typeof globalThis.reportError === "function") globalThis.reportError(error);
  else console.error(error);
}

/** Calls what the application gave us: its exception is reported, and breaks nothing else. */
function guarded(callback, ...args) {
  try {
    return callback(...args);
  } catch (error) {
    return report(error);
  }
}

const asFunction = (value) => (typeof value === "function" ? value : () => value);

/** Anything between 0 and a ceiling that doubles with each try: a crowd of clients does not come back all at once. */
const fullJitter = (first, most) => (tries) => Math.random() * Math.min(most, first * 2 ** (tries - 1));

/** How long a server that closes asks its client to stay away, and a little longer; undefined if it does not say. */
function retryAfterMs(reason) {
  const [, seconds] = /\bretry_after=(\d+(?:\.\d+)?)/.exec(reason ?? "") ?? [];
  return seconds && seconds * 1000 * (1 + Math.random() / 10);
}

/** Whether this close code, of a connection over which nothing has come, refuses the client: those of applications. */
const isRefusal = (code) => code >= 3000 && code <= 4999;

const pageIsHidden = () => globalThis.document?.visibilityState === "hidden";

function closeEvent(code, reason) {
  const init = { code, reason, wasClean: false };
  return typeof CloseEvent === "function" ? new CloseEvent("close", init) : { type: "close", ...init };
}

/** The pairs of a query string: `{a: {b: 1}, c: [2]}` gives `a[b]=1` and `c[0]=2`. */
function queryPairs(params, parent = "") {
  return Object.entries(params).flatMap(([key, value]) => {
    const name = parent ? `${parent}[${key}]` : key;
    if (value === null || value === undefined) return [];
    if (typeof value === "object") return queryPairs(value, name);
    return [`${encodeURIComponent(name)}=${encodeURIComponent(value)}`];
  });
}

/** A text in base64, in the alphabet that the name of a subprotocol may have. */
function base64url(text) {
  const bytes = utf8.encoder.encode(text);
  const base64 = btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
  return base64.replace(/[+/=]/g, (sign) => ({ "+": "-", "/": "_", "=": "" })[sign]);
}

/** One action, tried again after delays that may grow with each try. */
class Retry {
  tries = 0;

  constructor(action, delayAfter) {
    this.action = action;
    this.delayAfter = delayAfter;
  }

  schedule(asked) {
    clearTimeout(this.timer);
    const delay = asked ?? guarded(this.delayAfter, this.tries + 1) ?? 5000;
    this.timer = setTimeout(() => {
      this.tries += 1;
      this.action();
    }, Math.min(delay, 2 ** 31 - 1)); // longer ones would fire at once
  }

  reset() {
    clearTimeout(this.timer);
    this.tries = 0;
  }
}

// --------------------------------------------------------------------------------------------------- wire format

const utf8 = { encoder: new TextEncoder(), decoder: new TextDecoder("utf-8", { ignoreBOM: true }) };

/** The named fields of a binary frame that comes from the server, by its first byte. */
const INCOMING_FIELDS = [
  ["join_ref", "topic", "event"], // 0: push
  ["join_ref", "ref", "topic", "status"], // 1: reply
  ["topic", "event"], // 2: broadcast
];

const isBinary = (value) =>
  ArrayBuffer.isView(value) || Object.prototype.toString.call(value) === "[object ArrayBuffer]";

const bytesOf = (data) =>
  ArrayBuffer.isView(data) ? new Uint8Array(data.buffer, data.byteOffset, data.byteLength) : new Uint8Array(data);

function fieldBytes(name, value) {
  const bytes = utf8.encoder.encode(String(value ?? ""));
  if (bytes.length > 255) {
    throw new RangeError(`${name} of a binary message has ${bytes.length} bytes, at most 255 fit: ${value}`);
  }
  return bytes;
}

function encodeFrame({ join_ref, ref, topic, event, payload }) {
  if (!isBinary(payload)) return JSON.stringify([join_ref ?? null, ref ?? null, topic, event, payload]);
  const fields = Object.entries({ join_ref, ref, topic, event }).map(([name, value]) => fieldBytes(name, value));
  const parts = [[0, ...fields.map((field) => field.length)], ...fields, bytesOf(payload)];
  const frame = new Uint8Array(parts.reduce((total, part) => total + part.length, 0));
  let offset = 0;
  for (const part of parts) {
    frame.set(part, offset);
    offset += part.length;
  }
  return frame.buffer;
}

function decodeFrame(data) {
  if (typeof data === "string") {
    const [join_ref, ref, topic, event, payload] = JSON.parse(data);
    return { join_ref, ref, topic, event, payload };
  }
  const bytes = bytesOf(data);
  const names = INCOMING_FIELDS[bytes[0]];
  if (!names) throw new Error(`binary frame of unknown kind ${bytes[0]}`);
  const fields = {};
  let offset = 1 + names.length;
  names.forEach((name, index) => {
    const end = offset + bytes[1 + index];
    fields[name] = utf8.decoder.decode(bytes.subarray(offset, end));
    offset = end;
  });
  if (!(offset <= bytes.length)) throw new Error("binary frame is shorter than its header says");
  const content = bytes.slice(offset).buffer;
  const { join_ref, ref, topic, event, status } = fields;
  const message = { join_ref: join_ref || null, ref: ref || null, topic };
  if (status === undefined) return { ...message, event, payload: content };
  return { ...message, event: REPLY, payload: { status, response: content } };
}

// ---------------------------------------------------------------------------------------------------------- push

/** What is said of a push that has got no answer, by its status. */
const WITHOUT_ANSWER = {
  __proto__: null, // servers may answer with any status, "constructor" among them
  timeout: (push) => `no answer within ${push.timeout} ms`,
  closed: () => "the channel was closed",
};

/** What an awaited push or join is rejected with: the answer was not "ok", or there was none. */
export class ChannelError extends Error {
  constructor(push, status, response) {
    const { reason, detail } = { ...(isBinary(response) ? null : response) };
    let why = typeof reason === "string" ? `${status}: ${reason}` : status;
    if (typeof detail === "string") why += ` (${detail})`;
    why = WITHOUT_ANSWER[status]?.(push) ?? why;
    super(`"${push.event}" on "${push.channel.topic}": ${why}`);
    this.name = "ChannelError";
    /**
     * "error" (also when the channel crashed on the server), "timeout", "closed" (the channel was left or closed first),
     * "refused" (the connection was, and `onRefused` gave up), or whatever the server answered.
     */
    this.status = status;
    /** What came with the answer; `{}` if there was none. */
    this.response = response;
    /** The same, as handlers call it. */
    this.payload = response;
    /** `response.reason` and `response.detail`, as the server's own errors have them; undefined if it has none. */
    this.reason = reason;
    this.detail = detail;
    this.topic = push.channel.topic;
    this.event = push.event;
  }
}

/**
 * A message that may be answered. Use `.receive("ok", callback)` as in phoenix.js, or await it. The promise takes the
 * first outcome and keeps it; nobody has to await it, and without an awaiter a failure is silent.
 */
export class Push {
  constructor(channel, event, payload = () => ({}), timeout = channel.timeout) {
    this.channel = channel;
    this.event = event;
    this.payload = payload;
    this.timeout = timeout;
    this.ref = null;
    this.sent = false;
    this.receivedResp = null;
    this._hooks = [];
    this._observer = null; // what the channel does about the outcome of its join
    this._outcome = null; // the first one: the promise's
    this._promise = null;
  }

  /** Sends the message (again, with a new ref). Channels do this; applications need not. */
  send() {
    const { socket, topic } = this.channel;
    this._forget();
    this.ref = socket.makeRef();
    this.channel._pending.set(this.ref, this);
    this._startTimer();
    if (!socket.isConnected()) return;
    try {
      this.sent = true;
      const join_ref = this.channel.joinRef();
      socket.push({ topic, event: this.event, payload: this.payload(), ref: this.ref, join_ref });
    } catch (error) {
      this._cancelTimer();
      this._forget();
      throw error;
    }
  }

  resend(timeout) {
    this.timeout = timeout;
    this.receivedResp = null;
    this.send();
  }

  /** Runs `callback(response)` when the answer has this status; at once if it has come. Chainable. */
  receive(status, callback) {
    if (this.receivedResp?.status === status) guarded(callback, this.receivedResp.response);
    this._hooks.push({ status, callback });
    return this;
  }

  /** A push can be awaited: resolves with the response to "ok", is rejected with a ChannelError otherwise. */
  then(onFulfilled, onRejected) {
    // Made only when asked for: a promise that nobody holds must not be reported as an unhandled rejection.
    this._promise ??= new Promise((resolve) => {
      if (this._outcome) resolve(this._outcome);
      else this._resolve = resolve;
    }).then(({ status, response }) => {
      if (status === "ok") return response;
      throw new ChannelError(this, status, response);
    });
    return this._promise.then(onFulfilled, onRejected);
  }

  catch(onRejected) { return this.then(undefined, onRejected); }
  finally(onFinally) { return this.then().finally(onFinally); }

  // The answer, or its absence, of the current attempt.
  _receive(status, response) {
    this._cancelTimer();
    this.channel._pending.delete(this.ref);
    this.channel._buffer.delete(this);
    this.receivedResp = { status, response };
    this._settle(status, response);
    this._observer?.(status, response);
    this._runHooks(status, response);
  }

  _runHooks(status, response) {
    for (const hook of [...this._hooks]) {
      if (hook.status === status) guarded(hook.callback, response);
    }
  }

  // It could not even be sent: the params function has thrown, or the payload cannot be encoded.
  _fail(error) {
    report(error);
    this._receive("error", { reason: String(error?.message ?? error) });
  }

  _settle(status, response) {
    if (this._outcome) return;
    clearTimeout(this._deadline);
    this._outcome = { status, response };
    this._resolve?.(this._outcome);
  }

  // The promise settles in this time, however often the attempt has to start again.
  _settleWithin(timeout) {
    if (!this._outcome) this._deadline = setTimeout(() => this._settle("timeout", {}), timeout);
  }

  // No answer to what was sent so far will be heard.
  _forget() {
    this.channel._pending.delete(this.ref);
    this.ref = null;
    this.sent = false;
  }

  _startTimer() {
    this._cancelTimer();
    this._timer = setTimeout(() => this._receive("timeout", {}), this.timeout);
  }

  _cancelTimer() { clearTimeout(this._timer); }
}

// ------------------------------------------------------------------------------------------------------- channel

/**
 * One topic of a socket. Made by `socket.channel(topic, params)`; joins once, and comes back by itself after a lost
 * connection, a crash on the server or a refused join, until it is left.
 */
export class Channel {
  constructor(topic, params, socket) {
    this.topic = topic;
    this.params = asFunction(params ?? {});
    this.socket = socket;
    /** "closed", "joining", "joined", "leaving" or "errored" */
    this.state = "closed";
    this.timeout = socket.timeout;
    this.joinedOnce = false;
    this._bindings = [];
    this._bindingRef = 0;
    this._pending = new Map(); // ref -> the push that waits for its answer
    this._buffer = new Set(); // pushes that wait for the join
    this._holders = new Set(); // those who share this channel
    this._rejoinTimer = new Retry(() => {
      if (socket.isConnected() && this.isErrored()) this._rejoin(); // else it is done when the socket opens
    }, socket.rejoinAfterMs);
    this.joinPush = new Push(this, JOIN, this.params);
    this.joinPush._observer = (status, response) => {
      this._joinAnswered(status);
      for (const { joinPush } of [...this._holders]) {
        // An attempt has timed out, but those who came later have given it another time.
        if (status === "timeout") joinPush._runHooks(status, response);
        else joinPush._receive(status, response);
      }
    };
  }

  /** Joins the topic. Once only: ask the socket for another channel to join again after leaving. */
  join(timeout = this.timeout) {
    if (this.joinedOnce) {
      throw new Error(`join() of "${this.topic}" was called before: use a new socket.channel() to join again`);
    }
    this.timeout = timeout;
    this.joinedOnce = true;
    this.socket._leaveOthers(this);
    this._rejoin();
    this.joinPush._settleWithin(timeout);
    return this.joinPush;
  }

  /** Leaves the topic. Takes effect here at once; the server is told. */
  leave(timeout = this.timeout) {
    const push = new Push(this, LEAVE, undefined, timeout);
    const serverKnowsUs = (this.isJoined() || this.isJoining()) && this.joinPush.sent;
    this.joinedOnce = true;
    this.state = "leaving";
    if (serverKnowsUs) guarded(() => push.send());
    push._receive("ok", {});
    this._closed("leave");
    return push;
  }

  /**
   * Sends an event. Before the join is done the message waits for it. A payload that is an ArrayBuffer, a typed array
   * or a DataView is sent as it is, in a binary frame.
   */
  push(event, payload, timeout = this.timeout) {
    if (!this.joinedOnce) throw new Error(`push("${event}") on "${this.topic}" before join()`);
    if (isBinary(payload)) Object.entries({ topic: this.topic, event }).forEach((field) => fieldBytes(...field));
    const push = new Push(this, event, () => payload ?? {}, timeout);
    if (this.canPush()) {
      push.send();
    } else {
      push._startTimer();
      if (this.isClosed()) push._settle("closed", {});
      else this._buffer.add(push);
    }
    return push;
  }

  /** Calls `callback(payload, ref, joinRef)` for each such event. Returns a ref for `off`. */
  on(event, callback) {
    const ref = this._bindingRef++;
    this._bindings = [...this._bindings, { event, ref, callback }];
    return ref;
  }

  /** Removes the callback with this ref, or all of the event. */
  off(event, ref) {
    const removed = (bound) => bound.event === event && (ref === undefined || bound.ref === ref);
    this._bindings = this._bindings.filter((bound) => !removed(bound));
  }

  /** Calls back when the channel is closed for good: it was left, or the server ended it. */
  onClose(callback) { return this.on(CLOSE, callback); }

  /** Calls back when the channel crashed or lost its connection; it will rejoin. */
  onError(callback) { return this.on(ERROR, callback); }

  /** Override to see or change each payload before its callbacks do. Must return the payload. */
  onMessage(_event, payload, _ref, _joinRef) { return payload; }

  canPush() { return this.socket.isConnected() && this.isJoined(); }
  joinRef() { return this.joinPush.ref; }
  isClosed() { return this.state === "closed"; }
  isErrored() { return this.state === "errored"; }
  isJoined() { return this.state === "joined"; }
  isJoining() { return this.state === "joining"; }
  isLeaving() { return this.state === "leaving"; }

  /** Hands an event to the channel's callbacks, as if it had come from the server. */
  trigger(event, payload, ref, joinRef = this.joinRef()) {
    this._hand(this, event, payload, ref, joinRef);
    if (this._holders.size === 0) return;
    for (const holder of [...this._holders]) {
      if (this._holders.has(holder)) holder.trigger(event, payload, ref, joinRef); // it may have left meanwhile
    }
  }

  // Hands an event to the callbacks of the channel, or of one who shares it.
  _hand(target, event, payload, ref, joinRef) {
    let handled;
    try {
      handled = target.onMessage(event, payload, ref, joinRef);
      if (payload && !handled) throw new Error("channel.onMessage must return the payload");
    } catch (error) {
      return report(error);
    }
    if (event === REPLY && handled && target === this) {
      this._pending.get(ref)?._receive(handled.status, handled.response);
    }
    for (const bound of target._bindings) {
      if (bound.event === event) guarded(bound.callback, handled, ref, joinRef);
    }
  }

  // A push that is not sent: its answer comes from elsewhere.
  _unsent(event, timeout) { return new Push(this, event, this.params, timeout); }

  _incoming({ event, payload, ref, join_ref }) {
    if (join_ref && join_ref !== this.joinRef()) {
      this.socket.log("channel", "dropping outdated message", { topic: this.topic, event, payload, join_ref });
    } else if (event === ERROR) {
      this._crashed(payload, ref);
    } else if (event === CLOSE) {
      this._closed(payload, ref);
    } else {
      this.trigger(event, payload, ref, join_ref ?? undefined);
    }
  }

  _rejoin() {
    this.state = "joining";
    try {
      this.joinPush.resend(this.timeout);
    } catch (error) {
      this.joinPush._fail(error); // a params function may do better next time
    }
  }

  _joinAnswered(status) {
    if (status === "ok") {
      this.state = "joined";
      this._rejoinTimer.reset();
      return this._flush();
    }
    if (status === "timeout") {
      // The server may still be busy with it: its late answer must not count, and what it joined must end.
      const join_ref = this.joinRef();
      const wasSent = this.joinPush.sent;
      this.joinPush._forget();
      if (wasSent && this.socket.isConnected()) {
        const ref = this.socket.makeRef();
        this.socket.push({ topic: this.topic, event: LEAVE, payload: {}, ref, join_ref });
      }
    }
    if (this.isJoining()) {
      this.state = "errored";
      if (this.socket.isConnected()) this._rejoinTimer.schedule();
    }
  }

  _flush() {
    for (const push of [...this._buffer]) {
      this._buffer.delete(push);
      try {
        push.send();
      } catch (error) {
        push._fail(error);
      }
    }
  }

  _socketOpened() {
    this._rejoinTimer.reset();
    if (this.isErrored() || (this.isJoining() && !this.joinPush.sent)) this._rejoin();
  }

  // Nothing will answer what was sent: awaiting it ends now; receive("timeout") comes in its time, as in phoenix.js.
  _crashed(payload, ref) {
    const unanswered = [...this._pending.values()].filter((push) => push !== this.joinPush);
    this._errored(payload, ref);
    for (const push of unanswered) push._settle("error", payload ?? {});
  }

  _errored(payload, ref) {
    const joinRef = this.joinRef();
    if (this.isJoining()) this.joinPush._forget();
    if (this.isJoining() || this.isJoined()) {
      this.state = "errored";
      if (this.socket.isConnected()) this._rejoinTimer.schedule();
    }
    this.trigger(ERROR, payload, ref, joinRef);
  }

  // The socket has given up: no join and no push will be answered, unless the page connects anew.
  _refused(refusal) {
    for (const push of this._waiting()) push._settle("refused", refusal);
  }

  _waiting() {
    const shared = [...this._holders].map((holder) => holder.joinPush);
    return [this.joinPush, ...shared, ...this._pending.values(), ...this._buffer];
  }

  _closed(payload, ref) {
    const waiting = this._waiting();
    const joinRef = this.joinRef();
    this._rejoinTimer.reset();
    this.joinPush._cancelTimer();
    this.joinPush._forget();
    this._buffer.clear();
    this.state = "closed";
    const wasOurs = this.socket.channels.includes(this);
    this.socket.remove(this);
    // Nothing can answer these any more: awaiting them ends now; receive("timeout") comes in its time.
    for (const push of waiting) push._settle("closed", {});
    if (wasOurs) this.trigger(CLOSE, payload, ref, joinRef);
  }
}

// -------------------------------------------------------------------------------------------------------- socket

/** One connection that carries any number of channels, and is opened again whenever it is lost. */
export class Socket {
  /**
   * `endPoint` is where the server mounted its channels: "/socket", or with a host "wss://example.org/socket".
   * The options are described in channels.d.ts.
   */
  constructor(endPoint, options = {}) {
    this.endPoint = `${endPoint.replace(/\/+$/, "")}/websocket`;
    this.params = asFunction(options.params ?? {});
    this.authToken = asFunction(options.authToken);
    this.refreshPayload = options.refresh ?? null;
    this.vsn = options.vsn ?? VSN;
    this.timeout = options.timeout ?? 10_000;
    this.heartbeatIntervalMs = options.heartbeatIntervalMs ?? 30_000;
    this.reconnectAfterMs = options.reconnectAfterMs ?? fullJitter(500, 10_000);
    this.rejoinAfterMs = options.rejoinAfterMs ?? fullJitter(1000, 10_000);
    this.transport = options.transport ?? globalThis.WebSocket;
    this.binaryType = options.binaryType ?? "arraybuffer";
    this.encode = options.encode ?? ((message, done) => done(encodeFrame(message)));
    this.decode = options.decode ?? ((data, done) => done(decodeFrame(data)));
    const logToConsole = (kind, text, data) => console.log(`${kind}: ${text}`, data);
    this.logger = options.logger ?? (options.debug ? logToConsole : null);
    this.channels = [];
    /** The WebSocket in use, or null. */
    this.conn = null;
    this.establishedConnections = 0;
    this.sendBuffer = [];
    this.ref = 0;
    this._callbacks = [];
    this._state = "closed";
    this._wanted = false; // between connect() and disconnect()
    this._suspended = false; // the page is in the back/forward cache
    this._attemptedAt = 0;
    this._whenDisconnected = [];
    this._heartbeatRef = null; // of the heartbeat that is not answered yet
    this._answers = new Map(); // ref -> what takes the answer to a message of no channel, or null if none comes
    this._refreshTimer = null;
    this._pageListeners = null;
    this._heard = false; // whether anything has come over this connection
    this._refusal = null; // of the last attempt, until the next one
    this._shared = new Map(); // topic -> the channel that its holders share
    this._reconnectTimer = new Retry(() => {
      if (!pageIsHidden()) this._reconnect(); // a hidden page waits until it is looked at
    }, this.reconnectAfterMs);
  }

  /** Opens the connection and keeps it open until `disconnect()`. While it waits for its next try: tries now. */
  connect() {
    if (this.conn && !this._wanted) this._ended(closeEvent(1006, "replaced")); // it is still closing
    if (this.conn) return;
    this._setWanted(true);
    try {
      this._open();
    } catch (error) {
      this._setWanted(false);
      throw error;
    }
  }

  /** Closes the connection for good; `connect()` opens it again. `callback` runs once it is closed. */
  disconnect(callback, code, reason) {
    this._setWanted(false);
    if (!this.conn) return void (callback && guarded(callback));
    if (callback) this._whenDisconnected.push(callback);
    clearTimeout(this._closeTimer);
    this._closeTimer = setTimeout(() => this._giveUp("connection_closed"), CLOSE_PATIENCE_MS);
    this.conn.close(code, reason);
    this._announceState();
  }

  /** A channel for the topic, not joined yet. `params` go with each join; a function is asked anew each time. */
  channel(topic, params = {}) {
    const channel = new Channel(topic, params, this);
    this.channels = [...this.channels, channel]; // never changed in place: it may be being gone through
    return channel;
  }

  /**
   * The channel of a topic for one part of a page that shares it with others: it has the methods of a channel and its
   * own listeners. The first to join joins the topic, and who joins later has its answer; the last to leave leaves it.
   * Ours; not in phoenix.js.
   */
  shared(topic, params = {}) { return new SharedChannel(new Channel(topic, params, this)); }

  remove(channel) {
    this.channels = this.channels.filter((other) => other !== channel);
    if (this._shared.get(channel.topic) === channel) this._shared.delete(channel.topic);
  }

  onOpen(callback) { return this._register("open", callback); }

  /** Calls `callback(event)` when a connection, or an attempt at one, has ended. */
  onClose(callback) { return this._register("close", callback); }

  /** Calls `callback(error, transport, establishedConnections)` when the connection fails. */
  onError(callback) { return this._register("error", callback); }

  /** Calls `callback({topic, event, payload, ref, join_ref})` for every message that arrives. */
  onMessage(callback) { return this._register("message", callback); }

  /** Calls `callback(state)` whenever `connectionState()` has changed. Ours; not in phoenix.js. */
  onStateChange(callback) { return this._register("state", callback); }

  /**
   * Calls `callback({seconds})` when the server says that it will close the connection then, unless `refresh` has told
   * it something new. Ours; not in phoenix.js.
   */
  onExpiring(callback) { return this._register("expiring", callback); }

  /**
   * Calls `callback({code, reason})` when the server has refused this client with `ConnectError(reason, close=code)`. The
   * socket tries again, after pauses that grow, unless a callback returns `false`, or a promise of it: then it gives up,
   * as after `disconnect()`, until `connect()`. It waits for promises, so a callback may get a new token first. Ours;
   * not in phoenix.js.
   */
  onRefused(callback) { return this._register("refused", callback); }

  /** Removes callbacks by the refs that the `on...` methods returned. */
  off(refs) { this._callbacks = this._callbacks.filter(({ ref }) => !refs.includes(ref)); }

  /** "connecting", "open", "closing" or "closed" */
  connectionState() { return STATES[this.conn?.readyState ?? CLOSED]; }
  isConnected() { return this.conn?.readyState === OPEN; }

  /** "ws" or "wss", as the page is http or https */
  protocol() { return globalThis.location?.protocol === "https:" ? "wss" : "ws"; }

  /** The URL that is connected to. A params function is asked anew each time. */
  endPointURL() {
    const query = [...queryPairs(this.params()), `vsn=${encodeURIComponent(this.vsn)}`].join("&");
    const url = `${this.endPoint}${this.endPoint.includes("?") ? "&" : "?"}${query}`;
    if (url.startsWith("//")) return `${this.protocol()}:${url}`;
    if (!url.startsWith("/")) return url.replace(/^http/, "ws");
    if (!globalThis.location) throw new Error(`"${url}" is relative, but there is no page: give a ws:// or wss:// URL`);
    return `${this.protocol()}://${globalThis.location.host}${url}`;
  }

  /** The next message ref; decimal, and unique in this socket. */
  makeRef() { return String(++this.ref); }

  /** Sends `{topic, event, payload, ref, join_ref}`, now or when the connection opens. */
  push(message) {
    const { topic, event, payload, ref, join_ref } = message;
    if (this.logger) this.log("push", `${topic} ${event} (${join_ref ?? ""}, ${ref ?? ""})`, payload);
    if (!this.isConnected()) return void this.sendBuffer.push(message);
    const conn = this.conn;
    this.encode(message, (data) => {
      if (conn === this.conn && this.isConnected()) conn.send(data);
    });
  }

  /** Measures a round trip: `callback(milliseconds)`. Returns false if there is no connection. */
  ping(callback) {
    if (!this.isConnected()) return false;
    const ref = this.makeRef();
    const start = Date.now();
    this._answers.set(ref, (answer) => answer && callback(Date.now() - start));
    this.push({ topic: SYSTEM, event: "heartbeat", payload: {}, ref });
    return true;
  }

  /**
   * Tells the server anew who this is, before what it knows expires: resolves with `{seconds}` until it expires again
   * (null: never), is rejected with a ChannelError. Ours; not in phoenix.js.
   */
  refresh(payload) {
    return new Promise((resolve, reject) => {
      const push = { event: "refresh", channel: { topic: SYSTEM }, timeout: this.timeout };
      const fail = (status, response = {}) => reject(new ChannelError(push, status, response));
      if (!this.isConnected()) return void fail("closed");
      const ref = this.makeRef();
      const timer = setTimeout(() => {
        this._answers.delete(ref);
        fail("timeout");
      }, this.timeout);
      this._answers.set(ref, (answer) => {
        clearTimeout(timer);
        if (!answer) fail("closed");
        else if (answer.status === "ok") resolve(answer.response);
        else fail(answer.status, answer.response);
      });
      this.push({ topic: SYSTEM, event: "refresh", payload: payload ?? {}, ref });
    });
  }

  log(kind, text, data) { if (this.logger) guarded(this.logger, kind, text, data); }
  hasLogger() { return this.logger !== null; }

  _register(kind, callback) {
    const ref = this.makeRef();
    this._callbacks = [...this._callbacks, { kind, ref, callback }];
    return ref;
  }

  _emit(kind, ...args) {
    for (const registered of this._callbacks) {
      if (registered.kind === kind) guarded(registered.callback, ...args);
    }
  }

  _announceState() {
    const state = this.connectionState();
    if (state === this._state) return;
    this._state = state;
    this._emit("state", state);
  }

  _setWanted(wanted) {
    this._wanted = wanted;
    this._suspended = false;
    if (wanted) {
      this._watchPage();
    } else {
      this._reconnectTimer.reset();
      this._pageListeners?.abort();
      this._pageListeners = null;
    }
  }

  _open() {
    if (!this.transport) throw new Error("no WebSocket here: give the class to use as the option `transport`");
    this._attemptedAt = Date.now();
    this._heard = false;
    this._refusal = null;
    const conn = new this.transport(this.endPointURL(), this._subprotocols());
    this.conn = conn;
    conn.binaryType = this.binaryType;
    // A connection that was given up goes on to report; it is not listened to any more.
    let failed = false;
    const current = (handler) => (event) => conn === this.conn && handler(event);
    conn.onopen = current(() => this._opened());
    conn.onmessage = current((event) => this._received(conn, event.data));
    conn.onerror = current((event) => {
      failed = true;
      this.log("transport", "error", event);
      if (this._wanted) this._emit("error", event, this.transport, this.establishedConnections);
    });
    conn.onclose = current((event) => this._ended(event, failed ? "connection_error" : "connection_closed"));
    this._announceState();
  }

  // The only header of a WebSocket's handshake that a page can set: a place for a secret that is in no URL.
  _subprotocols() {
    const token = this.authToken();
    return token ? ["phoenix", `base64url.bearer.phx.${base64url(token)}`] : [];
  }

  _reconnect() {
    if (!this._wanted || this._suspended || this.conn) return;
    try {
      this._open();
    } catch (error) {
      report(error); // e.g. the params function has thrown: it may not the next time
      this._reconnectTimer.schedule();
    }
  }

  _opened() {
    this.log("transport", `connected to ${this.endPoint}`); // without the params: they may hold a token
    this.establishedConnections += 1;
    this._heartbeatTimer = setTimeout(() => this._beat(), this.heartbeatIntervalMs);
    for (const message of this.sendBuffer.splice(0)) guarded(() => this.push(message));
    for (const channel of this.channels) channel._socketOpened();
    this._announceState();
    this._emit("open");
  }

  _received(conn, data) {
    // Not earlier: a server that accepts and hangs up at once must not be asked again and again without a pause.
    this._reconnectTimer.reset();
    this._heard = true;
    guarded(this.decode, data, (message) => {
      if (conn === this.conn) this._dispatch(message);
    });
  }

  _dispatch(message) {
    const { topic, event, payload, ref } = message;
    if (this.logger) this.log("receive", `${payload?.status ?? ""} ${topic} ${event} (${ref ?? ""})`.trim(), payload);
    if (ref && ref === this._heartbeatRef) {
      this._stopHeartbeat();
      this._heartbeatTimer = setTimeout(() => this._beat(), this.heartbeatIntervalMs);
    }
    for (const channel of this.channels) {
      // An earlier callback may have left this one.
      if (channel.topic === topic && this.channels.includes(channel)) channel._incoming(message);
    }
    if (topic === SYSTEM && event === "expiring") this._expiring(payload);
    this._emit("message", message);
    const answered = this._answers.get(ref);
    this._answers.delete(ref);
    if (answered) guarded(answered, payload);
  }

  _expiring(payload) {
    this._emit("expiring", payload);
    if (this.refreshPayload) this._keepAlive(payload.seconds);
  }

  // Refreshes, and if that fails, again after a third of the time that is left, while there is any.
  async _keepAlive(seconds) {
    const { conn } = this;
    clearTimeout(this._refreshTimer);
    try {
      const payload = await this.refreshPayload();
      if (conn === this.conn) await this.refresh(payload);
    } catch (error) {
      this.log("transport", "refresh failed", error);
      if (conn !== this.conn || seconds < 2) return;
      this._refreshTimer = setTimeout(() => this._keepAlive((seconds * 2) / 3), (seconds * 1000) / 3);
    }
  }

  // The one place where a connection, or an attempt at one, ends: once for each, whoever ended it.
  _ended(event, why = "connection_closed") {
    this.log("transport", "close", event);
    this.conn = null;
    this._stopHeartbeat();
    clearTimeout(this._refreshTimer);
    for (const callback of this._takeAnswers()) guarded(callback, null);
    clearTimeout(this._closeTimer);
    for (const channel of this.channels) {
      if (channel.isJoining() || channel.isJoined()) channel._errored({ source: "transport", reason: why });
    }
    // A callback may have connected or disconnected meanwhile.
    const idle = this._wanted && !this._suspended && !this.conn;
    const refused = idle && !this._heard && isRefusal(event.code);
    if (idle && !refused) this._reconnectTimer.schedule(retryAfterMs(event.reason));
    this._announceState();
    this._emit("close", event);
    if (refused) this._refused({ code: event.code, reason: event.reason });
    for (const callback of this._whenDisconnected.splice(0)) guarded(callback);
  }

  // Asks whether to try again; until a promise is kept nothing is tried, but for what the page or its user begins.
  _refused(refusal) {
    this._refusal = refusal;
    const go = (answers) => {
      if (refusal !== this._refusal || !this._wanted || this.conn) return; // it is connecting anew, or gave up already
      if (answers.includes(false)) this._giveUpRefused(refusal);
      else if (!this._suspended) this._reconnectTimer.schedule(retryAfterMs(refusal.reason));
    };
    const asked = this._callbacks.filter(({ kind }) => kind === "refused");
    const answers = asked.map(({ callback }) => guarded(callback, refusal));
    if (!answers.some((answer) => typeof answer?.then === "function")) return go(answers);
    const kept = answers.map((answer) => Promise.resolve(answer).catch(report));
    Promise.all(kept).then(go);
  }

  // Nobody will answer, and awaiting a join or a push for longer is in vain.
  _giveUpRefused(refusal) {
    this._setWanted(false);
    for (const channel of this.channels) channel._refused(refusal);
  }

  _takeAnswers() {
    const callbacks = [...this._answers.values()];
    this._answers.clear();
    return callbacks;
  }

  // Ends a connection without waiting for the other side, which may be long gone.
  _giveUp(why, code, reason) {
    const conn = this.conn;
    this._ended(closeEvent(code ?? 1006, reason ?? why), why);
    guarded(() => conn.close(code, reason));
  }

  _beat() {
    if (!this.isConnected()) return;
    this._stopHeartbeat();
    this._heartbeatRef = this.makeRef();
    this.push({ topic: SYSTEM, event: "heartbeat", payload: {}, ref: this._heartbeatRef });
    this._heartbeatTimer = setTimeout(() => {
      this.log("transport", "heartbeat timeout: connecting again");
      this._giveUp("heartbeat_timeout", NORMAL_CLOSE, "heartbeat timeout");
    }, this.heartbeatIntervalMs);
  }

  _stopHeartbeat() {
    clearTimeout(this._heartbeatTimer);
    this._heartbeatRef = null;
  }

  _leaveOthers(channel) {
    for (const other of this.channels) {
      if (other === channel || other.topic !== channel.topic || other.isClosed()) continue;
      this.log("transport", `leaving duplicate topic "${other.topic}"`);
      console.warn(
        `"${other.topic}" is joined once more over the same socket, which ends the channel that has joined it before: ` +
          `leave() that one first, or let both have it with socket.shared("${other.topic}")`,
      );
      other.leave();
    }
  }

  _watchPage() {
    if (this._pageListeners || !globalThis.addEventListener) return;
    this._pageListeners = new AbortController();
    const options = { signal: this._pageListeners.signal };
    const wake = () => this._wake();
    globalThis.addEventListener("online", wake, options);
    globalThis.document?.addEventListener("visibilitychange", wake, options);
    globalThis.document?.addEventListener("resume", wake, options);
    // A page with an open WebSocket cannot be kept for the back button.
    globalThis.addEventListener("pagehide", () => this._suspend(), options);
    globalThis.addEventListener("pageshow", () => {
      if (!this._suspended) return; // it comes after every load, too
      this._suspended = false;
      this._wake();
    }, options);
  }

  // The network or the user came back: no reason to wait for the next try.
  _wake() {
    if (this._suspended || pageIsHidden()) return;
    if (this.isConnected()) {
      if (!this._heartbeatRef) this._beat(); // it may only look connected
      return;
    }
    if (this.conn) {
      if (Date.now() - this._attemptedAt < FRESH_ATTEMPT_MS) return;
      this._giveUp("connection_error"); // an attempt from before, perhaps over a network that is gone
    }
    this._reconnectTimer.reset();
    this._reconnect();
  }

  _suspend() {
    this._suspended = true;
    if (this.conn) this._giveUp("connection_closed");
  }
}
