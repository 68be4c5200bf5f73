/** One room: its channel, its messages, who is in it, who is typing and what is unread. It knows nothing of the page. */

import { Presence } from "/socket/channels.js";

const TYPING_EVERY = 2_000; // ms between two "typing" that we send
const TYPING_LASTS = 5_000; // ms that a "typing" of somebody else is believed
const KEEP = 500; // messages kept in the page
const WHY = { timeout: "no answer", closed: "the room was closed" };

export class Room extends EventTarget {
  state = "outside"; // outside | joining | joined | refused
  refusal = "";
  messages = []; // sent ones in the order of the server, then those on their way
  people = []; // { name, windows }, in the order of the alphabet
  typists = new Map(); // name -> timer
  unread = 0;
  firstUnread = null; // id of the message above which the page draws a line
  looking = false; // is somebody looking at this room?
  draft = "";
  #byId = new Map();
  #lastTyping = 0;
  #knows = false; // have we seen this room's history before?

  constructor(socket, { id, title, about, private: locked }, me) {
    super();
    Object.assign(this, { socket, id, title, about, locked, me });
  }

  enter(params = {}) {
    this.channel?.leave();
    const channel = (this.channel = this.socket.channel(`room:${this.id}`, params));
    channel.on("new_msg", (message) => this.#receive(message));
    channel.on("typing", ({ name }) => this.#sawTyping(name));
    const presence = new Presence(channel);
    presence.onSync(() => this.#see(presence));
    channel.onError(() => this.#stopTyping());
    this.#become("joining");
    // These hooks run again at every rejoin, so a restarted server finds us here.
    channel
      .join()
      .receive("ok", ({ messages }) => this.#joined(messages))
      .receive("error", ({ reason }) => this.#refused(channel, reason));
  }

  say(body) {
    const message = { id: newId(), author: this.me, body, at: new Date().toISOString(), state: "pending" };
    this.#add(message);
    this.#lastTyping = 0;
    this.#deliver(message);
  }

  retry(id) {
    const message = this.#byId.get(id);
    if (message?.state !== "failed") return;
    this.discard(id);
    this.#add(Object.assign(message, { state: "pending", at: new Date().toISOString() }));
    this.#deliver(message);
  }

  discard(id) {
    this.#byId.delete(id);
    this.messages = this.messages.filter((message) => message.id !== id);
    this.#changed();
  }

  /** Tell the others that we type: often enough to be seen, seldom enough not to be noise. */
  type() {
    const now = Date.now();
    if (this.state !== "joined" || !this.socket.isConnected() || now - this.#lastTyping < TYPING_EVERY) return;
    this.#lastTyping = now;
    this.channel.push("typing", {});
  }

  look(looking) {
    if (this.looking === looking) return;
    this.looking = looking;
    if (looking) this.unread = 0;
    else this.firstUnread = null;
    this.#changed();
  }

  async #deliver(message) {
    try {
      const sent = await this.channel.push("new_msg", { id: message.id, body: message.body });
      this.#merge([sent]);
    } catch (error) {
      if (message.state !== "pending") return; // the history of a rejoin has told us that it arrived
      message.state = "failed";
      message.why = WHY[error.status] ?? error.response?.reason ?? "refused";
    }
    this.#changed();
  }

  #joined(messages) {
    const news = this.#merge(messages);
    if (this.#knows) this.#count(news); // what was said while we were away
    this.#knows = true;
    this.refusal = "";
    this.#become("joined");
  }

  #refused(channel, reason) {
    channel.leave(); // else it would ask again and again
    this.people = [];
    this.refusal = reason ?? "you cannot come in";
    this.#become("refused");
  }

  #receive(message) {
    const news = this.#merge([message]);
    this.#count(news);
    this.#stopTyping(message.author);
    this.#changed();
    if (news.length) this.dispatchEvent(new CustomEvent("message", { detail: message }));
  }

  #count(news) {
    const others = news.filter((message) => message.author !== this.me);
    if (this.looking || !others.length) return;
    if (!this.unread) this.firstUnread = others[0].id;
    this.unread += others.length;
  }

  /** Take over what the server says, and return the messages that are new to us. */
  #merge(messages) {
    const news = [];
    for (const message of messages) {
      const known = this.#byId.get(message.id);
      if (known) Object.assign(known, message, { state: "sent" });
      else news.push({ ...message, state: "sent" });
    }
    for (const message of news) this.#byId.set(message.id, message);
    const all = [...this.messages, ...news];
    const sent = all.filter((message) => message.state === "sent");
    sent.sort((a, b) => Date.parse(a.at) - Date.parse(b.at));
    for (const message of sent.splice(0, sent.length - KEEP)) this.#byId.delete(message.id);
    this.messages = [...sent, ...all.filter((message) => message.state !== "sent")];
    return news;
  }

  #add(message) {
    this.#byId.set(message.id, message);
    this.messages.push(message);
    this.#changed();
  }

  #see(presence) {
    this.people = presence.list((name, { metas }) => ({ name, windows: metas.length }));
    this.people.sort((one, other) => one.name.localeCompare(other.name));
    this.#changed();
  }

  #sawTyping(name) {
    clearTimeout(this.typists.get(name));
    this.typists.set(name, setTimeout(() => this.#stopTyping(name), TYPING_LASTS));
    this.#changed();
  }

  #stopTyping(...names) {
    for (const name of names.length ? names : [...this.typists.keys()]) {
      clearTimeout(this.typists.get(name));
      this.typists.delete(name);
    }
    this.#changed();
  }

  #become(state) {
    this.state = state;
    this.#changed();
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }
}

/** Return 128 random bits as text; `crypto.randomUUID` is missing on plain http, where a phone finds us. */
function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
