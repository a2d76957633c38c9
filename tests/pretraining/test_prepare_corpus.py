"""Preparation: from text to rows that hold all of it, or to a clear message and nothing."""

import collections
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from data_collator_wwm import split_row
from hub_standin import HubStandIn
from pretraining.data.corpus import CorpusError
from pretraining.data.rows import RowsError, open_rows
from pretraining.prepare_corpus import prepare, read_filters, slurm_options

ROOT = Path(__file__).parents[2]
TOKENIZER = ROOT / "tokenizer.json"
TEXTS = [
    "早市六点开门，卖菜的人比买菜的人来得更早。",
    "姐姐學會了騎自行車，摔了三次，第四次就騎穩了。" * 10,
    "读完这一页，把灯关上。",
]
PLACES = ("河边", "山上", "镇里", "桥头", "院子里")
THINGS = ("杏树", "石磨", "木船", "水井", "茶摊", "旧书店", "修车铺", "小学校")


def many_texts(number: int) -> list[str]:
    """Texts that differ from each other, none near another."""
    draw = np.random.default_rng(0)
    return [
        "".join(
            f"{draw.choice(PLACES)}的{draw.choice(THINGS)}有{draw.integers(10**6)}年了。"
            for _ in range(draw.integers(3, 12))
        )
        for _ in range(number)
    ]


def write(file: Path, texts: list[str], **fields) -> Path:
    lines = (json.dumps({"text": text, **fields}, ensure_ascii=False) for text in texts)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


@pytest.fixture
def corpus(tmp_path):
    return write(tmp_path / "corpus.jsonl", TEXTS)


def run(corpus: Path, output: Path, **arguments) -> dict:
    return prepare([str(corpus)], TOKENIZER, 64, output, **arguments)


def texts_of(folder: Path) -> collections.Counter:
    """The pieces of text in a row set."""
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    rows = open_rows(folder)
    pieces = []
    for index in range(len(rows)):
        ids, _ = split_row(rows[index])
        ids = ids[ids != 0]
        pieces += np.split(ids, np.flatnonzero(ids == 2)[1:])
    return collections.Counter(tokenizer.decode(piece[1:-1].tolist()) for piece in pieces)


def contents(folder: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in folder.glob("*.arrow")}


def test_rows_hold_the_texts_and_the_manifest_says_what_they_are(corpus, tmp_path):
    manifest = run(corpus, tmp_path / "rows")
    rows = open_rows(tmp_path / "rows")
    assert manifest == rows.manifest
    assert (manifest["documents"], manifest["characters"]) == (3, sum(map(len, TEXTS)))
    ids, starts = split_row(np.stack([rows[index] for index in range(len(rows))]))
    assert manifest["padding_share"] == pytest.approx((ids == 0).mean())
    assert manifest["tokens"] == (ids >= manifest["first_ordinary_id"]).sum()
    pieces = texts_of(tmp_path / "rows")
    assert {TEXTS[0], TEXTS[2]} <= set(pieces)
    assert sum(len(piece) * number for piece, number in pieces.items()) == sum(map(len, TEXTS))
    assert not starts[np.isin(ids, [0, 2, 3])].any()


def test_the_manifest_counts_by_domain_and_script(tmp_path):
    write(tmp_path / "a.jsonl", TEXTS[:1], domain="market", script="hans")
    write(tmp_path / "b.jsonl", TEXTS[2:])
    domains = run(tmp_path, tmp_path / "rows")["domains"]
    assert set(domains) == {"market (hans)", "unknown (unknown)"}
    assert domains["market (hans)"]["characters"] == len(TEXTS[0])
    assert sum(each["documents"] for each in domains.values()) == 2


