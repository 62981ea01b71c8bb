"""The official Python clients of OpenAI and Anthropic against a running server with the embedded
model: what they put together from a stream is what they get whole, and calls and structures are
what was declared. Usage: real_server.py BASE_URL. Exits non-zero on any surprise."""

import json
import sys

import anthropic
import openai
from pydantic import BaseModel

URL = sys.argv[1]
oai = openai.OpenAI(base_url=URL + "/v1", api_key="none", max_retries=0, timeout=120)
ant = anthropic.Anthropic(base_url=URL, api_key="none", max_retries=0, timeout=120)
MODEL = oai.models.list().data[0].id
STORY = [{"role": "user", "content": "Tell me a short story about a dragon."}]
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Paris", "Rome"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}


def fits(arguments):
    """Whether these are arguments of the tool."""
    city, days = arguments["city"], arguments["days"]
    return len(arguments) == 2 and city in ("Paris", "Rome") and 1 <= days <= 9


class Place(BaseModel):
    """A structure that the model would not write by itself."""

    city: str
    capital: bool


def chat():
    """Chat completions: text, a demanded call, a structure."""
    ask = {"model": MODEL, "messages": STORY, "temperature": 0, "max_tokens": 400}
    whole = oai.chat.completions.create(**ask)
    text = whole.choices[0].message.content
    with oai.chat.completions.stream(stream_options={"include_usage": True}, **ask) as stream:
        pieces = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert "".join(pieces) == text == final.choices[0].message.content, (text, pieces)
    assert len(pieces) > 5 and final.usage.completion_tokens > 60, final
    function = {"name": "weather", "parameters": SCHEMA}
    ask |= {"tools": [{"type": "function", "function": function}], "tool_choice": "required"}
    with oai.chat.completions.stream(parallel_tool_calls=False, **ask) as stream:
        final = stream.get_final_completion()
    (call,) = final.choices[0].message.tool_calls
    assert final.choices[0].finish_reason == "tool_calls", final
    assert call.function.name == "weather" and fits(json.loads(call.function.arguments)), final
    parsed = oai.chat.completions.parse(
        model=MODEL, messages=STORY, response_format=Place, max_tokens=300
    )
    assert isinstance(parsed.choices[0].message.parsed, Place), parsed


def responses():
    """Responses: text, and going on from it."""
    ask = {"model": MODEL, "temperature": 0, "max_output_tokens": 400}
    first = oai.responses.create(input=STORY, **ask)
    with oai.responses.stream(input=STORY, **ask) as stream:
        text = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == first.output_text == final.output_text != "", (first, text)
    assert final.status == "completed", final
    second = oai.responses.create(input="Go on.", previous_response_id=first.id, **ask)
    assert second.output_text and second.usage.input_tokens > first.usage.input_tokens, second


def messages():
    """Messages: text, counting, a demanded call, a stop sequence."""
    # The client has no word for the temperature any more; the API has.
    ask = {"model": "claude-sonnet", "messages": STORY, "max_tokens": 60}
    ask["extra_body"] = {"temperature": 0}
    whole = ant.messages.create(**ask)
    with ant.messages.stream(**ask) as stream:
        pieces = list(stream.text_stream)
        final = stream.get_final_message()
    assert "".join(pieces) == whole.content[0].text and len(pieces) > 5, (whole, pieces)
    assert (whole.stop_reason, final.stop_reason) == ("max_tokens",) * 2, (whole, final)
    counted = ant.messages.count_tokens(model="claude-sonnet", messages=STORY).input_tokens
    usage = final.usage
    assert counted == usage.input_tokens + usage.cache_read_input_tokens, (counted, usage)
    assert usage.cache_read_input_tokens > 0, "the second time the prompt is warm"
    tools = [{"name": "weather", "input_schema": SCHEMA}]
    with ant.messages.stream(tools=tools, tool_choice={"type": "any"}, **ask) as stream:
        called = stream.get_final_message()
    assert called.stop_reason == "tool_use", called
    assert all(fits(block.input) for block in called.content), called
    stopped = ant.messages.create(stop_sequences=["the"], **ask)
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "the"), stopped
    assert whole.content[0].text.startswith(stopped.content[0].text), stopped


chat()
responses()
messages()
print("both clients are served")
