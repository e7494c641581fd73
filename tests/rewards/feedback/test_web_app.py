"""The web application, without a browser: what is asked, what is stored, and what hostile input does to it."""

import html
import re
import threading

import pytest

from rewards.feedback.items import Item
from rewards.feedback.translations import WORDS
from rewards.feedback.web_app import MAX_BODY, make_pages

from .conftest import pairs

testclient = pytest.importorskip("starlette.testclient")
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


def visit(store, token=None, **more):
    return testclient.TestClient(make_pages(store, token), base_url="http://127.0.0.1", **more)


def enter(client, name="ann"):
    assert client.post("/enter", data={"name": name}).status_code == 200
    return client


def ticket_of(page):
    return html.unescape(re.search(r'name="ticket" value="([^"]+)"', page.text)[1])


def answer(client, **fields):
    return client.post("/answer", data={"ticket": ticket_of(client.get("/question")), **fields})


def test_letters_are_places_and_answers_are_stored_by_item(make_store):
    store = make_store(pairs(20), criteria=("fluent",))
    client = enter(visit(store))
    for _ in range(20):
        page = client.get("/question")
        first = re.search(r'id="response-0">.*?tabindex="0">([^<]*)<', page.text, re.DOTALL)[1]
        choice = "a" if first.startswith("first") else "b"
        data = {"ticket": ticket_of(page), "choice": choice, "c0-0": "1" if choice == "a" else "5", "c0-1": "5" if choice == "a" else "1"}
        assert client.post("/answer", data=data).status_code == 200
    assert [a.value for a in store.answers()] == [{"choice": "a", "ratings": {"fluent": [1, 5]}}] * 20
    assert {a.order for a in store.answers()} == {(0, 1), (1, 0)}
    assert WORDS["en"]["finished"] in client.get("/question").text


@pytest.mark.parametrize(
    ("settings", "item", "fields", "value", "words"),
    [
        (
            {"kind": "rating", "criteria": ("true",)}, Item("p", ("x",)), {"rating": "4", "c0-0": "2"},
            {"rating": 4, "ratings": {"true": [2]}}, {},
        ),
        (
            {"kind": "demonstration"}, Item("p", ("draft",)), {"text": "one\r\ntwo", "reason": " r"},
            {"written": True}, {"text": "one\ntwo", "reason": " r"},
        ),
        ({"kind": "demonstration"}, Item("p", ()), {"text": "mail a@b.com"}, {"written": True}, {"text": "mail [e-mail]"}),
        ({"kind": "pair"}, Item("p", ("x", "y")), {"choice": "tie", "reason": "same"}, {"choice": "tie"}, {"reason": "same"}),
        ({"kind": "pair"}, Item("p", ("x", "y")), {"choice": "skip"}, {"skip": True}, {}),
        (
            {"kind": "spans", "flags": ("wrong", "rude")}, Item("p", ("the very  bad dog 坏狗",)), {"flag0": ["2", "3", "5"], "flag1": "4"},
            {"spans": [
                {"flag": "wrong", "start": 4, "end": 13}, {"flag": "wrong", "start": 18, "end": 19},
                {"flag": "rude", "start": 14, "end": 17},
            ]}, {},
        ),
        ({"kind": "spans"}, Item("p", ("fine",)), {}, {"spans": []}, {}),
    ],
)  # fmt: skip
def test_every_kind(make_store, settings, item, fields, value, words):
    store = make_store([item], **settings)
    client = enter(visit(store))
    answer(client, **{"choice": "save", **fields})
    (stored,) = store.answers()
    assert (stored.value, stored.words) == (value, words)


def test_rankings_follow_the_shown_order(make_store):
    store = make_store([Item("p", ("r0", "r1", "r2"))], kind="ranking")
    client = enter(visit(store))
    shown = store.ask(store.enter("ann"))
    assert "different rank" in answer(client, choice="save", rank0="1", rank1="1", rank2="2").text and store.answers() == []
    answer(client, choice="save", rank0="3", rank1="1", rank2="2")
    assert store.answers()[0].value == {"ranking": [shown.order[1], shown.order[2], shown.order[0]]}


