"""The web application where people give feedback.

It loads nothing from elsewhere, runs without JavaScript, and shows texts as text: the templates escape everything, and the content security
policy forbids whatever is not the application's own.
"""

from __future__ import annotations

import hmac
import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from textrl_env.utils.optional_imports import optional_import

from .database import UnknownAnnotatorError
from .encryption import WrongKeyError
from .forms import LONGEST_REASON, Form, IncompleteError, first, read_answer, text, word_places
from .items import Assignment
from .store import FeedbackStore, StaleTicketError
from .study import SCALE
from .translations import LANGUAGES, WORDS

with optional_import("feedback", "feedback from people needs the extra"):
    from fastapi import FastAPI, Request
    from fastapi.responses import HTMLResponse, RedirectResponse, Response
    from starlette.concurrency import run_in_threadpool
    from starlette.datastructures import MutableHeaders
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.staticfiles import StaticFiles
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 1_000_000  # bytes of a posted form
_HERE = Path(__file__).parent
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with none, browsers send "Origin: null" with forms
    "Cache-Control": "no-store",
}


class _Desk:
    """What the routes share: the store, the templates, who somebody is."""

    def __init__(self, store: FeedbackStore, token: str | None) -> None:
        self.store = store
        self.token = token
        loader = FileSystemLoader(_HERE / "templates")
        self.templates = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)

    def may_enter(self, request: Request) -> bool:
        """Whether the request bears the study's token, in its cookie or its address."""
        if self.token is None:
            return True
        given = request.cookies.get("token") or request.query_params.get("token") or ""
        return hmac.compare_digest(given.encode("utf-8", "replace"), self.token.encode())

    def who(self, request: Request) -> str | None:
        """Return the pseudonym in the request's sealed cookie; None if there is none."""
        try:
            data = json.loads(self.store.keys.open(request.cookies.get("annotator", "").encode("ascii", "replace")))
            return str(data["pseudonym"])
        except (WrongKeyError, ValueError, KeyError, TypeError):
            return None

    def language(self, request: Request) -> str:
        """Return the language asked for in the address or the cookie, else the study's."""
        for asked in (request.query_params.get("lang"), request.cookies.get("lang")):
            if asked in LANGUAGES:
                return str(asked)
        return self.store.study.language

    def page(self, request: Request, name: str, status: int = 200, **values: Any) -> HTMLResponse:
        """Fill in a template."""
        language = self.language(request)
        values |= {"t": WORDS[language], "language": language, "languages": LANGUAGES, "study": self.store.study}
        response = HTMLResponse(self.templates.get_template(name).render(**values), status)
        if request.query_params.get("lang") in LANGUAGES:
            response.set_cookie("lang", language, samesite="strict", max_age=30 * 86400)
        return response

    def question(self, request: Request, pseudonym: str, note: str = "", status: int = 200, form: Form | None = None) -> Response:
        """Return the page of the open question."""
        shown, done, left = self.store.page(pseudonym)
        words = WORDS[self.language(request)]
        values: dict[str, Any] = {
            "note": note,
            "done": done,
            "left": left,
            "shown": shown,
            "form": {key: first(form or {}, key) for key in form or ()},
            "scale": range(1, SCALE + 1),
        }
        if shown is not None:
            values["responses"] = [shown.item.responses[i] for i in shown.order]
            values["question"] = self.store.study.question or words[self.store.study.kind]
            values["words"] = _words(shown) if self.store.study.kind == "spans" else []
        return self.page(request, "question.html.j2", status, **values)


def make_pages(store: FeedbackStore, token: str | None = None, hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "[::1]")) -> FastAPI:
    """Return an ASGI application that asks the questions of a study.

    Args:
        store: The study's.
        token: If given, nothing at all is answered to who does not bring it: `?token=...` once, then by cookie.
        hosts: Names by which the server may be called, against DNS rebinding; `("*",)` for any.
    """
    app = FastAPI(title="textrl feedback", docs_url=None, redoc_url=None, openapi_url=None)
    desk = _Desk(store, token)

    app.add_middleware(_Guard, desk=desk)
    app.add_exception_handler(UnknownAnnotatorError, lambda request, error: RedirectResponse("/", 303))
    _doors(app, desk)
    _questions(app, desk)
    app.mount("/static", StaticFiles(directory=_HERE / "static"))
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    return app


