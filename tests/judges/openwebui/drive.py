"""Starts Open WebUI beside a running server and chats with it in a headless Chromium, as a person
would. Usage: drive.py BASE_URL FOLDER CHROMIUM [exact]. Data, log and screenshot.png go into the
folder; `exact` demands the very text that the server gives without Open WebUI. Exits non-zero on
any surprise."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from playwright.sync_api import sync_playwright

URL, FOLDER, CHROMIUM = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
EXACT = sys.argv[4:] == ["exact"]
QUESTIONS = ["Tell me a short story about a dragon.", "What is the capital of France?"]
# Titles, tags and follow-ups are asked for as JSON, by words only. The model of the tests is too
# small to follow them, so it is held to them; an Open WebUI of one's own sets this in its settings.
TASK = {
    "title": {"type": "string", "minLength": 3, "maxLength": 40},
    "tags": {"type": "array", "minItems": 1, "maxItems": 2, "items": {"enum": ["tale", "facts"]}},
    "follow_ups": {
        "type": "array",
        "minItems": 2,
        "maxItems": 3,
        "items": {"enum": ["Who is Henry?", "Tell me another story.", "Is this true?"]},
    },
}
SCHEMA = {
    "type": "object",
    "properties": TASK,
    "required": list(TASK),
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "task", "schema": SCHEMA}}
# What an answer looked like each time that it changed.
WATCH = """() => {
  window.seen = [];
  const look = () => {
    const all = document.querySelectorAll('.chat-assistant');
    const text = all.length ? all[all.length - 1].innerText : '';
    if (text !== window.seen.at(-1)) window.seen.push(text);
  };
  new MutationObserver(look).observe(
    document.body, {childList: true, subtree: true, characterData: true});
}"""


def fetched(url, body=None, token=None):
    """JSON from a server."""
    headers = {"content-type": "application/json"}
    if token:
        headers["authorization"] = f"Bearer {token}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers)
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


def eventually(what, fact, seconds=90):
    """Waits for something that must come about."""
    end = time.monotonic() + seconds
    while not (found := fact()):
        assert time.monotonic() < end, f"never {what}"
        time.sleep(0.3)
    return found


@contextlib.contextmanager
def open_webui():
    """One with new data, nobody to log in, and no model but ours."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "DATA_DIR": str(FOLDER / "data"),
        "WEBUI_AUTH": "false",
        "WEBUI_SECRET_KEY": "no secret, for nobody but this test can reach it",
        "OPENAI_API_BASE_URL": f"{URL}/v1",
        "OPENAI_API_KEY": "none",
        "ENABLE_OLLAMA_API": "false",
        # Tools of Open WebUI's own come to 7000 tokens, more than the small model's context.
        "DEFAULT_MODEL_METADATA": '{"capabilities": {"builtin_tools": false, "usage": true}}',
        "DEFAULT_MODEL_PARAMS": '{"temperature": 0}',
        "TASK_MODEL_PARAMS": json.dumps(
            {"temperature": 0, "max_tokens": 500, "response_format": FORMAT}
        ),
        # Nothing is fetched from anywhere, and nothing told.
        "OFFLINE_MODE": "true",
        "HF_HUB_OFFLINE": "1",
        "RAG_EMBEDDING_ENGINE": "openai",
        "ANONYMIZED_TELEMETRY": "false",
        "DO_NOT_TRACK": "true",
        "SCARF_NO_ANALYTICS": "true",
    }
    program = Path(sys.executable).with_name("open-webui")
    command = [program, "serve", "--host", "127.0.0.1", "--port", str(port)]
    (FOLDER / "data").mkdir(parents=True)
    with (FOLDER / "log.txt").open("w") as log:
        child = subprocess.Popen(
            command, env={**os.environ, **settings}, cwd=FOLDER, stdout=log, stderr=log
        )
        try:
            url = f"http://127.0.0.1:{port}"
            eventually("Open WebUI up", lambda: child.poll() is not None or is_up(url), 240)
            assert child.poll() is None, (FOLDER / "log.txt").read_text()[-3000:]
            yield url
        finally:
            child.terminate()
            child.wait(30)


