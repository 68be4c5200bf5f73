/** Types of channels.js, the browser side of starlette_channels. Needs TypeScript 5 and no particular `lib`. */

export * from "./presence.js";

/** A message body: something that JSON can hold, or bytes (sent as they are, in a binary frame). */
export type Payload = object;

/** Params as they are, or a function that is asked anew whenever they are needed. */
export type Params = object | (() => object);

/** Bytes arrive as an ArrayBuffer, everything else as parsed JSON. */
export interface Message {
  topic: string;
  event: string;
  payload: any;
  ref?: string | null;
  join_ref?: string | null;
}

export type ConnectionState = "connecting" | "open" | "closing" | "closed";
export type ChannelState = "closed" | "errored" | "joined" | "joining" | "leaving";

/** How a connection ended: a browser's CloseEvent fits. `code` is 1006 if there was no orderly close. */
export interface CloseInfo {
  readonly code: number;
  readonly reason: string;
  readonly wasClean: boolean;
}

/** What the server has refused a client with. */
export interface Refusal {
  readonly code: number;
  readonly reason: string;
}

/** What `onError` of a channel is told when the connection, not the server, is the cause. */
export interface TransportFailure {
  source: "transport";
  reason: "connection_closed" | "connection_error" | "heartbeat_timeout";
}

/** The part of a WebSocket that is used: the browser's, Node's and that of the `ws` package fit. */
export interface WebSocketLike {
  readonly readyState: number;
  binaryType: string;
  onopen: ((event: any) => any) | null;
  onmessage: ((event: any) => any) | null;
  onerror: ((event: any) => any) | null;
  onclose: ((event: any) => any) | null;
  send(data: any): void;
  close(code?: number, reason?: string): void;
}

export interface SocketOptions {
  /** Sent in the URL of each connection; nested as `a[b]=1`, lists as `a[0]=1`. */
  params?: Params | undefined;
  /**
   * A secret for the server's `connect` that is not in the URL; the server needs `auth_token=True`. A function is asked
   * anew for each connection.
   */
  authToken?: string | (() => string | null | undefined) | null | undefined;
  /**
   * Called when the server is about to close the connection because what it knows of this client expires; what it
   * returns, or its promise gives, is sent to `Expiry(refresh=...)` of the server. If it fails, or is refused, it is
   * called again while there is time.
   */
  refresh?: (() => Payload | Promise<Payload>) | undefined;
  /** How long a join or a push waits for its answer. Milliseconds; default 10 000. */
  timeout?: number | undefined;
  /** A heartbeat is sent this often, and must be answered within this time. Milliseconds; default 30 000. */
  heartbeatIntervalMs?: number | undefined;
  /**
   * Milliseconds to wait before the given try (1, 2, …) to connect again. Default: random, from 0 to 500, 1000, 2000,
   * … at most 10 000, so that a crowd of clients does not come back in one instant. A server that closes the connection
   * with a reason such as "restart retry_after=7.5" decides about the first try: after so many seconds.
   */
  reconnectAfterMs?: ((tries: number) => number) | undefined;
  /** The same for joining a channel again; default: random, from 0 to 1000, 2000, 4000, … at most 10 000. */
  rejoinAfterMs?: ((tries: number) => number) | undefined;
  /** Told of everything that goes in and out. */
  logger?: ((kind: string, message: string, data?: any) => void) | undefined;
  /** Log to the console, unless there is a `logger`. */
  debug?: boolean | undefined;
  /** The WebSocket class; default: the global one. */
  transport?: (new (url: string, protocols?: string[]) => WebSocketLike) | undefined;
  /** Only for a `decode` of your own. Default "arraybuffer". */
  binaryType?: "arraybuffer" | "blob" | undefined;
  /** For a serializer of your own on the server: the version that selects it. Default "2.0.0". */
  vsn?: string | undefined;
  /** Must call `done` with what `WebSocket.send` takes. */
  encode?: ((message: Message, done: (data: any) => void) => void) | undefined;
  /** Must call `done` with the message found in what the WebSocket received. */
  decode?: ((data: any, done: (message: Message) => void) => void) | undefined;
}

