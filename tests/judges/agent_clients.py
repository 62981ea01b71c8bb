"""The official Python clients of OpenAI and Anthropic, with tools and thinking, against a server
whose model follows a script: where it has tools, it thinks and calls `weather` for Paris; once it
was told what that said, it answers "It is sunny in Paris."; without tools it answers "Hello.".
Usage: agent_clients.py BASE_URL. Exits non-zero on any surprise."""

import json
import sys

import anthropic
import openai

URL = sys.argv[1]
ANSWER = "It is sunny in Paris."
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
}
ARGUMENTS = {"city": "Paris", "days": 2}
oai = openai.OpenAI(base_url=URL + "/v1", api_key="none", max_retries=0, timeout=60)
ant = anthropic.Anthropic(base_url=URL, api_key="none", max_retries=0, timeout=60)


def chat():
    tools = [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}]
    messages = [{"role": "developer", "content": "Be kind."}, {"role": "user", "content": "Go"}]
    ask = {"model": "tiny", "tools": tools, "reasoning_effort": "high"}
    whole = oai.chat.completions.create(messages=messages, **ask)
    first = whole.choices[0]
    assert first.finish_reason == "tool_calls", whole
    assert first.message.reasoning_content == "I must look.", whole
    (call,) = first.message.tool_calls
    assert json.loads(call.function.arguments) == ARGUMENTS, whole
    # The client's own accumulator puts the stream together.
    with oai.chat.completions.stream(
        messages=messages, stream_options={"include_usage": True}, **ask
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert kinds.count("tool_calls.function.arguments.delta") > 2, kinds
    streamed = final.choices[0].message.tool_calls[0].function
    assert streamed.arguments == call.function.arguments, final
    assert final.usage.completion_tokens == whole.usage.completion_tokens, final
    assert final.usage.completion_tokens_details.reasoning_tokens > 0, final
    # What was answered goes back as it came.
    messages.append(first.message.model_dump(exclude_none=True))
    messages.append({"role": "tool", "tool_call_id": call.id, "content": "sunny"})
    second = oai.chat.completions.create(messages=messages, **ask)
    assert second.choices[0].message.content == ANSWER, second
    assert second.choices[0].finish_reason == "stop", second


def responses():
    tools = [{"type": "function", "name": "weather", "parameters": SCHEMA, "strict": False}]
    ask = {"model": "tiny", "tools": tools, "reasoning": {"effort": "high"}}
    first = oai.responses.create(input="Go", **ask)
    thought, call = first.output
    assert thought.content[0].text == "I must look.", first
    assert json.loads(call.arguments) == ARGUMENTS, first
    with oai.responses.stream(input="Go", **ask) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed", kinds
    assert [item.type for item in final.output] == ["reasoning", "function_call"], final
    assert final.output[1].arguments == call.arguments, final
    said = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    second = oai.responses.create(input=[said], previous_response_id=first.id, **ask)
    assert second.output_text == ANSWER, second
    # The same without anything being kept: all items go back.
    items = [{"role": "user", "content": "Go"}, *first.output, said]
    with oai.responses.stream(input=items, store=False, **ask) as stream:
        text = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == ANSWER == final.output_text, final
    assert oai.responses.retrieve(first.id).output[1].call_id == call.call_id
    oai.responses.delete(first.id)
    try:
        oai.responses.create(model="tiny", input="x", previous_response_id=first.id)
    except openai.BadRequestError as error:
        assert error.param == "previous_response_id", error
    else:
        raise AssertionError("a forgotten answer was gone on from")


def messages():
    tools = [{"name": "weather", "input_schema": SCHEMA}]
    system = [
        {"type": "text", "text": "x-anthropic-billing-header: cch=1"},
        {"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}},
    ]
    ask = {
        "model": "claude-sonnet",
        "max_tokens": 500,
        "tools": tools,
        "system": system,
        "thinking": {"type": "enabled", "budget_tokens": 1024},
    }
    talk = [{"role": "user", "content": "Go"}]
    whole = ant.messages.create(messages=talk, **ask)
    thought, call = whole.content
    assert thought.thinking == "I must look." and call.input == ARGUMENTS, whole
    assert whole.stop_reason == "tool_use", whole
    with ant.messages.stream(messages=talk, **ask) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert kinds.count("input_json") > 2 and kinds[-1] == "message_stop", kinds
    assert final.content[1].input == ARGUMENTS and final.stop_reason == "tool_use", final
    assert final.usage.output_tokens == whole.usage.output_tokens, (final, whole)
    talk.append({"role": "assistant", "content": final.content})
    result = {"type": "tool_result", "tool_use_id": final.content[1].id, "content": "sunny"}
    talk.append({"role": "user", "content": [result]})
    with ant.messages.stream(messages=talk, **ask) as stream:
        assert "".join(stream.text_stream) == ANSWER
    counted = ant.messages.count_tokens(
        model="claude-haiku", messages=talk, tools=tools, system=system
    )
    assert counted.input_tokens > 50, counted
    stopped = ant.messages.create(
        model="claude-x", max_tokens=50, messages=talk[:1], stop_sequences=["lo"]
    )
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "lo"), stopped
    assert stopped.content[0].text == "Hel", stopped
    assert [model.id for model in ant.models.list()] == ["tiny"]


def errors():
    hi = [{"role": "user", "content": "Hi"}]
    for wrong, kind in [
        (lambda: ant.messages.create(model="x", max_tokens=9, messages=hi), 404),
        (lambda: ant.messages.create(model="claude-x", max_tokens=9, messages=[]), 400),
        (
            lambda: ant.messages.create(
                model="claude-x",
                max_tokens=9,
                messages=[{"role": "user", "content": "word " * 5000}],
            ),
            400,
        ),
    ]:
        try:
            wrong()
        except anthropic.APIStatusError as error:
            assert error.status_code == kind and error.body["type"] == "error", error
            assert error.request_id, error
        else:
            raise AssertionError("a wrong request was answered")


chat()
responses()
messages()
errors()
print("both clients are served")
