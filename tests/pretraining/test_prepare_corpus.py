"""The command that prepares rows: its options, its summary, and what survives a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from commands import run_main
from corpora import ROOT, TEXTS, many_texts, prepare, shards_of, texts_of, write_corpus
from hub_standin import HubStandIn
from pretraining import prepare_corpus
from pretraining.data.executors import Execution
from pretraining.data.preparation import Preparation


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / "corpus.jsonl", TEXTS)


def arguments_for(corpus: Path | str, output: Path, *more: str) -> list[str]:
    return [
        *("--corpus", str(corpus), "--tokenizer", str(ROOT)),
        *("--seq_len", "64", "--output", str(output), *more),
    ]


def run(corpus: Path | str, output: Path, *more: str) -> None:
    """The command, in this process."""
    run_main(prepare_corpus, *arguments_for(corpus, output, *more))


def test_the_summary_counts_what_was_prepared_and_what_was_not(corpus, tmp_path, capsys):
    corpus.write_bytes(corpus.read_bytes() + b"{broken\n")
    filters = tmp_path / "filters.yaml"
    filters.write_text("length: {minimum: 12}", encoding="utf-8")
    run(corpus, tmp_path / "rows", "--filters", str(filters), "--tasks", "1", "--workers", "1")
    manifest = json.loads((tmp_path / "rows" / "manifest.json").read_text(encoding="utf-8"))
    kept = [text for text in TEXTS if len(text) >= 12]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(
        f"{tmp_path / 'rows'}: {len(kept)} documents, {sum(map(len, kept))} characters, "
        f"{manifest['tokens']} tokens ("
    )
    assert f" in {manifest['rows']} rows of 64, " in lines[0]
    assert lines[1:] == ["bad_input: broken line: 1", f"dropped: length: {3 - len(kept)}"]


def test_files_of_a_folder_that_are_no_corpus_are_counted(corpus, tmp_path, capsys):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("a.jsonl", "b.json.gz", "c.json.gz", "LICENSE"):
        (folder / name).write_bytes(corpus.read_bytes())
    run(folder, tmp_path / "rows", "--workers", "1")
    told = capsys.readouterr().err
    assert "no corpus files, left out: 2 × .json.gz\n" in told
    assert "no corpus files, left out: 1 × without an ending\n" in told


def test_a_restart_has_the_tasks_of_before_however_many_workers(corpus, tmp_path):
    preparation = Preparation([str(corpus)], ROOT / "tokenizer.json", 64, tmp_path / "rows")
    preparation.run(Execution("local", 1))
    assert [preparation._tasks([str(corpus)], workers) for workers in (1, 8)] == [1, 1]


def test_words_without_effect_are_named_at_the_start(corpus, tmp_path, capsys):
    dictionary = tmp_path / "words.txt"
    dictionary.write_text("的了 1\n《早市》\n", encoding="utf-8")
    run(corpus, tmp_path / "rows", "--user_dictionary", str(dictionary), "--workers", "1")
    named = [line for line in capsys.readouterr().err.splitlines() if "has no effect" in line]
    assert len(named) == 1
    assert f"{dictionary}, line 1: '的了' has no effect" in named[0]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--slurm", "partition=cpu"), "--slurm needs --executor slurm"),
        (("--dry-run",), "--dry-run needs --executor slurm"),
        (("--dry-run", "--executor", "ray"), "--dry-run needs --executor slurm"),
        (("--executor", "slurm", "--dry-run"), "partition and time must be given"),
        (("--workers", "-4"), "workers -4: give at least 1"),
        (("--user_dictionary", "nowhere.txt"), "nowhere.txt"),
        (("--filters", "nowhere.yaml"), "nowhere.yaml"),
        (("--weights", "nowhere.yaml"), "nowhere.yaml"),
        (("--short_share", "30"), "short_share 30.0: give a share from 0 to 1"),
        (("--short_unit", "sentence"), "--short_unit needs --short_share"),
    ],
)
def test_options_that_cannot_be_used_are_named(corpus, tmp_path, capsys, more, message):
    with pytest.raises(SystemExit) as stopped:
        run(corpus, tmp_path / "rows", *more)
    assert message in f"{stopped.value}{capsys.readouterr().err}"
    assert list(tmp_path.iterdir()) == [corpus]


def test_short_texts_and_weights_are_settings_of_the_command(tmp_path, capsys):
    corpus = write_corpus(tmp_path / "a.jsonl", ["灯亮了。船靠岸了，人都下来了。"], domain="story")
    weights = tmp_path / "weights.yaml"
    weights.write_text("story: 2\nnovels: 0.5\nletters: 0\n", encoding="utf-8")
    options = ("--short_share", "1", "--short_unit", "sentence", "--seed", "5", "--workers", "1")
    run(corpus, tmp_path / "rows", "--weights", str(weights), *options)
    assert texts_of(tmp_path / "rows") == {"灯亮了。": 2, "船靠岸了，人都下来了。": 2}
    manifest = json.loads((tmp_path / "rows" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["shortening"] == {"share": 1.0, "unit": "sentence"}
    assert manifest["weights"] == {"story": 2.0, "novels": 0.5, "letters": 0.0}
    assert manifest["seed"] == 5
    printed = capsys.readouterr().out.splitlines()
    assert "weights: novels: no document of this domain is in the rows" in printed


def test_a_dry_run_prints_the_scripts_and_writes_nothing(corpus, tmp_path, capsys):
    slurm = ("--slurm", "partition=cpu", "time=2:00:00")
    run(corpus, tmp_path / "rows", "--executor", "slurm", "--dry-run", "--tasks", "20", *slurm)
    shown = capsys.readouterr().out
    assert shown.count("#!/bin/bash") == 2
    assert "#SBATCH --time=2:00:00" in shown
    assert "#SBATCH --array=0-19" in shown
    assert list(tmp_path.iterdir()) == [corpus]


def test_a_data_set_on_the_hub_gives_the_rows_of_its_files(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    write_corpus(folder / "a.jsonl", TEXTS)
    pq.write_table(pa.table({"text": many_texts(40)}), folder / "b.parquet", row_group_size=8)
    prepare(folder, tmp_path / "local")
    data_set, pattern = "hf://datasets/someone/texts", "hf://datasets/someone/texts/dat/*.jsonl"
    # A new process, because the Hub's address is read when its library is imported.
    code = f"""
