// centrifuge, as npm has it, in Node and in headless Chromium: a tour through what a channel client can do, over each
// transport and in each codec.
//
// A run with "hooks": true is about a client whose application's backend decides, instead.
//
// Argument: {"chromium": "/usr/bin/chromium" or null, "base": "http://127.0.0.1:8080/connection", "page": "http://.../page.html",
//            "secret": "...", "runs": [{"runtime": "node", "codec": "json", "transport": "websocket", "name": "r1"}, ...]}
// Out: one JSON line for each run, in no order: the run and what was seen at each step, {"failed": "..."} if it broke off.

import { createRequire } from "node:module";

import { Centrifuge as InJson } from "centrifuge";
import { Centrifuge as InProtobuf } from "centrifuge/build/protobuf";
import { EventSource } from "eventsource";
import jwt from "jsonwebtoken";
import { chromium } from "playwright-core";
import { WebSocket } from "ws";

import { asked, tour } from "./tour.mjs";

const FLAGS = [
  "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync",
];

const { chromium: executablePath, base, page: pageUrl, secret, runs } = JSON.parse(process.argv[2]);

function sign(claims, seconds = 600) {
  return jwt.sign(claims, secret, { algorithm: "HS256", expiresIn: seconds });
}

// What a client of the tour is given: names and tokens of its own, so that no two tours meet.
function orders({ codec, transport, name }) {
  const ann = `ann-${name}`;
  const bob = `bob-${name}`;
  const scheme = transport === "websocket" ? base.replace(/^http/, "ws") : base;
  return {
    transports: [{ transport, endpoint: `${scheme}/${transport}` }],
    emulationEndpoint: `${base}/emulation`,
    binary: codec === "protobuf",
    ann,
    bob,
    room: `chat:${name}`,
    news: `news:${name}`,
    secretRoom: `secret:${name}`,
    dialog: `dialog:${name}#${bob}`,
    tokens: {
      ann: sign({ sub: ann, info: { name: "Ann" } }),
      bob: sign({ sub: bob, channels: [`news:${name}`] }),
      expired: sign({ sub: ann }, -60),
      short: sign({ sub: ann }, 3),
      forged: jwt.sign({ sub: ann }, "x".repeat(40), { algorithm: "HS256" }),
      secretRoom: sign({ sub: ann, channel: `secret:${name}`, info: { seat: 7 } }),
      otherRoom: sign({ sub: ann, channel: "secret:other" }),
    },
  };
}

async function inNode(run) {
  const Centrifuge = run.codec === "protobuf" ? InProtobuf : InJson;
  const play = run.hooks ? asked : tour;
  return play(Centrifuge, { websocket: WebSocket, eventsource: EventSource }, orders(run));
}

async function inPage(browser, run) {
  // The page of the node allows its own scripts alone; the SDK stands for a page of the application.
  const context = await browser.newContext({ bypassCSP: true });
  try {
    const page = await context.newPage();
    await page.goto(pageUrl);
    const script = run.codec === "protobuf" ? "centrifuge.protobuf.js" : "centrifuge.js";
    const path = createRequire(import.meta.url).resolve("centrifuge").replace(/build.index\.js$/, `dist/${script}`);
    await page.addScriptTag({ path });
    await page.addScriptTag({ content: `window.tour = ${tour.toString()};` });
    return await page.evaluate((orders) => window.tour(window.Centrifuge, {}, orders), orders(run));
  } finally {
    await context.close();
  }
}

const browser = runs.some((run) => run.runtime === "chromium")
  ? await chromium.launch({ executablePath, args: FLAGS })
  : null;
try {
  for (const run of runs) {
    let seen;
    try {
      seen = run.runtime === "chromium" ? await inPage(browser, run) : await inNode(run);
    } catch (error) {
      seen = { failed: String(error?.stack ?? error) };
    }
    process.stdout.write(`${JSON.stringify({ run, seen })}\n`);
  }
} finally {
  await browser?.close();
}
process.exit(0);
