"""The official Python client without patience, behind a proxy that goes on reading where its own
client has hung up: every attempt would leave a row behind if the server did not take the next for
what it is. Usage: retry_client.py BASE_URL. Exits non-zero on any surprise."""

import http.client
import http.server
import re
import sys
import threading
import time
import urllib.parse

import openai

URL = urllib.parse.urlparse(sys.argv[1])
ATTEMPTS = 3


def metric(name):
    """The sum of a metric's series."""
    plain = http.client.HTTPConnection(URL.hostname, URL.port, timeout=60)
    plain.request("GET", "/metrics")
    text = plain.getresponse().read().decode()
    return sum(float(v) for v in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.M))


class Proxy(http.server.BaseHTTPRequestHandler):
    """Hands requests on and waits for the whole answer, whoever has left meanwhile."""

    protocol_version = "HTTP/1.1"
    counts = []
    statuses = []

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.counts.append(self.headers["x-stainless-retry-count"])
        server = http.client.HTTPConnection(URL.hostname, URL.port, timeout=300)
        server.request("POST", self.path, body, dict(self.headers))
        answer = server.getresponse()
        text = answer.read()
        self.statuses.append(answer.status)
        self.close_connection = True
        try:
            self.send_response(answer.status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)
        except OSError:
            pass

    def log_message(self, *_):
        pass


proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
threading.Thread(target=proxy.serve_forever, daemon=True).start()
client = openai.OpenAI(
    base_url=f"http://127.0.0.1:{proxy.server_port}/v1",
    api_key="none",
    timeout=1.0,
    max_retries=ATTEMPTS - 1,
)
served = openai.OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="none").models.list().data[0].id
before = metric("mtplx_requests_superseded_total")
most = 0
done = threading.Event()


def look():
    global most
    while not done.is_set():
        most = max(most, metric("mtplx_permits_taken"))
        time.sleep(0.05)


looking = threading.Thread(target=look, daemon=True)
looking.start()
try:
    client.chat.completions.create(
        model=served,
        messages=[{"role": "user", "content": "Tell me all stories of dragons that you know."}],
        max_tokens=3500,
        extra_body={"ignore_eos": True, "draft_tokens": 0},
        temperature=0,
    )
    sys.exit("it was answered in time: the test needs a longer answer")
except openai.APITimeoutError:
    pass
done.set()
looking.join()
assert Proxy.counts == [str(i) for i in range(ATTEMPTS)], Proxy.counts
superseded = metric("mtplx_requests_superseded_total") - before
assert superseded == ATTEMPTS - 1, superseded
end = time.time() + 120
while len(Proxy.statuses) < ATTEMPTS:
    assert time.time() < end, Proxy.statuses
    time.sleep(0.1)
# The earlier attempts were let go at once; the last was read to its end.
assert Proxy.statuses[:-1] == [409] * (ATTEMPTS - 1) and Proxy.statuses[-1] == 200, Proxy.statuses
assert most <= 2, f"{most} places were taken at once"
print(f"{ATTEMPTS} attempts, {superseded:.0f} let go, at most {most:.0f} places taken")