class _Guard:
    """Lets in who may enter, and adds what every response must carry."""

    def __init__(self, app: ASGIApp, desk: _Desk) -> None:
        self.app = app
        self.desk = desk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        request, desk = Request(scope), self.desk
        answering, token = self.app, None
        if not desk.may_enter(request):
            answering = desk.page(request, "message.html.j2", 403, message=WORDS[desk.language(request)]["token"])
        elif request.method == "POST" and not _same_origin(request):
            answering = Response("this form comes from another site", 403)
        elif desk.token is not None and request.query_params.get("token") is not None:
            token = Response()
            token.set_cookie("token", desk.token, httponly=True, samesite="strict", max_age=30 * 86400)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                if token is not None:
                    headers.append("Set-Cookie", token.headers["set-cookie"])
            await send(message)

        await answering(scope, receive, with_headers)


def _doors(app: FastAPI, desk: _Desk) -> None:
    @app.get("/")
    def door(request: Request) -> Response:
        pseudonym = desk.who(request)
        if pseudonym is not None and desk.store.knows(pseudonym):
            return RedirectResponse("/question", 303)
        return desk.page(request, "door.html.j2", note="")

    @app.post("/enter")
    async def enter(request: Request) -> Response:
        form = await _form(request)
        name = text(form, "name", 10_000).strip() if form is not None else ""
        if not 2 <= len(name) <= 100:
            return desk.page(request, "door.html.j2", 422, note=WORDS[desk.language(request)]["missing_name"])
        pseudonym = await run_in_threadpool(desk.store.enter, name)
        response = RedirectResponse("/question", 303)
        sealed = desk.store.keys.seal(json.dumps({"pseudonym": pseudonym})).decode()
        response.set_cookie("annotator", sealed, httponly=True, samesite="strict", max_age=30 * 86400)
        return response

    @app.post("/leave")
    def leave() -> Response:
        response = RedirectResponse("/", 303)
        response.delete_cookie("annotator")
        return response


def _questions(app: FastAPI, desk: _Desk) -> None:
    @app.get("/question")
    def question(request: Request) -> Response:
        pseudonym = desk.who(request)
        return RedirectResponse("/", 303) if pseudonym is None else desk.question(request, pseudonym)

    @app.post("/answer")
    async def answer(request: Request) -> Response:
        form = await _form(request)
        return await run_in_threadpool(_store_answer, desk, request, form)

    @app.post("/undo")
    def undo(request: Request) -> Response:
        pseudonym = desk.who(request)
        if pseudonym is not None:
            desk.store.undo(pseudonym)
        return RedirectResponse("/question", 303)


def _store_answer(desk: _Desk, request: Request, form: Form | None) -> Response:
    pseudonym, words = desk.who(request), WORDS[desk.language(request)]
    if pseudonym is None:
        return RedirectResponse("/", 303)
    if form is None:
        return desk.question(request, pseudonym, words["too_long"].format(most=f"{MAX_BODY:,}"), 413)
    ticket = first(form, "ticket")
    shown = desk.store.shown(pseudonym)
    try:
        if shown is None or not hmac.compare_digest(shown.ticket.encode(), ticket.encode("utf-8", "replace")):
            desk.store.answer(pseudonym, ticket, {"skip": True})  # already answered: nothing happens; else stale
        else:
            desk.store.answer(pseudonym, ticket, *read_answer(form, shown, desk.store.study))
    except StaleTicketError:
        return desk.question(request, pseudonym, words["stale"], 409)
    except IncompleteError as error:
        if str(error) == "too_long":
            note = words["too_long"].format(most=f"{LONGEST_REASON:,}")
        else:
            note = words["incomplete"].format(what=words[str(error)])
        return desk.question(request, pseudonym, note, 422, form)
    return RedirectResponse("/question", 303)


async def _form(request: Request) -> Form | None:
    """Read a posted form, but never more than MAX_BODY bytes of it; None if there was more."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            return None
    try:
        return parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=50_000)
    except ValueError:
        return None


def _same_origin(request: Request) -> bool:
    origin = request.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == request.headers.get("host")


def _words(shown: Assignment) -> list[tuple[int, str, str]]:
    """Return number, text and what follows of each word of the response."""
    response = shown.item.responses[0]
    places = word_places(response)
    ends = [start for start, _ in places[1:]] + [len(response)]
    return [(i, response[s:e], response[e:n]) for i, ((s, e), n) in enumerate(zip(places, ends, strict=True), 1)]
