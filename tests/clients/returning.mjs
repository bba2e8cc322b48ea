// Clients that come back whenever they are closed, in one process, and what they heard.
//
// Argument: {"url": "http://127.0.0.1:8080", "clients": [{"index": 0, "kind": "websocket"}, ...]}
// In:  a number for each report; the end of the input ends the process.
// Out: {"report": 7, "clients": [{"index": 0, "open": true, "closed": 1, "heard": [[0, 170], [212, 499]]}, ...]}
//
// Messages are numbers; "heard" has the first and the last of each row of them that came without a gap, in their order.

import http from "node:http";
import { createInterface } from "node:readline";
import SockJS from "sockjs-client";
import WebSocket from "ws";

const PAUSE = 100;

const { url, clients: plans } = JSON.parse(process.argv[2]);

// A browser tells sockjs-client of an answer that breaks off. Its driver for Node only hears of ends.
const { request } = http;
http.request = (...options) => {
  return request(...options).on("response", (answer) => answer.on("aborted", () => answer.emit("end")));
};

class Client {
  constructor({ index, kind }) {
    this.kind = kind;
    this.record = { index, open: false, closed: 0, heard: [] };
    this.connect();
  }

  connect() {
    if (this.kind === "ws") {
      this.socket = new WebSocket(`${url.replace(/^http/, "ws")}/ws`);
    } else {
      // A long time-out: a busy machine is no reason to give a transport up.
      this.socket = new SockJS(`${url}/sockjs`, null, { transports: this.kind, timeout: 20_000 });
    }
    this.socket.onopen = () => (this.record.open = true);
    this.socket.onmessage = (event) => this.hear(Number(event.data));
    this.socket.onerror = () => {};
    this.socket.onclose = () => {
      if (this.record.open) this.record.closed += 1;
      this.record.open = false;
      setTimeout(() => this.connect(), PAUSE);
    };
  }

  hear(number) {
    const { heard } = this.record;
    const last = heard.at(-1);
    if (last && last[1] + 1 === number) last[1] = number;
    else heard.push([number, number]);
  }
}

const clients = plans.map((plan) => new Client(plan));

createInterface({ input: process.stdin })
  .on("line", (number) => {
    const report = { report: Number(number), clients: clients.map(({ record }) => record) };
    process.stdout.write(`${JSON.stringify(report)}\n`);
  })
  .on("close", () => process.exit(0));
