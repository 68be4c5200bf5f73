/**
 * Clients of phoenix.js, one at each of the addresses: `node watch.mjs URL...`. For every line on its input it says who
 * is there, as the `Presence` of each client has it: a list of lists of `[key, phx_ref]`.
 */

import { createInterface } from "node:readline";
import { Presence, Socket } from "phoenix";

const watchers = process.argv.slice(2).map((url) => {
  const socket = new Socket(url, { timeout: 5_000, reconnectAfterMs: () => 100, rejoinAfterMs: () => 100 });
  socket.connect();
  const channel = socket.channel("room:hall", {});
  const presence = new Presence(channel);
  channel.join();
  return presence;
});

const refs = (key, { metas }) => metas.map((meta) => [key, meta.phx_ref]);

createInterface({ input: process.stdin })
  .on("line", () => console.log(JSON.stringify(watchers.map((presence) => presence.list(refs).flat()))))
  .on("close", () => process.exit(0));
