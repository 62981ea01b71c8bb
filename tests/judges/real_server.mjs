// The official JavaScript clients of OpenAI and Anthropic against a running server with the
// embedded model, as real_server.py. Usage: node real_server.mjs BASE_URL.

import assert from "node:assert/strict";

import Anthropic from "@anthropic-ai/sdk";
import OpenAI from "openai";

const url = process.argv[2];
const oai = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const ant = new Anthropic({ baseURL: url, apiKey: "none", maxRetries: 0 });
const model = (await oai.models.list()).data[0].id;
const messages = [{ role: "user", content: "Tell me a short story about a dragon." }];
const parameters = {
  type: "object",
  properties: { city: { enum: ["Paris", "Rome"] }, days: { type: "integer", minimum: 1, maximum: 9 } },
  required: ["city", "days"],
  additionalProperties: false,
};
const fits = ({ city, days }) => ["Paris", "Rome"].includes(city) && days >= 1 && days <= 9;

{
  const ask = { model, messages, temperature: 0, max_tokens: 60 };
  const whole = await oai.chat.completions.create(ask);
  const stream = oai.chat.completions.stream(ask);
  let pieces = 0;
  stream.on("content", () => (pieces += 1));
  const final = await stream.finalChatCompletion();
  assert.equal(final.choices[0].message.content, whole.choices[0].message.content);
  assert.ok(pieces > 5);
  const tools = [{ type: "function", function: { name: "weather", parameters } }];
  const calling = { ...ask, tools, tool_choice: "required", parallel_tool_calls: false };
  const called = (await oai.chat.completions.stream(calling).finalChatCompletion()).choices[0];
  assert.equal(called.finish_reason, "tool_calls");
  assert.ok(fits(JSON.parse(called.message.tool_calls[0].function.arguments)));
}

{
  const ask = { model, input: messages, temperature: 0, max_output_tokens: 40 };
  const whole = await oai.responses.create(ask);
  const streamed = await oai.responses.stream(ask).finalResponse();
  assert.equal(streamed.output_text, whole.output_text);
  assert.notEqual(whole.output_text, "");
}

{
  const ask = { model: "claude-sonnet", messages, max_tokens: 60, temperature: 0 };
  const whole = await ant.messages.create(ask);
  const streamed = await ant.messages.stream(ask).finalMessage();
  assert.equal(streamed.content[0].text, whole.content[0].text);
  assert.equal(streamed.stop_reason, "max_tokens");
  const tools = [{ name: "weather", input_schema: parameters }];
  const calling = { ...ask, tools, tool_choice: { type: "any" } };
  const called = await ant.messages.stream(calling).finalMessage();
  assert.equal(called.stop_reason, "tool_use");
  assert.ok(called.content.every((block) => fits(block.input)));
}

console.log("both clients are served");
