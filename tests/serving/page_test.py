import http.server
import json
import pathlib
import re
import shutil
import threading
import time

import pytest

import kerasgpt.serving

PAGE = pathlib.Path(kerasgpt.serving.__file__).parent / "page"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
# What the server sends, and trusted types: a string can never become HTML.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self' data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
MODELS = ("shop_chat", "shop_chat@3", "shop_chat@2", "tiny")
WAIT_S = 5


class Handler(http.server.BaseHTTPRequestHandler):
    """The page's files and the two routes it talks to."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.path == "/v1/models":
            if self.server.key not in (None, self.headers["Authorization"]):
                return self.refuse(401, "a key is needed")
            data = [{"id": id, "object": "model"} for id in self.server.models]
            return self.whole(
                200, "application/json", {"object": "list", "data": data}
            )
        path = PAGE / (self.path.lstrip("/") or "index.html")
        if not path.is_file():
            return self.refuse(404, "no such file")
        self.whole(200, TYPES[path.suffix], path.read_bytes())

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        script = self.server.scripts.pop(0) if self.server.scripts else "Hello"
        if callable(script):
            return script(self)
        self.stream([script] if isinstance(script, str) else script)

    def whole(self, status, content_type, content, **headers):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Security-Policy", POLICY)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def refuse(self, status, message, code=None, **headers):
        error = {"message": message, "type": "test", "code": code}
        self.whole(status, "application/json", {"error": error}, **headers)

    def stream(self, pieces, finish_reason="stop", is_whole=True):
        """Sends the str among the pieces, waits at the events."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            self.delta({"role": "assistant"})
            for piece in pieces:
                if isinstance(piece, str):
                    self.delta({"content": piece})
                else:
                    assert piece.wait(WAIT_S)
            if is_whole:
                self.delta({}, finish_reason)
                usage = {"prompt_tokens": 5, "completion_tokens": 7}
                self.event({"choices": [], "usage": usage})
                self.chunk(b"data: [DONE]\n\n")
                self.chunk(b"")
        except OSError:
            self.server.has_left.set()
        self.close_connection = True

    def delta(self, delta, finish_reason=None):
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        self.event({"choices": [choice], "usage": None})

    def event(self, value):
        text = json.dumps(value, ensure_ascii=False)
        self.chunk(f"data: {text}\n\n".encode())

    def chunk(self, content):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(content), content))


