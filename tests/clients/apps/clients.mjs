// Clients of an app, made with the library that belongs to it, told what to do by lines on standard input.
//
// Argument: {"url": "http://127.0.0.1:8080", "kinds": ["sockjs/xhr-polling", "socket.io/websocket"], "each": 4, "messages": 10}
// In:  "round" (each says `messages` messages, one after the other, and hears an answer to each; one that is closed meanwhile
//      opens anew and says it again), "reopen" (each leaves and comes back), and the end of the input ends the process.
// Out: {"event": "round" | "reopen", "clients": [{"wire", "opened", "processes"}, ...]}: what carries the client's messages,
//      how often it has been opened, and who answered in this round.

import { createInterface } from "node:readline";
import { io } from "socket.io-client";
import SockJS from "sockjs-client";
import WebSocket from "ws";

const PAUSE_MS = 100;
// A busy machine is no reason to give a transport or a connection up.
const PATIENCE_MS = 60_000;

const { url, kinds, each, messages } = JSON.parse(process.argv[2]);

class Client {
  constructor(wanted) {
    this.wanted = wanted;
    this.opened = 0;
    this.processes = new Set();
    this.events = [];
    this.waiting = null;
  }

  note(event) {
    this.events.push(event);
    this.waiting?.();
  }

  // The next thing that happens: "open", "closed", or an answer.
  async next() {
    while (this.events.length === 0) {
      await new Promise((resolve) => {
        this.waiting = resolve;
      });
    }
    return this.events.shift();
  }

  async open() {
    for (;;) {
      this.connect();
      let event;
      do event = await this.next(); while (event !== "open" && event !== "closed");
      if (event === "open") {
        this.opened += 1;
        return;
      }
      await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
    }
  }

  async say(text) {
    for (;;) {
      // What has happened already is the end of the connection: every answer has been waited for.
      if (this.events.length === 0) this.send(text);
      const event = await this.next();
      if (event === "closed") {
        await this.open();
        continue;
      }
      const answer = JSON.parse(event);
      if (answer.text !== text) throw new Error(`said ${text}, heard ${event}`);
      this.processes.add(answer.process);
      return;
    }
  }

  async round(number) {
    this.processes.clear();
    if (this.opened === 0) await this.open();
    for (let count = 0; count < messages; count += 1) await this.say(`${number}-${count}`);
  }

  async reopen() {
    this.close();
    while ((await this.next()) !== "closed");
    await this.open();
  }

  report() {
    return { wire: this.wire(), opened: this.opened, processes: [...this.processes] };
  }
}

// sockjs-client keeps no cookies outside of a browser: the session in its paths is all that there is to go by.
class OfSockjs extends Client {
  connect() {
    this.socket = new SockJS(`${url}/echo`, null, { transports: this.wanted, timeout: PATIENCE_MS });
    this.socket.onopen = () => this.note("open");
    this.socket.onmessage = ({ data }) => this.note(data);
    this.socket.onclose = () => this.note("closed");
  }

  send(text) {
    this.socket.send(text);
  }

  close() {
    this.socket.close();
  }

  wire() {
    return this.socket.transport;
  }
}

// socket.io-client reconnects by itself, and keeps cookies when it is told to.
class OfSocketIo extends Client {
  connect() {
    if (this.socket) {
      if (!this.socket.active) this.socket.connect();
      return;
    }
    const transports = this.wanted === "polling" ? ["polling"] : ["polling", "websocket"];
    this.socket = io(url, {
      transports,
      withCredentials: true,
      forceNew: true,
      timeout: PATIENCE_MS,
      reconnectionDelay: PAUSE_MS,
      reconnectionDelayMax: 5 * PAUSE_MS,
    });
    // Open is what has been upgraded, if it is to be: messages before that go out by polling.
    this.socket.on("connect", () => {
      const { engine } = this.socket.io;
      if (this.wire() === this.wanted) this.note("open");
      else engine.once("upgrade", () => this.note("open"));
    });
    this.socket.on("message", (text) => this.note(text));
    this.socket.on("disconnect", () => this.note("closed"));
  }

  send(text) {
    this.socket.emit("message", text);
  }

  close() {
    this.socket.disconnect();
  }

  wire() {
    return this.socket.io.engine.transport.name;
  }
}

// ws keeps no cookies, and shows the answer to its handshake: an application that wants to stay somewhere keeps them itself.
class OfWs extends Client {
  connect() {
    const headers = this.cookie ? { Cookie: this.cookie } : {};
    this.socket = new WebSocket(url.replace(/^http/, "ws"), { headers, handshakeTimeout: PATIENCE_MS });
    this.socket.on("upgrade", ({ headers: answer }) => {
      const [set] = answer["set-cookie"] ?? [];
      if (set) [this.cookie] = set.split(";");
    });
    this.socket.on("open", () => this.note("open"));
    this.socket.on("message", (text) => this.note(String(text)));
    this.socket.on("error", () => {});
    this.socket.on("close", () => this.note("closed"));
  }

  send(text) {
    this.socket.send(text, () => {});
  }

  close() {
    this.socket.close();
  }

  wire() {
    return "websocket";
  }
}

const libraries = { sockjs: OfSockjs, "socket.io": OfSocketIo, ws: OfWs };
const clients = kinds.flatMap((kind) => {
  const [library, wire] = kind.split("/");
  return Array.from({ length: each }, () => new libraries[library](wire));
});
let rounds = 0;
const commands = {
  round() {
    rounds += 1;
    return Promise.all(clients.map((client) => client.round(rounds)));
  },
  reopen: () => Promise.all(clients.map((client) => client.reopen())),
};

for await (const line of createInterface({ input: process.stdin })) {
  await commands[line]();
  const report = clients.map((client) => client.report());
  process.stdout.write(`${JSON.stringify({ event: line, clients: report })}\n`);
}
process.exit(0);