@pytest.mark.parametrize(
    ("kind", "responses", "fields", "message"),
    [
        ("pair", 2, {"choice": "c"}, "Which response"),
        ("pair", 2, {}, "Which response"),
        ("rating", 1, {"rating": "6"}, "rating from 1"),
        ("rating", 1, {"rating": "\u0661"}, "rating from 1"),
        ("ranking", 2, {"rank0": "0", "rank1": "1"}, "different rank"),
        ("demonstration", 1, {"text": " \n"}, "write a response"),
        ("pair", 2, {"choice": "a", "reason": "x" * 5001}, "at most 5,000"),
    ],
)
def test_incomplete_forms_store_nothing_and_keep_what_was_typed(make_store, kind, responses, fields, message):
    store = make_store([Item("p", tuple("xy"[:responses]))], kind=kind)
    client = enter(visit(store))
    page = answer(client, **{"choice": "save", "reason": "typed", **fields})
    assert page.status_code == 422 and message in page.text and store.answers() == []
    assert "typed" in page.text or len(fields.get("reason", "")) > 5000


def test_a_response_that_goes_on_is_read_after_its_prompt(make_store):
    client = enter(visit(make_store([Item("x" * 30 + "the film " * 10, (" was good .", "No."))])))
    page = client.get("/question").text
    assert (
        '<span class="lead">…' + "the film " * 10 + "</span> was good .</div>" in page
        and '<div class="text" tabindex="0">No.</div>' in page
    )


def test_texts_are_shown_as_text(make_store):
    nasty = "<script>alert(1)</script><img src=x onerror=alert(1)>{{ 7 * 7919 }}</textarea>\"'&"
    for kind, responses in (("pair", 2), ("spans", 1), ("demonstration", 1)):
        store = make_store(
            [Item(nasty, (nasty,) * responses)], name=kind, kind=kind, guideline=nasty, criteria=(nasty,), flags=(nasty,), question=nasty
        )
        client = enter(visit(store), "<b>x</b>")
        page = client.get("/question")
        assert "<script>alert" not in page.text and "<img src" not in page.text and "&lt;script&gt;" in page.text
        assert "55433" not in page.text  # the expression in braces is not computed
        assert page.text.count("</textarea>") == (2 if kind == "demonstration" else 1)
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
        assert page.headers["x-content-type-options"] == "nosniff" and page.headers["cache-control"] == "no-store"


def test_megabytes(make_store):
    store = make_store([Item("p", ("x" * 1_000_000, "wort " * 200_000))])
    client = enter(visit(store))
    assert len(client.get("/question").text) > 2_000_000
    page = client.post("/answer", content="ticket=x&reason=" + "y" * MAX_BODY, headers=FORM)
    assert page.status_code == 413 and store.answers() == []
    assert client.post("/enter", content="name=" + "y" * MAX_BODY, headers=FORM).status_code == 422
    many = client.post("/answer", content="&".join(f"f{i}=1" for i in range(60_000)), headers=FORM)
    assert many.status_code == 413
    answer(client, choice="a")
    assert len(store.answers()) == 1


