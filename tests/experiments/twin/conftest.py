"""For the tests of the twin: a vocabulary of characters, its tokenizer, rows and a shape."""

import json
from pathlib import Path

import pytest

from corpora import ROOT, prepare
from experiments.twin.make_tokenizer import make_tokenizer
from pretraining.data.tokens import SPECIAL_TOKENS

CORPUS = ROOT / "examples" / "corpus" / "valid.jsonl"
# Too rare for the vocabulary, as the legacy one has such characters.
UNKNOWN_CHARACTERS = "摊溅"


def write_vocabulary(file: Path) -> Path:
    """The characters of the example corpus, alone and within words, as BERT's vocabulary has it."""
    characters = sorted({*CORPUS.read_text(encoding="utf-8")} - {*UNKNOWN_CHARACTERS} - {*" \n"})
    entries = [*SPECIAL_TOKENS, *characters, *(f"##{character}" for character in characters)]
    file.write_text("\n".join(entries) + "\n", encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def twin_workspace(made_once) -> Path:
    """`vocab.txt`, `tokenizer`, `rows` of 64 tokens, `like.json`. Not to be changed."""

    def make(folder: Path) -> None:
        make_tokenizer(write_vocabulary(folder / "vocab.txt"), folder / "tokenizer")
        prepare(CORPUS, folder / "rows", tokenizer_file=folder / "tokenizer" / "tokenizer.json")
        shape = {
            "vocab_size": 3000,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
        }
        (folder / "like.json").write_text(json.dumps(shape), encoding="utf-8")

    return made_once("twin", make)