@pytest.fixture
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.models = MODELS
    server.key = None
    server.scripts = []
    server.bodies = []
    server.has_left = threading.Event()
    server.url = f"http://127.0.0.1:{server.server_port}/"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        own = pathlib.Path(playwright.chromium.executable_path)
        path = shutil.which("chromium") or (own.exists() and own)
        if not path:
            pytest.skip("no Chromium: neither on the path nor playwright's")
        # As root, as in a container, Chromium starts without a sandbox only.
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox"]
        )
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, server):
    """Opens the page; at the end nothing must have run or been blocked."""
    contexts = []
    faults = []

    def console(message):
        # A refused request is told there too, and is meant in some tests.
        if "Failed to load resource" not in message.text and message.type in (
            "error",
            "warning",
        ):
            faults.append(message.text)

    def request(sent):
        if not sent.url.startswith((server.url, "data:")):
            faults.append(f"asks {sent.url}")

    def open_page(**options):
        settings = {"locale": "en-US", "color_scheme": "light", **options}
        contexts.append(browser.new_context(**settings))
        page = contexts[-1].new_page()
        page.set_default_timeout(WAIT_S * 1000)
        page.on("console", console)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: faults.append("a dialog"))
        page.on("request", request)
        page.goto(server.url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not faults


def ask(page, text):
    page.fill("#message", text)
    page.press("#message", "Enter")


def answers(page):
    return page.locator(".answer").all_inner_texts()


def wait_for(page, text):
    page.locator(".answer").get_by_text(text, exact=True).last.wait_for()


def is_idle(page):
    page.locator('#send[aria-label="Send"]').wait_for()


def until(page, condition):
    """Waits; playwright's own wait needs eval, which the policy forbids."""
    deadline = time.monotonic() + WAIT_S
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(20)


def contrast(page, selector):
    """Returns the contrast of an element's text with what is behind it."""
    return page.eval_on_selector(
        selector,
        """(element) => {
          const painter = document.createElement("canvas").getContext("2d",
            {willReadFrequently: true});
          const light = (colour) => {
            painter.fillStyle = colour;
            painter.fillRect(0, 0, 1, 1);
            const [red, green, blue] = [...painter.getImageData(0, 0, 1, 1)
              .data].map((part) => part / 255).map((part) => part <= 0.03928
              ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
            return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
          };
          const text = light(getComputedStyle(element).color);
          let behind = element;
          const clear = "rgba(0, 0, 0, 0)";
          while (getComputedStyle(behind).backgroundColor === clear) {
            behind = behind.parentElement;
          }
          const ground = light(getComputedStyle(behind).backgroundColor);
          const [low, high] = [text, ground].sort((a, b) => a - b);
          return (high + 0.05) / (low + 0.05);
        }""",
    )


def test_the_files_are_small_and_never_make_html():
    files = [path.read_text() for path in sorted(PAGE.iterdir())]
    assert len(files) == 3
    assert sum(len(text.encode()) for text in files) < 25 * 1024
    makers = r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b"
    assert not re.search(makers, "".join(files))
    outside = (
        r"""\s(on\w+|style)=|<style|<script>|(src|href)="(?!page|#|data)"""
    )
    assert not re.search(outside, (PAGE / "index.html").read_text())


def test_an_answer_is_seen_before_it_ends(visit, server):
    gate = threading.Event()
    server.scripts = [("We ship ", gate, "每天。")]
    page = visit()
    page.locator("#message").press_sequentially("Do you ship?")
    page.press("#message", "Enter")
    page.locator(".live .answer", has_text="We ship").wait_for()
    assert page.inner_text(".question") == "Do you ship?"
    assert page.get_attribute("#send", "aria-label") == "Stop"
    # A screen reader hears the answer once, when it is whole.
    assert "We ship" not in page.inner_text("#announcer")
    gate.set()
    is_idle(page)
    assert answers(page) == ["We ship 每天。"]
    assert page.inner_text("#announcer") == "We ship 每天。"
    facts = page.inner_text(".facts")
    assert re.fullmatch(
        r"7 tokens · [\d.]+ tokens/s · first after [\d.]+ s", facts
    )
    body = server.bodies[0]
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}
    assert body["messages"] == [{"role": "user", "content": "Do you ship?"}]


def test_a_cut_answer_says_so(visit, server):
    server.scripts = [lambda h: h.stream(["One"], finish_reason="length")]
    page = visit()
    ask(page, "Count")
    page.locator(".facts", has_text="cut at the length limit").wait_for()


@pytest.mark.parametrize("how", ["click", "Escape"])
def test_stop_keeps_what_came_and_leaves_the_server(visit, server, how):
    def endless():
        yield "First "
        while True:
            time.sleep(0.01)
            yield "more "

    server.scripts = [endless(), "Second"]
    page = visit()
    ask(page, "Talk")
    page.locator(".live .answer", has_text="First").wait_for()
    if how == "click":
        page.click("#send")
    else:
        page.keyboard.press("Escape")
    is_idle(page)
    assert answers(page)[0].startswith("First ")
    assert page.inner_text(".facts") == "stopped"
    assert server.has_left.wait(WAIT_S)
    ask(page, "Go on")
    wait_for(page, "Second")
    roles = [message["role"] for message in server.bodies[1]["messages"]]
    assert roles == ["user", "assistant", "user"]


