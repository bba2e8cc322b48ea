// Many clients in one process, told what to do by lines on standard input, telling what happened in JSON lines.
//
// Argument: {"url": "http://127.0.0.1:8080", "clients": [{"index": 0, "kind": "websocket", "sends": 50}, ...], "expected": 1000}
// In:  "send" (the senders begin), "report", and the end of the input ends the process.
// Out: open (all are), done (each has heard `expected` messages), bare (each has heard this text), closed, report.

import { createInterface } from "node:readline";
import SockJS from "sockjs-client";
import WebSocket from "ws";

// How many clients may be on their way in at once, and how many messages of one sender may be on their way out.
const OPENING_MAX = 8;
const IN_FLIGHT_MAX = 5;

const { url, clients: plans, expected } = JSON.parse(process.argv[2]);

function say(event) {
  process.stdout.write(`${JSON.stringify(event)}\n`);
}

class Client {
  constructor(plan) {
    this.plan = plan;
    this.received = 0;
    this.wrong = [];
    this.lastOfSender = new Map();
    this.bare = new Map();
    this.sent = 0;
    this.returned = 0;
    this.sending = false;
  }

  open() {
    const { kind } = this.plan;
    return new Promise((resolve) => {
      if (kind === "ws") {
        this.socket = new WebSocket(`${url.replace(/^http/, "ws")}/ws`);
      } else {
        // A long time-out: a busy machine is no reason to give a transport up.
        this.socket = new SockJS(`${url}/sockjs`, null, { transports: kind, timeout: 20_000 });
      }
      this.socket.onopen = resolve;
      this.socket.onmessage = (event) => this.hear(String(event.data));
      this.socket.onerror = () => {};
      this.socket.onclose = ({ code, reason }) => {
        say({ event: "closed", client: this.plan.index, kind, code, reason: String(reason) });
      };
    });
  }

  hear(text) {
    if (!text.startsWith("{")) {
      this.bare.set(text, (this.bare.get(text) ?? 0) + 1);
      heardBare(text);
      return;
    }
    const { from, seq } = JSON.parse(text);
    const wanted = (this.lastOfSender.get(from) ?? -1) + 1;
    if (seq !== wanted && this.wrong.length < 3) {
      this.wrong.push({ from, seq, wanted });
    }
    this.lastOfSender.set(from, seq);
    this.received += 1;
    if (from === this.plan.index) {
      this.returned += 1;
      this.send();
    }
    if (this.received === expected) {
      finished += 1;
      if (finished === clients.length) say({ event: "done" });
    }
  }

  // Sends what it may: the next one goes out when an earlier one has come back.
  send() {
    const { index, sends } = this.plan;
    while (this.sending && this.sent < sends && this.sent - this.returned < IN_FLIGHT_MAX) {
      this.socket.send(JSON.stringify({ from: index, seq: this.sent }));
      this.sent += 1;
    }
  }
}

function heardBare(text) {
  if (clients.every((client) => client.bare.has(text))) say({ event: "bare", text });
}

let finished = 0;
const clients = plans.map((plan) => new Client(plan));

const commands = {
  send() {
    for (const client of clients) {
      client.sending = true;
      client.send();
    }
  },
  report() {
    const report = clients.map(({ plan, received, wrong, bare }) => {
      return { index: plan.index, kind: plan.kind, received, wrong, bare: Object.fromEntries(bare) };
    });
    say({ event: "report", clients: report });
  },
};
createInterface({ input: process.stdin })
  .on("line", (line) => commands[line]())
  .on("close", () => process.exit(0));

const waiting = [...clients];
const openSome = async () => {
  for (let client = waiting.shift(); client; client = waiting.shift()) await client.open();
};
await Promise.all(Array.from({ length: OPENING_MAX }, openSome));
say({ event: "open" });
