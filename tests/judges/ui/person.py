"""Somebody before the page, and what a model might say to them."""

import json

from playwright.sync_api import expect

CHATS = "**/v1/chat/completions"
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


SHOWN = """Drafting works in **three steps**, all of them on this machine:

1. The MTP head guesses the next tokens.
2. The trunk *verifies* all of them in one pass.
3. What agrees stays; the first that does not is drawn anew.

| step | by | in |
| --- | --- | --- |
| draft | the MTP head | one small layer a token |
| verify | the trunk | one pass for all |

```rust
let agreed = drafts.iter().zip(&targets).take_while(|(d, t)| d == t).count();
```

The text is exactly what the model would have written without drafts.
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

    def __init__(self, page, folder, axe):
        self.folder, self.axe = folder, axe
        self.page, self.errors, self.fetched, self.sent = page, [], [], []
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda said: said.type == "error" and self.errors.append(said.text))
        page.on("request", self.asks)
        page.on("dialog", lambda dialog: dialog.accept())

    def asks(self, request):
        self.fetched.append(request.url)
        if request.url.endswith("completions"):
            self.sent.append(request.post_data_json)

    def field(self):
        return self.page.get_by_label("Your message")

    def ask(self, text):
        self.field().fill(text)
        self.page.keyboard.press("Enter")

    def press(self, name, within=None):
        (within or self.page).get_by_role("button", name=name, exact=True).click()

    def last(self):
        return self.page.locator(".turn.assistant").last

    def done(self):
        """The text of the last answer, once it has ended."""
        expect(self.page.locator("#send")).to_be_visible()
        expect(self.last().locator(".tools")).to_be_visible()
        return self.last().locator(".body").inner_text()

    def made_up(self, status=200, body="", headers=None, abort=False):
        """Has the next answers made up."""
        def reply(route):
            if abort:
                return route.abort()
            kind = "text/event-stream" if status == 200 else "application/json"
            headed = {"content-type": kind, **(headers or {})}
            return route.fulfill(status=status, body=body, headers=headed)

        self.page.unroute(CHATS)
        self.page.route(CHATS, reply)

    def endless(self):
        """Has the next answers come from the server, and be long."""
        def longer(route):
            body = {**route.request.post_data_json, "ignore_eos": True, "max_tokens": 3000}
            route.continue_(post_data=json.dumps(body))

        self.page.unroute(CHATS)
        self.page.route(CHATS, longer)

    def real(self):
        self.page.unroute(CHATS)

    def expected(self, *words):
        """Errors of the console that a fault must bring."""
        self.errors = [e for e in self.errors if not any(w in e for w in words)]

    def picture(self, name):
        self.page.screenshot(path=self.folder / f"{name}.png")

    def finds_it_accessible(self, where):
        """No violation that axe-core takes for serious."""
        self.page.evaluate(self.axe.read_text())
        found = self.page.evaluate("async () => (await axe.run()).violations")
        serious = [v for v in found if v["impact"] in ("serious", "critical")]
        told = [(v["id"], [n["html"][:120] for n in v["nodes"][:3]]) for v in serious]
        assert not serious, f"axe, {where}: {told}"
        lesser = ", ".join(v["id"] for v in found)
        print(f"axe, {where}: nothing serious; lesser: {lesser or 'none'}")
