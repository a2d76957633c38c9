"""Executors: the same rows from each, and what Slurm is given."""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from datatrove.pipeline.base import PipelineStep

from corpora import ROOT, TEXTS, TOKENIZER, many_texts, prepare, shards_of, write_corpus
from pretraining.data.corpus import CorpusError
from pretraining.data.executors import Execution, Stage, WorkFolder, slurm_options
from pretraining.data.preparation import Preparation
from pretraining.data.rows import RowsError, open_rows

SLURM = {"partition": "cpu", "time": "1:00:00"}


@pytest.fixture
def corpora(tmp_path):
    """A folder of two corpora, and the rows that this machine makes of it in two tasks."""
    folder = tmp_path / "corpora"
    folder.mkdir()
    for name in ("a", "b"):
        write_corpus(folder / f"{name}.jsonl", [name + text for text in many_texts(20)])
    prepare(folder, tmp_path / "local", tasks=2)
    return folder


class KillsItsWorker(PipelineStep):
    """As the system does when memory runs out."""

    def run(self, data=None, rank=0, world_size=1):
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_ends_the_work(tmp_path):
    stage = Stage("rows", [KillsItsWorker()], tasks=2)
    with pytest.raises(ChildProcessError, match=r"a worker was killed, .* fewer --workers"):
        Execution("local", workers=2).run([stage], WorkFolder(tmp_path / "work"))


class FailsBesideALongTask(PipelineStep):
    """Task 0 fails as soon as task 1, which takes hours, is under way in another process."""

    def __init__(self, file: Path):
        super().__init__()
        self.file = file

    def run(self, data=None, rank=0, world_size=1):
        if rank == 1:
            self.file.write_text(str(os.getpid()))
            time.sleep(3600)
        while not (self.file.exists() and self.file.read_text()):
            time.sleep(0.02)
        raise ValueError("a broken line")


def test_a_task_that_fails_does_not_wait_for_the_others(tmp_path):
    stage = Stage("rows", [FailsBesideALongTask(tmp_path / "process")], tasks=2)
    with pytest.raises(ValueError, match="a broken line"):
        Execution("local", workers=2).run([stage], WorkFolder(tmp_path / "work"))
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "process").read_text()), 0)


class TakesHours(PipelineStep):
    def run(self, data=None, rank=0, world_size=1):
        os.write(1, f"{rank}\n".encode())  # whole: `print` writes the end of a line by itself
        time.sleep(3600)


def test_workers_end_with_a_command_that_is_killed(tmp_path):
    code = f"""
from pathlib import Path
from test_executors import Execution, Stage, TakesHours, WorkFolder
Execution("local", 2).run([Stage("rows", [TakesHours()], 2)], WorkFolder(Path({str(tmp_path)!r})))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert {process.stdout.readline() for _ in range(2)} == {b"0\n", b"1\n"}
    process.kill()
    # The end of the output, which all processes share, comes when the last of them is gone.
    assert process.communicate(timeout=60)[0] == b""


def preparation(corpus: Path | str, output: Path, **settings) -> Preparation:
    return Preparation([str(corpus)], TOKENIZER, 64, output, **settings)


def test_slurm_jobs_give_the_rows_of_the_local_executor(corpora, tmp_path, monkeypatch):
    """A stand-in for Slurm runs each array job at once, its tasks side by side."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "sbatch").write_text(
        f"""#!{sys.executable}
import os, re, subprocess, sys
script = open(sys.argv[-1]).read()
first, last = re.search(r"--array=(\\d+)-(\\d+)", script).groups()
if "launch_pickled_pipeline" in script:
    tasks = []
    for task in range(int(first), int(last) + 1):
        environment = dict(os.environ, SLURM_ARRAY_TASK_ID=str(task), SLURM_NODELIST="here")
        tasks.append(subprocess.Popen(["bash", sys.argv[-1]], env=environment, stdout=-3))
    assert [task.wait() for task in tasks] == [0] * len(tasks)
print("Submitted batch job 7")
"""
    )
    (programs / "srun").write_text('#!/bin/bash\nshift 3\nexec "$@"\n')
    (programs / "scontrol").write_text("#!/bin/bash\necho here\n")
    for program in programs.iterdir():
        program.chmod(0o755)
    path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    monkeypatch.setenv("PATH", path)
    submitted = preparation(corpora, tmp_path / "slurm", tasks=2)
    assert submitted.run(Execution("slurm", workers=-1, options=SLURM)) is None
    assert open_rows(tmp_path / "slurm").manifest == open_rows(tmp_path / "local").manifest
    assert shards_of(tmp_path / "slurm") == shards_of(tmp_path / "local")


# datatrove 0.10 places its actors in a way that ray is about to drop.
@pytest.mark.filterwarnings("ignore:placement_group.* parameter is deprecated:DeprecationWarning")
def test_a_ray_run_gives_the_rows_of_the_local_executor(corpora, tmp_path):
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        manifest = preparation(corpora, tmp_path / "ray", tasks=2).run(Execution("ray", workers=2))
    finally:
        ray.shutdown()
    assert manifest == open_rows(tmp_path / "local").manifest
    assert shards_of(tmp_path / "ray") == shards_of(tmp_path / "local")


