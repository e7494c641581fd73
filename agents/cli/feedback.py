"""`textrl feedback`: studies in which people compare, rate, rank, flag or write texts."""

from __future__ import annotations

import dataclasses
import os
import secrets
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from annotated_types import Interval
from rich.console import Console

from rewards.feedback.study import Study

from ..utils.folder_lock import only_process_in
from ..utils.limits import Above0, Count, Port, Seed
from .arguments import reward_of
from .reward_serve import listen

if TYPE_CHECKING:
    from rewards.feedback.store import FeedbackStore

_Folder = Annotated[Path, tyro.conf.Positional]
_STUDY = Path("runs/study")
_PAIRS = 200
_Half = Annotated[float, Interval(ge=0, le=0.5)]


@dataclass(frozen=True)
class Create:
    """Make a study, or add items to one; the settings are kept in `study.yaml`, where they may be edited.

    Attributes:
        study: Its folder.
        items: JSON Lines of what is asked: `prompt` with `responses`, `chosen` and `rejected`, or `response`; also `sources`, `group`, and
            `gold`, the right answer of a gold question.
        samples: Texts of policies to make pairs of, as NAME=FILE, or FILE, in the form of `textrl generate --out`.
        pairs: How many pairs are made of the samples; by default 200.
        choose: Which: at random, as many for each prompt, or those an ensemble of reward models disagrees about most.
        ensemble: Reward models for `uncertain`: as `textrl train --reward` takes them.
        kind: What annotators do.
        name: Title of the page.
        question: Asked above the responses; by default the kind's own.
        guideline: File with the text that tells annotators how to judge.
        criteria: What else is rated from 1 to 5.
        flags: What words may be flagged as, for `spans`.
        overlap: Answers wanted for each item, by different annotators.
        repeat_share: Share of questions that repeat an earlier one.
        gold_share: Share of questions that are gold questions.
        language: Of the page.
        scrub: Take e-mail addresses, phone, card and account numbers, IP addresses and URLs out of all that is kept.
        retention_days: Delete reasons and log entries older than this.
        database: SQLAlchemy's URL of another database than SQLite in the folder.
        seed: Of orders and draws.
    """

    study: _Folder = _STUDY
    items: tuple[Path, ...] = ()
    samples: tuple[str, ...] = ()
    pairs: Count | None = None
    choose: Literal["random", "balanced", "uncertain"] = "random"
    ensemble: tuple[str, ...] = ()
    kind: Literal["pair", "rating", "ranking", "spans", "demonstration"] = Study.kind
    name: str = Study.name
    question: str = Study.question
    guideline: Path | None = None
    criteria: tuple[str, ...] = Study.criteria
    flags: tuple[str, ...] = Study.flags
    overlap: Count = Study.overlap
    repeat_share: _Half = Study.repeat_share
    gold_share: _Half = Study.gold_share
    language: Literal["en", "zh"] = Study.language
    scrub: bool = Study.scrub
    retention_days: Above0 | None = Study.retention_days
    database: str | None = Study.database
    seed: Seed = Study.seed


def run_create(config: Create) -> None:
    """Make the folder, the keys and the database, and store the items."""
    from rewards.feedback.import_export import items_of, samples_of
    from rewards.feedback.manage_study import create_study
    from rewards.feedback.pair_selection import choose_pairs
    from textrl_env.reward_model import as_reward_model
    from textrl_env.utils.tables import read_rows

    if config.ensemble and config.choose != "uncertain":
        raise ValueError(f"--ensemble chooses nothing with --choose {config.choose}: add --choose uncertain, or leave it out")
    unused = [name for name in ("pairs", "choose") if getattr(config, name) != getattr(Create, name) and not config.samples]
    unused += ["flags"] if config.flags != Create.flags and config.kind != "spans" else []
    if unused:
        uses = "pairs are made of --samples" if unused != ["flags"] else "words are flagged with --kind spans"
        raise ValueError(f"--{' --'.join(unused)}: would not be used, for {uses}; leave it out, or add what it needs")
    console = Console()
    items = [item for path in config.items for item in items_of(read_rows(path))]
    if config.samples:
        written = [s for text in config.samples for s in samples_of(read_rows(_file(text)), _source(text))]
        ensemble = [as_reward_model(reward_of(text, "--ensemble")) for text in config.ensemble]
        items += choose_pairs(written, config.pairs or _PAIRS, config.choose, ensemble, config.seed)
    if not items:
        raise ValueError("nothing to ask about: pass --items FILE, or --samples FILE with at least two responses to a prompt")
    guideline = "" if config.guideline is None else config.guideline.read_text(encoding="utf-8").strip()
    same = {field.name: getattr(config, field.name) for field in dataclasses.fields(Study) if field.name != "guideline"}
    with only_process_in(config.study):  # of two that make the keys, one would lock the other out
        made = create_study(config.study, Study(guideline=guideline, **same), items)
    console.print(made.describe(), soft_wrap=True)
    console.print(f"next: textrl feedback serve {config.study}")


@dataclass(frozen=True)
class FeedbackServe:
    """Open the page of a study in the browser of whoever gives feedback.

    Attributes:
        study: Its folder.
        host: Address to listen at; any but this machine's own needs a token, which is drawn if TEXTRL_FEEDBACK_TOKEN holds none.
        port: Port to listen at; 0 for one that is free.
    """

    study: _Folder = _STUDY
    host: str = "127.0.0.1"
    port: Port = 8750


