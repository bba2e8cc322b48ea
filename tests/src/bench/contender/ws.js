// The npm package ws as a relay: `/echo` sends each message back, every other path is a channel. With REDIS_URL
// the channels are Redis's, and a message goes out when Redis has sent it around.
'use strict';

const { readFileSync } = require('fs');
const { createServer } = require('https');
const { WebSocketServer, WebSocket } = require('ws');

const settings = { perMessageDeflate: false, skipUTF8Validation: true };
const channels = new Map();

function deliver(channel, data, binary) {
  for (const member of channels.get(channel) ?? []) {
    if (member.readyState === WebSocket.OPEN) member.send(data, { binary });
  }
}

function serve(server, publish) {
  server.on('connection', (client, request) => {
    client.on('error', () => client.terminate());
    if (request.url === '/echo') {
      client.on('message', (data, binary) => client.send(data, { binary }));
      return;
    }
    const channel = request.url;
    if (!channels.has(channel)) channels.set(channel, new Set());
    channels.get(channel).add(client);
    client.on('close', () => channels.get(channel).delete(client));
    client.on('message', (data, binary) => publish(channel, data, binary));
  });
}

function announce(listener, server) {
  const address = `127.0.0.1:${server.address().port}`;
  console.error(JSON.stringify({ fields: { message: 'listening', listener, address } }));
}

async function redis(url) {
  const { createClient } = require('redis');
  const publisher = createClient({ url });
  const subscriber = createClient({ url });
  await Promise.all([publisher.connect(), subscriber.connect()]);
  await subscriber.pSubscribe('/*', (message, channel) => deliver(channel, message, false));
  return (channel, data) => publisher.publish(channel, data.toString());
}

async function main() {
  const { REDIS_URL, CERTIFICATE, KEY } = process.env;
  const publish = REDIS_URL ? await redis(REDIS_URL) : deliver;
  const plain = new WebSocketServer({ ...settings, host: '127.0.0.1', port: 0, backlog: 4096 });
  plain.on('listening', () => announce('bench', plain));
  serve(plain, publish);
  if (CERTIFICATE) {
    const https = createServer({ cert: readFileSync(CERTIFICATE), key: readFileSync(KEY) });
    serve(new WebSocketServer({ ...settings, server: https }), publish);
    https.listen({ host: '127.0.0.1', port: 0, backlog: 4096 }, () => announce('bench-tls', https));
  }
}

main();
