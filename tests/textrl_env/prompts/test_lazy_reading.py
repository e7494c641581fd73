"""What reading lazily costs."""

import pickle
import random
import tracemalloc

import pytest

from textrl_env import Prompt
from textrl_env.prompts.reader import read_prompts


def test_a_large_file_is_never_in_memory_whole(tmp_path):
    """50 MB in 100,000 rows: the index takes 0.8 MB twice (growing, and as an array), one line 500 bytes."""
    path = tmp_path / "large.jsonl"
    filler = "x" * 470
    with open(path, "w") as file:
        file.writelines(f'{{"prompt": "{i:06d} {filler}", "n": {i}}}\n' for i in range(100_000))
    assert path.stat().st_size > 50e6
    tracemalloc.start()
    try:
        prompts = read_prompts(path)
        assert len(prompts) == 100_000
        for i in range(0, 100_000, 997):
            assert prompts[i].metadata == {"n": i}
        assert sum(prompt.metadata["n"] for prompt in prompts[99_000:]) == sum(range(99_000, 100_000))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4e6
    assert len(pickle.dumps(prompts)) < 1e6


def test_parquet_is_read_by_row_groups(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    path = tmp_path / "rows.parquet"
    table = pa.table({"prompt": [f"p{i}" for i in range(100)], "n": range(100), "m": [[i, None] for i in range(100)]})
    with pyarrow.parquet.ParquetWriter(path, table.schema) as writer:
        for start, count in ((0, 7), (7, 0), (7, 30), (37, 63)):
            writer.write_table(table.slice(start, count))
    prompts = read_prompts(path)
    order = random.Random(0).sample(range(100), 100)
    assert [prompts[i] for i in order] == [Prompt(f"p{i}", (), {"n": i, "m": [i, None]}) for i in order]
    assert prompts[36].text == "p36" and len(prompts.rows._cached[1]) == 30
    assert pickle.loads(pickle.dumps(prompts)).rows._cached is None
    few = read_prompts(path, columns="n")
    assert few[99] == Prompt("p99", (), {"n": 99}) and few.rows._cached[1].column_names == ["prompt", "n"]
