// sockjs-node as a chat is usually made with it: what a client writes goes to all. With REDIS_URL it goes by way
// of Redis, on which every node listens.
'use strict';

const { createServer } = require('http');
const sockjs = require('sockjs');

async function main() {
  const { REDIS_URL } = process.env;
  const clients = new Set();
  const deliver = (message) => { for (const client of clients) client.write(message); };
  let publish = deliver;
  if (REDIS_URL) {
    const { createClient } = require('redis');
    const publisher = createClient({ url: REDIS_URL });
    const subscriber = createClient({ url: REDIS_URL });
    await Promise.all([publisher.connect(), subscriber.connect()]);
    await subscriber.subscribe('global', deliver);
    publish = (message) => publisher.publish('global', message);
  }
  const endpoint = sockjs.createServer({ prefix: '/sockjs', log: () => {} });
  endpoint.on('connection', (client) => {
    clients.add(client);
    client.on('data', publish);
    client.on('close', () => clients.delete(client));
  });
  const http = createServer();
  endpoint.installHandlers(http);
  http.listen({ host: '127.0.0.1', port: 0, backlog: 4096 }, () => {
    const address = `127.0.0.1:${http.address().port}`;
    console.error(JSON.stringify({ fields: { message: 'listening', listener: 'bench', address } }));
  });
}

main();