import sys
from pretraining import prepare_corpus
for arguments in {arguments_for(pattern, "wrong")}, {
        arguments_for(data_set, tmp_path / "hub", "--workers", "1", "--tasks", "2")
    }:
    sys.argv[1:] = arguments
    try:
        prepare_corpus.main()
    except SystemExit as error:
        print(error)
"""
    with HubStandIn() as hub:
        hub.files = {f"data/{each.name}": each.read_bytes() for each in folder.iterdir()}
        hub.files["README.md"] = b"A data set."
        printed = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home")},
        ).stdout
    assert f"{pattern}: no corpus file there" in printed
    assert shards_of(tmp_path / "hub") == shards_of(tmp_path / "local")


def test_killed_and_started_again_the_rows_are_the_same_bytes(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name in range(4):
        write_corpus(folder / f"{name}.jsonl", [f"{name}{text}" for text in many_texts(2000)])
    whole = prepare(folder, tmp_path / "whole")
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "pretraining.prepare_corpus"),
            *arguments_for(folder, killed, "--workers", "1"),
        ],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    done = tmp_path / "killed.work" / "logs" / "rows" / "completions"
    deadline = time.monotonic() + 120
    while not (done.exists() and list(done.iterdir())):
        assert process.poll() is None, "it ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "manifest.json").exists()
    before = {each.name: each.stat().st_mtime_ns for each in killed.glob("*.arrow")}
    assert 0 < len(before) < 4
    resumed = prepare(folder, killed)
    assert resumed["shards"] == whole["shards"]
    assert shards_of(killed) == shards_of(tmp_path / "whole")
    assert all((killed / name).stat().st_mtime_ns == when for name, when in before.items())
