/** The chat: one Socket, several rooms over it, and the page around them. */

import { Socket } from "/socket/channels.js";
import { Room } from "./room.js";
import { drawMessages, drawPeople, drawRooms, paintAvatar } from "./view.js";
import { count, typing } from "./words.js";

const $ = (id) => document.getElementById(id);
const SAYS = { connecting: "Connecting", online: "Online", reconnecting: "Reconnecting" };
const BANNERS = {
  connecting: "Connecting…",
  online: "Back online.",
  reconnecting: "Connection lost. Reconnecting…",
};

let rooms = [];
let current = null;
let socket = null;
let drawing = false;

/* ---------------------------------------------------------------- coming in */

function showWelcome(error = "") {
  $("welcome").hidden = false;
  $("name-error").textContent = error;
  $("name").focus();
}

$("name-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const name = $("name").value.trim();
  if (!name) return showWelcome("Please give a name; a short one will do.");
  await comeIn(name);
});
$("name").addEventListener("input", () => ($("name-error").textContent = ""));

async function comeIn(name) {
  let list;
  try {
    list = await (await fetch("/rooms")).json();
  } catch {
    return showWelcome("The server cannot be reached. Please try again in a moment.");
  }
  sessionStorage.setItem("name", name);
  socket = new Socket("/socket", { params: { name } });
  socket.onOpen(() => showConnection("online"));
  socket.onClose(() => showConnection("reconnecting"));
  socket.connect();
  showConnection("connecting");

  rooms = list.map((info) => new Room(socket, info, name));
  for (const room of rooms) {
    room.addEventListener("change", draw);
    room.addEventListener("message", ({ detail }) => announce(room, detail));
    if (!room.locked) room.enter(); // the private one waits for its passphrase
  }
  paintAvatar($("me-avatar"), name);
  $("me-name").textContent = name;
  $("welcome").hidden = true;
  $("chat").hidden = false;
  open(rooms.find((room) => `#${room.id}` === location.hash) ?? rooms[0]);
  focusField();
}

$("leave").addEventListener("click", () => {
  sessionStorage.removeItem("name");
  socket.disconnect();
  location.reload();
});

/* ---------------------------------------------------------------- the connection */

let bannerTimer;

function showConnection(state) {
  const before = $("connection").dataset.state;
  $("connection").dataset.state = state;
  $("connection-label").textContent = SAYS[state];
  clearTimeout(bannerTimer);
  const banner = $("banner");
  banner.dataset.state = state;
  banner.textContent = BANNERS[state];
  banner.hidden = state === "online" && before !== "reconnecting";
  if (state === "online") bannerTimer = setTimeout(() => (banner.hidden = true), 4_000);
}

/* ---------------------------------------------------------------- rooms */

function open(room) {
  if (current) current.draft = $("body").value;
  current?.look(false);
  current = room;
  history.replaceState(null, "", `#${room.id}`);
  $("messages").replaceChildren();
  $("passphrase").value = "";
  $("body").value = room.draft;
  measure();
  room.look(!document.hidden);
  render();
  toBottom();
}

$("rooms").addEventListener("click", (event) => {
  const button = event.target.closest("[data-room]");
  if (!button) return;
  open(rooms.find((room) => room.id === button.dataset.room));
  openMenu(false);
  focusField();
});

$("locked").addEventListener("submit", (event) => {
  event.preventDefault();
  const passphrase = $("passphrase").value;
  if (passphrase && current.state !== "joining") current.enter({ passphrase });
});

document.addEventListener("visibilitychange", () => current?.look(!document.hidden));

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") openMenu(false);
});

/** Focus what one types into, except where that would bring up a phone's keyboard unasked. */
function focusField() {
  if (matchMedia("(hover: hover)").matches) $($("locked").hidden ? "body" : "passphrase").focus();
}

/** Tell a screen reader. The log itself is silent, or changing rooms would read it all out. */
function announce(room, message) {
  const where = room === current ? "" : ` in ${room.title}`;
  $("announcer").textContent = `${message.author ?? "Announcement"}${where}: ${message.body}`;
}

/* ---------------------------------------------------------------- drawing */

/** Many things may change in one turn; they are drawn once. */
function draw() {
  if (drawing) return;
  drawing = true;
  queueMicrotask(() => {
    drawing = false;
    render();
  });
}

