// An application on Socket.IO, with the Redis adapter or with the Redis streams adapter and connection state recovery. On SIGTERM it
// closes the server as its documentation says, which ends all connections.
'use strict';

const { createServer } = require('http');
const Redis = require('ioredis');
const { Server } = require('socket.io');

const { ADAPTER, HOST, PORT, REDIS } = process.env;

function connect(settings) {
  const redis = new Redis(settings);
  redis.on('error', (error) => console.error('redis:', error.message));
  return redis;
}

function respond(response, status, body) {
  response.writeHead(status, { 'Content-Type': 'application/json' });
  response.end(JSON.stringify(body));
}

async function main() {
  const redis = connect(JSON.parse(REDIS));
  let isClosing = false;
  let io;
  const http = createServer((request, response) => {
    if (request.method === 'POST' && request.url === '/publish') {
      const chunks = [];
      request.on('data', (chunk) => chunks.push(chunk));
      request.on('end', () => {
        const { channel, data } = JSON.parse(Buffer.concat(chunks));
        io.to(channel).emit('m', data);
        respond(response, 200, { result: {} });
      });
    } else {
      respond(response, isClosing ? 503 : 200, {});
    }
  });
  // Longer than the load balancer keeps a connection.
  http.keepAliveTimeout = 65_000;
  const options = { transports: ['websocket'], serveClient: false };
  const connections = [redis];
  if (ADAPTER === 'streams') {
    const { createAdapter } = require('@socket.io/redis-streams-adapter');
    options.adapter = createAdapter(redis);
    options.connectionStateRecovery = {};
  } else {
    const { createAdapter } = require('@socket.io/redis-adapter');
    const subscriber = redis.duplicate();
    subscriber.on('error', (error) => console.error('redis:', error.message));
    options.adapter = createAdapter(redis, subscriber);
    connections.push(subscriber);
  }
  io = new Server(http, options);
  io.on('connection', (socket) => {
    socket.join(socket.handshake.query.channel);
  });
  await redis.ping();
  http.listen({ host: HOST, port: Number(PORT), backlog: 4096 });
  process.on('SIGTERM', () => {
    isClosing = true;
    io.close(async () => {
      // Sessions are on their way to Redis.
      await Promise.allSettled(connections.map((redis) => redis.quit()));
      process.exit(0);
    });
    http.closeIdleConnections();
    setTimeout(() => process.exit(1), 30_000).unref();
  });
}

main();
