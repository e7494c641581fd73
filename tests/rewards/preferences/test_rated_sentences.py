"""Rated sentences: read from their archive, and dealt so that no part knows another's."""

import json
import re
import tarfile

from rewards.preferences.rated_sentences import deal, read_ratings


def rows(number):
    return [{"text": f"the film was {i}", "ratings": [i % 5, 1]} for i in range(number)]


def test_no_sentence_is_in_two_parts():
    planted = rows(200)
    planted += [{"text": f" {row['text'].upper().replace(' ', '  ')} !", "ratings": [4]} for row in planted[:60]]
    parts = deal(planted, (0.45, 0.45), 0)
    seen = [{" ".join(re.findall(r"\w+", row["text"].lower())) for row in part} for part in parts]
    assert seen[0].isdisjoint(seen[1]) and seen[0].isdisjoint(seen[2]) and seen[1].isdisjoint(seen[2])
    assert [len(part) for part in seen] == [90, 90, 20] and sum(map(len, parts)) == 260
    assert deal(planted, (0.45, 0.45), 0) == parts != deal(planted, (0.45, 0.45), 1)


def test_ratings_are_read_from_the_archive_in_the_package(tmp_path):
    files = {
        "GroundTruth": "1\t1.5\tClich\u00e9s, but good.\r\n2\t-2.0\tDull.\r\n",
        "anonDataRatings": "2\t-2\t0\t[-2, -2]\n1\t1.5\t.5\t[1, 2]\n",
    }
    inner, outer = tmp_path / "hutto_ICWSM_2014.tar.gz", tmp_path / "vaderSentiment-3.3.2.tar.gz"
    with tarfile.open(inner, "w:gz") as archive:
        for name, text in files.items():
            (tmp_path / name).write_bytes(text.encode())
            archive.add(tmp_path / name, f"hutto_ICWSM_2014/movieReviewSnippets_{name}.txt")
    with tarfile.open(outer, "w:gz") as package:
        package.add(inner, "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz")
    expected = [{"text": "Clich\u00e9s, but good.", "ratings": [1, 2]}, {"text": "Dull.", "ratings": [-2, -2]}]
    assert read_ratings(outer) == expected
    (tmp_path / "ratings.jsonl").write_text("".join(json.dumps({"id": 7, **row}) + "\n" for row in expected))
    assert read_ratings(tmp_path / "ratings.jsonl") == expected
