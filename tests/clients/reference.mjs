// The reference server of SockJS, npm sockjs, with the services of conf/conformance.yaml.

import { createServer } from "node:http";
import sockjs from "sockjs";

const script = "https://static.example/sockjs-1.6.1.min.js";

// A busy machine is no reason to lose a session.
const PATIENCE_MS = 60_000;

const services = [
  ["/echo", { response_limit: 4096 }, (client) => client.on("data", (text) => client.write(text))],
  ["/disabled_websocket_echo", { websocket: false }, (client) => client.on("data", (text) => client.write(text))],
  ["/cookie_needed_echo", { jsessionid: true }, (client) => client.on("data", (text) => client.write(text))],
  ["/close", {}, (client) => client.close(3000, "Go away!")],
];

const server = createServer((request, response) => response.writeHead(404).end());
for (const [prefix, options, connected] of services) {
  const service = sockjs.createServer({ prefix, sockjs_url: script, disconnect_delay: PATIENCE_MS, log() {}, ...options });
  service.on("connection", connected);
  service.installHandlers(server);
}
server.listen(0, "127.0.0.1", () => {
  const { address, port } = server.address();
  const fields = { message: "listening", listener: "reference", address: `${address}:${port}` };
  process.stderr.write(`${JSON.stringify({ fields })}\n`);
});
