/** Watchers, one at each of the addresses: `node watch.mjs URL...`. For every line on its input it says what they see. */

import { createInterface } from "node:readline";
import * as phoenix from "phoenix";
import { watcher } from "./watcher.mjs";

const watchers = process.argv.slice(2).map((url) => watcher(phoenix, url));

createInterface({ input: process.stdin })
  .on("line", () => console.log(JSON.stringify(watchers.map((look) => look()))))
  .on("close", () => process.exit(0));
