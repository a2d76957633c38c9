"""Training on a borrowed GPU: rows travel packed, a model comes back in parts."""

import ast
import json
import time

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, TrainerControl, TrainerState

from commands import run_main
from corpora import many_texts, prepare, write_corpus
from experiments.gpu_train import join, pack, packed_rows, parts, train, ways
from pretraining.data.rows import open_rows
from test_layout import GRAPH, ROOT


@pytest.fixture(scope="module")
def rows_of(made_once):
    """Folder with `train`, `held-out` and `long`, rows of 64 or 256 tokens. Not to be changed."""

    def make(folder):
        corpus = write_corpus(folder / "corpus.jsonl", many_texts(600), domain="essay")
        prepare(corpus, folder / "train")
        prepare(corpus, folder / "long", seq_len=256)
        some = write_corpus(folder / "held-out.jsonl", many_texts(20), domain="essay")
        prepare(some, folder / "held-out", separate_domains=True)

    return made_once("gpu-train-rows", make)


@pytest.fixture(scope="module")
def packed(made_once, rows_of):
    """What `pack` makes of them. Not to be changed."""

    def make(folder):
        held_out = [rows_of / "held-out"]
        pack.pack(rows_of / "train", held_out, folder / "packed", 2**21, 0, rows_of / "long")

    return made_once("gpu-train-packed", make) / "packed"


def stacked(rows):
    return np.stack([rows[index] for index in range(len(rows))])


def test_a_set_that_travels_whole_comes_back_with_all_that_is_known_of_it(
    rows_of, packed, tmp_path
):
    packed_rows.unpack([packed / pack.HELD_OUT / "held-out"], tmp_path / "rows")
    before, after = open_rows(rows_of / "held-out"), open_rows(tmp_path / "rows")
    assert np.array_equal(stacked(after), stacked(before))
    told = ("domain", "documents", "rows", "sha256")
    for ours, theirs in zip(after.manifest["shards"], before.manifest["shards"], strict=True):
        assert {key: ours[key] for key in told} == {key: theirs[key] for key in told}
    assert after.manifest["domains"] == before.manifest["domains"]


def test_as_many_rows_travel_as_fit(rows_of, tmp_path):
    whole = open_rows(rows_of / "train")
    limit = packed_rows.pack_all(whole, tmp_path / "all") - 2000
    room = packed_rows.HELD_BACK + 2 * packed_rows.BLOCK * whole.seq_len
    count = packed_rows.pack_some(whole, tmp_path / "some", limit + room, seed=0)
    assert packed_rows.size_of(tmp_path / "some") <= limit + room
    assert 0 < count <= len(whole)
    packed_rows.unpack([tmp_path / "some"], tmp_path / "rows")
    some = open_rows(tmp_path / "rows")
    assert len(some) == count
    assert {row.tobytes() for row in stacked(some)} <= {row.tobytes() for row in stacked(whole)}
    ratio = whole.manifest["characters"] / whole.manifest["tokens"]
    assert some.manifest["characters"] / some.manifest["tokens"] == pytest.approx(ratio, rel=1e-2)


def test_a_folder_that_holds_something_else_is_left_alone(rows_of, packed):
    """Such as the one of the rows that are packed."""
    with pytest.raises(ValueError, match="is not an empty folder"):
        pack.pack(rows_of / "train", [], rows_of, limit=2**21, seed=0)
    with pytest.raises(ValueError, match="is not an empty folder"):
        train.train_and_report([packed], rows_of, [f"output_dir={rows_of}"], 0)
    assert open_rows(rows_of / "train")


def test_two_journeys_carry_different_rows_that_are_one_set_again(rows_of, packed, tmp_path):
    whole = open_rows(rows_of / "train")
    for part in (1, 2):
        folder = tmp_path / str(part)
        pack.pack(rows_of / "train", [], folder, limit=2**21, seed=0, part=(part, 2))
    both = [tmp_path / part / pack.TRAIN for part in ("1", "2")]
    manifest = packed_rows.unpack(both, tmp_path / "rows")
    again = stacked(open_rows(tmp_path / "rows"))
    assert sorted(row.tobytes() for row in again) == sorted(row.tobytes() for row in stacked(whole))
    assert manifest["tokens"] == pytest.approx(whole.manifest["tokens"], abs=1)
    other = packed / pack.HELD_OUT / "held-out"
    with pytest.raises(ValueError, match=r"held-out are not parts of one row set"):
        packed_rows.unpack([both[0], other], tmp_path / "mixed")