/** One connection that carries any number of channels, and is opened again whenever it is lost. */
export class Socket {
  /** `endPoint` is where the server mounted its channels: "/socket", or "wss://example.org/socket". */
  constructor(endPoint: string, options?: SocketOptions);

  readonly channels: readonly Channel[];
  readonly timeout: number;
  readonly vsn: string;
  /** The WebSocket in use, or null. */
  readonly conn: WebSocketLike | null;

  /**
   * Opens the connection and keeps it open until `disconnect()`. While the socket waits for its next try, tries now.
   */
  connect(): void;
  /** Closes the connection for good; `connect()` opens it again. `callback` runs once it is closed. */
  disconnect(callback?: (() => void) | null, code?: number, reason?: string): void;

  /** A channel for the topic, not joined yet. `params` go with each join. */
  channel(topic: string, params?: Params): Channel;
  /**
   * The channel of a topic for one part of a page that shares it with others: each has listeners of its own, and joins
   * and leaves for itself. The first join joins the topic, later ones have its answer; the last to leave leaves it. The
   * params are those of the first; other ones are warned of in the console. Not in phoenix.js.
   */
  shared(topic: string, params?: Params): Channel;
  /** Forgets a channel. Leaving does this. */
  remove(channel: Channel): void;

  onOpen(callback: () => void): string;
  /** Called when a connection, or an attempt at one, has ended. */
  onClose(callback: Bivariant<[event: CloseInfo]>): string;
  onError(callback: Bivariant<[error: unknown, transport: unknown, establishedConnections: number]>): string;
  onMessage(callback: (message: Message) => void): string;
  /** Called whenever `connectionState()` has changed. Not in phoenix.js. */
  onStateChange(callback: (state: ConnectionState) => void): string;
  /** Called when the server will close the connection in so many seconds, unless it is refreshed. Not in phoenix.js. */
  onExpiring(callback: (notice: { seconds: number }) => void): string;
  /**
   * Called when the server has refused this client with `ConnectError(reason, close=code)`, or closed the connection with
   * a code of 3000 to 4999 before anything came over it. The socket tries again, after pauses that grow, unless a
   * callback returns `false`, or a promise of it: then it gives up until `connect()`, and what is awaited is rejected
   * with the status "refused". It waits for promises. Not in phoenix.js.
   */
  onRefused(callback: (refusal: Refusal) => unknown): string;
  /** Removes callbacks by the refs that the `on...` methods returned. */
  off(refs: readonly string[]): void;

  connectionState(): ConnectionState;
  isConnected(): boolean;
  /** The URL that is connected to. */
  endPointURL(): string;
  /** As the page is http or https. */
  protocol(): "ws" | "wss";

  /** The next message ref. */
  makeRef(): string;
  /** Sends a message of no channel, now or when the connection opens. */
  push(message: Message): void;
  /**
   * Tells the server anew who this is: resolves with the seconds that it has from then on (null: no end), rejects with a
   * ChannelError. Not in phoenix.js.
   */
  refresh(payload?: Payload): Promise<{ seconds: number | null }>;
  /** Measures a round trip. False if there is no connection. */
  ping(callback: (milliseconds: number) => void): boolean;
  log(kind: string, message: string, data?: any): void;
  hasLogger(): boolean;
}

/** One topic of a socket. Made by `socket.channel()`. */
export class Channel {
  constructor(topic: string, params: Params | undefined, socket: Socket);

  readonly topic: string;
  readonly state: ChannelState;
  readonly socket: Socket;
  readonly timeout: number;

