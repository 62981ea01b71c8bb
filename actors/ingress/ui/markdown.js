// Markdown as nodes. No string ever becomes HTML: text is only put into text nodes, and the few
// attributes that exist are checked, so nothing that a model writes can run.
"use strict";

/** A node with attributes and what is inside it. */
export const make = (tag, attributes = {}, ...inside) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...inside.filter((part) => part !== undefined && part !== null));
  return node;
};

/** A web or mail address as it may be linked, else nothing. */
const address = (text) => {
  try {
    const url = new URL(text);
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : undefined;
  } catch {
    return undefined;
  }
};

const link = (text, to) => {
  const href = address(to);
  if (!href) return document.createTextNode(text);
  return make("a", { href, rel: "noopener noreferrer nofollow", target: "_blank" }, text);
};

// Each with the node that it makes. Images stay words: nothing is fetched from elsewhere.
const SPANS = [
  [/^(`+)([^`]|[^`][^]*?[^`])\1(?!`)/, (m) => make("code", {}, m[2].trim() || m[2])],
  [/^!?\[([^\]\n]{1,500})\]\(([^()\s]{1,2000})(?:\s+"[^"\n]*")?\)/, (m) => link(m[1], m[2])],
  [/^<(https?:\/\/[^\s<>]{1,2000}|[^\s<>@]{1,200}@[^\s<>@]{1,200}\.[a-z]+)>/i,
    (m) => link(m[1], m[1].includes("://") ? m[1] : `mailto:${m[1]}`)],
  [/^https?:\/\/[^\s<>"')\]]{1,2000}[^\s<>"')\].,;:!?]/i, (m) => link(m[0], m[0])],
  [/^\*\*(?=\S)([^]{0,2000}?\S)\*\*(?!\*)/, (m, deep) => make("strong", {}, ...spans(m[1], deep))],
  [/^__(?=\S)([^]{0,2000}?\S)__(?!\w)/, (m, deep) => make("strong", {}, ...spans(m[1], deep))],
  [/^~~(?=\S)([^]{0,2000}?\S)~~/, (m, deep) => make("del", {}, ...spans(m[1], deep))],
  [/^\*(?=[^\s*])([^*]{0,2000}?[^\s*])\*(?!\*)/, (m, deep) => make("em", {}, ...spans(m[1], deep))],
  [/^_(?=[^\s_])([^_]{0,2000}?[^\s_])_(?!\w)/, (m, deep) => make("em", {}, ...spans(m[1], deep))],
  [/^ {2,}\n|^\\\n/, () => make("br")],
  [/^\\([!-/:-@[-`{-~])/, (m) => document.createTextNode(m[1])],
];
// Where a span may begin; underscores within words are letters.
const BEGINS = /[`[!<*~\\]|(?<!\w)_|(?<!\w)https?:\/\/| {2,}\n/gi;
const DEPTH = 6;

/** The nodes of a paragraph's text. */
const spans = (text, deep = 0) => {
  if (deep > DEPTH) return [text];
  const nodes = [];
  let [plain, at] = [0, 0];
  while (at < text.length) {
    BEGINS.lastIndex = at;
    const found = BEGINS.exec(text);
    if (!found) break;
    at = found.index;
    const rest = text.slice(at, at + 4100);
    const span = SPANS.map(([rule, node]) => [rule.exec(rest), node]).find(([m]) => m);
    if (!span) {
      at += 1;
      continue;
    }
    if (at > plain) nodes.push(text.slice(plain, at));
    nodes.push(span[1](span[0], deep + 1));
    at += span[0][0].length;
    plain = at;
  }
  if (plain < text.length) nodes.push(text.slice(plain));
  return nodes;
};

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)[^`\n]*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const ITEM = /^( {0,12})([-*+]|\d{1,9}[.)])(?:\s+(.*))?$/;
const QUOTE = /^ {0,3}> ?(.*)$/;
const DIVIDER = /^ {0,3}\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;

const cells = (line) =>
  line.trim().replace(/^\||(?<!\\)\|$/g, "").split(/(?<!\\)\|/)
    .map((cell) => cell.trim().replaceAll("\\|", "|"));

const code = (language, lines) => {
  const inner = make("code", {}, lines.join("\n"));
  const copy = make("button", { type: "button", "data-copy": "code" }, "Copy");
  const bar = make("div", { class: "bar" }, make("span", {}, language || "text"), copy);
  return make("div", { class: "code" }, bar, make("pre", { tabindex: "0" }, inner));
};