def test_forged_replayed_and_foreign_forms_change_nothing(make_store):
    store = make_store(pairs(3), overlap=2)
    ann, bob = enter(visit(store)), enter(visit(store), "bob")
    page = ann.get("/question")
    for ticket in ("", "x", "1", "../../etc/passwd", "' OR 1=1 --", "\x00", "é" * 100, ticket_of(bob.get("/question"))):
        assert ann.post("/answer", data={"ticket": ticket, "choice": "a"}).status_code == 409
    assert store.answers() == []
    data = {"ticket": ticket_of(page), "choice": "a"}
    assert ann.post("/answer", data=data).status_code == 200
    stored = store.answers()
    for _ in range(3):
        ann.post("/answer", data={**data, "choice": "b"})  # the same form again
    assert store.answers() == stored and len(stored) == 1
    stranger = visit(store)
    assert "Who are you" not in stranger.get("/static/feedback.css").text
    assert WORDS["en"]["begin"] in stranger.post("/answer", data=data).text  # back to the door
    stranger.cookies.set("annotator", "gAAAA")
    assert WORDS["en"]["begin"] in stranger.get("/question").text
    stranger.cookies.set("annotator", store.keys.seal('{"pseudonym": "p-nobody"}').decode())
    assert WORDS["en"]["begin"] in stranger.get("/question").text
    elsewhere = ann.post(
        "/answer", data={"ticket": ticket_of(ann.get("/question")), "choice": "a"}, headers={"Origin": "http://evil.example"}
    )
    assert elsewhere.status_code == 403 and len(store.answers()) == 1


@pytest.mark.parametrize(
    "path",
    [
        "/static/../pages.py",
        "/static/%2e%2e/pages.py",
        "/static/..%2fkeys.py",
        "/static//etc/passwd",
        "/openapi.json",
        "/docs",
        "/feedback.db",
    ],
)
def test_nothing_but_the_pages_is_served(make_store, path):
    reply = visit(make_store(pairs(1))).get(path)
    assert reply.status_code == 404 and "import" not in reply.text


def test_without_the_token_nothing_is_reachable(make_store):
    store = make_store(pairs(1), name="secret study")
    client = visit(store, token="t0ken")
    for path in ("/", "/question", "/static/feedback.css", "/static/htmx.min.js", "/nowhere", "/?token=wrong", "/?token=%ff"):
        reply = client.get(path)
        assert reply.status_code == 403 and "secret" not in reply.text and "prompt" not in reply.text
    assert client.post("/enter", data={"name": "ann"}).status_code == 403 and not store.knows(store.keys.name("ann"))
    client.cookies.set("token", "guess")
    assert client.get("/").status_code == 403
    client.cookies.clear()
    assert client.get("/?token=t0ken").status_code == 200
    enter(client)
    answer(client, choice="a")
    assert len(store.answers()) == 1


def test_other_host_names_are_refused(make_store):
    client = testclient.TestClient(make_pages(make_store(pairs(1))), base_url="http://evil.example")
    assert client.get("/").status_code == 400


def test_languages(make_store):
    client = enter(visit(make_store(pairs(2))))
    assert WORDS["zh"]["undo"] in client.get("/question?lang=zh").text and 'lang="zh-Hans"' in client.get("/question").text
    assert WORDS["en"]["undo"] in client.get("/question?lang=en").text
    assert WORDS["en"]["undo"] in client.get("/question?lang=xx").text
    assert WORDS["zh"]["pair"] in enter(visit(make_store(pairs(1), name="zh", language="zh"))).get("/question").text
    assert set(WORDS["en"]) == set(WORDS["zh"])


@pytest.mark.parametrize("name", ["", "a", " a ", "x" * 101])
def test_names_have_a_length(make_store, name):
    client = visit(make_store(pairs(1)))
    assert client.post("/enter", data={"name": name}).status_code == 422


def test_undo_and_leave(make_store):
    store = make_store(pairs(2))
    client = enter(visit(store))
    answer(client, choice="a")
    client.post("/undo")
    assert store.answers() == []
    client.post("/undo")  # nothing to take back
    assert WORDS["en"]["begin"] in client.post("/leave").text


def test_writers_at_once(make_store):
    store = make_store(pairs(30), overlap=3)
    application = make_pages(store)

    def work(name):
        client = enter(testclient.TestClient(application, base_url="http://127.0.0.1"), name)
        while 'name="ticket"' in (page := client.get("/question")).text:
            data = {"ticket": ticket_of(page), "choice": "a"}
            client.post("/answer", data=data)
            client.post("/answer", data=data)

    threads = [threading.Thread(target=work, args=(f"person {i}",)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answers = store.answers()
    assert len(answers) == 90 == len({(a.item_id, a.annotator) for a in answers})