  /**
   * Joins the topic, and joins again after a lost connection, a crash on the server, or a refusal, until `leave()`.
   * The promise has the first outcome. Throws when called a second time.
   */
  join<T = any>(timeout?: number): Push<T>;
  /** Leaves the topic: here at once, and the server is told. */
  leave(timeout?: number): Push<any>;
  /**
   * Sends an event; waits for the join if need be. Throws before `join()`, for a payload that cannot be encoded, and
   * for a topic or event of more than 255 bytes with a binary payload.
   */
  push<T = any>(event: string, payload?: Payload | null, timeout?: number): Push<T>;

  /** Calls back for each such event. The number is for `off`. */
  on<T = any>(event: string, callback: (payload: T, ref?: string | null, joinRef?: string | null) => void): number;
  /** Removes the callback with this ref, or all of the event. */
  off(event: string, ref?: number): void;
  /** The channel is closed for good: it was left, or the server ended it. */
  onClose(callback: (payload: any, ref?: string | null, joinRef?: string | null) => void): number;
  /** The channel crashed on the server or lost its connection; it will rejoin. */
  onError(callback: (reason: any, ref?: string | null, joinRef?: string | null) => void): number;
  /** Override to see or change each payload before its callbacks do. Must return the payload. */
  onMessage(event: string, payload: any, ref?: string | null, joinRef?: string | null): any;

  /** True if a push would be sent at once. */
  canPush(): boolean;
  joinRef(): string | null;
  isClosed(): boolean;
  isErrored(): boolean;
  isJoined(): boolean;
  isJoining(): boolean;
  isLeaving(): boolean;
  /** Hands an event to the channel's callbacks, as if it had come from the server. */
  trigger(event: string, payload?: any, ref?: string | null, joinRef?: string | null): void;
}

/**
 * A message that may be answered: `.receive(status, callback)` as in phoenix.js, or `await`. The promise takes the
 * first outcome; nobody has to await it.
 */
export class Push<T = any> implements PromiseLike<T> {
  constructor(channel: Channel, event: string, payload?: () => object, timeout?: number);

  readonly channel: Channel;
  readonly event: string;
  readonly timeout: number;
  readonly ref: string | null;

  /** Runs `callback(response)` when the answer has this status; at once if it has come. */
  receive(status: "ok", callback: (response: T) => void): this;
  receive(status: string, callback: (response: any) => void): this;
  /** Sends the message. Channels do this. */
  send(): void;
  resend(timeout: number): void;

  /** Resolves with the response to "ok"; rejects with a ChannelError. */
  then<A = T, B = never>(
    onFulfilled?: ((response: T) => A | PromiseLike<A>) | null,
    onRejected?: ((error: any) => B | PromiseLike<B>) | null,
  ): Promise<A | B>;
  catch<B = never>(onRejected?: ((error: any) => B | PromiseLike<B>) | null): Promise<T | B>;
  finally(onFinally?: (() => void) | null): Promise<T>;
}

/** What an awaited push or join is rejected with: the answer was not "ok", or there was none. */
export class ChannelError<R = any> extends Error {
  /** Made by pushes. */
  private constructor();

  /**
   * "error": the server's answer, or the channel has crashed there. "closed": the channel was left or closed before the
   * answer came. "refused": the connection was, and `onRefused` gave up. Else what the server answered.
   */
  readonly status: "error" | "timeout" | "closed" | "refused" | (string & {});
  /** What came with the answer; `{}` if there was none. */
  readonly response: R;
  /** The same, as handlers call it. */
  readonly payload: R;
  /** `response.reason`, which is a string in the server's own errors; undefined if there is none. */
  readonly reason: any;
  /** `response.detail`: what does not fit about an invalid payload; undefined if there is none. */
  readonly detail: any;
  readonly topic: string;
  readonly event: string;
}

/** Callbacks may name a narrower type, such as CloseEvent. */
type Bivariant<Args extends unknown[]> = { callback(...args: Args): void }["callback"];

export {};
