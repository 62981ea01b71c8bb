// Opens the dashboard in a headless Chromium for a while, then says what stands there and what
// went wrong, and takes its picture: node dashboard.mjs CHROMIUM URL PICTURE SECONDS
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import WebSocket from "ws";

const [program, url, picture, seconds, width = "1200", height = "900", scheme = "light"] =
  process.argv.slice(2);
const profile = mkdtempSync(join(tmpdir(), "dashboard-"));
const browser = spawn(program, ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
  "--remote-debugging-port=0", `--user-data-dir=${profile}`, "about:blank"],
{ stdio: ["ignore", "ignore", "pipe"] });
const ended = new Promise((resolve) => browser.once("exit", resolve));

const address = await new Promise((resolve, reject) => {
  let said = "";
  browser.stderr.on("data", (bytes) => {
    said += bytes;
    const found = said.match(/DevTools listening on (ws:\S+)/);
    if (found) resolve(new URL(found[1]));
  });
  browser.once("error", reject);
  ended.then(() => reject(new Error(`the browser ended: ${said}`)));
});
const pages = await (await fetch(`http://${address.host}/json/list`)).json();
const socket = new WebSocket(pages.find(({ type }) => type === "page").webSocketDebuggerUrl);
await new Promise((resolve) => { socket.onopen = resolve; });

const faults = [], waiting = new Map();
let asked = 0;
socket.onmessage = ({ data }) => {
  const { id, result, error, method, params } = JSON.parse(data);
  if (id) waiting.get(id)(error ? Promise.reject(new Error(error.message)) : result);
  if (method === "Runtime.exceptionThrown") faults.push(params.exceptionDetails.text);
  if (method === "Log.entryAdded" && params.entry.level === "error") faults.push(params.entry.text);
};
const ask = (method, params = {}) => new Promise((resolve) => {
  waiting.set(++asked, resolve);
  socket.send(JSON.stringify({ id: asked, method, params }));
});

for (const domain of ["Runtime", "Log", "Page"]) await ask(`${domain}.enable`);
await ask("Emulation.setDeviceMetricsOverride",
  { width: Number(width), height: Number(height), deviceScaleFactor: 1, mobile: false });
await ask("Emulation.setEmulatedMedia",
  { features: [{ name: "prefers-color-scheme", value: scheme }] });
await ask("Page.navigate", { url });
await sleep(Number(seconds) * 1000);
const expression = `({ text: document.body.innerText, lines: [...document.querySelectorAll("path")]
  .filter((path) => path.getAttribute("d").includes("L")).length,
  wide: document.documentElement.scrollWidth > innerWidth })`;
const { result } = await ask("Runtime.evaluate", { expression, returnByValue: true });
const shot = await ask("Page.captureScreenshot", { format: "png" });
writeFileSync(picture, Buffer.from(shot.data, "base64"));
console.log(JSON.stringify({ ...result.value, faults }));
socket.close();
browser.kill();
await ended;
rmSync(profile, { recursive: true, force: true });
