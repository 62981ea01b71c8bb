// The page: conversations, their turns, and what is asked next.
"use strict";

import { make, markdown } from "/ui/markdown.js";
import { Refused, answer, served } from "/ui/server.js";
import * as store from "/ui/store.js";

const at = (id) => document.getElementById(id);
const [talk, ask, pace, side, dialog] = ["talk", "ask", "pace", "side", "settings"].map(at);
const form = dialog.querySelector("form");

let settings = store.settings();
let chat = fresh();
/** Ends the answer in the making. */
let running;

function fresh() {
  return { id: crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`, name: "", turns: [] };
}

// === what is told ===

const rate = ({ tokens, seconds, drafted, accepted }) => {
  if (!tokens || !seconds) return "";
  const speed = `${tokens} tokens, ${(tokens / seconds).toFixed(1)} tokens/s`;
  const share = drafted ? `, ${Math.round((100 * accepted) / drafted)} % of drafts accepted` : "";
  return speed + share;
};

const trouble = (text) => {
  at("trouble").textContent = text;
  at("trouble").hidden = !text;
};

const copied = async (button, text) => {
  const done = await navigator.clipboard?.writeText(text).then(() => true, () => false);
  button.textContent = done ? "Copied" : "No clipboard";
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
};

talk.addEventListener("click", (event) => {
  const button = event.target.closest("[data-copy=code]");
  if (button) copied(button, button.closest(".code").querySelector("pre").textContent);
});

// === turns ===

const called = ({ name, text }) => {
  let told = text;
  try {
    told = JSON.stringify(JSON.parse(text), undefined, 2);
  } catch { /* Still in the making, or cut off: as it came. */ }
  return make("details", {}, make("summary", {}, `Tool call: ${name}`),
    make("pre", { tabindex: "0" }, make("code", {}, told)));
};

/** Fills a turn's node with what the turn holds. */
const fill = (node, turn) => {
  const body = node.querySelector(".body");
  if (turn.role === "user") return body.replaceChildren(turn.text);
  // What the reader opened stays open while the answer grows.
  const open = body.querySelector(".thinking")?.open;
  const parts = markdown(turn.text);
  if (turn.thought) {
    const title = turn.live && !turn.text ? "Thinking …" : "Thoughts";
    const thought = make("div", { class: "thought" }, turn.thought);
    parts.unshift(make("details", { class: "thinking", open }, make("summary", {}, title), thought));
  }
  parts.push(...(turn.calls ?? []).filter(Boolean).map(called));
  body.replaceChildren(...parts);
  body.classList.toggle("waiting", Boolean(turn.live));
  node.querySelector(".rate").textContent = turn.live ? "" : [turn.rate, turn.end].filter(Boolean).join(" · ");
  const error = node.querySelector(".error");
  error.textContent = turn.error ?? "";
  error.hidden = !turn.error;
};

const drawn = (turn, index) => {
  const mine = turn.role === "user";
  const button = (name, act) => make("button", { type: "button", onclick: act }, name);
  const copy = button("Copy", () => copied(copy, turn.text));
  const other = mine ? button("Edit", () => edit(index)) : button("Again", () => again(index));
  const node = make("article", { class: `turn ${turn.role}`, "aria-label": mine ? "You" : "Answer" },
    make("p", { class: "who" }, mine ? "You" : "Answer"),
    make("div", { class: "body" }),
    make("p", { class: "error", hidden: true }),
    make("div", { class: "tools" }, copy, other, make("p", { class: "dim rate" })));
  fill(node, turn);
  return node;
};

const nearEnd = () => talk.scrollHeight - talk.scrollTop - talk.clientHeight < 80;
const toEnd = () => { talk.scrollTop = talk.scrollHeight; };

const draw = () => {
  const hello = make("p", { class: "welcome" }, "Everything you write stays between this browser and this server.");
  talk.replaceChildren(...(chat.turns.length ? chat.turns.map(drawn) : [hello]));
  toEnd();
  list();
};

// === conversations ===

const list = () => {
  const row = (c) => make("li", {},
    make("button", { class: "name", type: "button", title: c.name || "New chat",
      "aria-current": c.id === chat.id && "true", onclick: () => show(c) }, c.name || "New chat"),
    make("button", { class: "drop", type: "button", "aria-label": `Delete ${c.name}`,
      onclick: () => remove(c) }, "×"));
  at("chats").replaceChildren(...store.chats().map(row));
};

const keep = () => {
  if (!store.keep(chat)) trouble("This browser has no room for the conversation: it will be lost with the page.");
};

const show = (wanted) => {
  running?.abort();
  chat = structuredClone(wanted);
  trouble("");
  pace.textContent = "";
  aside(false);
  draw();
  ask.focus();
};

const remove = (gone) => {
  if (!confirm(`Delete "${gone.name}"?`)) return;
  store.drop(gone.id);
  if (gone.id === chat.id) show(fresh());
  else list();
};

const aside = (open) => {
  side.classList.toggle("open", open);
  at("menu").setAttribute("aria-expanded", String(open));
};

// === asking ===

const number = (name) => (settings[name] === "" ? undefined : Number(settings[name]));

const asked = (turns) => {
  const said = turns.filter((t) => t.text).map((t) => ({ role: t.role, content: t.text }));
  const system = settings.system.trim();
  return {
    model: at("model").dataset.name || "default",
    messages: system ? [{ role: "system", content: system }, ...said] : said,
    stream: true,
    stream_options: { include_usage: true, continuous_usage_stats: true },
    temperature: number("temperature"), top_p: number("top_p"), top_k: number("top_k"),
    max_tokens: number("max_tokens"), seed: number("seed"),
    generation_mode: settings.mtp ? undefined : "ar",
    chat_template_kwargs: settings.thinking ? undefined : { enable_thinking: false },
  };
};

/** Adds a chunk to the turn. */
const grow = (turn, counts, chunk) => {
  const { delta, finish_reason: reason } = chunk.choices?.[0] ?? {};
  turn.thought = (turn.thought ?? "") + (delta?.reasoning_content ?? "");
  turn.text += delta?.content ?? "";
  for (const { index, function: { name, arguments: more } } of delta?.tool_calls ?? []) {
    turn.calls ??= [];
    turn.calls[index] ??= { name, text: "" };
    turn.calls[index].text += more ?? "";
  }
  if (reason === "length") turn.end = "cut off by its length";
  counts.tokens = chunk.usage?.completion_tokens ?? counts.tokens;
  counts.drafted = chunk.mtp?.drafted ?? counts.drafted;
  counts.accepted = chunk.mtp?.accepted ?? counts.accepted;
  if (counts.tokens && !counts.since) counts.since = performance.now();
  // The first chunk's tokens were made before the clock began.
  counts.seconds = (performance.now() - (counts.since ?? performance.now())) / 1e3;
  if (chunk.timings) counts.seconds = chunk.timings.predicted_ms / 1e3;
};

const busy = (is) => {
  at("stop").hidden = !is;
  at("send").hidden = is;
  talk.setAttribute("aria-busy", String(is));
};

/** Has the conversation as it stands answered. */
const respond = async () => {
  running?.abort();
  const [mine, of] = [new AbortController(), chat];
  running = mine;
  const turn = { role: "assistant", text: "", live: true };
  const turns = of.turns.slice();
  of.turns.push(turn);
  draw();
  busy(true);
  const node = talk.lastElementChild;
  const counts = { tokens: 0, seconds: 0, drafted: 0, accepted: 0 };
  let waiting = false;
  const later = () => {
    waiting = false;
    if (chat !== of) return;
    const follow = nearEnd();
    fill(node, turn);
    pace.textContent = turn.live ? rate(counts) : "";
    if (follow) toEnd();
  };
  try {
    for await (const chunk of answer(asked(turns), settings.key, mine.signal)) {
      grow(turn, counts, chunk);
      if (!waiting) requestAnimationFrame(later);
      waiting = true;
    }
  } catch (error) {
    if (error.name === "AbortError") turn.end = "stopped";
    else turn.error = error instanceof Refused ? error.message : `The server cannot be reached: ${error.message}`;
  }
  delete turn.live;
  turn.rate = rate(counts);
  later();
  if (running === mine) {
    running = undefined;
    busy(false);
  }
  if (store.chats().some((c) => c.id === of.id)) store.keep(of);
  list();
};

const send = () => {
  const text = ask.value.trim();
  if (!text || running) return;
  trouble("");
  chat.turns.push({ role: "user", text });
  chat.name ||= text.slice(0, 60);
  ask.value = "";
  fit();
  keep();
  respond();
};

const again = (index) => {
  chat.turns.length = index;
  keep();
  respond();
};

const edit = (index) => {
  running?.abort();
  ask.value = chat.turns[index].text;
  chat.turns.length = index;
  keep();
  draw();
  fit();
  ask.focus();
};

const fit = () => {
  ask.style.height = "auto";
  ask.style.height = `${ask.scrollHeight + 2}px`;
};

// === the page around it ===

const about = async () => {
  try {
    const { name, context, mtp } = await served(settings.key);
    at("model").textContent = name;
    at("model").dataset.name = name;
    const room = context ? `${context.toLocaleString("en")} tokens of context` : "loading";
    at("about").textContent = [room, mtp === false ? "no MTP head" : ""].filter(Boolean).join(" · ");
    document.title = `${name} · mtplx`;
  } catch (error) {
    at("about").textContent = error instanceof Refused ? error.message : "the server cannot be reached";
  }
};

const dress = () => {
  if (settings.theme) document.documentElement.dataset.theme = settings.theme;
  else delete document.documentElement.dataset.theme;
};

at("set").addEventListener("click", () => {
  for (const field of form.elements) {
    if (field.type === "checkbox") field.checked = settings[field.name];
    else if (field.name) field.value = settings[field.name];
  }
  dialog.showModal();
});
dialog.addEventListener("close", () => {
  for (const field of form.elements) {
    if (field.name) settings[field.name] = field.type === "checkbox" ? field.checked : field.value;
  }
  if (!store.keepSettings(settings)) trouble("This browser keeps no settings.");
  dress();
  about();
});
at("forget").addEventListener("click", () => {
  if (!confirm("Delete all conversations of this browser?")) return;
  store.dropAll();
  show(fresh());
});
at("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
ask.addEventListener("input", fit);
ask.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
at("stop").addEventListener("click", () => running?.abort());
at("new").addEventListener("click", () => show(fresh()));
at("menu").addEventListener("click", () => aside(!side.classList.contains("open")));
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey && event.shiftKey && event.code === "KeyO") {
    event.preventDefault();
    show(fresh());
  }
  if (event.key !== "Escape" || dialog.open) return;
  if (side.classList.contains("open")) aside(false);
  else running?.abort();
});
// Another tab's conversations.
window.addEventListener("storage", list);

dress();
draw();
about();
ask.focus();
