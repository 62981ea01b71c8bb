// The official JavaScript clients of OpenAI and Anthropic, against the same scripted model as
// agent_clients.py. Usage: node agent_clients.mjs BASE_URL. Exits non-zero on any surprise.

import assert from "node:assert/strict";

import Anthropic from "@anthropic-ai/sdk";
import OpenAI from "openai";

const url = process.argv[2];
const oai = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const ant = new Anthropic({ baseURL: url, apiKey: "none", maxRetries: 0 });
const ANSWER = "It is sunny in Paris.";
const ARGUMENTS = { city: "Paris", days: 2 };
const parameters = {
  type: "object",
  properties: { city: { type: "string" }, days: { type: "integer" } },
};

{
  const tools = [{ type: "function", function: { name: "weather", parameters } }];
  const messages = [{ role: "user", content: "Go" }];
  const stream = oai.chat.completions.stream({ model: "tiny", messages, tools });
  const first = (await stream.finalChatCompletion()).choices[0];
  assert.equal(first.finish_reason, "tool_calls");
  const [call] = first.message.tool_calls;
  assert.deepEqual(JSON.parse(call.function.arguments), ARGUMENTS);
  messages.push(first.message, { role: "tool", tool_call_id: call.id, content: "sunny" });
  const second = await oai.chat.completions.create({ model: "tiny", messages, tools });
  assert.equal(second.choices[0].message.content, ANSWER);
}

{
  const tools = [{ type: "function", name: "weather", parameters, strict: false }];
  const ask = { model: "tiny", tools, reasoning: { effort: "high" } };
  const first = await oai.responses.stream({ input: "Go", ...ask }).finalResponse();
  assert.deepEqual(first.output.map((item) => item.type), ["reasoning", "function_call"]);
  const call = first.output[1];
  assert.deepEqual(JSON.parse(call.arguments), ARGUMENTS);
  const said = { type: "function_call_output", call_id: call.call_id, output: "sunny" };
  const next = { input: [said], previous_response_id: first.id, ...ask };
  assert.equal((await oai.responses.create(next)).output_text, ANSWER);
}

{
  const tools = [{ name: "weather", input_schema: parameters }];
  const thinking = { type: "enabled", budget_tokens: 1024 };
  const ask = { model: "claude-opus", max_tokens: 500, tools, thinking };
  const messages = [{ role: "user", content: "Go" }];
  const first = await ant.messages.stream({ messages, ...ask }).finalMessage();
  assert.deepEqual(first.content.map((block) => block.type), ["thinking", "tool_use"]);
  assert.deepEqual(first.content[1].input, ARGUMENTS);
  assert.equal(first.stop_reason, "tool_use");
  messages.push(
    { role: "assistant", content: first.content },
    {
      role: "user",
      content: [{ type: "tool_result", tool_use_id: first.content[1].id, content: "sunny" }],
    },
  );
  const second = await ant.messages.create({ messages, ...ask });
  assert.equal(second.content.at(-1).text, ANSWER);
  const counted = await ant.messages.countTokens({ model: "claude-x", messages, tools });
  assert.ok(counted.input_tokens > 50);
  await assert.rejects(
    ant.messages.create({ model: "claude-x", max_tokens: 9, messages: [] }),
    (error) => error.status === 400 && error.error.type === "error",
  );
}

console.log("both clients are served");
