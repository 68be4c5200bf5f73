/**
 * Who is on a topic: keeps the list that the server's `Presence` tells of.
 *
 *     import { Presence, Socket } from "/socket/channels.js";
 *
 *     const presence = new Presence(room);
 *     presence.onSync(() => render(presence.list((user, { metas }) => `${user} (${metas.length})`)));
 *
 * Names and behaviour are those of phoenix.js 1.8, and any channel with its `on` and `joinRef` will do. Types:
 * presence.d.ts. Names that begin with _ are nobody else's business.
 */

const nothing = () => {};

/** Keys are the server's choice: a table has no prototype with which one could collide. */
const table = (object) => Object.assign(Object.create(null), object);

const without = (metas, others) => metas.filter(({ phx_ref }) => !others.some((other) => other.phx_ref === phx_ref));

/** Calls what the application gave us: its exception is reported, and the list stays right. */
const guarded = (callback) => (...args) => {
  try {
    callback(...args);
  } catch (error) {
    (globalThis.reportError ?? console.error)(error);
  }
};

export class Presence {
  constructor(channel, { events = { state: "presence_state", diff: "presence_diff" } } = {}) {
    this.channel = channel;
    this.state = table({});
    this.joinRef = null; // that of the join whose state we have
    this.pendingDiffs = [];
    this._callbacks = { join: nothing, leave: nothing, sync: nothing };
    channel.on(events.state, (state) => this._receiveState(state));
    channel.on(events.diff, (diff) => this._receiveDiff(diff));
  }

  /** Calls `callback(key, current, newPresence)` when somebody comes; `current` is undefined if the key is new. */
  onJoin(callback) { this._callbacks.join = guarded(callback); }

  /** Calls `callback(key, current, leftPresence)` when somebody goes; nobody is left if `current.metas` is empty. */
  onLeave(callback) { this._callbacks.leave = guarded(callback); }

  /** Calls back after every change of the list. */
  onSync(callback) { this._callbacks.sync = guarded(callback); }

  /** What `by(key, presence)` returns for each key; the presences themselves by default. */
  list(by) { return Presence.list(this.state, by); }

  /** Whether the state that follows the latest join has not come yet; diffs wait for it. */
  inPendingSyncState() { return !this.joinRef || this.joinRef !== this.channel.joinRef(); }

  /** The state that follows from another: who is in only one of them has come, or gone. */
  static syncState(state, newState, onJoin, onLeave) {
    const current = table(state);
    const next = table(newState);
    const joins = table({});
    const leaves = table({});
    for (const [key, presence] of Object.entries(current)) {
      const left = without(presence.metas, next[key]?.metas ?? []);
      if (left.length > 0) leaves[key] = { ...presence, metas: left };
    }
    for (const [key, presence] of Object.entries(next)) {
      const joined = without(presence.metas, current[key]?.metas ?? []);
      if (joined.length > 0) joins[key] = { ...presence, metas: joined };
    }
    return Presence.syncDiff(current, { joins, leaves }, onJoin, onLeave);
  }

  /** The state after a diff: joins first, and what has joined already is not there twice. */
  static syncDiff(state, { joins, leaves }, onJoin = nothing, onLeave = nothing) {
    const next = table(state);
    for (const [key, joined] of Object.entries(joins)) {
      const current = next[key];
      next[key] = { ...joined, metas: [...without(current?.metas ?? [], joined.metas), ...joined.metas] };
      onJoin(key, current, joined);
    }
    for (const [key, left] of Object.entries(leaves)) {
      if (!next[key]) continue;
      const remaining = { ...next[key], metas: without(next[key].metas, left.metas) };
      if (remaining.metas.length > 0) next[key] = remaining;
      else delete next[key];
      onLeave(key, remaining, left);
    }
    return next;
  }

  static list(state, by = (_key, presence) => presence) {
    return Object.entries(state).map(([key, presence]) => by(key, presence));
  }

  _receiveState(state) {
    const { join, leave, sync } = this._callbacks;
    this.joinRef = this.channel.joinRef();
    this.state = Presence.syncState(this.state, state, join, leave);
    for (const diff of this.pendingDiffs.splice(0)) this.state = Presence.syncDiff(this.state, diff, join, leave);
    sync();
  }

  _receiveDiff(diff) {
    if (this.inPendingSyncState()) {
      this.pendingDiffs.push(diff);
      return;
    }
    const { join, leave, sync } = this._callbacks;
    this.state = Presence.syncDiff(this.state, diff, join, leave);
    sync();
  }
}
