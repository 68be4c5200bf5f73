/** Types of presence.js: who is on a topic. `M` is what the server tracks of each connection. */

/** What is told of one connection. `phx_ref` is its name, `phx_ref_prev` that of what it replaced. */
export type Meta<M extends object = Record<string, any>> = M & { phx_ref: string; phx_ref_prev?: string };

/** One key: all its connections, and what the server's `fetch` has put beside them. */
export interface PresenceEntry<M extends object = Record<string, any>> {
  metas: Meta<M>[];
  [field: string]: any;
}

export type PresenceState<M extends object = Record<string, any>> = { [key: string]: PresenceEntry<M> };

export interface PresenceDiff<M extends object = Record<string, any>> {
  joins: PresenceState<M>;
  leaves: PresenceState<M>;
}

/** The part of a channel that is used. */
export interface PresenceChannel {
  on(event: string, callback: (payload: any) => void): unknown;
  joinRef(): string | null | undefined;
}

/** `current` is undefined if the key was not there. */
export type OnJoin<M extends object = Record<string, any>> = (
  key: string,
  current: PresenceEntry<M> | undefined,
  newPresence: PresenceEntry<M>,
) => void;

/** `current.metas` is empty if that was the last of the key. */
export type OnLeave<M extends object = Record<string, any>> = (
  key: string,
  current: PresenceEntry<M>,
  leftPresence: PresenceEntry<M>,
) => void;

/** Keeps the list of who is on a channel's topic. Make it before joining. */
export class Presence<M extends object = Record<string, any>> {
  constructor(channel: PresenceChannel, options?: { events?: { state: string; diff: string } });

  readonly channel: PresenceChannel;
  readonly state: PresenceState<M>;

  /** The latest callback is the one. */
  onJoin(callback: OnJoin<M>): void;
  /** The latest callback is the one. */
  onLeave(callback: OnLeave<M>): void;
  /** Called after every change of the list; the latest callback is the one. */
  onSync(callback: () => void): void;

  list(): PresenceEntry<M>[];
  list<T>(by: (key: string, presence: PresenceEntry<M>) => T): T[];
  /** True until the state that follows the latest join has come. */
  inPendingSyncState(): boolean;

  static syncState<M extends object>(
    state: PresenceState<M>,
    newState: PresenceState<M>,
    onJoin?: OnJoin<M>,
    onLeave?: OnLeave<M>,
  ): PresenceState<M>;
  static syncDiff<M extends object>(
    state: PresenceState<M>,
    diff: PresenceDiff<M>,
    onJoin?: OnJoin<M>,
    onLeave?: OnLeave<M>,
  ): PresenceState<M>;
  static list<M extends object>(state: PresenceState<M>): PresenceEntry<M>[];
  static list<M extends object, T>(state: PresenceState<M>, by: (key: string, presence: PresenceEntry<M>) => T): T[];
}

export {};