function render() {
  const unread = rooms.reduce((sum, room) => sum + room.unread, 0);
  const elsewhere = unread - current.unread;
  const inside = !current.locked || current.state === "joined";
  const waiting = !inside && current.state === "joining";
  const letIn = inside && $("locked").contains(document.activeElement);
  drawRooms($("rooms"), rooms, current);
  document.title = `${unread ? `(${count(unread)}) ` : ""}${current.title} · Starling`;
  $("menu-unread").hidden = elsewhere === 0;
  $("menu-unread").textContent = count(elsewhere);
  $("menu").setAttribute("aria-label", elsewhere ? `Rooms, ${elsewhere} unread` : "Rooms");
  $("room-title").textContent = current.title;
  $("room-about").textContent = current.about;
  drawPeople($("people"), $("people-list"), current);

  $("locked").hidden = inside;
  const refusal = current.state === "refused" ? `Sorry, ${current.refusal}.` : "";
  if ($("refusal").textContent !== refusal) $("refusal").textContent = refusal; // an alert is read out when it changes
  $("passphrase").setAttribute("aria-invalid", current.state === "refused");
  $("unlock").textContent = waiting ? "Knocking…" : "Go in";
  $("unlock").disabled = waiting;

  $("log").hidden = !inside;
  $("log").setAttribute("aria-label", `Messages in ${current.title}`);
  drawMessages($("messages"), current);
  $("empty").hidden = !inside || current.messages.length > 0;
  $("empty-title").textContent = current.state === "joined" ? "Nothing has been said yet" : "Coming in…";
  $("empty-text").textContent = current.state === "joined" ? "Say the first word." : "";

  $("foot").hidden = !inside;
  $("body").placeholder = `Write to ${current.title}`;
  $("typing-words").textContent = typing([...current.typists.keys()]);
  $("typing").toggleAttribute("data-shown", current.typists.size > 0);
  if (letIn) $("body").focus();
  if (following) toBottom();
  else followed();
}

/* ---------------------------------------------------------------- the log's scrolling */

const log = $("log");
let following = true; // is the end of the log in sight? Then it stays there, whatever comes or changes size
const isAtBottom = () => log.scrollHeight - log.scrollTop - log.clientHeight < 60;

function toBottom() {
  log.scrollTop = log.scrollHeight;
  followed();
}

function followed() {
  following = isAtBottom();
  $("jump").hidden = log.hidden || following;
}

log.addEventListener("scroll", followed, { passive: true });
new ResizeObserver(() => following && toBottom()).observe(log);
$("jump").addEventListener("click", () => {
  toBottom();
  focusField();
});

log.addEventListener("click", (event) => {
  const { retry, discard } = event.target.dataset;
  if (retry) current.retry(retry);
  if (discard) current.discard(discard);
});

/* ---------------------------------------------------------------- writing */

const body = $("body");

function measure() {
  body.style.height = "auto";
  body.style.height = `${Math.min(body.scrollHeight, 180)}px`;
  const left = body.maxLength - body.value.length;
  $("left").textContent = left <= 200 ? `${left} characters left` : "";
  $("send").disabled = !body.value.trim();
}

body.addEventListener("input", () => {
  measure();
  if (body.value.trim()) current.type();
});

body.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("composer").requestSubmit();
});

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const words = body.value.trim();
  if (!words) return;
  body.value = "";
  measure();
  current.say(words);
  toBottom();
  body.focus();
});

/* ---------------------------------------------------------------- the menu of a narrow screen */

const menuIsOpen = () => document.body.hasAttribute("data-menu");

function openMenu(yes) {
  if (yes === menuIsOpen()) return;
  document.body.toggleAttribute("data-menu", yes);
  $("menu").setAttribute("aria-expanded", yes);
  $("room").inert = yes;
  (yes ? $("rooms").querySelector("[aria-current]") : $("menu")).focus();
}

$("menu").addEventListener("click", () => openMenu(true));
$("menu-close").addEventListener("click", () => openMenu(false));
$("backdrop").addEventListener("click", () => openMenu(false));
matchMedia("(min-width: 48rem)").addEventListener("change", () => openMenu(false));

/* ---------------------------------------------------------------- start */

const remembered = sessionStorage.getItem("name"); // per tab, so that two windows can be two people
if (remembered) comeIn(remembered);
else showWelcome();