def test_answer_again_replaces_the_last_answer_only(visit, server):
    server.scripts = ["One", "Two", "Three"]
    page = visit()
    for question, answer in (("a", "One"), ("b", "Two")):
        ask(page, question)
        wait_for(page, answer)
        is_idle(page)
    assert page.locator(".again >> visible=true").count() == 1
    page.click(".turn:last-child .again")
    wait_for(page, "Three")
    assert answers(page) == ["One", "Three"]
    assert server.bodies[2]["messages"] == server.bodies[1]["messages"]
    seeds = {body["seed"] for body in server.bodies}
    assert len(seeds) == 3 and all(0 <= seed < 2**31 for seed in seeds)


def test_a_failed_second_try_keeps_the_first_answer(visit, server):
    server.scripts = ["One", lambda h: h.refuse(500, "broken")]
    page = visit()
    ask(page, "a")
    wait_for(page, "One")
    is_idle(page)
    page.click(".again")
    page.locator("#banner", has_text="broken").wait_for()
    assert answers(page) == ["One"]


def test_settings_are_sent_and_kept_over_a_reload(visit, server):
    page = visit()
    page.select_option("#model", "shop_chat@3")
    page.click("#configure")
    values = {"temperature": 0.5, "top_p": 0.9, "top_k": 40}
    values |= {"max_tokens": 64, "seed": 7}
    for name, value in values.items():
        page.fill(f"#fields [name={name}]", str(value))
    page.fill("#fields [name=system]", "Be brief.")
    page.keyboard.press("Escape")
    for _ in range(2):
        ask(page, "Hi")
        page.locator(".facts", has_text="tokens/s").last.wait_for()
        body = server.bodies[-1]
        assert body["model"] == "shop_chat@3"
        assert {name: body[name] for name in values} == values
        system = {"role": "system", "content": "Be brief."}
        assert body["messages"][0] == system
        page.reload()
    page.click("#configure")
    for name in values.keys() | {"system"}:
        page.fill(f"#fields [name={name}]", "")
    page.click("#done")
    page.select_option("#model", "tiny")
    ask(page, "Hi")
    page.locator(".turn:nth-child(3) .facts", has_text="7").wait_for()
    body = server.bodies[-1]
    assert body["model"] == "tiny"
    assert not {"temperature", "top_p", "top_k", "max_tokens"} & set(body)
    assert body["messages"][0]["role"] == "user"


def test_a_value_out_of_range_is_neither_sent_nor_kept(visit, server):
    page = visit()
    page.click("#configure")
    page.fill("#fields [name=temperature]", "0.7")
    page.fill("#fields [name=temperature]", "3")
    page.fill("#fields [name=top_k]", "1.5")
    # The browser says what is wrong before it closes the sheet.
    page.click("#done")
    assert page.is_visible("#settings")
    page.keyboard.press("Escape")
    assert not page.is_visible("#settings")
    ask(page, "Hi")
    wait_for(page, "Hello")
    assert server.bodies[0]["temperature"] == 0.7
    assert "top_k" not in server.bodies[0]
    assert page.input_value("#fields [name=temperature]") == "0.7"
    assert page.input_value("#fields [name=top_k]") == ""


def test_a_key_is_sent_and_lives_in_the_tab_only(visit, server):
    server.key = "Bearer abc"
    page = visit()
    page.locator("#banner", has_text="asks for a key").wait_for()
    page.click("#configure")
    page.fill("#fields [name=key]", "abc")
    page.click("#done")
    page.locator("#model option").first.wait_for(state="attached")
    assert "abc" in page.evaluate("JSON.stringify(sessionStorage)")
    assert "abc" not in page.evaluate("JSON.stringify(localStorage)")
    page.reload()
    page.locator("#model option").first.wait_for(state="attached")


