// A chat as it is made with sockjs-node and Redis: what a client writes is published, and what is published goes to all clients.
//
// Argument: {"redis": {"host": "127.0.0.1", "port": 6379}, "prefix": "/chat", "channel": "chat"}
//
// It speaks to Redis by itself, in as much of the protocol as this takes: texts of one line.

import { createServer } from "node:http";
import { connect } from "node:net";
import sockjs from "sockjs";

const { redis, prefix, channel } = JSON.parse(process.argv[2]);
const clients = new Set();

const publisher = connect(redis);
publisher.resume();
const subscriber = connect(redis);
subscriber.write(`SUBSCRIBE ${channel}\r\n`);
let lines = "";
subscriber.setEncoding("utf8");
subscriber.on("data", (text) => {
  lines += text;
  // *3 $7 message $4 chat $5 hello
  const pushed = /\*3\r\n\$7\r\nmessage\r\n\$\d+\r\n.*\r\n\$\d+\r\n(.*)\r\n/;
  for (let found; (found = pushed.exec(lines)); lines = lines.slice(found.index + found[0].length)) {
    for (const client of clients) client.write(found[1]);
  }
});

const endpoint = sockjs.createServer({ prefix, log() {} });
endpoint.on("connection", (client) => {
  clients.add(client);
  client.on("data", (text) => {
    const part = (word) => `$${Buffer.byteLength(word)}\r\n${word}\r\n`;
    publisher.write(`*3\r\n${part("PUBLISH")}${part(channel)}${part(text)}`);
  });
  client.on("close", () => clients.delete(client));
});

const server = createServer();
endpoint.installHandlers(server);
server.listen(0, "127.0.0.1", () => {
  const { address, port } = server.address();
  const fields = { message: "listening", listener: "old", address: `${address}:${port}` };
  process.stderr.write(`${JSON.stringify({ fields })}\n`);
});
