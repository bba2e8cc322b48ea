// One process of somebody's app: an echo server made with sockjs, socket.io or ws as npm has them.
//
// Argument: {"app": "sockjs", "name": "a"}
// It answers each message with {"process": "a", "text": ...}, and any plain request with its name, as an app's front page would.
// With "bare": true it has no front page: what the library does not answer has no answer. "ws-alone" is ws with a port of its own.
// {"app": "raw", "name": "a", "messageBytesMax": 1000} is ws and answers with the message itself.

import { createServer } from "node:http";
import { Server as SocketIo } from "socket.io";
import sockjs from "sockjs";
import { WebSocketServer } from "ws";

// A busy machine is no reason to give a client up.
const PATIENCE_MS = 60_000;

const { app, name, messageBytesMax, bare } = JSON.parse(process.argv[2]);
const reply = (text) => JSON.stringify({ process: name, text });

const apps = {
  sockjs(server) {
    const echo = sockjs.createServer({ prefix: "/echo", disconnect_delay: PATIENCE_MS, log() {} });
    echo.on("connection", (client) => client.on("data", (text) => client.write(reply(text))));
    echo.installHandlers(server);
  },
  "socket.io"(server) {
    const io = new SocketIo(server, { pingTimeout: PATIENCE_MS, upgradeTimeout: PATIENCE_MS });
    io.on("connection", (client) => client.on("message", (text) => client.emit("message", reply(text))));
  },
  ws(server) {
    const sockets = new WebSocketServer({ server });
    sockets.on("connection", (client) => client.on("message", (text) => client.send(reply(String(text)))));
  },
  raw(server) {
    const sockets = new WebSocketServer({ server, maxPayload: messageBytesMax });
    sockets.on("connection", (client) => {
      client.on("message", (data, binary) => client.send(data, { binary }));
      client.on("error", () => {});
    });
  },
};

function tell({ address, port }) {
  const fields = { message: "listening", listener: "app", address: `${address}:${port}` };
  process.stderr.write(`${JSON.stringify({ fields })}\n`);
}

if (app === "ws-alone") {
  const sockets = new WebSocketServer({ host: "127.0.0.1", port: 0 }, () => tell(sockets.address()));
} else {
  // What is not the library's own is the app's front page.
  const server = bare ? createServer() : createServer((request, response) => response.end(`${name}\n`));
  apps[app](server);
  server.listen(0, "127.0.0.1", () => tell(server.address()));
}
