// Requests of all kinds at once, by Node's own clients of HTTP/1.1 and HTTP/2: bodies with a length and in chunks, some that are
// given up midway, and responses that are read slowly or not to their end.
//
// Argument: {"plain": "127.0.0.1:8080", "tls": "127.0.0.1:8443", "name": "chat.example", "ca": "authority.ca", "seconds": 20,
//            "workers": 4}
// A request has an id and the sum of its body, and its response has to have the same: see apps/checker.mjs.
// Out: {"kinds": {"http1 length": 10, ...}, "failures": ["..."]}

import { createHash, randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import * as http from "node:http";
import * as http2 from "node:http2";
import * as tls from "node:tls";

const FAILURES_MAX = 20;
const PATIENCE_MS = 30_000;

const settings = JSON.parse(process.argv[2]);
const end = Date.now() + settings.seconds * 1000;
const report = { kinds: {}, failures: [] };
const pause = (ms) => new Promise((done) => setTimeout(done, ms));
const below = (most) => Math.floor(Math.random() * most);
const address = (text) => {
  const [host, port] = text.split(":");
  return { host, port: Number(port) };
};

let count = 0;
function plan() {
  const body = randomBytes(below(4) === 0 ? below(300_000) : below(3_000));
  const kind = ["get", "length", "chunked", "expect", "trickle", "abort", "slow", "left"][below(8)];
  return {
    kind,
    id: `node-${process.pid}-${(count += 1)}`,
    body: kind === "get" ? Buffer.alloc(0) : body,
    answer: kind === "slow" || kind === "left" ? 400_000 : below(2_000),
    chunked: below(2) === 0,
  };
}

const sum = (body) => createHash("sha256").update(body).digest("hex");

function headers({ id, body, answer, chunked }) {
  const all = { "x-id": id, "x-sum": sum(body), "x-response": String(answer) };
  return chunked ? { ...all, "x-chunked": "1" } : all;
}

function pieces(body) {
  const all = [];
  for (let at = 0; at < body.length; ) {
    const size = 1 + below(body.length / 3 + 1);
    all.push(body.subarray(at, at + size));
    at += size;
  }
  return all;
}

function check(request, status, got, text) {
  const { id, body, answer } = request;
  const first = `${id} ${body.length} ${sum(body)}\n`;
  if (status !== 200) throw new Error(`status ${status}: ${text.slice(0, 80)}`);
  if (got["x-id"] !== id || got["x-sum"] !== sum(body)) throw new Error(`the response of ${got["x-id"]}`);
  if (!text.startsWith(first)) throw new Error(`the body ${text.slice(0, 80)}`);
  if (text.length !== first.length + answer) throw new Error(`${text.length} bytes and not ${first.length + answer}`);
}

// Writes a body as its kind has it. Returns whether it was given up.
async function write(request, stream, giveUp) {
  const { kind, body } = request;
  const all = pieces(body);
  for (const [number, piece] of all.entries()) {
    if (kind === "abort" && number >= all.length / 2) {
      giveUp();
      return true;
    }
    if (!stream.write(piece)) await new Promise((done) => stream.once("drain", done).once("close", done));
    if (kind === "trickle" && number < 5) await pause(10);
  }
  if (kind === "abort") {
    giveUp();
    return true;
  }
  stream.end();
  return false;
}

// Reads a response as its kind has it; undefined if it was given up.
async function read(request, stream, giveUp) {
  const { kind } = request;
  let text = "";
  let slow = 12;
  for await (const piece of stream) {
    text += piece.toString("latin1");
    if (kind === "left" && text.length > 50_000) {
      giveUp();
      return undefined;
    }
    if (kind === "slow" && slow-- > 0) await pause(15);
  }
  return text;
}

const agent = new http.Agent({ keepAlive: true, maxSockets: settings.workers });

function overHttp1(request) {
  return new Promise((resolve, reject) => {
    const { kind, body } = request;
    const all = headers(request);
    if (kind === "expect") all.expect = "100-continue";
    if (kind === "expect" || kind === "length" || kind === "slow") all["content-length"] = body.length;
    const sent = http.request({
      ...address(settings.plain),
      agent,
      method: kind === "get" ? "GET" : "POST",
      path: "/load",
      headers: all,
    });
    let givenUp = false;
    const giveUp = () => {
      givenUp = true;
      sent.destroy();
      resolve();
    };
    sent.on("error", (error) => givenUp || reject(error));
    sent.on("response", (response) => {
      read(request, response, giveUp)
        .then((text) => text !== undefined && check(request, response.statusCode, response.headers, text))
        .then(resolve, (error) => givenUp || reject(error));
    });
    if (kind === "get") sent.end();
    else if (kind === "expect") sent.on("continue", () => write(request, sent, giveUp).catch(reject)).flushHeaders();
    else write(request, sent, giveUp).catch(reject);
  });
}

let session;
function connected() {
  if (!session || session.closed || session.destroyed) {
    const ca = readFileSync(settings.ca);
    session = http2.connect(`https://${settings.name}`, {
      createConnection: () =>
        tls.connect({ ...address(settings.tls), servername: settings.name, ca, ALPNProtocols: ["h2"] }),
    });
    session.on("error", () => {});
  }
  return session;
}

function overHttp2(request) {
  return new Promise((resolve, reject) => {
    const { kind, body } = request;
    const all = { ":method": kind === "get" ? "GET" : "POST", ":path": "/load", ...headers(request) };
    if (kind === "expect" || kind === "length" || kind === "slow") all["content-length"] = body.length;
    const stream = connected().request(all, { endStream: kind === "get" });
    let givenUp = false;
    const giveUp = () => {
      givenUp = true;
      // Not close(), which ends the stream before it resets it: a backend would take half of a body for all of it.
      stream.destroy(new Error("given up"));
      resolve();
    };
    stream.on("error", (error) => givenUp || reject(error));
    stream.on("response", (head) => {
      read(request, stream, giveUp)
        .then((text) => text !== undefined && check(request, head[":status"], head, text))
        .then(resolve, (error) => givenUp || reject(error));
    });
    if (kind !== "get") write(request, stream, giveUp).catch(reject);
  });
}

async function worker(protocol, ask) {
  while (Date.now() < end && report.failures.length < FAILURES_MAX) {
    const request = plan();
    const late = pause(PATIENCE_MS).then(() => Promise.reject(new Error("no end")));
    late.catch(() => {});
    try {
      await Promise.race([ask(request), late]);
    } catch (error) {
      report.failures.push(`${protocol} ${request.kind} of ${request.body.length} bytes: ${error.message}`);
    }
    const key = `${protocol} ${request.kind}`;
    report.kinds[key] = (report.kinds[key] ?? 0) + 1;
    await pause(below(10));
  }
}

const workers = [];
for (let number = 0; number < settings.workers; number += 1) {
  workers.push(worker("http1", overHttp1), worker("http2", overHttp2));
}
await Promise.all(workers);
process.stdout.write(`${JSON.stringify(report)}\n`);
process.exit();
