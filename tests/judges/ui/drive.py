"""Chats in a headless Chromium as a person would: `drive.py BASE_URL FOLDER CHROMIUM AXE`. AXE is
axe-core's script. Pictures go into FOLDER. Exits non-zero on any surprise."""

import json
import re
import sys
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

URL, FOLDER, CHROMIUM, AXE = sys.argv[1], Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
STORY = "Tell me a short story about a dragon."
BYTES_MAX = 200_000
PAINT_MS_MAX = 1000

# What a page must never run, in every place where Markdown could put it.
ATTACKS = r"""<script>window.hit=1</script><img src=x onerror="window.hit=2">
<svg/onload=window.hit=3> <iframe src="javascript:parent.hit=4"></iframe>

[a](javascript:window.hit=5) [b](JaVaScRiPt:window.hit=6) [c](data:text/html,<script>1</script>)
[d](java&#115;cript:window.hit=7) [e](//evil.example/x) <javascript:window.hit=8>
![f](https://evil.example/pixel.png) [g](https://ok.example/"onmouseover="window.hit=9)

```"><img src=x onerror=window.hit=10>
</code></pre><script>window.hit=11</script>
```

| <b onclick=window.hit=12>x</b> | y |
| --- | --- |
| `<script>window.hit=13</script>` | <style>*{display:none}</style> |

1. **<u onclick="window.hit=14">deep</u>**
   - > <details ontoggle=window.hit=15 open>z
"""
MARKDOWN = """# Title

A **bold** word, an *italic* one, `code`, ~~gone~~, snake_case_stays, 2 * 3 * 4.

1. one
2. two
   - inner

> quoted

```python
print("<b>")
```

| a | b |
| - | - |
| 1 | [link](https://ok.example/p) |
"""


def chunks(text, thought="", calls=(), done=True, error=None):
    """An answer as the server streams it, made up."""
    def data(choice=None, **more):
        choices = [] if choice is None else [choice]
        return "data: " + json.dumps({"choices": choices, **more}) + "\n\n"

    def delta(**delta):
        return data({"index": 0, "delta": delta, "finish_reason": None})

    parts = [delta(role="assistant", content="")]
    if thought:
        parts.append(delta(reasoning_content=thought))
    parts += [delta(content=text[i : i + 7]) for i in range(0, len(text), 7)]
    for index, (name, arguments) in enumerate(calls):
        call = {"index": index, "id": "c", "function": {"name": name, "arguments": arguments}}
        parts.append(delta(tool_calls=[call]))
    if error:
        parts.append("data: " + json.dumps({"error": {"message": error}}) + "\n\n")
    if done:
        parts.append(data({"index": 0, "delta": {}, "finish_reason": "stop"}))
        parts.append("data: [DONE]\n\n")
    return "".join(parts)


class Person:
    """Somebody before the page."""

    def __init__(self, page):
        self.page, self.errors, self.fetched = page, [], []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda said: said.type == "error" and self.errors.append(said.text))
        page.on("request", lambda request: self.fetched.append(request.url))
        page.on("dialog", lambda dialog: dialog.accept())

    def ask(self, text):
        self.page.get_by_label("Your message").fill(text)
        self.page.keyboard.press("Enter")

    def last(self):
        return self.page.locator(".turn.assistant").last

    def done(self):
        expect(self.page.locator("#send")).to_be_visible(timeout=60_000)
        return self.last().locator(".body").inner_text()

    def made_up(self, status=200, body="", headers=None, abort=False):
        """Has the next answers made up."""
        def reply(route):
            if abort:
                return route.abort()
            kind = "text/event-stream" if status == 200 else "application/json"
            return route.fulfill(status=status, body=body, headers={"content-type": kind, **(headers or {})})

        self.page.unroute("**/v1/chat/completions")
        self.page.route("**/v1/chat/completions", reply)

    def real(self):
        self.page.unroute("**/v1/chat/completions")

    def expected(self, *words):
        """Errors of the console that a fault must bring."""
        self.errors = [e for e in self.errors if not any(w in e for w in words)]


