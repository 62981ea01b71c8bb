// Conversations and settings, in this browser's local storage. What cannot be read is begun anew;
// where there is no room the oldest conversation goes.
"use strict";

const CHATS = "mtplx.chats.1";
const SETTINGS = "mtplx.settings.1";
const CHATS_MAX = 200;

const DEFAULTS = {
  system: "", temperature: "", top_p: "", top_k: "", max_tokens: "", seed: "",
  theme: "", mtp: true, thinking: true, key: "",
};

const read = (name, fallback) => {
  try {
    return JSON.parse(localStorage.getItem(name)) ?? fallback;
  } catch {
    return fallback;
  }
};

const sound = (chat) =>
  typeof chat?.id === "string" && Array.isArray(chat.turns) &&
  chat.turns.every((t) => ["user", "assistant"].includes(t?.role) && typeof t.text === "string");

/** All conversations, the latest first. */
export const chats = () => {
  const all = read(CHATS, []);
  return Array.isArray(all) ? all.filter(sound) : [];
};

const write = (all) => {
  const kept = all.slice(0, CHATS_MAX);
  while (true) {
    try {
      localStorage.setItem(CHATS, JSON.stringify(kept));
      return kept.length;
    } catch {
      if (kept.length <= 1) return 0;
      kept.pop();
    }
  }
};

/** Keeps a conversation, first of all; whether there was room. Other tabs' are left as they are. */
export const keep = (chat) => write([chat, ...chats().filter((c) => c.id !== chat.id)]) > 0;

/** Forgets one conversation. */
export const drop = (id) => write(chats().filter((c) => c.id !== id));

/** Forgets them all. */
export const dropAll = () => write([]);

/** The settings, complete. */
export const settings = () => ({ ...DEFAULTS, ...read(SETTINGS, {}) });

/** Keeps settings; whether there was room. */
export const keepSettings = (values) => {
  try {
    localStorage.setItem(SETTINGS, JSON.stringify(values));
    return true;
  } catch {
    return false;
  }
};
