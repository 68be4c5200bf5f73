/** Plays one scenario: `node run.mjs MODULE URL SCENARIO`, where MODULE is "phoenix" or the address of a module like it. */

import * as scenarios from "./scenarios.mjs";

const [module, url, name] = process.argv.slice(2);
const { Presence, Socket } = await import(module);

/** A connected client, with the patience of a test: it comes back and joins again at once, not after seconds. */
function client(user, params = {}, options = {}) {
  const quick = { timeout: 5_000, reconnectAfterMs: () => 30, rejoinAfterMs: () => 30 };
  const socket = new Socket(url, { params: { user, ...params }, ...quick, ...options });
  socket.connect();
  return socket;
}

try {
  await scenarios[name]({ client, Presence });
  process.exit(0);
} catch (error) {
  console.error(error);
  process.exit(1);
}
