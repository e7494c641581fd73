import pytest

from rewards.feedback.encryption import Keys
from rewards.feedback.items import Item
from rewards.feedback.store import FeedbackStore
from rewards.feedback.study import Study, key_file

pytest.importorskip("sqlalchemy")


def pairs(number, **more):
    return [Item(f"prompt {i}", (f"first {i}", f"second {i}"), ("new", "old"), **more) for i in range(number)]


@pytest.fixture
def make_store(tmp_path):
    """Make a study with its keys beside it, and open its store; several calls with one name open the same study."""
    opened = []

    def make(items=(), name="study", **settings):
        folder = tmp_path / name
        if not (folder / "study.yaml").is_file():
            Study(**{"repeat_share": 0.0, "gold_share": 0.0, **settings}).save(folder)
            Keys.new().save(key_file(folder))
        store = FeedbackStore(folder)
        opened.append(store)
        store.add_items(items)
        return store

    yield make
    for store in opened:
        store.close()