def accessible(page, where):
    page.evaluate(AXE.read_text())
    found = page.evaluate("async () => (await axe.run()).violations")
    serious = [v for v in found if v["impact"] in ("serious", "critical")]
    told = [(v["id"], [n["html"][:120] for n in v["nodes"][:3]]) for v in serious]
    assert not serious, f"axe, {where}: {told}"
    print(f"axe, {where}: nothing serious, {len(found)} lesser")


def streams(me):
    """An answer comes in steps, and with its rate."""
    me.page.evaluate("""() => {
      window.steps = new Set();
      new MutationObserver(() => {
        const all = document.querySelectorAll('.turn.assistant .body');
        if (all.length) window.steps.add(all[all.length - 1].innerText);
      }).observe(document.getElementById('talk'), {childList: true, subtree: true});
    }""")
    me.ask(STORY)
    text = me.done()
    steps = me.page.evaluate("window.steps.size")
    assert len(text) > 20 and steps >= 3, (text, steps)
    rate = me.last().locator(".rate").inner_text()
    assert re.match(r"\d+ tokens, [\d.]+ tokens/s", rate), rate
    print(f"streamed in {steps} steps: {rate}")
    return text


def goes_on(me, text):
    """A conversation outlives the page, and is answered again, edited, stopped."""
    me.page.reload()
    me.page.get_by_role("button", name=STORY[:60], exact=True).click()
    assert me.last().locator(".body").inner_text() == text
    me.last().get_by_role("button", name="Again").click()
    assert me.done() and me.page.locator(".turn").count() == 2
    me.page.locator(".turn.user").get_by_role("button", name="Edit").click()
    assert me.page.get_by_label("Your message").input_value() == STORY
    assert me.page.locator(".turn").count() == 0
    me.ask("Count for a very long time. " * 4)
    me.page.get_by_role("button", name="Stop").click()
    me.done()
    expect(me.last().locator(".rate")).to_contain_text("stopped")
    print("kept over a reload, answered again, edited, stopped")


def speculates_or_not(me):
    """The switch for MTP reaches the server."""
    sent = []
    me.page.on("request", lambda r: "completions" in r.url and sent.append(r.post_data_json))
    me.page.get_by_role("button", name="Settings").click()
    me.page.get_by_label("Speculate (MTP)").uncheck()
    me.page.get_by_label("Temperature").fill("0")
    me.page.get_by_role("button", name="Done").click()
    me.ask("What is the capital of France?")
    plain = me.done()
    assert sent[-1]["generation_mode"] == "ar" and sent[-1]["temperature"] == 0, sent[-1]
    me.page.get_by_role("button", name="Settings").click()
    me.page.get_by_label("Speculate (MTP)").check()
    me.page.get_by_role("button", name="Done").click()
    me.last().get_by_role("button", name="Again").click()
    assert me.done() == plain, "speculation changed a greedy text"
    assert "generation_mode" not in sent[-1]
    print("MTP off and on: the same greedy text")


def renders(me):
    """Markdown, thoughts, calls."""
    call = ("weather", '{"city": "Paris"}')
    me.made_up(body=chunks(MARKDOWN, thought="I think.", calls=[call]))
    me.ask("Show me.")
    me.done()
    body = me.last().locator(".body")
    for tag, text in [("h3", "Title"), ("strong", "bold"), ("em", "italic"), ("del", "gone"),
                      ("ol > li", "one"), ("ul > li", "inner"), ("blockquote", "quoted"),
                      ("td", "1"), (".code code", 'print("<b>")'), ("a", "link")]:
        expect(body.locator(tag).first).to_contain_text(text)
    assert "snake_case_stays, 2 * 3 * 4" in body.inner_text()
    expect(body.locator("details", has_text="Tool call: weather")).to_be_attached()
    thoughts = body.locator("details.thinking")
    assert thoughts.get_attribute("open") is None, "thoughts are folded"
    thoughts.locator("summary").click()
    expect(thoughts).to_contain_text("I think.")
    me.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    body.get_by_role("button", name="Copy").click()
    assert me.page.evaluate("navigator.clipboard.readText()") == 'print("<b>")'
    print("markdown, thoughts, calls and copying as they should be")


