// The npm package ws as a relay: `/echo` sends each message back, every other path is one channel.
'use strict';

const { WebSocketServer, WebSocket } = require('ws');

const server = new WebSocketServer({
  host: '127.0.0.1',
  port: 0,
  backlog: 4096,
  perMessageDeflate: false,
  skipUTF8Validation: true,
});

server.on('connection', (client, request) => {
  client.on('error', () => client.terminate());
  if (request.url === '/echo') {
    client.on('message', (data, binary) => client.send(data, { binary }));
    return;
  }
  client.on('message', (data, binary) => {
    for (const member of server.clients) {
      if (member.readyState === WebSocket.OPEN) member.send(data, { binary });
    }
  });
});

server.on('listening', () => {
  const address = `127.0.0.1:${server.address().port}`;
  console.error(JSON.stringify({ fields: { message: 'listening', listener: 'bench', address } }));
});
