"""A study with people.

People say on a web page which of two policies writes better; what their answers are worth is measured, and they become comparisons to learn
from. Nobody sat at a screen when this page was made: **the three annotators are simulated**. But they do what people do: each opens the
page, says a name, reads the texts that it shows, and posts its form, with mistakes. With people, leave the class `Visitor` out and run
`textrl feedback serve runs/example/study`.

It needs `pip install -c constraints.txt -e ".[feedback,http]"`; the second extra is for the simulated visitors.
"""

import html
import re
from pathlib import Path

from starlette.testclient import TestClient

from agents import generate
from agents.evaluation import make_policy
from agents.training import base_policy
from rewards import read_preferences
from rewards.feedback.items import Item
from rewards.feedback.manage_study import create_study, export_answers
from rewards.feedback.quality_report import quality_report
from rewards.feedback.store import FeedbackStore
from rewards.feedback.study import Study
from rewards.feedback.web_app import make_pages
from rewards.preferences.policy_ranking import games_of, tournament
from rewards.preferences.simulated_annotators import Annotator
from textrl_env import make_task

ANNOTATORS = {"ann": 0.02, "bob": 0.1, "cem": 0.4}  # a name, and how often they say the opposite of what they mean

# %%
# Two writers to compare: one model at temperature 1, and at 0.5, where it takes fewer risks. Both go on with the same 60 openings.
task = make_task("review")
base = str(base_policy(task))
prompts = [prompt.text for prompt in task.prompts[:60]]
texts = {}
for name, temperature in (("plain", 1.0), ("careful", 0.5)):
    policy = make_policy(task, base, temperature=temperature)
    texts[name] = generate(policy, task.tokenizer, prompts, task.max_new_tokens, seed=0)

# %%
# Three people answer each item; now and then an item comes again, the other way round. A few are *gold questions*, whose right answer is
# known: they show who does not read. Names are not stored, and texts are sealed with a key that lies beside the folder.
items = [Item(prompt, (a, b), tuple(texts)) for prompt, a, b in zip(prompts, *texts.values(), strict=True)]
items += [Item(prompt, (" was superb .", " was was was ."), gold="a") for prompt in prompts[:6]]
guideline = "Which one makes you want to see the film? Broken sentences lose."
folder = Path("runs/example/study")
made = create_study(folder, Study("film reviews", guideline=guideline, overlap=3, repeat_share=0.1, gold_share=0.1), items)
print(f"{made.added} items")


# %%
# A visitor reads the page and posts its form, as a browser does. The task's gold score is their taste; they know the texts from the page.
class Visitor:
    """Somebody at a browser.

    Args:
        store: The study's.
        name: What they type on the first page.
        flip: How often they choose the other text.
    """

    def __init__(self, store: FeedbackStore, name: str, flip: float) -> None:
        self.taste = Annotator(task.gold, temperature=0.1, flip=flip, name=name)
        self.browser = TestClient(make_pages(store), base_url="http://127.0.0.1")
        self.browser.post("/enter", data={"name": name})

    def answer(self) -> bool:
        """Answer the open question; return whether there was one."""
        page = self.browser.get("/question").text
        ticket = re.search(r'name="ticket" value="([^"]+)"', page)
        if ticket is None:
            return False
        shown = re.findall(r'<div class="text[^>]*>(?:<span class="lead">.*?</span> )?(.*?)</div>', page, re.S)
        prompt, first, second = map(html.unescape, shown)
        chosen = self.taste.compare([(prompt, f" {first}", f" {second}")])[0].chosen
        choice = "a" if chosen == f" {first}" else "b"
        return self.browser.post("/answer", data={"ticket": html.unescape(ticket[1]), "choice": choice}).is_success


store = FeedbackStore(folder)
visitors = [Visitor(store, name, flip) for name, flip in ANNOTATORS.items()]
while any([visitor.answer() for visitor in visitors]):
    pass

# %%
# What the answers are worth; `textrl feedback report runs/example/study` says it as a page. The accuracy is estimated from the answers
# alone (Dawid and Skene): whoever often disagrees with the others is thought to err. The key makes pseudonyms of names.
answers = store.answers()
quality = quality_report(answers, store.study)
print(f"{quality.answers} answers to {quality.items} items, Krippendorff's alpha {quality.alpha:.2f}")
people = {person.name: person for person in quality.people}
for name, flip in ANNOTATORS.items():
    one = people[store.keys.name(name)]
    print(f"{name} errs in {flip:.0%}: accuracy {one.accuracy:.2f}, repeated {one.consistency}, gold questions {one.gold}")

# %%
# Who writes better, by Bradley and Terry's model; and what nobody knows in a real study, the true score of both. Below, neither interval
# holds 0: 60 pairs show which writer is better, although one annotator of three nearly guesses. Keys are drawn, and who is asked what
# follows them, so another run prints other numbers.
for one in tournament(games_of((a.item_id, a.item.sources, a.value) for a in answers if a.turn == 0 and a.item.gold is None)):
    true = task.gold(prompts, texts[one.player]).mean()
    print(f"{one.player:8} strength {one.strength:+.2f} [{one.low:+.2f}, {one.high:+.2f}]  true score {true:+.2f}")
store.close()

# %%
# The three answers to a pair become one comparison, with the probability that it is right.
export_answers(folder, Path("runs/example/preferences.jsonl"), merge=True)
pairs = read_preferences("runs/example/preferences.jsonl")
print(f"{len(pairs)} comparisons; the first is right with probability {pairs[0].label:.2f}: {pairs[0].chosen!r}, not {pairs[0].rejected!r}")

# %%
# Sixty comparisons begin to rank two writers; a reward model wants 400 or more. With those:
# [from preferences to a policy](preferences_to_policy.md).
# What can be asked, privacy, and servers for several people: [feedback from people](../../feedback.md).
