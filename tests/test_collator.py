"""The collator masks whole words of packed rows, refuses what it cannot take, and stands alone."""

import functools
import importlib.metadata
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from data_collator_wwm import (
    IGNORED,
    MAX_UNIT_TOKENS,
    WORD_START,
    DataCollatorForWholeWordMasking,
    split_row,
)
from pretraining.data.order import TrainingOrder
from pretraining.data.rows import open_rows
from pretraining.run.schedules import mask_rate
from row_sets import write_rows

ROOT = Path(__file__).resolve().parent.parent
PAD, CLS, SEP, MASK, FIRST, VOCAB = 0, 2, 3, 4, 69, 32_000
SEQ_LEN, ROWS_PER_STEP, STEPS = 128, 4, 12


def collator(rate=0.3, **changes) -> DataCollatorForWholeWordMasking:
    values = {
        "cls_id": CLS,
        "pad_id": PAD,
        "mask_id": MASK,
        "special_ids": [PAD, CLS, SEP],
        "random_ids": np.arange(FIRST, VOCAB),
        "seed": 7,
        "mask_rate": rate,
    }
    return DataCollatorForWholeWordMasking(**(values | changes))


def make_row(seed: int, seq_len: int = SEQ_LEN) -> np.ndarray:
    """A row of documents with words of 1 to 4 tokens, and padding at the end."""
    generator = np.random.default_rng(seed)
    row = []
    while len(row) < seq_len - 60:
        words = generator.integers(1, 5, generator.integers(1, 15))
        row.append(CLS)
        for length in words:
            ids = generator.integers(FIRST, VOCAB, length).tolist()
            row += [ids[0] | int(WORD_START), *ids[1:]]
        row.append(SEP)
    return np.array(row + [PAD] * (seq_len - len(row)), dtype=np.uint16)


def features(count: int, first_position: int = 0, **kwargs) -> list[dict]:
    return [
        {"row": make_row(position, **kwargs), "position": position}
        for position in range(first_position, first_position + count)
    ]


def units_of(row: np.ndarray) -> list[list[int]]:
    """Places of each word of a row, by a plain loop: the specification of a unit."""
    ids, starts = split_row(row)
    units, open_unit = [], None
    for place, (token, start) in enumerate(zip(ids.tolist(), starts.tolist(), strict=True)):
        if token in (PAD, CLS, SEP):
            open_unit = None
        elif start or open_unit is None or len(open_unit) == MAX_UNIT_TOKENS:
            open_unit = [place]
            units.append(open_unit)
        else:
            open_unit.append(place)
    return units


@pytest.mark.parametrize("rate", [0.01, 0.15, 0.2, 0.3])
def test_the_rate_of_each_row_is_met_exactly(rate):
    batch = collator(rate)(features(32))
    for row, labels in zip(features(32), batch["labels"], strict=True):
        maskable = sum(map(len, units_of(row["row"])))
        assert (labels != IGNORED).sum() == round(rate * maskable)


def test_single_tokens_of_rows_can_be_masked_instead_at_the_same_rate():
    batch = collator(whole_words=False)(features(40))
    parts = 0
    for position, masked in enumerate((batch["labels"] != IGNORED).numpy()):
        row = make_row(position)
        ids, _ = split_row(row)
        assert masked.sum() == round(0.3 * (~np.isin(ids, [PAD, CLS, SEP])).sum())
        parts += sum(0 < masked[unit].sum() < len(unit) for unit in units_of(row))
    assert parts > 100


def test_all_tokens_of_a_word_are_replaced_in_the_same_way():
    batch = collator()(features(64))
    for feature, inputs, labels in zip(
        features(64), batch["input_ids"], batch["labels"], strict=True
    ):
        for unit in units_of(feature["row"]):
            if labels[unit[0]] != IGNORED:
                as_mask = inputs[unit] == MASK
                assert as_mask.all() or not as_mask.any()


def test_labels_are_the_original_ids_and_nothing_else_changes():
    batch = collator()(features(16))
    ids, _ = split_row(np.stack([feature["row"] for feature in features(16)]))
    masked = batch["labels"].numpy() != IGNORED
    assert np.array_equal(batch["labels"].numpy()[masked], ids[masked])
    assert np.array_equal(batch["input_ids"].numpy()[~masked], ids[~masked])


