// What is asked of the server: its own routes, as any client asks them.
"use strict";

/** What the server refused, in its own words. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

const headers = (key) => ({
  "content-type": "application/json",
  ...(key ? { authorization: `Bearer ${key}` } : {}),
});

const refusal = async (response) => {
  const body = await response.json().catch(() => undefined);
  const said = body?.error?.message ?? `${response.status} ${response.statusText}`;
  const again = response.headers.get("retry-after");
  return new Refused(response.status, again ? `${said} (again in ${again} s)` : said);
};

/** The model that is served: its name, its context, whether it speculates. */
export const served = async (key) => {
  const response = await fetch("/v1/models", { headers: headers(key) });
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

/** The chunks of an answer. Leaving the loop, or the signal, ends the request. */
export async function* answer(body, key, signal) {
  const options = { method: "POST", headers: headers(key), body: JSON.stringify(body), signal };
  const response = await fetch("/v1/chat/completions", options);
  if (!response.ok) throw await refusal(response);
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Refused(200, chunk.error.message);
    yield chunk;
  }
  throw new Refused(200, "the answer broke off: the server or the way to it failed");
}
