"""The official OpenAI client against a running server. Prints one JSON object; exits non-zero on
any surprise. Usage: openai_client.py BASE_URL [exact]; `exact` demands that a text is the same at
every draft depth, as it is on a CPU."""

import json
import sys

import openai

client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="none", max_retries=0, timeout=120)
exact = sys.argv[2:] == ["exact"]
seen = {}

models = client.models.list().data
assert len(models) == 1, models
model = models[0].id
assert client.models.retrieve(model).id == model

MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]


def whole(**kwargs):
    return client.chat.completions.create(model=model, messages=MESSAGES, **kwargs)


def streamed(**kwargs):
    text, finish, usage, chunks = "", None, None, 0
    stream = client.chat.completions.create(
        model=model,
        messages=MESSAGES,
        stream=True,
        stream_options={"include_usage": True},
        **kwargs,
    )
    for chunk in stream:
        chunks += 1
        if chunk.usage:
            usage = chunk.usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
    return text, finish, usage, chunks


# Greedy: the same text whole and streamed, drafted and plain.
answer = whole(temperature=0, max_tokens=40)
assert answer.choices[0].finish_reason == "stop", answer
assert "Paris" in answer.choices[0].message.content, answer
text, finish, usage, chunks = streamed(temperature=0, max_tokens=40)
assert text == answer.choices[0].message.content, (text, answer)
assert finish == "stop" and chunks > 2, (finish, chunks)
assert usage.prompt_tokens == answer.usage.prompt_tokens, (usage, answer.usage)
assert usage.completion_tokens == answer.usage.completion_tokens, (usage, answer.usage)
assert usage.prompt_tokens_details.cached_tokens > 0, "the second time the prompt is warm"
plain = whole(temperature=0, max_tokens=40, extra_body={"generation_mode": "ar"})
assert not exact or plain.choices[0].message.content == text, plain
seen["greedy"] = text

# A seed gives the same text again, at any depth.
texts = {
    whole(temperature=1, max_tokens=30, seed=7, extra_body={"draft_tokens": k})
    .choices[0].message.content
    for k in (0, 1, 3)
}
assert not exact or len(texts) == 1, texts

# Several choices, a stop string, a length.
many = whole(n=3, temperature=1, max_tokens=20)
assert [c.index for c in many.choices] == [0, 1, 2], many
stopped = whole(temperature=0, max_tokens=40, stop=["Paris"])
assert stopped.choices[0].finish_reason == "stop", stopped
assert "Paris" not in stopped.choices[0].message.content, stopped
short = whole(temperature=0, max_tokens=3)
assert short.choices[0].finish_reason == "length", short
assert short.usage.completion_tokens == 3, short

# Text completion.
story = client.completions.create(
    model=model,
    prompt="Once upon a time, there was a little girl named",
    max_tokens=16,
    temperature=0,
)
assert story.choices[0].text and story.choices[0].finish_reason == "length", story
seen["story"] = story.choices[0].text

# A stream that its reader leaves.
stream = client.chat.completions.create(
    model=model, messages=MESSAGES, stream=True, max_tokens=2000, extra_body={"ignore_eos": True}
)
next(iter(stream))
stream.close()

# Errors are the client's own kinds, and name the field.
for wrong, field in [
    ({"temperature": 9}, "temperature"),
    ({"logit_bias": {"999999": 1}}, "logit_bias"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"extra_body": {"frobnicate": 1}}, "frobnicate"),
]:
    try:
        whole(**wrong)
    except openai.BadRequestError as error:
        assert field in str(error), (field, error)
    else:
        raise AssertionError(f"{wrong} was accepted")
try:
    client.chat.completions.create(model="no-such-model", messages=MESSAGES)
except openai.NotFoundError as error:
    assert "no-such-model" in str(error), error
else:
    raise AssertionError("an unknown model was accepted")

print(json.dumps(seen))