def test_a_million_words_follow_the_schedule_whole_and_80_10_10():
    """Counted in words: the rate within 0.1 %, the ways to show them within 0.3 %."""
    rows = [make_row(seed, seq_len=1024) for seed in range(100)]
    words = []  # of each row: the word of each place, or -1
    for row in rows:
        word = np.full(len(row), -1)
        for number, places in enumerate(units_of(row)):
            word[places] = number
        words.append(word)
    steps, ids = 720, np.stack([split_row(row)[0] for row in rows])
    schedule = functools.partial(mask_rate, total_steps=steps, warmup_steps=steps // 5)
    mask = collator(schedule)
    masked_tokens = expected = total = 0
    shown = np.zeros(3)
    for step in range(steps):
        chosen = [position % 100 for position in range(4 * step, 4 * step + 4)]
        given = [
            {"row": rows[n], "position": 4 * step + i, "step": step} for i, n in enumerate(chosen)
        ]
        batch = {name: tensor.numpy() for name, tensor in mask(given).items()}
        is_masked = batch["labels"] != IGNORED
        assert not is_masked[np.isin(ids[chosen], (PAD, CLS, SEP))].any()
        replaced = batch["input_ids"][is_masked & (batch["input_ids"] != ids[chosen])]
        drawn = replaced[replaced != MASK]
        assert ((drawn >= FIRST) & (drawn < VOCAB)).all()
        for place, n in enumerate(chosen):
            text = words[n] >= 0
            of_word, inputs = words[n][text], batch["input_ids"][place][text]
            tokens = np.bincount(of_word)
            hidden = np.bincount(of_word, is_masked[place][text])
            assert np.isin(hidden / tokens, (0, 1)).all()  # no word is split
            as_mask = np.bincount(of_word, inputs == MASK) == tokens
            kept = (np.bincount(of_word, inputs == ids[n][text]) == tokens) & (hidden > 0)
            shown += as_mask.sum(), (hidden > 0).sum() - as_mask.sum() - kept.sum(), kept.sum()
            masked_tokens += hidden.sum()
            expected += schedule(step) * text.sum()
            total += len(tokens)
    assert total > 1_000_000
    assert masked_tokens / expected == pytest.approx(1, abs=0.001)
    assert shown / shown.sum() == pytest.approx([0.8, 0.1, 0.1], abs=0.003)


def test_a_run_without_word_borders_is_masked_in_parts():
    row = np.full(SEQ_LEN, 500, dtype=np.uint16)
    row[0], row[1], row[-1] = CLS, 500 | WORD_START, SEP
    labels = collator(0.3)([{"row": row, "position": 0}])["labels"][0]
    masked = (labels != IGNORED).sum()
    assert 0 < masked <= round(0.3 * (SEQ_LEN - 2))
    assert masked >= round(0.3 * (SEQ_LEN - 2)) - MAX_UNIT_TOKENS


def test_positions_restart_with_each_document_and_padding_is_marked():
    row = np.array([CLS, 100, 101, SEP, CLS, 102, SEP, PAD], dtype=np.uint16)
    batch = collator()([{"row": row, "position": 0}])
    assert batch["position_ids"][0].tolist() == [0, 1, 2, 3, 0, 1, 2, 0]
    assert batch["attention_mask"][0].tolist() == [1, 1, 1, 1, 1, 1, 1, 0]


def test_a_rows_mask_depends_on_seed_and_position_alone():
    together = collator()(features(8))
    for position in (0, 5, 7):
        alone = collator()(features(1, first_position=position))
        for name in ("input_ids", "labels"):
            assert torch.equal(alone[name][0], together[name][position])
    other = collator(seed=8)(features(8))
    assert not torch.equal(other["labels"], together["labels"])


def test_a_row_of_padding_is_left_as_it_is():
    row = np.full(SEQ_LEN, PAD, dtype=np.uint16)
    batch = collator()([{"row": row, "position": 0}])
    assert (batch["labels"] == IGNORED).all()
    assert (batch["input_ids"] == PAD).all()


@pytest.fixture(scope="module")
def row_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("collator") / "rows"
    write_rows(folder, (make_row(seed) for seed in range(10)), SEQ_LEN, {})
    return folder


@pytest.mark.parametrize(("workers", "context"), [(0, None), (4, "fork"), (2, "spawn")])
def test_rates_follow_the_curriculum_and_batches_are_equal_for_any_workers(
    row_folder, workers, context
):
    schedule = functools.partial(mask_rate, total_steps=STEPS, warmup_steps=3)
    order = TrainingOrder(open_rows(row_folder), STEPS * ROWS_PER_STEP, ROWS_PER_STEP, seed=1)
    loader = DataLoader(
        order,
        batch_size=ROWS_PER_STEP // 2,  # two accumulated batches a step
        collate_fn=collator(schedule),
        num_workers=workers,
        multiprocessing_context=context,
    )
    for number, batch in enumerate(loader):
        step = number // 2
        first = number * ROWS_PER_STEP // 2
        for row, position in enumerate(range(first, first + ROWS_PER_STEP // 2)):
            units = units_of(order[position]["row"])
            expected = round(schedule(step) * sum(map(len, units)))
            assert (batch["labels"][row] != IGNORED).sum() == expected
        again = collator(schedule)([order[first], order[first + 1]])
        assert all(torch.equal(batch[name], again[name]) for name in batch)
    assert number == 2 * STEPS - 1


# What is refused


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([{"text": "雨"}], r"with the keys \['text'\] has neither 'input_ids' nor 'row'.*removed"),
        ([[1, 2, 3]], r"a feature is a list; .* dictionary with the key 'input_ids' or 'row'"),
        ([{"row": [1], "input_ids": [1], "position": 0}], "has both 'row' and 'input_ids'"),
        ([{"row": [1, 2]}], "has a 'row' but no 'position'"),
        ([{"row": 7, "position": 0}], r"row: expected \(seq_len,\) uint16, got \(\) int64"),
        ([{"row": [0.5], "position": 0}], r"row: .* got \(1,\) float64"),
        (
            [{"row": [1 << 16], "position": 0}],
            r"row: expected \(seq_len,\) uint16, got \(1,\) int64",
        ),
        (
            [{"row": [1] * length, "position": 0} for length in (8, 16)],
            r"row: the rows of a batch must have the same length, not \[8, 16\]",
        ),
        (
            [{"input_ids": [1], "word_starts": [1]}, {"row": [1], "position": 0}],
            r"same keys, but one has \['input_ids', 'word_starts'\] and another \['position'",
        ),
        (
            [{"input_ids": [1], "word_starts": [1]}, {"input_ids": [1]}],
            r"same keys, .* and another \['input_ids'\]",
        ),
        ([{"input_ids": [1], "word_starts": [1], "word_ids": [0]}], "both 'word_starts' and 'word"),
        (
            [{"input_ids": [9, 9], "word_starts": [1]}],
            "word_starts has 1 entries, but input_ids has 2",
        ),
        (
            [{"input_ids": [9, 9], "word_starts": [1, 2]}],
            r"word_starts: expected 0 or 1 .* got \[1, 2\]",
        ),
        ([{"input_ids": [9], "word_starts": [-1]}], "word_starts: expected 0 or 1"),
        (
            [{"input_ids": [9], "word_starts": [None]}],
            "word_starts: expected a list of one integer",
        ),
        (
            [{"input_ids": [9, 9], "word_ids": [0, 0, 1]}],
            "word_ids has 3 entries, but input_ids has 2",
        ),
        (
            [{"input_ids": [9], "word_ids": ["a"]}],
            r"word_ids: expected an integer or None .*\['a'\]",
        ),
        ([{"input_ids": [9], "word_ids": min}], "word_ids: expected an integer or None .*built-in"),
        ([{"input_ids": [[9]], "word_ids": [0]}], r"input_ids: .* list of shape \(1, 1\)"),
        ([{"input_ids": [[9], [9, 9]], "word_ids": [0]}], "input_ids: expected a list of one int"),
        ([{"input_ids": ["雨"], "word_ids": [0]}], "input_ids: expected a list of one integer"),
        ([{"input_ids": 7, "word_ids": [0]}], r"input_ids: .* int of shape \(\)"),
        ([{"input_ids": [], "word_ids": []}], "input_ids: a sequence is empty"),
        (
            [{"input_ids": [9, 9], "word_ids": [0, 0], "attention_mask": [1]}],
            "attention_mask has 1 entries, but input_ids has 2",
        ),
        (
            [{"input_ids": [9, 9], "word_ids": [0, 0], "special_tokens_mask": [1, 0, 0]}],
            "special_tokens_mask has 3 entries, but input_ids has 2",
        ),
    ],
)
def test_features_of_no_form_are_refused_by_key(given, message):
    with pytest.raises(ValueError, match=message):
        collator()(given)


@pytest.mark.parametrize("feature", [{"input_ids": [9], "word_ids": [0]}, {"row": [9]}])
def test_a_rate_by_the_step_needs_the_step(feature):
    with pytest.raises(ValueError, match=r"has no 'step'.* or set mask_rate to a number"):
        collator(lambda step: 0.3)([{**feature, "position": 0}])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_rate": 30}, "mask_rate 30: it must lie between 0 and 1"),
        ({"mask_rate": -0.1}, "mask_rate -0.1"),
        ({"mask_rate": float("nan")}, "mask_rate nan"),
        ({"replace": (0.8, 0.1)}, r"replace=\(0.8, 0.1\): it must be three shares that sum to 1"),
        ({"replace": (0.8, 0.3, -0.1)}, "replace="),
        ({"replace": (0.8, 0.1, 0.2)}, "replace="),
        ({"seed": -1}, "seed=-1: it must be at least 0"),
        ({"padding_side": "middle"}, "padding_side='middle': choose 'left' or 'right'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        collator(**settings)


def test_a_rate_beyond_a_share_is_refused_when_its_step_comes():
    rates = collator(lambda step: 0.5 * step)
    rates([{**features(1)[0], "step": 2}])
    with pytest.raises(ValueError, match=r"mask_rate 1\.5: it must lie between 0 and 1"):
        rates([{**features(1)[0], "step": 3}])


@pytest.mark.parametrize("name", ["mask_token", "pad_token"])
def test_a_tokenizer_without_a_mask_or_padding_is_refused(name):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(ROOT)
    setattr(tokenizer, name, None)
    with pytest.raises(ValueError, match=rf"has no {name}, .* set tokenizer\.{name}"):
        DataCollatorForWholeWordMasking.for_tokenizer(tokenizer)


def test_rows_need_to_know_where_documents_begin():
    with pytest.raises(ValueError, match=r"does not know the \[CLS\]"):
        collator(cls_id=None)(features(1))


# Alone

SCRIPT = """
import importlib.machinery, json, sys
folder, hidden = sys.argv[1], set(json.loads(sys.argv[2]))

class WithoutHidden(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] not in hidden:
            return super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = WithoutHidden
sys.path.insert(0, folder)

import numpy as np
from transformers import BertConfig, BertForMaskedLM, BertTokenizer, Trainer, TrainingArguments
from data_collator_wwm import IGNORED, WORD_START, DataCollatorForWholeWordMasking

characters = "晚饭后我们沿着河边走了很久，风吹过来有点凉。"
entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(characters)]
tokenizer = BertTokenizer(vocab={entry: index for index, entry in enumerate(entries)})
ids = tokenizer(characters)["input_ids"]
starts = [0, *(1, 0, 1, 1, 0, 1, 0, 1, 0, 1, 1, 1, 0, 1, 1, 1, 0, 0, 1, 0, 1, 1), 0]
ordinary = [{"input_ids": ids[:n], "word_starts": starts[:n]} for n in (24, 12, 18, 21)] * 10
row = np.array(ids + ids[:20], dtype=np.uint16)
row[np.array(starts + starts[:20]) == 1] |= WORD_START
packed = [{"row": row, "position": n, "step": n // 4} for n in range(40)]

def train(dataset, rate):
    mask = DataCollatorForWholeWordMasking.for_tokenizer(tokenizer, mask_rate=rate)
    masked = []

    def collate(features):
        batch = mask(features)
        masked.append((batch["labels"] != IGNORED).sum(1).tolist())
        return batch

    shape = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    model = BertForMaskedLM(BertConfig(vocab_size=len(entries), **shape))
    arguments = TrainingArguments(
        folder + "/output", max_steps=10, per_device_train_batch_size=4, logging_steps=1,
        remove_unused_columns=False, use_cpu=True, report_to=[], save_strategy="no",
        train_sampling_strategy="sequential", disable_tqdm=True, learning_rate=0.01,
    )
    trainer = Trainer(model, arguments, data_collator=collate, train_dataset=dataset)
    trainer.train()
    return [log["loss"] for log in trainer.state.log_history if "loss" in log], masked

results = {"ordinary": train(ordinary, 0.3), "packed": train(packed, lambda step: 0.05 * step)}
print(json.dumps(results))
"""


def packages_without(*distributions: str) -> set[str]:
    """The installed packages that these distributions do not bring, directly or indirectly."""
    found, left = set(), list(distributions)
    while left:
        name = canonicalize_name(left.pop())
        if name in found:
            continue
        found.add(name)
        try:
            required = map(Requirement, importlib.metadata.requires(name) or ())
        except importlib.metadata.PackageNotFoundError:  # what this machine does without
            continue
        left += [each.name for each in required if not each.marker or each.marker.evaluate()]
    return {
        package
        for package, owners in importlib.metadata.packages_distributions().items()
        if not found & set(map(canonicalize_name, owners))
    }


def test_alone_in_a_folder_it_trains_a_bert_of_transformers(tmp_path):
    """A fresh process sees this file, numpy, torch, transformers, and what its Trainer requires."""
    shutil.copy(ROOT / "data_collator_wwm.py", tmp_path)
    hidden = packages_without("numpy", "torch", "transformers", "accelerate")
    assert hidden >= {"datasets", "pyarrow", "rjieba", "datatrove"}
    finished = subprocess.run(
        [sys.executable, "-I", "-c", SCRIPT, str(tmp_path), json.dumps(sorted(hidden))],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    results = json.loads(finished.stdout.splitlines()[-1])
    for losses, masked in (results["ordinary"], results["packed"]):
        assert len(losses) == len(masked) == 10
        assert np.isfinite(losses).all()
    losses, masked = results["ordinary"]
    # 22, 11, 17 and 20 maskable tokens: the three shorter ones are cut before [SEP].
    assert masked == [[round(0.3 * tokens) for tokens in (22, 11, 17, 20)]] * 10
    assert min(losses) > 0
    _, masked = results["packed"]
    assert masked == [[round(0.05 * step * (22 + 19))] * 4 for step in range(10)]