# --- dry runs ---------------------------------------------------------------------------------


def everything_in(folder: Path) -> dict[str, int]:
    """Every file and folder, with the time of its last change."""
    return {str(each): each.stat().st_mtime_ns for each in [folder, *folder.rglob("*")]}


FILTERS = {"length": {"minimum": 1}, "exact_deduplication": {}, "minhash": {}}


@pytest.mark.parametrize("options", [{}, {"slurm_logs_folder": "logs"}])
@pytest.mark.parametrize("filters", [{}, FILTERS])
def test_a_dry_run_leaves_nothing_behind(tmp_path, monkeypatch, options, filters):
    monkeypatch.chdir(tmp_path)
    corpus = write_corpus(tmp_path / "corpus.jsonl", TEXTS)
    before = everything_in(tmp_path)
    wanted = preparation(corpus, tmp_path / "rows", tasks=20, filters=filters)
    scripts = wanted.scripts(Execution("slurm", workers=-1, options=SLURM | options))
    assert everything_in(tmp_path) == before
    assert len(scripts) == (8 if filters else 2)
    assert all(f"export PYTHONPATH={ROOT}" in script for script in scripts)
    logs = options.get("slurm_logs_folder", tmp_path / "rows.work" / "logs" / "rows" / "slurm_logs")
    assert f"#SBATCH --output={logs}/%A_%a.out" in scripts[-2]
    assert "#SBATCH --array=0-19" in scripts[-2]
    assert "#SBATCH --partition=cpu" in scripts[-2]


def test_a_dry_run_shows_what_is_missing_and_leaves_the_begun_work_as_it_was(tmp_path):
    corpus = write_corpus(tmp_path / "corpus.jsonl", TEXTS)
    corpus.write_bytes(corpus.read_bytes() + b"{broken\n")
    with pytest.raises(CorpusError):  # in the task that reads line 4
        prepare(corpus, tmp_path / "rows", tasks=6, refuse_bad_input=True)
    done = len(list((tmp_path / "rows.work" / "logs" / "rows" / "completions").iterdir()))
    before = everything_in(tmp_path)
    execution = Execution("slurm", workers=-1, options=SLURM)
    first, last = preparation(corpus, tmp_path / "rows", tasks=6).scripts(execution)
    assert 0 < done < 6
    assert f"#SBATCH --array=0-{5 - done}\n" in first
    assert "#SBATCH --array=0-0\n" in last
    with pytest.raises(RowsError, match="begun with other tasks"):
        preparation(corpus, tmp_path / "rows", tasks=7).scripts(execution)
    assert everything_in(tmp_path) == before


def test_a_dry_run_contacts_nothing(tmp_path, monkeypatch):
    def contact(path):
        raise AssertionError(f"contacts {path}")

    monkeypatch.setattr("pretraining.data.corpus.url_to_fs", contact)
    execution = Execution("slurm", workers=-1, options=SLURM)
    corpus = "hf://datasets/someone/texts"
    scripts = preparation(corpus, tmp_path / "rows", tasks=3).scripts(execution)
    assert "#SBATCH --array=0-2" in scripts[0]
    with pytest.raises(ValueError, match=f"{corpus}: the number of its files .* give --tasks"):
        preparation(corpus, tmp_path / "rows").scripts(execution)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_shows_the_largest_array_that_slurm_allows(tmp_path):
    corpus = write_corpus(tmp_path / "corpus.jsonl", TEXTS)
    options = SLURM | {"max_array_size": 8, "tasks_per_job": 2}
    for tasks, last in ((40, 7), (10, 4)):
        wanted = preparation(corpus, tmp_path / "rows", tasks=tasks)
        scripts = wanted.scripts(Execution("slurm", workers=5, options=options))
        assert f"#SBATCH --array=0-{last}%5\n" in scripts[0]


# --- options ----------------------------------------------------------------------------------


def test_slurm_options_are_read_as_they_are_meant():
    options = slurm_options(["time=2:00:00", "cpus_per_task=2", "qos=a=b", "requeue=False"])
    assert options == {"time": "2:00:00", "cpus_per_task": 2, "qos": "a=b", "requeue": False}


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("partition", "--slurm partition: give KEY=VALUE"),
        ("partitions=cpu", r"no option 'partitions'; there are .*partition"),
        ("tasks=5", r"no option 'tasks'; there are .*partition"),
        ("job_name=mine", r"no option 'job_name'; there are"),
    ],
)
def test_slurm_options_that_cannot_be_set_are_named(pair, message):
    with pytest.raises(ValueError, match=message):
        slurm_options([pair])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("slurm",), "partition and time must be given"),
        (("slurm", -1, {"partition": "cpu"}), "--slurm: time must be given"),
        (("local", 0), "workers 0: give at least 1, or -1"),
        (("ray", -2), "workers -2: give at least 1, or -1"),
        (("local", 1, SLURM), "options partition, time: only Slurm takes any"),
    ],
)
def test_an_execution_is_checked_when_built(arguments, message):
    with pytest.raises(ValueError, match=message):
        Execution(*arguments)
