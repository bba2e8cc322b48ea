// The npm package http-proxy as an edge before one backend, as many applications begin.
'use strict';

const { readFileSync } = require('fs');
const http = require('http');
const https = require('https');
const httpProxy = require('http-proxy');

const { BACKEND, CERTIFICATE, KEY } = process.env;
const proxy = httpProxy.createProxyServer({
  target: BACKEND,
  xfwd: true,
  agent: new http.Agent({ keepAlive: true, maxSockets: 256 }),
});
proxy.on('error', (error, request, out) => out.destroy());

function serve(server, listener) {
  server.on('request', (request, response) => proxy.web(request, response));
  server.on('upgrade', (request, socket, head) => {
    socket.on('error', () => socket.destroy());
    proxy.ws(request, socket, head, { agent: false });
  });
  server.keepAliveTimeout = 0;
  server.listen({ host: '127.0.0.1', port: 0, backlog: 4096 }, () => {
    const address = `127.0.0.1:${server.address().port}`;
    console.error(JSON.stringify({ fields: { message: 'listening', listener, address } }));
  });
}

serve(http.createServer(), 'bench');
serve(https.createServer({ cert: readFileSync(CERTIFICATE), key: readFileSync(KEY) }), 'bench-tls');
