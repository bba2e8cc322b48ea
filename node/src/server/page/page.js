// A chat over one plain WebSocket. Everyone on the channel gets what one sends, the sender included.
//
// A message of this page is JSON: {"from": name, "text": text, "id": the sender's tab}. Whatever else
// comes along the channel (`redis-cli PUBLISH global hello`) is shown as it is. Foreign text only ever
// becomes text content, never HTML.
"use strict";

const RECONNECT_FIRST_MS = 500;
const RECONNECT_MAX_MS = 10_000;
const ENTRIES_MAX = 500;

const byId = (id) => document.getElementById(id);
const [log, main, nameInput, textInput] = [byId("log"), document.querySelector("main"), byId("name"), byId("text")];

/** Tells the messages of this tab from those of others with the same name. */
const ownId = Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16)).join("");

let socket;
let attempts = 0;
let reconnectTimer;

function connect() {
  clearTimeout(reconnectTimer);
  showState("connecting", attempts === 0 ? "connecting" : "reconnecting");
  const url = new URL("ws", location.href);
  url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  socket = new WebSocket(url);
  socket.binaryType = "arraybuffer";
  socket.onopen = () => {
    attempts = 0;
    showState("open", "connected");
    showNode();
  };
  socket.onmessage = ({ data }) => showMessage(data);
  socket.onclose = ({ code, reason }) => reconnect(code, reason);
}

/** Waits longer each time, and never as long as the next tab: a node that returns is not flooded. */
function reconnect(code, reason) {
  const wait = Math.min(RECONNECT_MAX_MS, RECONNECT_FIRST_MS * 2 ** attempts) * (0.5 + Math.random() / 2);
  if (attempts === 0) {
    show("system", "", `Connection closed (${code}${reason ? `: ${reason}` : ""}). Reconnecting.`);
  }
  attempts += 1;
  showState("closed", "disconnected");
  reconnectTimer = setTimeout(connect, wait);
}

function showState(state, text) {
  byId("state").dataset.state = state;
  byId("state").textContent = text;
  byId("send").disabled = state !== "open";
}

/** The affinity cookie brings this request to the node that has our WebSocket. */
async function showNode() {
  try {
    const response = await fetch("./", { method: "HEAD", cache: "no-store" });
    const node = response.headers.get("causeway-node") ?? "unknown";
    if (byId("node").textContent !== node) {
      byId("node").textContent = node;
      show("system", "", `You are on node ${node}.`);
    }
  } catch {
    // The connection is about to close too, and that is shown.
  }
}

function showMessage(data) {
  if (typeof data !== "string") {
    show("bare", "binary message", `${data.byteLength} bytes`);
    return;
  }
  const message = parse(data);
  if (message) {
    show(message.id === ownId ? "own" : "other", message.from, message.text);
  } else {
    show("bare", "bare message", data);
  }
}

function parse(data) {
  try {
    const message = JSON.parse(data);
    return typeof message?.from === "string" && typeof message?.text === "string" ? message : undefined;
  } catch {
    return undefined;
  }
}

function show(kind, from, text) {
  const atEnd = main.scrollHeight - main.scrollTop - main.clientHeight < 80;
  const entry = document.createElement("li");
  entry.dataset.kind = kind;
  entry.dataset.from = from;
  if (kind !== "system") {
    entry.style.setProperty("--hue", hue(from));
    entry.append(element("div", "meta", element("span", "from", from.slice(0, 80)), clock()));
  }
  entry.append(element("p", "said", text));
  log.append(entry);
  while (ENTRIES_MAX < log.childElementCount) {
    log.firstElementChild.remove();
  }
  if (atEnd || kind === "own") {
    main.scrollTop = main.scrollHeight;
  }
}

function element(tag, className, ...children) {
  const made = document.createElement(tag);
  made.className = className;
  made.append(...children);
  return made;
}

function clock() {
  const now = new Date();
  const made = element("time", "", now.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" }));
  made.dateTime = now.toISOString();
  return made;
}

/** The same colour for the same name on every screen. */
function hue(name) {
  let sum = 0;
  for (const character of name) {
    sum = (sum * 31 + character.codePointAt(0)) % 65_521;
  }
  return (sum * 137) % 360;
}

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const from = nameInput.value.trim();
  const text = textInput.value.trim();
  if (from && text && socket.readyState === WebSocket.OPEN) {
    socket.send(JSON.stringify({ from, text, id: ownId }));
    textInput.value = "";
    textInput.focus();
  }
});

function remembered() {
  try {
    return localStorage.getItem("name");
  } catch {
    return null; // Storage may be forbidden.
  }
}

nameInput.value = remembered() ?? `Guest ${100 + Math.floor(Math.random() * 900)}`;
nameInput.addEventListener("change", () => {
  try {
    localStorage.setItem("name", nameInput.value.trim());
  } catch {
    // Then it is asked for again.
  }
});

addEventListener("online", () => {
  if (socket.readyState === WebSocket.CLOSED) {
    connect();
  }
});

connect();
