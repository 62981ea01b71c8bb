// Conversations and settings, in this browser's local storage; a key for this tab only, in its
// session's. What cannot be read is begun anew; where there is no room the oldest conversations go.
"use strict";

const CHATS = "mtplx.chats.1";
const SETTINGS = "mtplx.settings.1";
const KEY = "mtplx.key";
const OPEN = "mtplx.open";
const CHATS_MAX = 200;

const DEFAULTS = {
  system: "", temperature: "", top_p: "", top_k: "", max_tokens: "", seed: "",
  theme: "", mtp: true, thinking: true,
};

const read = (name, fallback) => {
  try {
    return JSON.parse(localStorage.getItem(name)) ?? fallback;
  } catch {
    return fallback;
  }
};

/** Writes, or removes; whether there was room. */
const put = (storage, name, value) => {
  try {
    if (value) window[storage].setItem(name, value);
    else window[storage].removeItem(name);
    return true;
  } catch {
    return false;
  }
};

const ofTab = (name) => {
  try {
    return sessionStorage.getItem(name) ?? "";
  } catch {
    return "";
  }
};

const isText = (value) => value === undefined || typeof value === "string";

const soundTurn = (turn) =>
  ["user", "assistant"].includes(turn?.role) && typeof turn.text === "string" &&
  [turn.thought, turn.error, turn.end, turn.rate].every(isText) &&
  (turn.again === undefined || typeof turn.again === "number") &&
  (turn.calls ?? []).every?.((call) => !call || (isText(call.name) && isText(call.text)));

const sound = (chat) =>
  typeof chat?.id === "string" && isText(chat.name) && Array.isArray(chat.turns) &&
  chat.turns.every(soundTurn);

/** All conversations, the latest first. */
export const chats = () => {
  const all = read(CHATS, []);
  return Array.isArray(all) ? all.filter(sound) : [];
};

/** Writes as many as there is room for; how many had to go. */
const write = (all) => {
  const kept = all.slice(0, CHATS_MAX);
  while (!put("localStorage", CHATS, JSON.stringify(kept))) {
    if (kept.length === 0) break;
    kept.pop();
  }
  return all.length - kept.length;
};

/** Keeps a conversation, first of all; what of that is worth a word. */
export const keep = (chat) => {
  // One that is being answered is kept as though it had ended here.
  const turns = chat.turns.map(({ live, ...turn }) => (live ? { ...turn, end: "cut off" } : turn));
  const all = [{ ...chat, turns }, ...chats().filter((c) => c.id !== chat.id)];
  const gone = write(all);
  if (gone === all.length) {
    return "This browser has no room for the conversation: it will be lost with the page.";
  }
  return gone ? "This browser's storage is full: the oldest conversations were let go." : "";
};

/** Forgets one conversation. */
export const drop = (id) => write(chats().filter((c) => c.id !== id));

/** Forgets them all. */
export const dropAll = () => write([]);

/** Which conversation this tab shows. */
export const open = () => ofTab(OPEN);

/** Remembers it. */
export const keepOpen = (id) => put("sessionStorage", OPEN, id);

/** The key for this server, as long as the tab lives. */
export const key = () => ofTab(KEY);

/** Remembers it. */
export const keepKey = (value) => put("sessionStorage", KEY, value);

/** The settings, complete: what is of another kind than it should be is as it was at first. */
export const settings = () => {
  const kept = read(SETTINGS, {});
  const of = ([name, usual]) => [name, typeof kept[name] === typeof usual ? kept[name] : usual];
  return Object.fromEntries(Object.entries(DEFAULTS).map(of));
};

/** Keeps settings; whether there was room. */
export const keepSettings = (values) => put("localStorage", SETTINGS, JSON.stringify(values));
