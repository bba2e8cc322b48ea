// sockjs-client in headless Chromium: an echo of many messages over each transport, from a page of each origin.
//
// Argument: {"chromium": "/usr/bin/chromium", "sockjs": "http://127.0.0.1:8080/echo", "messages": 1000, "inFlight": 100,
//            "runs": [{"page": "http://127.0.0.1:8080/page.html", "transport": "websocket"}, ...]}
// Out: one JSON line for each run, in no order: {"page": ..., "transport": ..., "used": "websocket", "received": 1000,
//      "wrong": [first few], "closed": null or [code, reason], "milliseconds": 812, "errors": [...]}

import { chromium } from "playwright-core";

const FLAGS = [
  "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync",
];
// How many pages are open at a time.
const PAGES = 3;

const { chromium: executablePath, sockjs, messages, inFlight, runs } = JSON.parse(process.argv[2]);

// Runs in the page. A transport that has not opened is tried again: the client gives up early on a busy machine.
async function echo({ sockjs, transport, messages, inFlight }) {
  const ATTEMPTS = 5;

  // A piece of each plane: together the messages hold every character of the first one, and of the others one in 65.
  function text(number) {
    const points = [];
    for (let at = 0; at < 64; at += 1) points.push(number * 64 + at);
    for (let plane = 1; plane <= 16; plane += 1) points.push(plane * 0x10000 + ((number * 65) & 0xffff), plane * 0x10000 + 0xffff);
    const whole = points.filter((point) => !(0xd800 <= point && point <= 0xdfff) && point <= 0x10ffff);
    return `${number} % %25 %0A </script> <!-- \\ " ' ${String.fromCodePoint(...whole)}`;
  }

  function attempt() {
    return new Promise((resolve) => {
      const started = performance.now();
      const outcome = { used: null, received: 0, wrong: [], closed: null };
      const socket = new SockJS(sockjs, null, { transports: transport, timeout: 20_000 });
      let sent = 0;
      const finish = () => {
        socket.onclose = null;
        socket.close();
        resolve({ ...outcome, milliseconds: Math.round(performance.now() - started) });
      };
      const send = () => {
        while (sent < messages && sent - outcome.received < inFlight) {
          socket.send(text(sent));
          sent += 1;
        }
      };
      socket.onopen = () => {
        outcome.used = socket.transport;
        send();
      };
      socket.onmessage = ({ data }) => {
        const expected = text(outcome.received);
        if (data !== expected && outcome.wrong.length < 3) outcome.wrong.push({ data, expected });
        outcome.received += 1;
        if (outcome.received === messages) finish();
        else send();
      };
      socket.onclose = ({ code, reason }) => {
        outcome.closed = [code, String(reason)];
        finish();
      };
    });
  }

  let outcome;
  for (let tried = 0; tried < ATTEMPTS; tried += 1) {
    outcome = await attempt();
    if (outcome.used) break;
  }
  return outcome;
}

async function run(browser, { page: url, transport }) {
  const context = await browser.newContext();
  const page = await context.newPage();
  const errors = [];
  page.on("pageerror", (error) => errors.push(String(error)));
  await page.goto(url);
  const outcome = await page.evaluate(echo, { sockjs, transport, messages, inFlight });
  await context.close();
  process.stdout.write(`${JSON.stringify({ page: url, transport, ...outcome, errors })}\n`);
}

const browser = await chromium.launch({ executablePath, args: FLAGS });
try {
  const waiting = [...runs];
  const some = async () => {
    for (let next = waiting.shift(); next; next = waiting.shift()) await run(browser, next);
  };
  await Promise.all(Array.from({ length: PAGES }, some));
} finally {
  await browser.close();
}