/** The lines of one list item, without what they are indented by. */
const item = (lines, from, indent) => {
  const inside = [];
  let at = from;
  while (at < lines.length) {
    const line = lines[at];
    const blank = line.trim() === "";
    const deeper = line.search(/\S/) >= indent;
    if (!blank && !deeper) break;
    if (blank && !(lines[at + 1]?.trim() && lines[at + 1].search(/\S/) >= indent)) break;
    inside.push(blank ? "" : line.slice(indent));
    at += 1;
  }
  return [inside, at];
};

const list = (lines, from, deep) => {
  const [, lead, mark] = ITEM.exec(lines[from]);
  const ordered = /\d/.test(mark);
  const start = ordered && Number.parseInt(mark, 10) !== 1 ? Number.parseInt(mark, 10) : undefined;
  const node = make(ordered ? "ol" : "ul", { start });
  let at = from;
  while (at < lines.length) {
    const m = ITEM.exec(lines[at]);
    if (!m || m[1].length !== lead.length || /\d/.test(m[2]) !== ordered) break;
    const [inside, next] = item(lines, at + 1, lead.length + 2);
    const first = m[3] ?? "";
    const rest = blocks([first, ...inside], deep + 1);
    // One paragraph is no paragraph of its own.
    const flat = rest.map((n) => (n.nodeName === "P" ? [...n.childNodes] : [n])).flat();
    node.append(make("li", {}, ...(rest.filter((n) => n.nodeName === "P").length > 1 ? rest : flat)));
    at = next;
    while (lines[at]?.trim() === "" && ITEM.test(lines[at + 1] ?? "")) at += 1;
  }
  return [node, at];
};

const table = (lines, from) => {
  const row = (line, tag) => make("tr", {}, ...cells(line).map((c) => make(tag, {}, ...spans(c))));
  const body = [];
  let at = from + 2;
  while (at < lines.length && lines[at].includes("|") && lines[at].trim()) {
    body.push(row(lines[at], "td"));
    at += 1;
  }
  const head = make("thead", {}, row(lines[from], "th"));
  return [make("table", {}, head, make("tbody", {}, ...body)), at];
};

const begins = (lines, at) =>
  FENCE.test(lines[at]) || HEADING.test(lines[at]) || RULE.test(lines[at]) || QUOTE.test(lines[at]) ||
  ITEM.test(lines[at]);

const fenced = (lines, from) => {
  const [, fence, language] = FENCE.exec(lines[from]);
  const closes = new RegExp(`^ {0,3}${fence[0]}{${fence.length},}\\s*$`);
  let at = from + 1;
  while (at < lines.length && !closes.test(lines[at])) at += 1;
  return [code(language, lines.slice(from + 1, at)), at + 1];
};

const quoted = (lines, from, deep) => {
  let at = from;
  const inside = [];
  while (at < lines.length && QUOTE.test(lines[at])) inside.push(QUOTE.exec(lines[at++])[1]);
  return [make("blockquote", {}, ...blocks(inside, deep + 1)), at];
};

/** The block that begins at a line, and where the next one does. */
const block = (lines, at, deep) => {
  const line = lines[at];
  if (FENCE.test(line)) return fenced(lines, at);
  const heading = HEADING.exec(line);
  // The page has its own two levels.
  if (heading) return [make(`h${Math.min(6, heading[1].length + 2)}`, {}, ...spans(heading[2])), at + 1];
  if (RULE.test(line)) return [make("hr"), at + 1];
  if (deep < DEPTH && QUOTE.test(line)) return quoted(lines, at, deep);
  if (deep < DEPTH && ITEM.test(line)) return list(lines, at, deep);
  if (line.includes("|") && DIVIDER.test(lines[at + 1] ?? "")) return table(lines, at);
  let end = at + 1;
  while (end < lines.length && lines[end].trim() && !begins(lines, end)) end += 1;
  return [make("p", {}, ...spans(lines.slice(at, end).join("\n"))), end];
};

const blocks = (lines, deep) => {
  const nodes = [];
  let at = 0;
  while (at < lines.length) {
    if (lines[at].trim() === "") {
      at += 1;
      continue;
    }
    const [node, next] = block(lines, at, deep);
    nodes.push(node);
    at = next;
  }
  return nodes;
};

/** A text in Markdown as nodes. */
export const markdown = (text) => blocks(text.replaceAll("\r\n", "\n").split("\n"), 0);
