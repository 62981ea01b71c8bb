"use strict";
// Reads /metrics as Prometheus would, keeps the last minutes, and draws what matters of them.
const EVERY_MS = 2000, KEPT = 150, WINDOW = 15;
const seen = [];

const parse = (text) => {
  const all = new Map();
  for (const line of text.split("\n")) {
    const found = line.match(/^(\w+)(?:\{(.*)\})? (\S+)$/);
    if (!found) continue;
    const labels = Object.fromEntries(
      [...(found[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map(([, k, v]) => [k, v]));
    if (!all.has(found[1])) all.set(found[1], []);
    all.get(found[1]).push({ labels, value: Number(found[3]) });
  }
  return all;
};
const fits = (labels, wanted) => Object.entries(wanted).every(([k, v]) => labels[k] === v);
const rows = (at, name, wanted = {}) =>
  (at.all.get(name) ?? []).filter(({ labels }) => fits(labels, wanted));
const sum = (at, name, wanted) => {
  const found = rows(at, name, wanted);
  return found.length ? found.reduce((total, { value }) => total + value, 0) : NaN;
};
// What a counter rose between two looks; one that began anew rose by all that it is.
const rise = (a, b, name, wanted) => {
  const [from, to] = [sum(a, name, wanted) || 0, sum(b, name, wanted) || 0];
  return to >= from ? to - from : to;
};
const rate = (a, b, name, wanted) => rise(a, b, name, wanted) / (b.s - a.s);
const share = (part, whole) => (whole > 0 ? part / whole : NaN);
// As Prometheus: within the bucket that holds the quantile, evenly.
const quantile = (a, b, q, name, wanted = {}) => {
  const bounds = new Map();
  for (const { labels } of rows(b, `${name}_bucket`, wanted)) bounds.set(labels.le, 0);
  const bound = (le) => (le === "+Inf" ? Infinity : Number(le));
  const all = [...bounds.keys()].map((le) =>
    [bound(le), rise(a, b, `${name}_bucket`, { ...wanted, le })]).sort((x, y) => x[0] - y[0]);
  const total = all.length ? all[all.length - 1][1] : 0;
  if (!total) return NaN;
  let [below, under] = [0, 0];
  for (const [upper, count] of all) {
    if (count >= q * total) {
      if (upper === Infinity) return below;
      return below + (upper - below) * ((q * total - under) / (count - under || 1));
    }
    [below, under] = [upper, count];
  }
  return NaN;
};

const number = (n, digits = 1) => (Number.isFinite(n)
  ? n.toLocaleString("en", { maximumFractionDigits: n >= 100 ? 0 : digits }) : "–");
const time = (s) => (!Number.isFinite(s) ? "–" : s < 1 ? `${number(s * 1000)} ms`
  : s < 120 ? `${number(s)} s` : s < 7200 ? `${number(s / 60, 0)} min` : `${number(s / 3600)} h`);
const bytes = (n) => (!Number.isFinite(n) ? "–" : n >= 2 ** 30
  ? `${number(n / 2 ** 30)} GiB` : `${number(n / 2 ** 20, 0)} MiB`);
const percent = (n) => (Number.isFinite(n) ? `${number(n * 100)} %` : "–");

const JUDGED = "mtplx_draft_judged_tokens_total", STOOD = "mtplx_draft_accepted_tokens_total";
const TTFT = "mtplx_time_to_first_token_seconds", ITL = "mtplx_inter_token_seconds";
const LOOKUPS = "mtplx_bank_lookups_total";
// Title, how it is written, and one or two lines: each its name and its value between two looks.
const TILES = [
  ["Tokens per second", number, ["generated", (a, b) => rate(a, b, "mtplx_generated_tokens_total")],
    ["prompt", (a, b) => rate(a, b, "mtplx_prompt_tokens_total", { source: "forwarded" })]],
  ["Time to first token", time, ["p50", (a, b) => quantile(a, b, 0.5, TTFT)],
    ["p95", (a, b) => quantile(a, b, 0.95, TTFT)]],
  ["Time between tokens", time, ["p50", (a, b) => quantile(a, b, 0.5, ITL)],
    ["p99", (a, b) => quantile(a, b, 0.99, ITL)]],
  ["Rows", number, ["running", (_, b) => sum(b, "mtplx_rows_running")],
    ["waiting", (_, b) => sum(b, "mtplx_rows_waiting")]],
  ["Wait for a slot", time, ["p50", (a, b) => quantile(a, b, 0.5, "mtplx_queue_seconds")],
    ["p95", (a, b) => quantile(a, b, 0.95, "mtplx_queue_seconds")]],
  ["Drafts that stand", percent,
    ["of judged", (a, b) => share(rise(a, b, STOOD), rise(a, b, JUDGED))]],
  ["Warm", percent,
    ["look-ups", (a, b) => share(rise(a, b, LOOKUPS, { result: "hit" }), rise(a, b, LOOKUPS))],
    ["tokens", (a, b) => share(rise(a, b, "mtplx_prompt_tokens_total", { source: "restored" }),
      rise(a, b, "mtplx_prompt_tokens_total"))]],
  ["Memory", bytes, ["in use", (_, b) => sum(b, "mtplx_memory_used_bytes")],
    ["budget", (_, b) => sum(b, "mtplx_memory_budget_bytes")]],
  ["Warm prefixes", bytes, ["held", (_, b) => sum(b, "mtplx_bank_held_bytes")],
    ["most", (_, b) => sum(b, "mtplx_bank_capacity_bytes")]],
  ["Temperature", (n) => (Number.isFinite(n) ? `${number(n, 0)} °C` : "no sensor"),
    ["hottest", (_, b) => sum(b, "mtplx_temperature_celsius")]],
  ["Requests per minute", number, ["ended", (a, b) => 60 * rate(a, b, "mtplx_requests_total")],
    ["refused", (a, b) => 60 * rate(a, b, "mtplx_refusals_total")]],
  ["A cycle", time, ["p50", (a, b) => quantile(a, b, 0.5, "mtplx_cycle_seconds")],
    ["p99", (a, b) => quantile(a, b, 0.99, "mtplx_cycle_seconds")]],
];

const make = (tag, name, ...inside) => {
  const node = document.createElement(tag);
  if (name) node.className = name;
  node.append(...inside);
  return node;
};
const SVG = "http://www.w3.org/2000/svg";
const draw = (lines) => {
  const svg = document.createElementNS(SVG, "svg");
  // A page that was just opened draws what it has over more of the width.
  const wide = Math.max(30, ...lines.map(({ length }) => length));
  svg.setAttribute("viewBox", `0 0 ${wide} 40`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const most = Math.max(...lines.flat().filter(Number.isFinite), 1e-9);
  lines.forEach((values, i) => {
    const path = document.createElementNS(SVG, "path");
    let pen = "M";
    const steps = values.map((value, j) => {
      if (!Number.isFinite(value)) { pen = "M"; return ""; }
      const step = `${pen}${wide - values.length + j} ${(38 - 36 * value / most).toFixed(1)}`;
      pen = "L";
      return step;
    });
    path.setAttribute("d", steps.join(""));
    path.setAttribute("class", i ? "two" : "one");
    svg.append(path);
  });
  return svg;
};

const history = TILES.map(([, , ...lines]) => lines.map(() => []));
const show = () => {
  const now = seen[seen.length - 1], then = seen[Math.max(0, seen.length - 1 - WINDOW)];
  const tiles = TILES.map(([title, write, ...lines], i) => {
    const says = make("p", "");
    lines.forEach(([name, value], j) => {
      const past = history[i][j];
      past.push(seen.length > 1 ? value(then, now) : NaN);
      if (past.length > KEPT) past.shift();
      const number = make("span", j ? "key-two" : "key-one", write(past[past.length - 1]));
      says.append(j ? " " : "", number, make("small", "", name));
    });
    return make("article", "", make("h2", "", title), says, draw(history[i]));
  });
  document.getElementById("tiles").replaceChildren(...tiles);
  document.getElementById("keys").replaceChildren(...clients(then, now));
  state(now);
};
const clients = (then, now) => {
  const names = new Set(rows(now, "mtplx_client_requests_total").map(({ labels }) => labels.key));
  const tokens = (key, kind) => rate(then, now, "mtplx_client_tokens_total", { key, kind });
  const line = (key) => make("tr", "", ...[key, number(tokens(key, "generated")),
    number(tokens(key, "prompt")), number(tokens(key, "cached")),
    number(sum(now, "mtplx_client_requests_total", { key }), 0),
    number(sum(now, "mtplx_client_requests_total", { key, outcome: "refused" }) || 0, 0),
    time(quantile(then, now, 0.95, "mtplx_client_queue_seconds", { key })),
  ].map((text) => make("td", "", text)));
  if (!names.size) return [make("tr", "", make("td", "", "nobody yet"))];
  return [...names].sort().map(line);
};
const state = (now) => {
  const serving = sum(now, "mtplx_serving_ratio") === 1;
  const { device = "", mtp = "" } = rows(now, "mtplx_engine_info").at(-1)?.labels ?? {};
  const version = rows(now, "mtplx_build_info")[0]?.labels.version ?? "";
  const up = time(now.s - sum(now, "mtplx_start_timestamp_seconds"));
  const ended = sum(now, "mtplx_generations_ended_total") || 0;
  const told = [`${version}, up ${up}`, device, mtp === "no" ? "no MTP head" : "",
    `engine ${number(sum(now, "mtplx_generation"), 0)}`, ended ? `${ended} failed` : ""];
  const word = make("span", serving ? "" : "bad", serving ? "Serving" : "Not serving");
  const rest = ` · ${told.filter(Boolean).join(" · ")}`;
  document.getElementById("state").replaceChildren(word, rest);
};

const look = async () => {
  try {
    const answer = await fetch("/metrics", { cache: "no-store" });
    if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
    seen.push({ s: Date.now() / 1000, all: parse(await answer.text()) });
    if (seen.length > WINDOW + 1) seen.shift();
    show();
  } catch (error) {
    const word = make("span", "bad", `No answer: ${error.message}`);
    document.getElementById("state").replaceChildren(word);
  }
  setTimeout(look, EVERY_MS);
};
look();