def test_a_data_set_on_the_hub_gives_the_rows_of_its_files(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    write(folder / "a.jsonl", TEXTS)
    pq.write_table(pa.table({"text": many_texts(40)}), folder / "b.parquet", row_group_size=8)
    run(folder, tmp_path / "local")
    with HubStandIn() as hub:
        hub.files = {f"data/{each.name}": each.read_bytes() for each in folder.iterdir()}
        hub.files["README.md"] = b"A data set."
        subprocess.run(
            command("hf://datasets/someone/texts", tmp_path / "hub"),
            cwd=ROOT,
            check=True,
            env=os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home")},
        )
        wrong = subprocess.run(
            command("hf://datasets/someone/texts/dat/*.jsonl", tmp_path / "wrong"),
            cwd=ROOT,
            capture_output=True,
            text=True,
            env=os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home")},
        )
    assert contents(tmp_path / "hub") == contents(tmp_path / "local")
    assert "hf://datasets/someone/texts/dat/*.jsonl: no corpus file there" in wrong.stderr


def test_domains_can_be_kept_apart(tmp_path):
    market, school = TEXTS[0], "下课铃一响，操场上就热闹起来。"
    write(tmp_path / "a.jsonl", [market, market], domain="market", script="hans")
    write(tmp_path / "b.jsonl", [school, market], domain="school", script="hans")
    manifest = run(tmp_path, tmp_path / "rows", tasks=1, separate_domains=True)
    assert [(shard["domain"], shard["rows"]) for shard in manifest["shards"]] == [
        ("market (hans)", 1),
        ("school (hans)", 1),
    ]
    assert texts_of(tmp_path / "rows") == {market: 3, school: 1}


def test_datasets_opens_and_streams_the_shards(corpus, tmp_path):
    manifest = run(corpus, tmp_path / "rows")
    files = str(tmp_path / "rows" / "*.arrow")
    opened = datasets.load_dataset(
        "arrow", data_files=files, split="train", cache_dir=str(tmp_path / "cache")
    )
    streamed = datasets.load_dataset("arrow", data_files=files, split="train", streaming=True)
    assert len(opened) == manifest["rows"]
    assert [row["row"] for row in streamed] == opened["row"][:]


def test_the_number_of_workers_changes_no_byte(tmp_path):
    for name in ("a", "b", "c"):
        write(tmp_path / f"{name}.jsonl", [name + text for text in many_texts(30)])
    one = run(tmp_path, tmp_path / "one", workers=1, tasks=3)
    two = run(tmp_path, tmp_path / "two", workers=2, tasks=3)
    assert one["shards"] == two["shards"]
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_however_many_tasks_no_document_is_lost_or_doubled(tmp_path):
    texts = many_texts(100)
    write(tmp_path / "a.jsonl", texts[:80])
    write(tmp_path / "b.jsonl", texts[80:])
    prepared = {}
    for tasks in (1, 2, 5):
        manifest = prepare([str(tmp_path)], TOKENIZER, 256, tmp_path / f"rows-{tasks}", tasks=tasks)
        assert manifest["documents"] == 100
        prepared[tasks] = texts_of(tmp_path / f"rows-{tasks}")
    assert prepared[1] == prepared[2] == prepared[5] == collections.Counter(texts)


# --- bad input --------------------------------------------------------------------------------


def test_bad_input_is_passed_over_counted_and_reported(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    write(folder / "a.jsonl", TEXTS)
    (folder / "b.jsonl").write_bytes(b'{broken\n{"text": ""}\n{"title": "x"}\n{"text": "\xff"}\n')
    (folder / "c.jsonl.gz").write_bytes(b"not compressed")
    manifest = run(folder, tmp_path / "rows")
    assert manifest["documents"] == 3
    assert manifest["bad_input"] == {
        "broken line": 1,
        "damaged file": 1,
        "empty document": 1,
        "missing field": 1,
        "not UTF-8": 1,
    }
    reports = "".join(
        file.read_text(encoding="utf-8")
        for file in (tmp_path / "rows.work" / "bad_input").iterdir()
    )
    assert f"{folder / 'b.jsonl'}, line 1: not a JSON object" in reports
    assert f"{folder / 'c.jsonl.gz'}: damaged after line 0" in reports


def test_bad_input_stops_the_work_where_it_shall_and_leaves_no_row_set(corpus, tmp_path):
    corpus.write_bytes(corpus.read_bytes() + b"\n{broken\n")
    with pytest.raises(CorpusError, match=r"corpus\.jsonl, line 5: not a JSON object"):
        run(corpus, tmp_path / "rows", refuse=True)
    with pytest.raises(RowsError, match=r"rows is no row set"):
        open_rows(tmp_path / "rows")
    assert not list((tmp_path / "rows").glob("*.arrow"))


def test_an_existing_output_is_kept(corpus, tmp_path):
    run(corpus, tmp_path / "rows")
    with pytest.raises(RowsError, match="rows exists already"):
        run(corpus, tmp_path / "rows")


def test_a_tokenizer_without_the_special_tokens_is_refused(corpus, tmp_path):
    content = json.loads(TOKENIZER.read_text(encoding="utf-8"))
    content["model"]["vocab"]["[mask]"] = content["model"]["vocab"].pop("[MASK]")
    content["added_tokens"] = content["added_tokens"][:4]
    other = tmp_path / "tokenizer.json"
    other.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=r"special tokens \['\[MASK\]'\] are missing"):
        prepare([str(corpus)], other, 64, tmp_path / "rows")


# --- filters ----------------------------------------------------------------------------------


def test_every_filter_takes_out_its_own(tmp_path):
    texts = many_texts(12)
    near = texts[0].replace("。", "！", 1)  # punctuation is not what MinHash looks at
    write(
        tmp_path / "a.jsonl",
        [
            *texts[:6],
            "短。",
            "An English text that is long enough to be kept, but it is not Chinese at all.",
            "今天下雨，明天也下雨。" * 40,
            texts[0],
        ],
    )
    write(tmp_path / "b.jsonl", [*texts[6:], near])
    filters = {
        "length": {"minimum": 10},
        "chinese": {"minimum": 0.3},
        "repetition": {"top_n_grams": [[2, 0.5]], "dup_n_grams": [[5, 0.6]]},
        "exact_deduplication": {},
        "minhash": {"num_buckets": 14, "hashes_per_bucket": 8},
    }
    manifest = prepare([str(tmp_path)], TOKENIZER, 512, tmp_path / "rows", tasks=2, filters=filters)
    assert manifest["documents"] == 12
    assert manifest["dropped"] == {
        "length": 1,
        "share of Chinese": 1,
        "Gopher Repetition": 1,
        "exact-deduplication stage 3": 1,
        "MinHash stage 4": 1,
    }
    kept = texts_of(tmp_path / "rows")
    assert set(texts[1:]) < set(kept)
    assert len({texts[0], near} & set(kept)) == 1
    assert manifest["filters"] == filters


def test_filters_that_leave_nothing_are_named(corpus, tmp_path):
    for number, filters in enumerate(
        ({"length": {"minimum": 999}}, {"length": {"minimum": 999}, "minhash": {}})
    ):
        with pytest.raises(RowsError, match=r"not a document was left; .* dropped: {'length': 3}"):
            run(corpus, tmp_path / f"rows-{number}", filters=filters)


def test_the_example_of_filters_is_one(tmp_path):
    filters = read_filters(ROOT / "configs" / "filters.yaml")
    assert set(filters) == {"length", "chinese", "repetition", "exact_deduplication", "minhash"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("lenght: {minimum: 5}", r"no filter 'lenght'; there are length"),
        ("length: {min: 5}", r"length: no threshold 'min'; there are minimum, maximum"),
        ("length: 5", r"length: must hold thresholds"),
        ("- length", r"must hold filters and their thresholds"),
        ("length: {", r"not YAML"),
    ],
)
def test_filters_that_do_not_exist_are_named(tmp_path, content, message):
    (tmp_path / "filters.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"filters\.yaml: {message}"):
        read_filters(tmp_path / "filters.yaml")


# --- interrupted ------------------------------------------------------------------------------


def command(corpus: Path, output: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "pretraining.prepare_corpus", "--corpus", str(corpus)),
        *("--tokenizer", str(ROOT), "--seq_len", "64", "--output", str(output), *more),
    ]


