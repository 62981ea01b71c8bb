// What is asked of the server: its own routes, as any client asks them.
"use strict";

import { key } from "/ui/store.js";

/** What the server refused, in its own words; `again` is when to come again, in seconds. */
export class Refused extends Error {
  constructor(message, { status, code, again } = {}) {
    super(message);
    Object.assign(this, { status, code, again });
  }
}

const headers = () => ({
  "content-type": "application/json",
  ...(key() ? { authorization: `Bearer ${key()}` } : {}),
});

const refusal = async (response) => {
  const { status } = response;
  const error = (await response.json().catch(() => undefined))?.error;
  const said = error?.message ?? `The server, or what stands before it, answered with ${status}.`;
  const again = Number.parseInt(response.headers.get("retry-after"), 10) || undefined;
  return new Refused(said, { status, code: error?.code, again });
};

/** The model that is served: its name, its context, whether it speculates. */
export const served = async () => {
  const response = await fetch("/v1/models", { headers: headers() });
  if (!response.ok) throw await refusal(response);
  const { data: [card] } = await response.json();
  return { name: card.id, context: card.meta?.context_length, mtp: card.meta?.mtp };
};

/** The data of events, one after another, as they come. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    while (true) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split(/\r?\n/);
      rest = lines.pop();
      for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

const BROKE_OFF = "The answer broke off: the server, or the way to it, failed in the middle.";

/** The chunks of an answer. Leaving the loop, or the signal, ends the request. */
export async function* answer(body, signal) {
  const options = { method: "POST", headers: headers(), body: JSON.stringify(body), signal };
  const response = await fetch("/v1/chat/completions", options);
  if (!response.ok) throw await refusal(response);
  try {
    for await (const data of events(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Refused(chunk.error.message, { code: chunk.error.code });
      yield chunk;
    }
  } catch (error) {
    // What fails behind the head of an answer is no server that is away.
    if (error instanceof Refused || error.name === "AbortError") throw error;
    throw new Refused(BROKE_OFF);
  }
  throw new Refused(BROKE_OFF);
}
