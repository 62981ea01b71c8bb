// The page: conversations, their turns, and what is asked next.
"use strict";

import { make } from "/ui/markdown.js";
import { Refused, answer, served } from "/ui/server.js";
import * as store from "/ui/store.js";
import { copied, drawn, fill, rate } from "/ui/turns.js";

const at = (id) => document.getElementById(id);
const [talk, ask, pace, side, sheet, door] =
  ["talk", "ask", "pace", "side", "settings", "door"].map(at);
const form = sheet.querySelector("form");
/** How often a server that is away is looked for. */
const LOOK_MS = 3000;

let settings = store.settings();
let chat = store.chats().find(({ id }) => id === store.open()) ?? fresh();
/** Ends the answer in the making. */
let running;
/** Which turn is being written anew. */
let editing;
/** The page goes: what fails from now on was not the server's fault. */
let leaving = false;
/** What is known of the server. */
let server = {};

function fresh() {
  return { id: crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`, name: "", turns: [] };
}

const trouble = (text) => {
  at("trouble").textContent = text;
  at("trouble").hidden = !text;
};

/** Tells those who do not see the page. */
const say = (text) => { at("said").textContent = text; };

talk.addEventListener("click", (event) => {
  const button = event.target.closest("[data-copy=code]");
  if (button) copied(button, button.closest(".code").querySelector("pre").textContent);
});

// === the conversation ===

const nearEnd = () => talk.scrollHeight - talk.scrollTop - talk.clientHeight < 80;
const toEnd = () => { talk.scrollTop = talk.scrollHeight; };

const welcome = () => make("div", { class: "welcome" },
  make("h2", {}, "What would you like to know?"),
  make("p", {}, "What you write stays between this browser and this server."));

const draw = () => {
  const last = chat.turns.length - 1;
  const acts = (index) => ({
    edit: () => edit(index),
    again: index === last && !chat.turns[index].live ? () => again(index) : undefined,
  });
  const turns = chat.turns.map((turn, index) => drawn(turn, acts(index)));
  turns[editing]?.classList.add("editing");
  talk.replaceChildren(...(turns.length ? turns : [welcome()]));
  at("editing").hidden = editing === undefined;
  toEnd();
  list();
};

const list = () => {
  const row = (c) => make("li", {},
    make("button", { class: "name", type: "button", title: c.name || "New chat",
      "aria-current": c.id === chat.id && "true", onclick: () => show(c) }, c.name || "New chat"),
    make("button", { class: "drop", type: "button", "aria-label": `Delete ${c.name}`,
      onclick: () => remove(c) }, "×"));
  at("chats").replaceChildren(...store.chats().map(row));
};

const keep = (of) => {
  const said = store.keep(of);
  if (said) trouble(said);
};

const show = (wanted) => {
  running?.abort();
  [chat, editing] = [structuredClone(wanted), undefined];
  store.keepOpen(chat.turns.length ? chat.id : "");
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
  at("new").focus();
};

const aside = (open) => {
  side.classList.toggle("open", open);
  at("menu").setAttribute("aria-expanded", String(open));
  if (open) at("new").focus();
};

// === asking ===

const number = (name) => (settings[name] === "" ? undefined : Number(settings[name]));

const asked = (turns) => {
  const said = turns.filter((t) => t.text).map((t) => ({ role: t.role, content: t.text }));
  const system = settings.system.trim();
  return {
    model: server.name,
    messages: system ? [{ role: "system", content: system }, ...said] : said,
    stream: true,
    stream_options: { include_usage: true, continuous_usage_stats: true },
    temperature: number("temperature"), top_p: number("top_p"), top_k: number("top_k"),
    max_tokens: number("max_tokens"), seed: number("seed"),
    generation_mode: settings.mtp ? undefined : "ar",
    chat_template_kwargs: settings.thinking ? undefined : { enable_thinking: false },
  };
};

/** Adds a chunk to the turn, and to what is counted. */
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
  counts.context = chunk.usage?.total_tokens ?? counts.context;
  counts.drafted = chunk.mtp?.drafted ?? counts.drafted;
  counts.accepted = chunk.mtp?.accepted ?? counts.accepted;
  // The first tokens were made before the clock began.
  if (counts.tokens) counts.first ??= { tokens: counts.tokens, at: performance.now() };
  const passed = (performance.now() - counts.first?.at) / 1e3;
  counts.speed = passed > 0.2 ? (counts.tokens - counts.first.tokens) / passed : undefined;
  counts.speed = chunk.timings?.predicted_per_second || counts.speed;
};

const busy = (is) => {
  at("stop").hidden = !is;
  at("send").hidden = is;
  talk.setAttribute("aria-busy", String(is));
};

/** Says in a turn why there is no answer, or no more of it. */
const failed = (turn, error) => {
  if (error.name === "AbortError") {
    turn.end = "stopped";
    return;
  }
  if (!(error instanceof Refused)) {
    turn.error = "The server cannot be reached.";
    look();
    return;
  }
  turn.error = error.message;
  if (error.again) turn.again = Date.now() + 1000 * error.again;
  if (error.code === "context_length_exceeded") {
    turn.error += " Begin a new chat, or edit an earlier message.";
  }
  if (error.status === 401 && !door.open) door.showModal();
};

/** Shows a turn as it grows: as often as there are frames, but never busy with it most of the
    time, however long it is. */
const shower = (of, turn, counts) => {
  let [waiting, rest] = [false, 0];
  const now = () => {
    waiting = false;
    if (chat !== of) return;
    const [follow, since] = [nearEnd(), performance.now()];
    fill(talk.lastElementChild, turn);
    pace.textContent = rate(counts);
    if (follow) toEnd();
    rest = 4 * (performance.now() - since);
  };
  return () => {
    if (!waiting) setTimeout(() => (document.hidden ? now() : requestAnimationFrame(now)), rest);
    waiting = true;
  };
};

/** Has the conversation as it stands answered. */
const respond = async () => {
  running?.abort();
  const [mine, of] = [new AbortController(), chat];
  running = mine;
  const turns = of.turns.slice();
  const turn = { role: "assistant", text: "", live: true };
  of.turns.push(turn);
  store.keepOpen(of.id);
  draw();
  busy(true);
  say("Answering");
  const counts = {};
  const later = shower(of, turn, counts);
  try {
    if (!server.name) await about();
    for await (const chunk of answer(asked(turns), mine.signal)) {
      grow(turn, counts, chunk);
      later();
    }
  } catch (error) {
    if (leaving) return undefined;
    failed(turn, error);
  }
  delete turn.live;
  turn.rate = rate(counts);
  if (running === mine) {
    running = undefined;
    busy(false);
  }
  // Unless it was deleted meanwhile.
  if (store.chats().some((c) => c.id === of.id)) keep(of);
  if (chat !== of) return list();
  const [follow, top] = [nearEnd(), talk.scrollTop];
  draw();
  if (!follow) talk.scrollTop = top;
  pace.textContent = "";
  told(counts.context);
  return say(turn.error ?? `Answered: ${turn.rate}`);
};

const send = () => {
  const text = ask.value.trim();
  if (!text || running) return;
  trouble("");
  if (editing !== undefined) chat.turns.length = editing;
  editing = undefined;
  chat.turns.push({ role: "user", text });
  chat.name ||= text.slice(0, 60);
  write("");
  keep(chat);
  respond();
};

const again = (index) => {
  chat.turns.length = index;
  keep(chat);
  ask.focus();
  respond();
};

/** Takes a message back into the field; what follows it stays until it is sent. */
const edit = (index) => {
  if (index < 0) return;
  running?.abort();
  editing = index;
  write(chat.turns[index].text);
  draw();
  ask.focus();
};

const leave = () => {
  editing = undefined;
  write("");
  draw();
};

const write = (text) => {
  ask.value = text;
  ask.style.height = "auto";
  ask.style.height = `${ask.scrollHeight + 2}px`;
};

// === the page around it ===

/** What is served, and how full its context is. */
const told = (used) => {
  const { context, mtp } = server;
  const room = context?.toLocaleString("en");
  const full = used ? `${used.toLocaleString("en")} of ${room} tokens` : `${room} tokens of context`;
  at("about").textContent = [room ? full : "loading", mtp === false && "no MTP head"]
    .filter(Boolean).join(" · ");
  at("mtp").disabled = mtp === false;
};

const about = async () => {
  server = await served();
  at("model").textContent = server.name;
  document.title = `${server.name} · mtplx`;
  told();
};

/** Looks for the server until it is there. */
let looking;
const look = () => {
  clearTimeout(looking);
  about().then(
    () => {
      at("about").classList.remove("away");
      if (server.context === undefined) looking = setTimeout(look, LOOK_MS);
    },
    (error) => {
      at("about").classList.add("away");
      at("about").textContent = error instanceof Refused ? error.message : "The server is away.";
      looking = setTimeout(look, LOOK_MS);
    },
  );
};

const dress = () => {
  if (settings.theme) document.documentElement.dataset.theme = settings.theme;
  else delete document.documentElement.dataset.theme;
  at("mtp").setAttribute("aria-pressed", String(settings.mtp));
};

const keepSettings = () => {
  if (!store.keepSettings(settings)) trouble("This browser keeps no settings.");
  dress();
};

at("set").addEventListener("click", () => {
  for (const field of form.elements) {
    if (field.type === "checkbox") field.checked = settings[field.name];
    else if (field.name === "key") field.value = store.key();
    else if (field.name) field.value = settings[field.name];
  }
  sheet.showModal();
});
form.addEventListener("input", ({ target: { name, type, checked, value } }) => {
  if (name === "key") store.keepKey(value.trim());
  else settings[name] = type === "checkbox" ? checked : value;
  keepSettings();
});
at("mtp").addEventListener("click", () => {
  settings.mtp = !settings.mtp;
  keepSettings();
});
door.addEventListener("close", () => {
  if (door.returnValue !== "enter") return;
  store.keepKey(at("key").value.trim());
  [at("key").value, door.returnValue] = ["", ""];
  const last = chat.turns.length - 1;
  if (!running && chat.turns[last]?.error) again(last);
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
ask.addEventListener("input", () => write(ask.value));
at("stop").addEventListener("click", () => {
  running?.abort();
  ask.focus();
});
at("leave").addEventListener("click", leave);
at("new").addEventListener("click", () => show(fresh()));
at("menu").addEventListener("click", () => aside(!side.classList.contains("open")));
at("page").addEventListener("click", (event) => {
  if (!at("menu").contains(event.target)) aside(false);
});
at("hints").addEventListener("click", () => at("keys").showModal());

// === keys ===

ask.addEventListener("keydown", (event) => {
  if (event.isComposing) return;
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    send();
  }
  if (event.key === "ArrowUp" && !ask.value) {
    event.preventDefault();
    edit(chat.turns.findLastIndex((turn) => turn.role === "user"));
  }
});

const escaped = () => {
  if (side.classList.contains("open")) {
    aside(false);
    at("menu").focus();
  } else if (running) running.abort();
  else if (editing !== undefined) leave();
};

document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  const typing = event.target.closest?.("input, textarea, select");
  const act = {
    Escape: escaped,
    "/": typing ? undefined : () => ask.focus(),
    "?": typing ? undefined : () => at("keys").showModal(),
  }[event.key];
  const begins = (event.ctrlKey || event.metaKey) && event.shiftKey && event.code === "KeyO";
  if (!act && !begins) return;
  event.preventDefault();
  if (begins) show(fresh());
  else act();
});

// Another tab's conversations; and what this one shows, before it goes.
window.addEventListener("storage", list);
window.addEventListener("pagehide", () => {
  leaving = true;
  if (running) store.keep(chat);
});
window.addEventListener("pageshow", () => { leaving = false; });

dress();
draw();
look();
ask.focus();
