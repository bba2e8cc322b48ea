// Clients of a TLS listener: https over HTTP/1.1 and HTTP/2, WebSockets, resumed sessions. Orders come as JSON in the first
// argument, the outcome goes to standard output as one line of JSON. With "hold", tunnels stay open until a line comes in.
import { readFileSync } from "node:fs";
import http2 from "node:http2";
import https from "node:https";
import tls from "node:tls";
import { createInterface } from "node:readline";
import { once } from "node:events";
import WebSocket from "ws";

const orders = JSON.parse(process.argv[2]);
const common = { host: "127.0.0.1", servername: orders.name, ca: readFileSync(orders.ca) };
const report = (outcome) => console.log(JSON.stringify(outcome));

async function body(stream) {
  const pieces = [];
  for await (const piece of stream) pieces.push(piece);
  return Buffer.concat(pieces).toString();
}

async function overHttp1() {
  const request = https.get({ ...common, port: orders.port, path: "/one", agent: false });
  const [answer] = await once(request, "response");
  return { status: answer.statusCode, cookies: answer.headers["set-cookie"] ?? [], body: await body(answer) };
}

async function overHttp2() {
  const session = http2.connect(`https://${orders.name}:${orders.port}`, {
    ca: common.ca,
    createConnection: () => tls.connect({ ...common, port: orders.port, ALPNProtocols: ["h2"] }),
  });
  const ask = async (path, payload) => {
    const headers = { ":path": path, ":method": payload ? "POST" : "GET", cookie: ["a=1", "b=2"] };
    const request = session.request(headers);
    const answer = once(request, "response");
    request.end(payload);
    const [head] = await answer;
    return { status: head[":status"], body: await body(request) };
  };
  const answers = await Promise.all([ask("/two"), ask("/three"), ask("/four", "x".repeat(100_000))]);
  session.close();
  return answers;
}

function open() {
  return new WebSocket(`wss://${orders.name}:${orders.port}/echo/websocket`, {
    ca: common.ca,
    perMessageDeflate: false,
    createConnection: () => tls.connect({ ...common, port: orders.port, ALPNProtocols: ["http/1.1"] }),
  });
}

async function echo(socket, text) {
  const answer = once(socket, "message");
  socket.send(text);
  const [data] = await answer;
  return data.toString() === text;
}

async function overWebSocket() {
  const socket = open();
  await once(socket, "open");
  let right = true;
  for (const length of [0, 1, 125, 126, 16_383, 16_384, 16_385, 65_000]) {
    right &&= await echo(socket, "w".repeat(length));
  }
  socket.close(1000);
  const [code] = await once(socket, "close");
  return { right, code };
}

async function resume() {
  const connect = async (port, session) => {
    const socket = tls.connect({ ...common, port, session, ALPNProtocols: ["http/1.1"] });
    const ticket = once(socket, "session");
    await once(socket, "secureConnect");
    const [next] = await ticket;
    const reused = socket.isSessionReused();
    socket.destroy();
    return { next, reused };
  };
  const first = await connect(orders.port);
  const second = await connect(orders.second, first.next);
  return { first: first.reused, second: second.reused };
}

// Keeps `orders.hold` tunnels and makes new connections, until it is told to stop.
async function hold() {
  const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
  const sockets = [];
  for (let n = 0; n < orders.hold; n += 1) {
    const socket = open();
    await once(socket, "open");
    sockets.push(socket);
  }
  let closed = 0;
  for (const socket of sockets) socket.on("close", () => (closed += 1));
  report({ open: sockets.length });
  let stopped = false;
  const stop = lines.next().then(() => (stopped = true));
  const serials = new Set();
  let handshakes = 0;
  let failed = 0;
  while (!stopped) {
    const socket = tls.connect({ ...common, port: orders.port });
    try {
      await once(socket, "secureConnect");
      serials.add(socket.getPeerCertificate().serialNumber);
      handshakes += 1;
    } catch {
      failed += 1;
    }
    socket.destroy();
  }
  await stop;
  let echoed = 0;
  for (const socket of sockets) echoed += (await echo(socket, "still here")) ? 1 : 0;
  report({ closed, echoed, handshakes, failed, certificates: serials.size });
  process.exit(0);
}

if (orders.hold) {
  await hold();
} else if (orders.second) {
  report(await resume());
} else {
  report({ one: await overHttp1(), two: await overHttp2(), websocket: orders.websocket ? await overWebSocket() : null });
}
