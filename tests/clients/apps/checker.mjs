// A backend that checks what it gets: a plain server of Node, whose parser takes nothing that is in doubt.
//
// Argument: {}
// A request says in "x-sum" what its body must add up to, and gets a response that says whose it is: see load.mjs.
// GET /stats answers {"requests": 0, "cut": 0, "faults": [], "connections": 0}.

import { createHash } from "node:crypto";
import { createServer } from "node:http";

const FAULTS_MAX = 50;

const stats = { requests: 0, cut: 0, faults: [], connections: 0 };
const fault = (text) => stats.faults.length < FAULTS_MAX && stats.faults.push(text);

// Longer than the edge keeps idle connections: nothing here is closed while a request is on its way.
const server = createServer({ keepAliveTimeout: 120_000, requestTimeout: 0, headersTimeout: 0 }, (request, response) => {
  if (request.url === "/stats") {
    return response.end(JSON.stringify({ ...stats, connections: stats.connections - 1 }));
  }
  const { "x-id": id, "x-sum": sum, "x-response": answer = "0", "x-chunked": chunked } = request.headers;
  const hash = createHash("sha256");
  let bytes = 0;
  request.on("data", (piece) => {
    bytes += piece.length;
    hash.update(piece);
  });
  request.on("error", () => (stats.cut += 1));
  request.on("end", () => {
    stats.requests += 1;
    const got = hash.digest("hex");
    if (got !== sum) fault(`${id}: a body of ${bytes} bytes that adds up to ${got} and not to ${sum}`);
    const body = `${id} ${bytes} ${got}\n${"x".repeat(Number(answer))}`;
    response.setHeader("x-id", id);
    response.setHeader("x-sum", got);
    if (!chunked) response.setHeader("content-length", Buffer.byteLength(body));
    response.end(body);
  });
  response.on("error", () => {});
});
server.on("connection", (socket) => {
  stats.connections += 1;
  socket.on("close", () => (stats.connections -= 1));
});
server.on("clientError", (error, socket) => {
  // The edge cuts what its own client has cut.
  if (error.code !== "ECONNRESET" && error.code !== "HPE_INVALID_EOF_STATE") {
    const packet = error.rawPacket ? error.rawPacket.toString("latin1").slice(0, 200) : "";
    fault(`${error.code}: ${error.reason ?? error.message} in ${JSON.stringify(packet)}`);
  }
  socket.destroy();
});
server.listen(0, "127.0.0.1", () => {
  const { address, port } = server.address();
  const fields = { message: "listening", listener: "app", address: `${address}:${port}` };
  process.stderr.write(`${JSON.stringify({ fields })}\n`);
});
