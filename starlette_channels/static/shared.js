/**
 * One channel that several parts of a page share: `socket.shared(topic, params)` of channels.js. Each holder has the
 * methods of a channel and listeners of its own; the channel joins with the first holder and is left by the last one.
 */

const CLOSE = "phx_close";
const ERROR = "phx_error";

const asJson = (value) => JSON.parse(JSON.stringify(value ?? null));

/** Whether two values are the same JSON, whatever the order of their keys. */
function isSame(one, other) {
  if (one === null || other === null || typeof one !== "object" || typeof other !== "object") return one === other;
  if (Array.isArray(one) !== Array.isArray(other)) return false;
  const keys = Object.keys(one);
  return keys.length === Object.keys(other).length && keys.every((key) => key in other && isSame(one[key], other[key]));
}

/** One part's hold on the channel of a topic. It is handed out as a `Channel`, and behaves as one. */
export class SharedChannel {
  /** `own` is a channel of its own, which is not used but as long as this one has not joined. */
  constructor(own) {
    this.topic = own.topic;
    this.params = own.params;
    this.socket = own.socket;
    this.timeout = own.timeout;
    this.joinedOnce = false;
    this.joinPush = null;
    this._channel = own;
    this._left = false;
    this._warned = false;
    this._bindings = [];
    this._bindingRef = 0;
    this._compare(this.socket._shared.get(this.topic));
  }

  get state() { return this._left ? "closed" : this._channel.state; }

  /** Joins the topic, or takes part in the join of those who share it: with its answer, if it has come. */
  join(timeout = this.timeout) {
    if (this.joinedOnce) {
      throw new Error(`join() of "${this.topic}" was called before: use a new socket.shared() to join again`);
    }
    this.joinedOnce = true;
    const shared = this.socket._shared;
    const channel = shared.get(this.topic) ?? this.socket.channel(this.topic, this.params);
    shared.set(this.topic, channel);
    this._compare(channel);
    this._channel = channel;
    this.joinPush = channel._unsent("phx_join", timeout);
    channel._holders.add(this);
    if (channel.joinedOnce) this._catchUp();
    else channel.join(timeout);
    this.joinPush._settleWithin(timeout);
    return this.joinPush;
  }

  /** Leaves; the others go on. The channel itself is left by the last one. */
  leave(timeout = this.timeout) {
    const holders = this._channel._holders;
    const isLast = holders.has(this) && holders.size === 1;
    this.joinedOnce = true;
    const push = isLast ? this._channel.leave(timeout) : this._channel._unsent("phx_leave", timeout);
    if (!isLast) push._receive("ok", {});
    if (holders.delete(this) && !isLast && !this._channel.isClosed()) {
      this.joinPush._settle("closed", {});
      this.trigger(CLOSE, "leave");
    }
    this._left = true;
    this._bindings = [];
    return push;
  }

  push(event, payload, timeout = this.timeout) {
    if (!this.joinedOnce) throw new Error(`push("${event}") on "${this.topic}" before join()`);
    if (!this._left) return this._channel.push(event, payload, timeout);
    const push = this._channel._unsent(event, timeout);
    push._startTimer();
    push._settle("closed", {});
    return push;
  }

  on(event, callback) {
    const ref = this._bindingRef++;
    if (!this._left) this._bindings = [...this._bindings, { event, ref, callback }];
    return ref;
  }

  off(event, ref) {
    const removed = (bound) => bound.event === event && (ref === undefined || bound.ref === ref);
    this._bindings = this._bindings.filter((bound) => !removed(bound));
  }

  onClose(callback) { return this.on(CLOSE, callback); }
  onError(callback) { return this.on(ERROR, callback); }
  onMessage(_event, payload, _ref, _joinRef) { return payload; }

  canPush() { return !this._left && this._channel.canPush(); }
  joinRef() { return this._channel.joinRef(); }
  isClosed() { return this.state === "closed"; }
  isErrored() { return this.state === "errored"; }
  isJoined() { return this.state === "joined"; }
  isJoining() { return this.state === "joining"; }
  isLeaving() { return this.state === "leaving"; }

  trigger(event, payload, ref, joinRef = this.joinRef()) { this._channel._hand(this, event, payload, ref, joinRef); }

  // The answer that the others have got is that of whoever comes later; while a join is under way, the next one is.
  _catchUp() {
    const { receivedResp: last } = this._channel.joinPush;
    const isRefused = this._channel.isErrored() && last && last.status !== "ok" && last.status !== "timeout";
    if (this._channel.isJoined() || isRefused) this.joinPush._receive(last.status, last.response);
  }

  _compare(channel) {
    if (!channel || this._warned || channel.params === this.params) return;
    let differ = false;
    try {
      differ = !isSame(asJson(channel.params()), asJson(this.params()));
    } catch {
      // A params function that throws is reported when it is asked for the join.
    }
    if (!differ) return;
    this._warned = true;
    console.warn(`socket.shared("${this.topic}"): the params differ from those of the first, which are the ones in use`);
  }
}