def test_no_room_and_damage_are_named(rows_of, packed, tmp_path):
    with pytest.raises(ValueError, match=r"not even 64 of its rows fit into 1,000 bytes"):
        packed_rows.pack_some(open_rows(rows_of / "train"), tmp_path / "few", 1000, seed=0)
    held_out = packed / pack.HELD_OUT / "held-out"
    (tmp_path / "cut").mkdir()
    for file in held_out.iterdir():
        (tmp_path / "cut" / file.name).write_bytes(file.read_bytes())
    short = (held_out / packed_rows.PACKED).read_bytes()[:-200]
    (tmp_path / "cut" / packed_rows.PACKED).write_bytes(short)
    with pytest.raises(ValueError, match=r"rows\.xz: damaged .* pack the rows again"):
        packed_rows.unpack([tmp_path / "cut"], tmp_path / "rows")


@pytest.fixture
def train_here(packed, tmp_path, monkeypatch, workspace):
    """Gives `train_here()`: trains a few steps with tiny shapes; returns what is to come back."""
    # Of a hundred minutes, so that it plans a few steps and a slow machine has time for them.
    speed = ways.Speed(step_seconds=600.0, start_seconds=0.0, compiled=False)
    monkeypatch.setattr(ways, "measured", lambda *_: speed)
    work, output = tmp_path / "work", tmp_path / "output"

    def run():
        run_main(
            *(train, f"model={workspace / 'model.json'}", f"output_dir={work}", "--tiny"),
            *("--packed", packed, "--output", output, "--minutes", 100),
        )
        return output

    return run


def test_it_trains_and_what_comes_back_is_the_model_that_was_trained(
    train_here, tmp_path, monkeypatch
):
    saved = []

    def split(model, output, facts):
        saved.append([(told["stage"], told["steps"]) for told in facts["stages"]])
        parts.split(model, output, facts)

    monkeypatch.setattr(train, "split", split)
    monkeypatch.setattr(parts, "PART", 2**20)  # the weights take more than one
    output = train_here()
    files = {file.name: file.stat().st_size for file in output.iterdir()}
    assert max(files.values()) <= parts.PART
    others = {parts.ARCHIVE, parts.INDEX, train.REPORT}  # a log would leave no room for one more
    assert files.keys() == {"weights-0", "weights-1", "weights-2", *others}
    assert "| held-out | masked tokens |" in (output / train.REPORT).read_text(encoding="utf-8")
    told = json.loads((output / parts.INDEX).read_text())
    assert told["failed_ways"] == {}
    assert [stage["ended_by"] for stage in told["stages"]] == ["all steps done"] * 2
    first, second = (stage["steps"] for stage in told["stages"])
    assert first > 1 and second > 1
    on_the_way = sorted({int(0.5 * first), int(0.8 * first), first})
    assert saved == [*([(1, steps)] for steps in on_the_way), [(1, first), (2, second)]]

    run_main(join, output, "--output", tmp_path / "model")
    log = json.loads((tmp_path / "model" / "training_log.json").read_text())
    assert [entry["step"] for entry in log if "loss" in entry][-1] == second
    texts = "早市六点开门，卖菜的人来得早。"
    logits = []
    for folder in (tmp_path / "work" / "stage2" / "rounded", tmp_path / "model"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
        model = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True).eval()
        assert model.dtype == torch.bfloat16
        with torch.inference_mode():
            logits.append(model(**tokenizer(texts, return_tensors="pt")).logits)
    assert torch.equal(*logits)


def test_what_was_learned_comes_back_when_training_breaks_off(train_here, tmp_path, monkeypatch):
    def break_off(self, args, state, control, **kwargs):
        raise RuntimeError("the loss is nan")

    monkeypatch.setattr(train.Deadline, "on_step_end", break_off)
    monkeypatch.setattr(train, "write_report", lambda *_: None)
    output = train_here()
    (told,) = parts.join(output, tmp_path / "model")["stages"]  # it does not go on to stage 2
    assert (told["steps"], told["ended_by"]) == (1, "RuntimeError: the loss is nan")
    assert (tmp_path / "model" / "config.json").exists()


def test_a_second_stage_that_breaks_off_leaves_the_model_of_the_first(
    train_here, tmp_path, monkeypatch
):
    def break_off(self, args, state, control, **kwargs):
        if "stage2" in args.output_dir:
            raise RuntimeError("the loss is nan")

    monkeypatch.setattr(train.Deadline, "on_step_end", break_off)
    reported = []
    monkeypatch.setattr(train, "write_report", lambda model, *_: reported.append(model))
    told = parts.join(train_here(), tmp_path / "model")["stages"]
    assert [stage["ended_by"] for stage in told] == [
        "all steps done",
        "RuntimeError: the loss is nan",
    ]
    assert reported == [tmp_path / "work" / "stage1" / "rounded"]
    weights = [folder / "model.safetensors" for folder in (*reported, tmp_path / "model")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_save_on_the_way_that_fails_does_not_end_the_training(capsys):
    def save(ended_by):
        raise OSError("disk full")

    state = TrainerState(global_step=5, max_steps=10)
    train.SavedOnTheWay(save).on_step_end(None, state, TrainerControl())
    assert "disk full" in capsys.readouterr().err


def test_it_needs_no_package_that_only_preparation_has():
    needed, found = ["experiments/gpu_train/train.py"], set()
    for file in needed:
        needed += GRAPH[file] - {*needed}
        for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module.split(".")[0])
    assert {"torch", "transformers", "pyarrow"} <= found
    missing_there = {"backports", "datasets", "datatrove", "opencc", "orjson", "rjieba", "xxhash"}
    assert not found & missing_there


