"""Runs the stages of a preparation: on this machine, as Slurm jobs or on a Ray cluster."""

import inspect
import math
import multiprocessing
import os
import shlex
import sys
import tempfile
import threading
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from datatrove.executor import RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.executor.base import PipelineExecutor
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.stats import PipelineStats
from loguru import logger

ROOT = Path(__file__).resolve().parent.parent.parent

# Parameters of datatrove's Slurm executor that a stage sets, or that hold more than one value.
_NOT_OPTIONS = (
    *("pipeline", "tasks", "workers", "logging_dir", "depends", "job_name"),
    *("job_id_retriever", "requeue_signals", "sbatch_args", "srun_args"),
)


@dataclass(frozen=True)
class WorkFolder:
    """Where a preparation keeps what it has done; a restart continues from it.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def plan(self) -> Path:
        """JSON file: the settings that a restart has to share."""
        return self.path / "plan.json"

    @property
    def bad_input(self) -> Path:
        """A JSON-lines file for each task: what was skipped, and why."""
        return self.path / "bad_input"

    @property
    def counts(self) -> Path:
        """A JSON file for each task: its shards, and what it counted by domain."""
        return self.path / "counts"

    @property
    def cleaned(self) -> Path:
        """What the filters of single documents left, where duplicates are looked for."""
        return self.path / "cleaned"

    @property
    def duplicates(self) -> Path:
        """What deduplication found."""
        return self.path / "duplicates"

    def logs(self, stage: str) -> Path:
        """datatrove's logs, statistics and completion marks of a stage."""
        return self.path / "logs" / stage


@dataclass(frozen=True)
class Stage:
    """A part of the work; it begins when the stage before is done.

    Attributes:
        name: for its logs.
        pipeline: its steps.
        tasks: how many parts it is divided into; each runs the whole pipeline on its share.
    """

    name: str
    pipeline: list[PipelineStep]
    tasks: int


class LocalExecutor(LocalPipelineExecutor):
    """datatrove's executor for one machine, without its messages on the terminal.

    A worker that the system kills ends the work; datatrove would wait for its task forever.
    """

    def run(self) -> PipelineStats | None:
        logger.disable("datatrove")
        if self.workers > 1:
            self._run_in_processes()
        return super().run()  # what is left

    def _run_in_processes(self) -> None:
        if self.depends and not self.depends._launched:
            self.depends.run()
        ranks = self.get_incomplete_ranks(range(self.tasks))
        others = set(multiprocessing.active_children())
        with ProcessPoolExecutor(
            self.workers, multiprocessing.get_context("forkserver"), _end_with_the_command
        ) as pool:
            running = [pool.submit(self._run_for_rank, rank) for rank in ranks]
            try:
                for each in as_completed(running):
                    each.result()
            except BrokenProcessPool as error:
                raise ChildProcessError(
                    "a worker was killed, perhaps for lack of memory; repeat the command with "
                    "fewer --workers."
                ) from error
            finally:
                if not all(each.done() for each in running):  # what runs may still take hours
                    for worker in set(multiprocessing.active_children()) - others:
                        worker.terminate()
                pool.shutdown(cancel_futures=True)

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> PipelineStats:
        logger.disable("datatrove")  # perhaps in another process
        return super()._run_for_rank(rank, local_rank, node_rank)


def _end_with_the_command() -> None:
    """Ends this worker if the process that gives it work is killed."""
    command = multiprocessing.parent_process()

    def wait() -> None:
        command.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@dataclass(frozen=True)
class Execution:
    """Who does the work.

    Attributes:
        kind: "local" for processes on this machine, "slurm" or "ray".
        workers: tasks at a time; -1 for all at once.
        options: further arguments of datatrove's Slurm executor, from `slurm_options`.

    Raises:
        ValueError: if `workers` is not such a number, or Slurm's partition or time is missing.
    """

    kind: Literal["local", "slurm", "ray"] = "local"
    workers: int = 1
    options: Mapping[str, str | int | bool] = field(default_factory=dict)

    def __post_init__(self):
        if self.workers < 1 and self.workers != -1:
            raise ValueError(f"workers {self.workers}: give at least 1, or -1 for all at once.")
        if self.options and self.kind != "slurm":
            raise ValueError(f"options {', '.join(self.options)}: only Slurm takes any.")
        required = ("partition", "time") if self.kind == "slurm" else ()
        if missing := [each for each in required if each not in self.options]:
            raise ValueError(
                f"--slurm: {' and '.join(missing)} must be given, such as partition=cpu "
                "time=12:00:00."
            )

    def run(self, stages: list[Stage], work: WorkFolder) -> None:
        """Runs the stages one after the other, or submits them to Slurm."""
        last = None
        for stage in stages:
            last = self._executor(stage, work, last)
        last.run()

    def scripts(self, stages: list[Stage], work: WorkFolder) -> list[str]:
        """What `sbatch` would be given for the stages that are not done; nothing is written."""
        scripts = []
        for stage in stages:
            job = self._executor(stage, work, None)
            jobs = math.ceil(len(job.get_incomplete_ranks()) / job.tasks_per_job)
            if not jobs:
                continue
            limit = jobs if job.max_array_size == -1 else job.max_array_size
            logs = str(job.slurm_logs_folder)
            # datatrove makes the folder of the logs when it is asked for the arguments.
            with tempfile.TemporaryDirectory() as instead:
                job.slurm_logs_folder = instead
                arguments = job.get_sbatch_args(min(jobs, limit))
            arguments |= {
                key: value.replace(instead, logs)
                for key, value in arguments.items()
                if isinstance(value, str)
            }
            command = f"launch_pickled_pipeline {work.logs(stage.name) / 'executor.pik'}"
            if job.with_srun:
                command = f"srun -l -n {job.nodes_per_task} {command}"
            scripts.append(job.get_launch_file_contents(arguments, command))
        return scripts

    def _executor(
        self, stage: Stage, work: WorkFolder, depends: PipelineExecutor | None
    ) -> PipelineExecutor:
        arguments = {
            "pipeline": stage.pipeline,
            "tasks": stage.tasks,
            "workers": self.workers,
            "logging_dir": str(work.logs(stage.name)),
            "depends": depends,
        }
        if self.kind == "local":
            return LocalExecutor(**arguments | {"workers": min(self.workers, stage.tasks)})
        if self.kind == "ray":
            return RayPipelineExecutor(**arguments)
        # The jobs start elsewhere, with this environment and this code.
        environment = f"export PYTHONPATH={shlex.quote(str(ROOT))}"
        if sys.prefix != sys.base_prefix:
            environment = f"source {shlex.quote(sys.prefix)}/bin/activate; {environment}"
        options = {"env_command": environment, **self.options}
        return SlurmPipelineExecutor(job_name=stage.name, **arguments, **options)


def slurm_options(pairs: list[str]) -> dict[str, str | int | bool]:
    """KEY=VALUE arguments for datatrove's Slurm executor, as text, whole numbers, true or false.

    Raises:
        ValueError: if one has another form, or a key that cannot be set.
    """
    known = [
        each
        for each in inspect.signature(SlurmPipelineExecutor).parameters
        if each not in _NOT_OPTIONS
    ]
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"--slurm {pair}: give KEY=VALUE, such as partition=cpu.")
        if key not in known:
            raise ValueError(f"--slurm {pair}: no option {key!r}; there are {', '.join(known)}.")
        if value.lower() in ("true", "false"):
            options[key] = value.lower() == "true"
        else:
            options[key] = int(value) if value.isdecimal() else value
    return options