def test_killed_and_started_again_the_rows_are_the_same_bytes(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name in range(4):
        write(folder / f"{name}.jsonl", [f"{name}{text}" for text in many_texts(3000)])
    whole = run(folder, tmp_path / "whole", workers=2)
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        command(folder, killed, "--workers", "1"),
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
    resumed = run(folder, killed, workers=2, tasks=4)
    assert resumed["shards"] == whole["shards"]
    assert contents(killed) == contents(tmp_path / "whole")
    assert all((killed / name).stat().st_mtime_ns == when for name, when in before.items())


def test_a_restart_with_another_plan_is_refused(corpus, tmp_path):
    corpus.write_bytes(corpus.read_bytes() + b"{broken\n")
    with pytest.raises(CorpusError):
        run(corpus, tmp_path / "rows", refuse=True)
    with pytest.raises(RowsError, match=r"begun with other tasks, filters; repeat that command"):
        run(corpus, tmp_path / "rows", tasks=7, filters={"length": {"minimum": 5}})


# --- clusters ---------------------------------------------------------------------------------


def test_a_dry_run_shows_what_slurm_would_be_given_and_writes_nothing(corpus, tmp_path):
    shown = subprocess.run(
        command(
            corpus,
            tmp_path / "rows",
            *("--executor", "slurm", "--dry-run", "--tasks", "20"),
            *("--slurm", "partition=cpu", "time=2:00:00"),
        ),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert shown.count("#!/bin/bash") == 2
    assert "#SBATCH --partition=cpu" in shown
    assert "#SBATCH --array=0-19" in shown
    assert f"export PYTHONPATH={ROOT}" in shown
    assert "launch_pickled_pipeline" in shown
    assert list(tmp_path.iterdir()) == [corpus]


def test_slurm_options_are_checked_and_numbers_are_numbers():
    options = slurm_options(["time=2:00:00", "cpus_per_task=2", "qos=a=b"])
    assert options == {"time": "2:00:00", "cpus_per_task": 2, "qos": "a=b"}
    with pytest.raises(ValueError, match="--slurm partition: give KEY=VALUE"):
        slurm_options(["partition"])
    with pytest.raises(ValueError, match=r"no option 'partitions'; there are .*partition"):
        slurm_options(["partitions=cpu"])


def test_slurm_jobs_give_the_rows_of_the_local_executor(tmp_path, monkeypatch):
    """A stand-in for Slurm runs each array job at once, one task after the other."""
    for name in ("a", "b", "c"):
        write(tmp_path / f"{name}.jsonl", [name + text for text in many_texts(20)])
    local = run(tmp_path, tmp_path / "local", tasks=3)
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "sbatch").write_text(
        f"""#!{sys.executable}
import os, re, subprocess, sys
script = open(sys.argv[-1]).read()
first, last = re.search(r"--array=(\\d+)-(\\d+)", script).groups()
if "launch_pickled_pipeline" in script:
    for task in range(int(first), int(last) + 1):
        environment = dict(os.environ, SLURM_ARRAY_TASK_ID=str(task), SLURM_NODELIST="here")
        done = subprocess.run(["bash", sys.argv[-1]], env=environment, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
print("Submitted batch job 7")
"""
    )
    (programs / "srun").write_text('#!/bin/bash\nshift 3\nexec "$@"\n')
    (programs / "scontrol").write_text("#!/bin/bash\necho here\n")
    for program in programs.iterdir():
        program.chmod(0o755)
    path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    monkeypatch.setenv("PATH", path)
    options = {"partition": "cpu", "time": "1:00:00"}
    assert run(tmp_path, tmp_path / "slurm", tasks=3, executor="slurm", options=options) is None
    assert open_rows(tmp_path / "slurm").manifest["shards"] == local["shards"]
    assert contents(tmp_path / "slurm") == contents(tmp_path / "local")


def test_a_ray_run_gives_the_rows_of_the_local_executor(tmp_path):
    import ray

    for name in ("a", "b", "c"):
        write(tmp_path / f"{name}.jsonl", [name + text for text in many_texts(20)])
    local = run(tmp_path, tmp_path / "local", tasks=3)
    ray.init(num_cpus=2, include_dashboard=False)
    try:
        through_ray = run(tmp_path, tmp_path / "ray", tasks=3, workers=2, executor="ray")
    finally:
        ray.shutdown()
    assert through_ray["shards"] == local["shards"]
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")
