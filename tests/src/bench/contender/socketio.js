// Socket.IO as a relay: what a client emits as `m` goes to all in its room. With REDIS_URL the Redis adapter
// carries it to the other nodes.
'use strict';

const { createServer } = require('http');
const { Server } = require('socket.io');

async function main() {
  const { REDIS_URL } = process.env;
  const http = createServer();
  const io = new Server({
    transports: ['websocket'],
    perMessageDeflate: false,
    httpCompression: false,
    serveClient: false,
    maxHttpBufferSize: 1e6,
  });
  if (REDIS_URL) {
    const { createClient } = require('redis');
    const { createAdapter } = require('@socket.io/redis-adapter');
    const publisher = createClient({ url: REDIS_URL });
    const subscriber = publisher.duplicate();
    await Promise.all([publisher.connect(), subscriber.connect()]);
    io.adapter(createAdapter(publisher, subscriber));
  }
  io.attach(http);
  io.on('connection', (socket) => {
    const room = socket.handshake.query.channel;
    socket.join(room);
    // As its documentation says for many clients: the request of the upgrade is not kept.
    socket.conn.request = null;
    socket.on('m', (message) => io.to(room).emit('m', message));
  });
  http.listen({ host: '127.0.0.1', port: 0, backlog: 4096 }, () => {
    const address = `127.0.0.1:${http.address().port}`;
    console.error(JSON.stringify({ fields: { message: 'listening', listener: 'bench', address } }));
  });
}

main();