def test_languages(visit, server):
    page = visit(locale="zh-CN")
    assert page.evaluate("document.documentElement.lang") == "zh-CN"
    assert page.get_attribute("#message", "placeholder") == "输入消息"
    ask(page, "你好")
    page.locator(".facts", has_text="7 个词元").wait_for()
    page.click("#language")
    assert "7 tokens" in page.inner_text(".facts")
    page.reload()
    assert page.evaluate("document.documentElement.lang") == "en"
    assert page.get_attribute("#message", "placeholder") == "Message"
    # A text in one language only would be shown as "undefined" or fail.
    assert "undefined" not in page.content()


def test_the_page_names_no_unknown_text():
    source = (PAGE / "page.js").read_text()
    table = source[: source.index("\n};")]
    known = set(re.findall(r"^  (\w+): \[", table, re.MULTILINE))
    used = set(
        re.findall(
            r"data-(?:text|label|hint)=\"(\w+)\"",
            (PAGE / "index.html").read_text(),
        )
    )
    used |= set(re.findall(r"\bsay\(\"(\w+)\"", source))
    assert used and used <= known


def test_dark_and_light(visit):
    page = visit(color_scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.click("#theme")
    light = page.evaluate(ground)
    assert dark != light
    page.reload()
    assert page.evaluate(ground) == light
    assert visit(color_scheme="light").evaluate(ground) == light


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(visit, server, scheme):
    server.scripts = ["One", lambda h: h.refuse(400, "no")]
    page = visit(color_scheme=scheme)
    assert contrast(page, "#welcome p") >= 4.5
    ask(page, "a")
    wait_for(page, "One")
    is_idle(page)
    ask(page, "b")
    page.locator("#banner", has_text="no").wait_for()
    page.fill("#message", "c")
    selectors = ["select", "#language", ".question", ".answer", ".facts"]
    selectors += ["#banner span", "#act", "#send", "#message", "#keys"]
    selectors += ["#fields b", "#fields small", "#fields input"]
    ratios = {selector: contrast(page, selector) for selector in selectors}
    assert {name: x for name, x in ratios.items() if x < 4.5} == {}


HOSTILE = (
    "<img src=x onerror=\"document.title='run'\">"
    "<script>document.title='run'</script>"
    "<svg onload=\"document.title='run'\"></svg>"
    "<iframe srcdoc=\"<script>parent.document.title='run'</script>\"></iframe>"
    "[click](javascript:document.title='run') </p></article><style>*{}</style>"
    " {tokens} &lt;b&gt; ${1} \x00 \u202e"
)


def test_nothing_written_is_run(visit, server):
    # Each could become HTML elsewhere: answer, model name, error message.
    server.models = (HOSTILE, "tiny")
    server.scripts = [HOSTILE, lambda h: h.refuse(400, HOSTILE)]
    page = visit()
    page.locator("#model option").first.wait_for(state="attached")
    before = page.locator("body *").count()
    for _ in range(2):
        ask(page, HOSTILE)
        is_idle(page)
    page.locator("#banner", has_text="onerror").wait_for()
    page.reload()
    page.locator("#model option").first.wait_for(state="attached")
    assert page.locator("body *").count() == (
        before + 2 * page.evaluate("turn.content.querySelectorAll('*').length")
    )
    for selector in ("script", "img", "iframe", "a", "style", "b"):
        inside = page.locator(f"#log {selector}, #banner {selector}")
        assert inside.count() == 0, selector
    text = page.locator(".answer").first.evaluate("(x) => x.textContent")
    assert text == HOSTILE
    page.wait_for_timeout(50)
    assert page.title() == "kerasgpt"


def test_a_reload_keeps_the_conversation(visit, server):
    server.scripts = ["One", "Two"]
    page = visit()
    ask(page, "a\nb  c")
    wait_for(page, "One")
    is_idle(page)
    facts = page.inner_text(".facts")
    page.reload()
    assert page.locator(".question").all_inner_texts() == ["a\nb  c"]
    assert answers(page) == ["One"]
    assert page.inner_text(".facts") == facts
    ask(page, "d")
    wait_for(page, "Two")
    contents = [m["content"] for m in server.bodies[1]["messages"]]
    assert contents == ["a\nb  c", "One", "d"]


def test_a_reload_amid_an_answer_keeps_its_beginning(visit, server):
    gate = threading.Event()
    server.scripts = [("Begun", gate, "!")]
    page = visit()
    ask(page, "a")
    page.locator(".live .answer", has_text="Begun").wait_for()
    page.reload()
    gate.set()
    assert answers(page) == ["Begun"]
    assert page.inner_text(".facts") == "incomplete"


def test_new_chat_can_be_undone(visit, server):
    page = visit()
    ask(page, "a")
    wait_for(page, "Hello")
    is_idle(page)
    page.click("#fresh")
    assert page.locator(".turn").count() == 0
    assert page.is_visible("#welcome")
    page.click("#act")
    assert answers(page) == ["Hello"]
    page.click("#fresh")
    page.reload()
    assert page.locator(".turn").count() == 0
    ask(page, "b")
    wait_for(page, "Hello")
    assert len(server.bodies[-1]["messages"]) == 1


def test_what_is_kept_has_a_bound(visit, server):
    server.scripts = ["x" * 150_000] * 4
    page = visit()
    for index in range(4):
        ask(page, str(index))
        page.locator(".turn:not(.live)").nth(index).wait_for()
        is_idle(page)
    page.reload()
    assert page.locator(".question").all_inner_texts() == ["2", "3"]


@pytest.mark.parametrize(
    "saved",
    [
        "{",
        "null",
        "[]",
        '{"turns": {"length": 3}}',
        '{"turns": [null, 1, {"question": 1, "answer": "x"}, "x"]}',
        '{"turns": [{"question": "q", "answer": "kept", "note": "__proto__",'
        ' "tokens": "9", "seconds": {}, "view": 1, "unsent": "no"}]}',
    ],
)
def test_bad_saved_state_breaks_nothing(visit, server, saved):
    server.scripts = ["Fine"]
    page = visit()
    page.evaluate(
        """(saved) => addEventListener("pagehide", () => {
          for (const name of ["chat", "choices"]) {
            localStorage.setItem(`kerasgpt.${name}`, saved);
          }
          sessionStorage.setItem("kerasgpt.key", saved);
        })""",
        saved,
    )
    page.reload()
    if "kept" in saved:
        assert answers(page) == ["kept"]
    ask(page, "a")
    wait_for(page, "Fine")
    page.click("#language")
    page.reload()
    assert page.get_attribute("html", "lang") == "zh-CN"


def test_bad_choices_break_nothing(visit, server):
    page = visit()
    page.evaluate(
        """localStorage.setItem("kerasgpt.choices", JSON.stringify({
          language: 3, theme: {}, model: "gone", system: [], seed: "-1",
          temperature: "NaN", top_k: "1e99", top_p: null}))"""
    )
    page.reload()
    ask(page, "a")
    wait_for(page, "Hello")
    body = server.bodies[0]
    assert body["model"] == "shop_chat"
    assert not {"temperature", "top_k", "top_p"} & set(body)
    assert len(body["messages"]) == 1


def test_a_browser_without_storage_can_chat(visit, server):
    page = visit()
    page.add_init_script(
        """for (const name of ["localStorage", "sessionStorage"]) {
          Object.defineProperty(window, name, {get() { throw Error(name); }});
        }"""
    )
    page.reload()
    ask(page, "a")
    wait_for(page, "Hello")


def test_a_busy_server_says_when_to_come_back(visit, server):
    server.scripts = [
        lambda h: h.refuse(429, "Too many requests.", Retry_After="7"),
        "Here",
    ]
    page = visit()
    ask(page, "a")
    page.locator("#banner", has_text="try again in 7 s").wait_for()
    assert page.get_attribute("#banner", "role") == "alert"
    page.click("#act")
    wait_for(page, "Here")
    assert not page.is_visible("#banner")
    assert page.locator(".turn").count() == 1
    assert server.bodies[0]["messages"] == server.bodies[1]["messages"]


def test_an_unanswered_question_is_not_sent_again(visit, server):
    server.scripts = [lambda h: h.refuse(400, "no")]
    page = visit()
    ask(page, "a")
    page.locator("#banner", has_text="no").wait_for()
    assert page.inner_text(".facts") == "no answer"
    ask(page, "b")
    wait_for(page, "Hello")
    assert server.bodies[1]["messages"] == [{"role": "user", "content": "b"}]


@pytest.mark.parametrize("end", ["torn", "closed"])
def test_a_lost_connection_keeps_what_came(visit, server, end):
    def script(handler):
        handler.stream(["Half", gate], is_whole=False)
        if end == "closed":
            handler.chunk(b"")

    gate = threading.Event()
    server.scripts = [script]
    page = visit()
    ask(page, "a")
    wait_for(page, "Half")
    gate.set()
    page.locator("#banner", has_text="No connection").wait_for()
    assert answers(page) == ["Half"]
    assert page.inner_text(".facts") == "incomplete"
    page.click("#act")
    wait_for(page, "Hello")


def test_an_error_amid_the_stream_is_told(visit, server):
    def script(handler):
        handler.stream(["Half"], is_whole=False)
        handler.event({"error": {"message": "the model was retired"}})
        handler.chunk(b"")

    server.scripts = [script]
    page = visit()
    ask(page, "a")
    page.locator("#banner", has_text="the model was retired").wait_for()
    assert answers(page) == ["Half"]


@pytest.mark.parametrize("body", [b"<html>", b"null", b'{"error": "plain"}'])
def test_foreign_error_bodies_are_told(visit, server, body):
    server.scripts = [lambda h: h.whole(502, "text/html", body)]
    page = visit()
    ask(page, "a")
    text = "plain" if b"plain" in body else "HTTP 502"
    page.locator("#banner", has_text=text).wait_for()


def test_events_may_come_in_any_pieces(visit, server):
    def script(handler):
        whole = handler.chunk

        def pieces(content):
            for start in range(0, len(content), 7):
                time.sleep(0.002)  # Else they would be read as one.
                whole(content[start : start + 7])

        handler.chunk = pieces
        handler.stream(["你好，", "世界 🌍"])

    server.scripts = [script]
    page = visit()
    ask(page, "a")
    wait_for(page, "你好，世界 🌍")


def test_the_oldest_turns_go_when_the_context_is_full(visit, server):
    def full(handler):
        handler.refuse(400, "too long", "context_length_exceeded")

    server.scripts = ["A", "B", "C", full, "D"]
    page = visit()
    for index, answer in enumerate("ABCD"):
        ask(page, str(index))
        wait_for(page, answer)
        is_idle(page)
    contents = [m["content"] for m in server.bodies[4]["messages"]]
    assert contents == ["2", "C", "3"]
    told = page.locator(".facts", has_text="no longer sent").count()
    assert told == 2
    # A question that fits in no way costs the others nothing.
    server.scripts = [full] * 3 + ["E"]
    ask(page, "long")
    page.locator("#banner", has_text="too long").wait_for()
    assert len(server.bodies[-1]["messages"]) == 1
    ask(page, "4")
    wait_for(page, "E")
    contents = [m["content"] for m in server.bodies[-1]["messages"]]
    assert contents == ["2", "C", "3", "D", "4"]


def test_a_server_without_models_is_told(visit, server):
    server.models = ()
    page = visit()
    page.locator("#banner", has_text="no model").wait_for()
    ask(page, "a")
    page.locator("#banner", has_text="no model").wait_for()
    assert not server.bodies
    server.models = MODELS
    page.click("#act")
    page.locator("#model option").first.wait_for(state="attached")


def test_a_telephone_needs_no_sideways_scroll(visit, server):
    server.models = ("a_model_with_a_very_long_name_indeed_" * 3,)
    server.scripts = ["x" * 500, lambda h: h.refuse(400, "y" * 300)]
    page = visit(viewport={"width": 360, "height": 640}, locale="zh-CN")
    width = "document.documentElement.scrollWidth"
    inner = "scroller.scrollWidth"
    assert page.evaluate(width) == 360
    for question in ("w" * 300, "b"):
        ask(page, question)
        page.locator('#send[aria-label="发送"]').wait_for()
    page.locator("#banner", has_text="y").wait_for()
    assert page.evaluate(width) == 360
    assert page.evaluate(inner) <= 360
    page.click("#configure")
    sheet = page.locator("#settings").bounding_box()
    assert sheet["x"] == 0 and sheet["width"] == 360
    assert page.evaluate("settings.scrollWidth") <= 360
    for button in page.locator("button >> visible=true").all():
        box = button.bounding_box()
        assert min(box["width"], box["height"]) >= 24


def test_everything_is_reached_by_keyboard(visit, server):
    page = visit()
    page.locator("#model option").first.wait_for(state="attached")
    page.locator("#message").press_sequentially("a")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("b")
    page.keyboard.press("Enter")
    wait_for(page, "Hello")
    assert page.inner_text(".question") == "a\nb"
    page.keyboard.type("c")
    page.evaluate("document.activeElement.blur()")
    page.evaluate("getSelection().removeAllRanges()")
    page.reload()
    page.evaluate("document.activeElement.blur()")
    order = []
    for _ in range(9):
        page.keyboard.press("Tab")
        order.append(
            page.evaluate(
                "document.activeElement.id || document.activeElement.className"
            )
        )
    first = order.index("skip")
    expected = ["skip", "model", "language", "theme", "configure", "fresh"]
    expected += ["scroller", "icon again", "message"]
    assert order[first:] == expected[: len(order) - first]
    page.focus("#skip")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "message"


def test_every_control_has_a_name(visit):
    page = visit()
    page.click("#configure")
    nameless = page.evaluate(
        """[...document.querySelectorAll("button, input, select, textarea")]
        .filter((control) => !control.ariaLabel && !control.labels?.length
          && !control.textContent.trim()).map((control) => control.outerHTML)
        """
    )
    assert nameless == ['<button id="act"></button>']


def test_enter_of_an_input_method_does_not_send(visit, server):
    page = visit()
    page.focus("#message")
    session = page.context.new_cdp_session(page)
    session.send(
        "Input.imeSetComposition",
        {"text": "nihao", "selectionStart": 5, "selectionEnd": 5},
    )
    session.send(
        "Input.dispatchKeyEvent",
        {"type": "rawKeyDown", "key": "Enter", "windowsVirtualKeyCode": 13},
    )
    for marks in ("{isComposing: true}", "{keyCode: 229}"):
        page.evaluate(
            f"""message.dispatchEvent(new KeyboardEvent("keydown", {{
              key: "Enter", bubbles: true, cancelable: true, ...{marks}}}))"""
        )
    session.send("Input.insertText", {"text": "你好"})
    assert page.input_value("#message") == "你好"
    assert page.locator(".turn").count() == 0
    page.keyboard.press("Enter")
    wait_for(page, "Hello")
    assert server.bodies[0]["messages"][0]["content"] == "你好"


def test_the_log_follows_only_a_reader_at_its_end(visit, server):
    gates = [threading.Event(), threading.Event()]
    lines = "line\n" * 60
    server.scripts = [(lines, gates[0], lines, gates[1], "End")]
    page = visit(viewport={"width": 800, "height": 500})
    ask(page, "a")
    left = "scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight"
    until(page, f"scroller.scrollTop > 500 && {left} < 5")
    page.evaluate("scroller.scrollTo(0, 0)")
    page.wait_for_timeout(50)
    gates[0].set()
    until(page, "scroller.scrollHeight > 2500")
    assert page.evaluate("scroller.scrollTop") == 0
    gates[1].set()
    is_idle(page)
    assert page.evaluate("scroller.scrollTop") == 0
