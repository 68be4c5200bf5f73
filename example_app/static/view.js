/** Draws rooms, people and messages. Text from other people reaches the page through `textContent` only. */

import { count, day, here, hue, initials, moment, time } from "./words.js";

const FACES = 4; // avatars of the people in a room, before the others are only a number
const TOGETHER = 5 * 60_000; // ms within which messages of one author stand under one name

/** Make an element: `make("p", { class: "body", dir: "auto" }, "some text", child)`. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

export function paintAvatar(element, name) {
  element.textContent = initials(name);
  element.style.setProperty("--hue", hue(name));
}

/** Bring the list of rooms up to date. */
export function drawRooms(list, rooms, current) {
  if (!list.children.length) list.append(...rooms.map(roomItem));
  rooms.forEach((room, index) => {
    const button = list.children[index].firstElementChild;
    const last = room.state === "refused" ? null : room.messages.at(-1);
    const typists = [...room.typists.keys()];
    button.toggleAttribute("data-unread", room.unread > 0);
    if (room === current) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
    button.dataset.state = room.state;
    button.querySelector(".room-last").textContent = typists.length
      ? `${typists[0]}${typists.length > 1 ? " and others" : ""} typing…`
      : last
        ? `${last.author === room.me ? "You" : (last.author ?? "Announcement")}: ${last.body}`
        : room.about;
    const people = button.querySelector(".room-people");
    people.hidden = room.people.length === 0;
    people.textContent = count(room.people.length);
    people.title = here(room.people.length);
    const badge = button.querySelector(".badge");
    badge.hidden = room.unread === 0;
    badge.querySelector("b").textContent = count(room.unread);
  });
}

function roomItem(room) {
  const mark = make("span", { class: "room-mark", "aria-hidden": "true" }, room.locked ? icon("lock") : "#");
  const words = make(
    "span",
    { class: "room-item-words" },
    make(
      "span",
      { class: "room-name" },
      room.title,
      ...(room.locked ? [make("span", { class: "visually-hidden" }, " (private)")] : []),
      make("span", { class: "room-people", "data-testid": "room-people" }),
    ),
    make("span", { class: "room-last" }),
  );
  const badge = make("span", { class: "badge", "data-testid": "unread" }, make("b"), make("span", { class: "visually-hidden" }, " unread"));
  const button = make("button", { type: "button", class: "room-item", "data-testid": `room-${room.id}`, "data-room": room.id });
  button.append(mark, words, badge);
  return make("li", {}, button);
}

/** Show who is in a room: a few faces and their number in the head, all names in the list that opens from there. */
export function drawPeople(button, list, room) {
  const looks = room.people.map(({ name, windows }) => `${windows} ${name}`).join("|");
  button.hidden = room.people.length === 0;
  if (list.dataset.looks === looks) return;
  list.dataset.looks = looks;
  const faces = room.people.slice(0, FACES).map(({ name }) => face(name));
  button.replaceChildren(...faces, make("span", { class: "people-count" }, here(room.people.length)));
  list.replaceChildren(...room.people.map((person) => personItem(person, room.me)));
}

function personItem({ name, windows }, me) {
  const also = [...(name === me ? ["you"] : []), ...(windows > 1 ? [`${windows} windows`] : [])].join(", ");
  const item = make("li", { class: "person", "data-testid": "person", "data-name": name });
  item.append(face(name), make("bdi", { class: "person-name" }, name), make("span", { class: "muted" }, also));
  return item;
}

function face(name) {
  const avatar = make("span", { class: "avatar", "aria-hidden": "true" });
  paintAvatar(avatar, name);
  return avatar;
}

/** Bring the list of messages up to date, and touch only what changed: selections and focus survive. */
export function drawMessages(list, room) {
  const old = new Map([...list.children].map((item) => [item.dataset.key, item]));
  let place = list.firstElementChild;
  for (const line of lines(room)) {
    const known = old.get(line.key);
    old.delete(line.key);
    if (known && known.dataset.looks === line.looks) {
      if (known === place) place = place.nextElementSibling;
      else list.insertBefore(known, place);
      continue;
    }
    const item = line.draw();
    item.dataset.key = line.key;
    item.dataset.looks = line.looks;
    if (known) {
      if (known === place) place = place.nextElementSibling;
      known.remove();
    } else item.classList.add("fresh");
    list.insertBefore(item, place);
  }
  for (const item of old.values()) item.remove();
}

/** What stands in the log, line by line: days, the line above what is unread, and messages. */
function lines(room) {
  const result = [];
  let previous = null;
  let today = null;
  for (const message of room.messages) {
    const its = day(message.at);
    let first = previous?.author !== message.author || Date.parse(message.at) - Date.parse(previous.at) > TOGETHER;
    if (its !== today && message.state === "sent") {
      today = its;
      first = true;
      result.push({ key: `day ${its}`, looks: its, draw: () => make("li", { class: "line" }, make("span", {}, its)) });
    }
    if (message.id === room.firstUnread) {
      first = true;
      result.push({
        key: "unread",
        looks: "unread",
        draw: () => make("li", { class: "line line-unread", "data-testid": "unread-line" }, make("span", {}, "New")),
      });
    }
    const looks = [message.state, message.at, message.why ?? "", first].join("|");
    result.push({
      key: `message ${message.id}`, // the id is the author's choice: it must not pass for another line
      looks,
      draw: () => (message.author === null ? announcement(message) : said(message, first, message.author === room.me)),
    });
    previous = message;
  }
  return result;
}

function said(message, first, mine) {
  const item = make("li", {
    class: "message",
    "data-testid": "message",
    "data-id": message.id,
    "data-author": message.author,
    "data-state": message.state,
    "data-mine": String(mine),
    "data-first": String(first),
  });
  const avatar = make("span", { class: "avatar", "aria-hidden": "true" });
  if (first) paintAvatar(avatar, message.author);
  item.style.setProperty("--hue", hue(message.author));
  const name = make("p", { class: first && !mine ? "author" : "visually-hidden" }, make("bdi", { "data-testid": "author" }, message.author));
  const bubble = make("div", { class: "bubble" }, make("p", { class: "body", "data-testid": "body", dir: "auto" }, message.body), stamp(message));
  const words = make("div", { class: "said" }, name, bubble);
  if (message.state === "failed") words.append(failure(message));
  item.append(avatar, words);
  return item;
}

function stamp(message) {
  if (message.state === "pending") return make("span", { class: "stamp", "data-testid": "pending" }, "sending…");
  return make("time", { class: "stamp", datetime: message.at, title: moment(message.at) }, time(message.at));
}

function failure(message) {
  return make(
    "p",
    { class: "failure" },
    make("span", {}, `Not sent (${message.why}).`),
    make("button", { type: "button", class: "link", "data-testid": "retry", "data-retry": message.id }, "Retry"),
    make("button", { type: "button", class: "link", "data-testid": "discard", "data-discard": message.id }, "Discard"),
  );
}

function announcement(message) {
  return make(
    "li",
    { class: "announcement", "data-testid": "announcement", "data-id": message.id },
    make("p", { class: "announcement-head" }, icon("horn"), make("span", {}, "Announcement"), stamp(message)),
    make("p", { class: "body", "data-testid": "body", dir: "auto" }, message.body),
  );
}
