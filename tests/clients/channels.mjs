// npm centrifuge, told what to do by JSON lines on standard input, telling what happened in JSON lines.
//
// In:  {"id": 1, "client": "ann", "do": "open", "url": "ws://127.0.0.1:9000/connection/websocket", "codec": "json", "options": {}}
//      ("url" may also be a list of transports, as the package takes it)
//      {"id": 2, "client": "ann", "do": "subscribe", "channel": "chat:a", "options": {"joinLeave": true}}
//      {"id": 3, "client": "ann", "do": "subscribeAll", "channels": {"chat:b": {"token": "..."}, "chat:c": {}}}, done when all are subscribed
//      ... publish, history, presence, presenceStats, unsubscribe, rpc, startBatching, stopBatching, send, disconnect, break; the end of the input ends the process.
// Out: {"id": 1, "result": {...}} or {"id": 1, "error": {"code": 103, "message": "permission denied"}} for each of them, and
//      {"event": "publication", "client": "ann", "side": "client", "channel": "chat:a", "data": ...} for everything that is heard;
//      "side" is whose subscription it came by.
//
// Data is JSON, which Protobuf clients carry as text; {"base64": "..."} is for bytes.

import { createInterface } from "node:readline";
import { Centrifuge as JsonCentrifuge } from "centrifuge";
import { Centrifuge as ProtobufCentrifuge } from "centrifuge/build/protobuf";
import { EventSource } from "eventsource";
import WebSocket from "ws";

const CLIENT_EVENTS = [
  "connecting", "connected", "disconnected", "message", "error",
  "subscribed", "subscribing", "unsubscribed", "publication", "join", "leave",
];
const SUBSCRIPTION_EVENTS = ["subscribing", "subscribed", "unsubscribed", "publication", "join", "leave", "error"];

function say(event) {
  process.stdout.write(`${JSON.stringify(event)}\n`);
}

// What came, as JSON: bytes that hold a JSON text are that text.
function shown(value) {
  if (value instanceof Uint8Array) {
    if (value.length === 0) return null; // Protobuf has no other word for nothing.
    try {
      return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(value));
    } catch {
      return { base64: Buffer.from(value).toString("base64") };
    }
  }
  if (Array.isArray(value)) return value.map(shown);
  if (value instanceof Map) return Object.fromEntries([...value].map(([key, inner]) => [key, shown(inner)]));
  if (value instanceof Error) return { code: value.code, message: value.message };
  if (value && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, shown(inner)]));
  }
  return typeof value === "bigint" ? Number(value) : value;
}

// {"tokens": [...]}: the next one for each time that it asks.
function withTokens({ tokens, ...options }) {
  if (!tokens) return options;
  const left = [...tokens];
  return { ...options, getToken: async () => left.shift() ?? "" };
}

class Client {
  constructor(name, { url, codec, options }) {
    this.name = name;
    this.codec = codec;
    this.sockets = [];
    const { sockets } = this;
    class Socket extends WebSocket {
      constructor(...parts) {
        super(...parts);
        sockets.push(this);
      }
    }
    const Centrifuge = codec === "protobuf" ? ProtobufCentrifuge : JsonCentrifuge;
    const set = {
      websocket: Socket, eventsource: EventSource, minReconnectDelay: 20, maxReconnectDelay: 200, timeout: 20_000,
      ...withTokens(options),
    };
    if (set.data !== undefined) set.data = this.out(set.data);
    this.centrifuge = new Centrifuge(url, set);
    for (const event of CLIENT_EVENTS) {
      this.centrifuge.on(event, (context) => say({ ...shown(context), event, client: this.name, side: "server" }));
    }
  }

  out(data) {
    if (data && typeof data === "object" && typeof data.base64 === "string") return Buffer.from(data.base64, "base64");
    return this.codec === "protobuf" ? new TextEncoder().encode(JSON.stringify(data)) : data;
  }

  // The one that is there, or a new one with these options.
  subscription(channel, options) {
    let subscription = this.centrifuge.getSubscription(channel);
    if (!subscription && !options) throw new Error(`${this.name} has no subscription ${channel}`);
    if (!subscription) {
      subscription = this.centrifuge.newSubscription(channel, withTokens(options));
      for (const event of SUBSCRIPTION_EVENTS) {
        subscription.on(event, (context) => say({ ...shown(context), event, client: this.name, side: "client" }));
      }
    }
    return subscription;
  }

  // Resolves when it is connected, and rejects when it is sent away for good.
  open() {
    return new Promise((resolve, reject) => {
      this.centrifuge.once("connected", resolve);
      this.centrifuge.once("disconnected", ({ code, reason }) => reject({ code, message: reason }));
      this.centrifuge.connect();
    });
  }

  subscribe({ channel, options }) {
    const subscription = this.subscription(channel, options ?? {});
    return new Promise((resolve, reject) => {
      subscription.once("subscribed", resolve);
      subscription.once("unsubscribed", ({ code, reason }) => reject({ code, message: reason }));
      subscription.once("error", ({ error }) => reject(error));
      subscription.subscribe();
    });
  }

  // Begins all of them at once. One that is refused for a moment goes on trying.
  subscribeAll({ channels }) {
    const all = Object.entries(channels).map(([channel, options]) => this.subscription(channel, options));
    const subscribed = all.map((subscription) => new Promise((resolve, reject) => {
      subscription.once("subscribed", resolve);
      subscription.once("unsubscribed", ({ code, reason }) => reject({ code, message: reason }));
    }));
    for (const subscription of all) subscription.subscribe();
    return Promise.all(subscribed).then(({ length }) => ({ length }));
  }

  async act(order) {
    const { centrifuge } = this;
    switch (order.do) {
      case "open": return this.open();
      case "subscribe": return this.subscribe(order);
      case "subscribeAll": return this.subscribeAll(order);
      case "unsubscribe": return this.subscription(order.channel).unsubscribe();
      case "publish": return centrifuge.publish(order.channel, this.out(order.data));
      case "history": return centrifuge.history(order.channel, order.options ?? {});
      case "presence": return centrifuge.presence(order.channel);
      case "presenceStats": return centrifuge.presenceStats(order.channel);
      case "rpc": return centrifuge.rpc(order.method, this.out(order.data));
      // What is ordered between these two goes out as one message, in one request over streams.
      case "startBatching": return centrifuge.startBatching();
      case "stopBatching": return new Promise(setImmediate).then(() => centrifuge.stopBatching());
      case "send": return centrifuge.send(this.out(order.data));
      case "disconnect": return centrifuge.disconnect();
      // The wire is cut, as when a network goes away; the client comes back by itself.
      case "break": return this.sockets.at(-1).terminate();
      default: throw new Error(`nobody knows how to ${order.do}`);
    }
  }
}

const clients = new Map();

createInterface({ input: process.stdin }).on("line", async (line) => {
  const order = JSON.parse(line);
  try {
    if (order.do === "open") clients.set(order.client, new Client(order.client, order));
    const client = clients.get(order.client);
    if (!client) throw new Error(`there is no ${order.client}`);
    say({ id: order.id, result: shown((await client.act(order)) ?? null) });
  } catch (error) {
    say({ id: order.id, error: { code: error.code ?? 0, message: error.message ?? String(error) } });
  }
}).on("close", () => process.exit(0));