def test_what_does_not_work_is_told_and_the_next_way_is_tried(monkeypatch, capsys):
    def measured(overrides, way):
        if way is not ways.WAYS[1]:
            raise RuntimeError("no such kernel")
        return ways.Speed(step_seconds=1.0, start_seconds=2.0, compiled=False)

    monkeypatch.setattr(ways, "measured", measured)
    way, speed, failures = ways.first_that_works([])
    assert (way, speed.step_seconds) == (ways.WAYS[1], 1.0)
    assert failures == {ways.WAYS[0].name: "no such kernel"}


def test_a_way_is_measured_by_a_command_that_tells_what_went_wrong(
    rows_of, tmp_path, monkeypatch, workspace
):
    monkeypatch.setattr(ways, "WARM_UP", 2)
    monkeypatch.setattr(ways, "TIMED", 3)
    monkeypatch.chdir(ROOT)  # where it is started
    told, file = [], tmp_path / "speed.json"
    for model in (workspace / "model.json", tmp_path / "absent.json"):
        overrides = (f"model={model}", f"output_dir={tmp_path / 'work'}")
        overrides += (f"stage1.train_rows={rows_of / 'train'}",)
        run_main(*(ways, "--way", 1, "--output", file), *train.TINY, *overrides)
        told.append(json.loads(file.read_text()))
    assert 0 < told[0]["step_seconds"] < 60 and not told[0]["compiled"]
    assert told[1]["error"].endswith("absent.json does not exist.")


def test_a_way_that_takes_too_long_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(ways, "MEASURING_SECONDS", 0.1)
    with pytest.raises(RuntimeError, match=r"not measured within 0\.1 s"):
        ways.measured([f"output_dir={tmp_path}"], ways.WAYS[0])


def test_one_slow_step_does_not_count_for_all(monkeypatch):
    monkeypatch.setattr(ways, "WARM_UP", 2)
    speed = ways.speed_from(begun=1.0, ends=[50, 51, 52, 90, 91, 92], compiled=True)
    assert (speed.step_seconds, speed.start_seconds) == (1.0, 48.0)
    assert speed.next_start_seconds == 24.0


def test_training_ends_when_its_time_is_up():
    state = TrainerState(global_step=3, max_steps=9)
    for end, stops in ((time.perf_counter() + 1000, False), (time.perf_counter() - 1, True)):
        control = TrainerControl()
        train.Deadline(end).on_step_end(None, state, control)
        assert control.should_training_stop is stops


def test_a_model_too_large_to_come_back_is_refused_before_anything_is_unpacked(packed, tmp_path):
    with pytest.raises(SystemExit, match=r"MiB in bf16, and 60 MiB come back"):
        run_main(
            *(train, "model=configs/base.json", f"output_dir={tmp_path / 'work'}", "--tiny"),
            *("--packed", packed, "--output", tmp_path / "output"),
        )
    assert not (tmp_path / "work").exists()


def test_without_a_gpu_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"no CUDA device; try it on the CPU with --tiny"):
        run_main(train, "--output", tmp_path)


def test_a_model_takes_the_place_of_one_that_was_saved_before(tmp_path):
    model, output = tmp_path / "model", tmp_path / "parts"
    model.mkdir()
    for content in (b"weights of half the steps", b"weights"):
        (model / parts.WEIGHTS).write_bytes(content)
        parts.split(model, output, {})
    assert {file.name for file in output.iterdir()} == {"weights-0", parts.ARCHIVE, parts.INDEX}
    parts.join(output, tmp_path / "joined")
    assert (tmp_path / "joined" / parts.WEIGHTS).read_bytes() == b"weights"


def test_a_part_that_is_missing_or_damaged_is_named(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / parts.WEIGHTS).write_bytes(b"weights")
    (tmp_path / "model" / "config.json").write_text("{}")
    parts.split(tmp_path / "model", tmp_path / "parts", {})
    (tmp_path / "parts" / "weights-0").write_bytes(b"Weights")
    with pytest.raises(ValueError, match=r"weights-0: damaged"):
        parts.join(tmp_path / "parts", tmp_path / "joined")
    (tmp_path / "parts" / "weights-0").unlink()
    with pytest.raises(ValueError, match=r"weights-0: missing"):
        parts.join(tmp_path / "parts", tmp_path / "joined")
    assert not (tmp_path / "joined").exists()
