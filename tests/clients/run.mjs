/**
 * Plays one scenario: `node run.mjs MODULE URL TRANSPORT SCENARIO`, where MODULE is "phoenix" or the address of a module
 * like it, and TRANSPORT is "WebSocket" or "LongPoll".
 */

import * as everywhere from "./scenarios.mjs";
import * as polling from "./longpoll.mjs";

const [module, url, transport, name] = process.argv.slice(2);
const { Presence, Socket, LongPoll } = await import(module);
const transports = { WebSocket, LongPoll };

/** A connected client, with the patience of a test: it comes back and joins again at once, not after seconds. */
function client(user, params = {}, options = {}) {
  const quick = { timeout: 5_000, reconnectAfterMs: () => 30, rejoinAfterMs: () => 30 };
  const usual = transport === "WebSocket" ? {} : { transport: transports[transport] };
  const socket = new Socket(url, { params: { user, ...params }, ...quick, ...usual, ...options });
  socket.connect();
  return socket;
}

try {
  await { ...everywhere, ...polling }[name]({ client, transports, Presence });
  process.exit(0);
} catch (error) {
  console.error(error);
  process.exit(1);
}
