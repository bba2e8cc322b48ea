// The page in headless Chromium: three visitors with a cookie jar each, one of whom speaks; then one joins through another node.
//
// Argument: {"url": "http://127.0.0.1:8080/", "chromium": "/usr/bin/chromium", "screenshot": "target/page.png"}
// Out: one JSON line: {"nodes": [...], "heard": [[{"from": ..., "text": ...}, ...], ...], "moved": {"from": ..., "to": ...}, "errors": [...]}

import { chromium } from "playwright-core";

const FLAGS = [
  "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync",
];
const DEADLINE = 20_000;

const { url, chromium: executablePath, screenshot } = JSON.parse(process.argv[2]);
const errors = [];

async function visit(browser, name) {
  const context = await browser.newContext({ viewport: { width: 1000, height: 720 } });
  context.setDefaultTimeout(DEADLINE);
  const page = await context.newPage();
  watch(page);
  await page.goto(url);
  await page.locator('#state[data-state="open"]').waitFor();
  await page.locator("#name").fill(name);
  return page;
}

// What the browser itself complains of is an error of the page.
function watch(page) {
  page.on("pageerror", (error) => errors.push(String(error)));
  page.on("console", (message) => {
    if (message.type() === "error") errors.push(message.text());
  });
}

async function nodeOf(page) {
  await page.waitForFunction(() => document.querySelector("#node")?.textContent.trim().match(/^\S*\d/));
  return (await page.locator("#node").textContent()).trim();
}

async function say(page, text) {
  await page.locator("#text").fill(text);
  await page.locator("#send").click();
}

async function hear(page, text) {
  await page.locator("#log li", { hasText: text }).waitFor();
  return page.locator("#log li").evaluateAll((items) => {
    return items.map((item) => ({ from: item.dataset.from ?? null, text: item.textContent }));
  });
}

const browser = await chromium.launch({ executablePath, args: FLAGS });
try {
  const pages = [];
  for (const name of ["Ada", "Grace", "Edsger"]) pages.push(await visit(browser, name));
  const nodes = [];
  for (const page of pages) nodes.push(await nodeOf(page));

  await say(pages[0], "Hello from the first node");
  for (const page of pages) await hear(page, "Hello from the first node");
  await say(pages[1], "I hear you on the second");
  for (const page of pages) await hear(page, "I hear you on the second");
  await say(pages[2], "<b>and on the third</b>");
  const heard = [];
  for (const page of pages) heard.push(await hear(page, "<b>and on the third</b>"));
  await pages[0].screenshot({ path: screenshot });

  const opened = pages[2].context().waitForEvent("page");
  await pages[2].locator("#move").click();
  const joined = await opened;
  watch(joined);
  await joined.locator('#state[data-state="open"]').waitFor();
  const moved = { from: nodes[2], to: await nodeOf(joined) };
  process.stdout.write(`${JSON.stringify({ nodes, heard, moved, errors })}\n`);
} finally {
  await browser.close();
}
