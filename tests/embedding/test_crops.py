"""Pairs drawn from documents: what stands in them, and that nothing of the tests does."""

import json

import pytest

from commands import run_main
from embedding import crops
from embedding.crops import LONGEST_PASSAGE, in_traditional, pair_of

SENTENCES = [
    "清晨的菜市场已经很热闹了。",
    "卖豆腐的阿姨一边称重一边和邻居聊天。",
    "我挑了两把青菜，又买了半斤虾。",
    "回家的路上飘起了小雨，幸好带着伞。",
    "午饭做了虾仁炒蛋和青菜豆腐汤。",
]
TITLE = "周末的早市"
TEXT = "\n".join([TITLE, "".join(SENTENCES)])


def pairs(text: str, count: int = 60) -> list[tuple[str, str]]:
    found = (pair_of(text, seed) for seed in range(count))
    return [pair for pair, _ in filter(None, found)]


def test_a_title_or_words_of_a_sentence_belong_to_a_passage():
    queries = [query for query, _ in pairs(TEXT)]
    assert 0.5 < queries.count(TITLE) / len(queries) < 1
    for query in queries:
        assert query == TITLE or any(query in sentence for sentence in SENTENCES)
        assert query[-1] not in "，。" and query[0] not in "，。"


def test_half_of_the_sentences_are_taken_out_of_their_passage():
    found = pairs("".join(SENTENCES * 4))
    assert len(set(found)) > 30
    still_there = sum(query in passage for query, passage in found) / len(found)
    # A sentence that is taken out of four equal ones may be there a second time.
    assert 0.3 < still_there < 1


def test_a_passage_is_whole_sentences():
    for _, passage in pairs(TEXT):
        assert passage.endswith("。") and len(passage) <= LONGEST_PASSAGE
        assert passage.startswith((TITLE, *SENTENCES))


def test_a_pair_follows_from_seed_text_and_number():
    assert pair_of(TEXT, 3) == pair_of(TEXT, 3)
    assert len({str(pair_of(TEXT, 3, number)) for number in range(8)}) > 2


def test_a_share_of_the_passages_is_in_traditional_characters():
    pairs = [(f"第{number}个软件", f"第{number}个软件的发布说明。") for number in range(200)]
    found = [in_traditional(pair, 0, 0.5) for pair in pairs]
    passages = [passage for _, passage in found if "軟體的釋出說明" in passage]
    queries = [query for query, _ in found if "軟體" in query]
    assert 70 < len(passages) < 130
    assert 0.3 < len(queries) / len(passages) < 0.7
    assert [pair for pair in found if pair in pairs] == [
        (query, passage) for query, passage in found if "软件" in passage
    ]
    assert [in_traditional(pair, 0, 0.0) for pair in pairs] == pairs


@pytest.mark.parametrize("text", ["", "只有一句话。", "一行\n", "。。。"])
def test_a_text_without_a_passage_gives_no_pair(text):
    assert pairs(text) == []


def test_the_command_draws_pairs_and_leaves_out_those_of_the_tests(tmp_path, monkeypatch, capsys):
    documents = tmp_path / "documents.jsonl"
    rows = [{"text": f"第{number}天。{TEXT}"} for number in range(40)]
    documents.write_text(
        "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8"
    )
    output = tmp_path / "crops.jsonl"
    arguments = ["--documents", documents, "--output", output, "--count", 10]

    class TestsHoldTheMarket:
        def __init__(self, tasks):
            pass

        def holds_any(self, texts) -> bool:
            return any(text == SENTENCES[0] for text in texts)

    def drawn(*options) -> list[dict]:
        run_main(crops, *arguments, *options)
        return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]

    for options in (("--count", 0), ("--traditional", 20)):
        with pytest.raises(SystemExit):
            drawn(*options)
    assert not output.exists()
    documents.write_text(documents.read_text(encoding="utf-8") * 2, encoding="utf-8")
    pairs_drawn = [tuple(row.values()) for row in drawn("--count", 1000)]
    assert len(set(pairs_drawn)) == len(pairs_drawn)
    everything = drawn()
    assert len(everything) == 10 and drawn() == everything
    assert "10 pairs" in capsys.readouterr().out
    monkeypatch.setattr(crops, "HeldOut", TestsHoldTheMarket)
    clean = drawn("--exclude", tmp_path)
    assert clean and all(SENTENCES[0] not in row["passage"] for row in clean)
    assert any(SENTENCES[0] in row["passage"] for row in everything)
