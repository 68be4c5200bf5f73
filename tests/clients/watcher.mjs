/**
 * A client of phoenix.js, under node or in a page, that comes back to the hall whenever it is cut off. Returns a function
 * that says who is there, as its `Presence` has it: a list of `[key, phx_ref]`.
 */
export function watcher({ Presence, Socket }, url) {
  const socket = new Socket(url, { timeout: 5_000, reconnectAfterMs: () => 100, rejoinAfterMs: () => 100 });
  socket.connect();
  const channel = socket.channel("room:hall", {});
  const presence = new Presence(channel);
  channel.join();
  return () => presence.list(refs).flat();
}

const refs = (key, { metas }) => metas.map((meta) => [key, meta.phx_ref]);