def run_serve(config: FeedbackServe) -> None:
    """Listen until Ctrl-C.

    Raises:
        ImportError: The extra `feedback` is not installed.
        OSError: The address cannot be listened at.
    """
    from rewards.feedback.store import FeedbackStore
    from rewards.feedback.web_app import make_pages

    import uvicorn  # isort: skip

    store = FeedbackStore(config.study)
    Thread(target=_keep_purging, args=(store,), daemon=True).start()
    listener = listen(config.host, config.port)
    host, port = listener.getsockname()[:2]
    local = ip_address(host).is_loopback
    token = os.environ.get("TEXTRL_FEEDBACK_TOKEN") or (None if local else secrets.token_urlsafe(16))
    app = make_pages(store, token) if local else make_pages(store, token, hosts=("*",))
    shown = f"[{host}]" if ":" in host else host
    query = f"/?token={token}" if token else ""
    console = Console()
    if not local:
        console.print("Open to other machines, without encryption on the way: use it in a network you trust, or behind a proxy with TLS.")
    console.print(f"{store.study.name} at http://{shown}:{port}{query}", highlight=False, markup=False, soft_wrap=True)
    with listener:
        uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listener])


def _keep_purging(store: Any, every: float = 3600.0) -> None:
    """Delete what is older than the study keeps it, for as long as the server runs."""
    while True:
        time.sleep(every)
        with suppress(RuntimeError):  # another process reads
            store.purge()


@dataclass(frozen=True)
class Export:
    """Write a study's answers to a file.

    Attributes:
        study: Its folder.
        out: The file.
        format: `preferences` for `textrl reward report`, `train` and `rewards.read_preferences`; `ratings` of single responses for `textrl
            train --algo kto`; `answers` with everything, for another study; `label-studio` for Label Studio.
        consensus: Of pairs, one comparison each with the probability that Dawid and Skene's model gives, instead of every answer.
    """

    study: _Folder = _STUDY
    out: Path = Path("preferences.jsonl")
    format: Literal["preferences", "ratings", "answers", "label-studio"] = "preferences"
    consensus: bool = False


def run_export(config: Export) -> None:
    """Write the file."""
    from rewards.feedback.manage_study import export_answers

    count = export_answers(config.study, config.out, config.format, config.consensus)
    Console().print(f"{count} rows in {config.out}; they are no longer encrypted", highlight=False)


@dataclass(frozen=True)
class Import:
    """Add answers from elsewhere to a study.

    Attributes:
        study: Its folder.
        file: What `textrl feedback export --format answers` or `label-studio` wrote, or Label Studio's export of pairs.
    """

    study: _Folder = _STUDY
    file: Annotated[Path, tyro.conf.Positional] = Path("answers.jsonl")


def run_import(config: Import) -> None:
    """Read the file and store its items and answers."""
    from rewards.feedback.manage_study import import_answers

    added, known = import_answers(config.study, config.file)
    Console().print(f"{added} answers added, {known} were there already")


@dataclass(frozen=True)
class Rotate:
    """Seal a study's texts with a new key; a server that runs goes on with it, but people enter their names again.

    Attributes:
        study: Its folder.
    """

    study: _Folder = _STUDY


def run_rotate(config: Rotate) -> None:
    """Draw a new key, seal everything with it, and drop the old one."""
    from rewards.feedback.encryption import VARIABLE
    from rewards.feedback.study import key_file

    if VARIABLE in os.environ:
        raise ValueError(f"the keys come from {VARIABLE}, which cannot be written from here: unset it and use the key file")
    with _open(config.study) as store, only_process_in(config.study):  # of two at once, one would write a key file without the other's key
        count = store.rotate(lambda keys: keys.save(key_file(config.study)))
    Console().print(f"{count} texts sealed anew; older copies of the database need the old key, which is gone")


@dataclass(frozen=True)
class Forget:
    """Delete everything about an annotator.

    Attributes:
        study: Its folder.
        who: Their pseudonym, or the name they gave.
    """

    study: _Folder = _STUDY
    who: Annotated[str, tyro.conf.Positional] = ""


def run_forget(config: Forget) -> None:
    """Delete the annotator's answers, assignments and log entries."""
    if not config.who:
        raise ValueError("whom? pass a pseudonym, as reports show it, or the name they gave")
    with _open(config.study) as store:
        name = config.who if store.knows(config.who) else store.keys.name(config.who)
        if not store.knows(name):
            raise ValueError(f"nobody in {config.study} has the pseudonym or name {config.who!r}")
        gone = store.forget(name)
    Console().print(f"{gone} answers deleted; exports and models made before still hold what they held")


@dataclass(frozen=True)
class Log:
    """Show who did what in a study.

    Attributes:
        study: Its folder.
        last: How many lines.
    """

    study: _Folder = _STUDY
    last: Count = 50


def run_log(config: Log) -> None:
    """Print the last lines of the access log."""
    from datetime import datetime, timezone

    with _open(config.study) as store:
        for at, who, did, what in store.access_log()[-config.last :]:
            print(datetime.fromtimestamp(at, timezone.utc).isoformat(timespec="seconds"), who, did, what)


def _open(folder: Path) -> closing[FeedbackStore]:
    from rewards.feedback.store import FeedbackStore

    return closing(FeedbackStore(folder))


def _file(text: str) -> Path:
    return Path(text.partition("=")[2] if "=" in text else text)


def _source(text: str) -> str:
    return text.partition("=")[0] if "=" in text else Path(text).stem
