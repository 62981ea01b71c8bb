// A turn of a conversation as nodes: what was said, thought and called, and what can be done with
// it. While an answer grows only what changed is made anew, so that focus and folds stay.
"use strict";

import { make, markdown } from "/ui/markdown.js";

/** How fast an answer came, and how many of its drafts stood. */
export const rate = ({ tokens, speed, drafted, accepted }) => {
  if (!tokens) return "";
  const parts = [`${tokens} ${tokens === 1 ? "token" : "tokens"}`];
  if (speed) parts.push(`${speed.toFixed(1)} tokens/s`);
  if (drafted) parts.push(`${Math.round((100 * accepted) / drafted)} % of drafts accepted`);
  return parts.join(" · ");
};

/** Pages that came unencrypted from another machine have no clipboard but the old one. */
const copiedTheOldWay = (text) => {
  const field = make("textarea", { class: "unseen", "aria-hidden": "true" });
  field.value = text;
  const focused = document.activeElement;
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  focused?.focus();
  return done;
};

/** Copies a text, and says so on the button for a while. */
export const copied = async (button, text) => {
  let done = await navigator.clipboard?.writeText(text).then(() => true, () => false);
  done ||= copiedTheOldWay(text);
  button.textContent = done ? "Copied" : "No clipboard";
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
};

const called = ({ name, text }) => {
  let told = text;
  try {
    told = JSON.stringify(JSON.parse(text), undefined, 2);
  } catch { /* Still in the making, or cut off: as it came. */ }
  const bar = make("div", { class: "bar" }, make("span", {}, "Tool call: ", make("b", {}, name)),
    make("button", { type: "button", "data-copy": "code" }, "Copy"));
  const label = `Arguments of ${name}`;
  const inside = make("pre", { tabindex: "0", role: "region", "aria-label": label },
    make("code", {}, told));
  return make("div", { class: "code call" }, bar, inside);
};

const seconds = (until) => Math.max(0, Math.ceil((until - Date.now()) / 1000));

/** Fills a turn's node with what the turn holds. */
export const fill = (node, turn) => {
  const at = (name) => node.querySelector(`:scope > ${name}`);
  if (turn.role === "user") return at(".body").replaceChildren(turn.text);
  const thinking = at(".thinking");
  thinking.hidden = !turn.thought;
  if (turn.thought) {
    thinking.querySelector("summary").textContent =
      turn.live && !turn.text ? "Thinking …" : "Thoughts";
    thinking.querySelector(".thought").textContent = turn.thought;
  }
  at(".body").replaceChildren(...markdown(turn.text));
  at(".body").classList.toggle("waiting", Boolean(turn.live));
  at(".calls").replaceChildren(...(turn.calls ?? []).filter(Boolean).map(called));
  at(".error").textContent = turn.error ?? "";
  at(".error").hidden = !turn.error;
  at(".tools").hidden = Boolean(turn.live);
  const told = [turn.rate, turn.end].filter(Boolean).join(" · ");
  at(".tools").querySelector(".rate").textContent = told;
  return undefined;
};

/** Counts down to when a refused question may be asked again. */
const countdown = (button, turn) => {
  const left = seconds(turn.again);
  button.disabled = left > 0;
  button.textContent = left > 0 ? `Again in ${left} s` : "Again";
  if (left > 0) {
    setTimeout(() => button.isConnected && countdown(button, turn), 1000 - (Date.now() % 1000));
  }
};

/** A turn's node. `acts` says what its buttons do; who has no `again` is not the last. */
export const drawn = (turn, acts) => {
  const mine = turn.role === "user";
  const button = (name, act) => make("button", { type: "button", onclick: act }, name);
  const tools = make("div", { class: "tools" });
  const copy = button("Copy", () => copied(copy, turn.text));
  if (turn.text) tools.append(copy);
  if (mine) tools.append(button("Edit", acts.edit));
  if (!mine && acts.again) {
    const again = button("Again", acts.again);
    tools.append(again);
    if (turn.again) countdown(again, turn);
  }
  if (!mine) tools.append(make("p", { class: "dim rate" }));
  const who = mine ? "You" : "Answer";
  const thinking = make("details", { class: "thinking", hidden: true }, make("summary"),
    make("div", { class: "thought" }));
  const node = make("article", { class: `turn ${turn.role}`, "aria-label": who },
    make("h2", { class: "who" }, who), mine ? undefined : thinking, make("div", { class: "body" }),
    make("div", { class: "calls" }), make("p", { class: "error", hidden: true }), tools);
  fill(node, turn);
  return node;
};