def withstands(me):
    """Nothing that a model or a person writes runs, or makes the browser ask elsewhere."""
    me.made_up(body=chunks(ATTACKS, thought=ATTACKS, calls=[("<img onerror=1>", ATTACKS)]))
    me.ask(ATTACKS)
    me.done()
    me.page.reload()
    me.page.locator("#chats .name").first.click()
    for a in me.page.locator(".turn a, .turn summary, .turn td").all():
        a.dispatch_event("mouseover")
    links = me.page.locator(".turn a").evaluate_all("all => all.map((a) => a.href)")
    assert all(re.match(r"(https?://|mailto:)", link) for link in links), links
    inside = me.page.locator(".turn :is(script, img, svg, iframe, style, object, form)").count()
    assert inside == 0 and me.page.evaluate("window.hit") is None
    strangers = [url for url in me.fetched if not url.startswith((URL, "data:", "blob:"))]
    assert not strangers, strangers
    print(f"attacks stayed text; {len(links)} links, all to the web or mail")


def says_what_went_wrong(me):
    """Faults are told, and the conversation goes on after them."""
    full = json.dumps({"error": {"message": "the house is full"}})
    faults = [
        (dict(status=503, body=full, headers={"retry-after": "7"}), "the house is full (again in 7 s)"),
        (dict(status=502, body="<html>"), "502"),
        (dict(body=chunks("Half", done=False)), "broke off"),
        (dict(body=chunks("Half", done=False, error="the engine failed")), "the engine failed"),
        (dict(abort=True), "cannot be reached"),
    ]
    for fault, words in faults:
        me.made_up(**fault)
        me.ask("Well?")
        me.done()
        expect(me.last().locator(".error")).to_contain_text(words)
    me.expected("503", "502", "Failed to load resource", "net::ERR_FAILED")
    me.real()
    me.last().get_by_role("button", name="Again").click()
    me.done()
    expect(me.last().locator(".error")).to_be_hidden()
    print(f"{len(faults)} faults told, and asked again")


def weighs_little(browser):
    """Small and quick: all of it, and the first paint of a new visitor."""
    page = browser.new_context().new_page()
    answers = []
    page.on("response", answers.append)
    page.goto(URL)
    page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length")
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    expect(page.locator("#about")).to_contain_text("tokens of context")
    total = sum(len(answer.body()) for answer in answers)
    assert total < BYTES_MAX and paint < PAINT_MS_MAX, (total, paint)
    print(f"{total} bytes in {len(answers)} answers, first paint after {paint:.0f} ms")
    page.context.close()


def main():
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        weighs_little(browser)
        page = browser.new_context(viewport={"width": 1100, "height": 720}).new_page()
        me = Person(page)
        page.goto(URL)
        expect(page.locator("#about")).to_contain_text("tokens of context")
        text = streams(me)
        page.screenshot(path=FOLDER / "chat.png")
        goes_on(me, text)
        speculates_or_not(me)
        renders(me)
        accessible(page, "a conversation")
        page.emulate_media(color_scheme="dark")
        accessible(page, "in the dark")
        page.screenshot(path=FOLDER / "dark.png")
        page.get_by_role("button", name="Settings").click()
        accessible(page, "settings")
        page.keyboard.press("Escape")
        withstands(me)
        says_what_went_wrong(me)
        page.set_viewport_size({"width": 390, "height": 780})
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 390, f"a phone scrolls sideways: {wide}"
        page.get_by_role("button", name="Conversations").click()
        accessible(page, "on a phone")
        page.keyboard.press("Escape")
        page.screenshot(path=FOLDER / "phone.png")
        assert not me.errors, me.errors
        browser.close()


main()