def is_up(url):
    """Whether a server answers there."""
    try:
        return fetched(f"{url}/health")["status"]
    except OSError:
        return False


def ask(page, question):
    """Asks, and gives what the answer looked like while it came."""
    before = page.locator(".chat-assistant").count()
    page.evaluate(WATCH)
    page.click("#chat-input")
    page.keyboard.type(question)
    page.keyboard.press("Enter")
    page.wait_for_function(
        "n => document.querySelectorAll('.chat-assistant').length > n", arg=before, timeout=60000
    )
    # Follow-ups come last.
    page.wait_for_selector("[aria-label^='Follow up:']", timeout=120000)
    return page.evaluate("window.seen")


def chat(page, url):
    """The two questions; what each answer looked like while it came."""
    model = fetched(f"{URL}/v1/models")["data"][0]["id"]
    page.goto(url, wait_until="domcontentloaded", timeout=120000)
    page.wait_for_selector("#chat-input", timeout=120000)
    news = page.get_by_role("button", name="Okay, Let's Go!")
    with contextlib.suppress(Exception):
        news.click(timeout=10000)
    page.wait_for_selector(f"[aria-label='Selected model: {model}']", timeout=30000)
    first = ask(page, QUESTIONS[0])
    token = page.evaluate("localStorage.token")
    assert model in [m["id"] for m in fetched(f"{url}/api/models", token=token)["data"]]
    page.screenshot(path=FOLDER / "screenshot.png")
    second = ask(page, QUESTIONS[1])
    kept = re.search(r"/c/([0-9a-f-]+)", page.url)[1]
    record = eventually(
        "all that was asked", lambda: whole(fetched(f"{url}/api/v1/chats/{kept}", token=token))
    )
    check(model, record, [first, second])


def answers_of(record):
    """What the model said in a chat."""
    messages = record["chat"]["history"]["messages"].values()
    return [message for message in messages if message["role"] == "assistant"]


def whole(record):
    """The record of a chat, once it has a title and all answers have been followed up."""
    answers = answers_of(record)
    done = len(answers) == len(QUESTIONS) and all("followUps" in answer for answer in answers)
    return record if done and record["title"] not in ("New Chat", "") else None


def check(model, record, looks):
    """What was kept is what was asked for and what the server says to anybody."""
    assert record["title"] not in QUESTIONS, "the title is the model's, not the question"
    assert set(record["meta"]["tags"]) & {"tale", "facts"}, record["meta"]
    answers = answers_of(record)
    talk = []
    for question, answer, seen in zip(QUESTIONS, answers, looks, strict=True):
        assert answer["model"] == model and not answer.get("error"), answer
        assert len(answer["followUps"]) >= 1, answer
        usage = answer["usage"]
        assert usage["completion_tokens"] > 1 and usage["predicted_per_second"] > 0, usage
        talk.append({"role": "user", "content": question})
        plain = fetched(
            f"{URL}/v1/chat/completions",
            {"model": model, "messages": talk, "temperature": 0},
        )["choices"][0]["message"]["content"]
        assert not EXACT or answer["content"] == plain, (answer["content"], plain)
        talk.append({"role": "assistant", "content": answer["content"]})
        print(f"{question} {len(answer['content'])} characters, seen in {len(seen)} steps")
    assert len(looks[0]) > 10, f"the first answer came all at once: {looks[0]}"
    print(f"title {record['title']!r}, tags {record['meta']['tags']},", end=" ")
    print(f"follow-ups {answers[0]['followUps']}, usage {json.dumps(answers[1]['usage'])}")


with open_webui() as site, sync_playwright() as driver:
    # As root, as in a container, Chromium has no sandbox; it sees this page only.
    browser = driver.chromium.launch(
        executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
    )
    window = browser.new_page(viewport={"width": 1100, "height": 760})
    try:
        chat(window, site)
    except BaseException:
        window.screenshot(path=FOLDER / "failed.png")
        raise
    finally:
        browser.close()
