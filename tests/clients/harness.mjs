/** What the scenarios need: clients of either library, promises of what arrives, and a way to ask pytest for something. */

import { createInterface } from "node:readline";

export const PATIENCE = 10_000;

/** Fail, saying what was missing, if a promise takes longer than anything here should. */
export function soon(promise, what) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`waited ${PATIENCE} ms for ${what}`)), PATIENCE);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** The outcome of a push or a join: `["ok" | "error" | "timeout", response]`. */
export function outcome(push, what = "the outcome of a push") {
  const settled = new Promise((resolve) => {
    for (const status of ["ok", "error", "timeout"]) push.receive(status, (response) => resolve([status, response]));
  });
  return soon(settled, what);
}

/** Keeps what is given to it until somebody asks for it with `next()`. */
export class Mailbox {
  #kept = [];
  #waiting = [];

  constructor(what) {
    this.what = what;
  }

  put = (item) => {
    const resolve = this.#waiting.shift();
    if (resolve) resolve(item);
    else this.#kept.push(item);
  };

  next() {
    if (this.#kept.length) return Promise.resolve(this.#kept.shift());
    return soon(new Promise((resolve) => this.#waiting.push(resolve)), this.what);
  }

  get size() {
    return this.#kept.length;
  }
}

/** A mailbox of a channel's events of one name. */
export function events(channel, name) {
  const box = new Mailbox(`the event ${name} on ${channel.topic}`);
  channel.on(name, box.put);
  return box;
}

/** A mailbox of the errors of a channel. */
export function errors(channel) {
  const box = new Mailbox(`an error of ${channel.topic}`);
  channel.onError(box.put);
  return box;
}

/** A mailbox of the states a channel is in after each answer to a join: the first one and every rejoin. */
export function joins(channel) {
  const box = new Mailbox(`a join of ${channel.topic}`);
  channel.join().receive("ok", (response) => box.put(["ok", response])).receive("error", (response) => box.put(["error", response]));
  return box;
}

export const bytes = (...numbers) => Uint8Array.from(numbers).buffer;
export const numbers = (buffer) => [...new Uint8Array(buffer)];

const lines = createInterface({ input: process.stdin });
const answers = new Mailbox("the answer of pytest");
lines.on("line", answers.put);

/** Ask pytest for something, such as a restart of the server, and wait until it is done. */
export async function ask(name) {
  console.log(`? ${name}`);
  await answers.next();
}
