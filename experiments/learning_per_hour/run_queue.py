"""Runs the experiments one after another, each for the same machine time as the base.

    python -m experiments.learning_per_hour.run_queue --rows ROWS --work WORK

ROWS is the folder of row sets, WORK one for checkpoints and logs. The queue runs at the lowest
priority, can be killed at any time, and goes on where it was: a run that is finished is not started
again, one that was begun continues from its last checkpoint.
"""

import argparse
import dataclasses
import fcntl
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from experiments.learning_per_hour.experiment import (
    BASE,
    BASE_RUN,
    COMMANDS,
    FOLDER,
    MASKED_TOKENS,
    Experiment,
    Protocol,
    in_rows,
    overrides_of,
    read_experiments,
    read_protocol,
    stage_steps,
    steps_of_a_budget,
    tokens_of_a_step,
    with_steps,
)
from experiments.learning_per_hour.results import (
    ROOT,
    curve_of,
    evaluate,
    leaderboard,
    made_with,
    read_results,
    run_name,
    write_leaderboard,
)
from experiments.learning_per_hour.speed import Side, speed_ratio
from pretraining.command import readable_errors
from pretraining.data.rows import read_manifest
from pretraining.files import read_json, write_json
from pretraining.run.configuration import load_run
from pretraining.run.guard import STOPPED_FILE
from pretraining.run.model_folder import TRAINING_LOG

# torch's threads wait for each other in loops, which takes the processor from other programs.
QUIET = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}


@dataclass(frozen=True)
class Queue:
    """Where the queue reads and writes, and what its experiments share.

    Attributes:
        experiments: by name.
        rows, work: folders of row sets, and of checkpoints and logs.
        results: folder of the results.
        page: the page with the leaderboard.
        lock: of `work`; processes that inherit it hold it, too.
    """

    protocol: Protocol
    experiments: Mapping[str, Experiment]
    rows: Path
    work: Path
    results: Path
    page: Path
    lock: int

    def overrides(self, experiment: Experiment) -> list[str]:
        """The experiment's overrides of base.yaml, at base.yaml's steps."""
        model_file = self.work / "models" / f"{experiment.name}.json"
        return overrides_of(experiment, self.rows, model_file)

    def held_out(self, experiment: Experiment) -> dict[str, Path]:
        """Name -> row set that the finished model is evaluated on, if it predicts masked tokens."""
        if experiment.objective != MASKED_TOKENS:
            return {}
        named = self.protocol.held_out | experiment.held_out
        return {name: Path(in_rows(each, self.rows)) for name, each in named.items()}

    def result_file(self, experiment: Experiment, seed: int) -> Path:
        """Where the result of a run is."""
        return self.results / f"{run_name(experiment.name, self.protocol.minutes, seed)}.json"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--rows", type=Path, required=True, help="folder of the row sets that README.md names")
    add("--work", type=Path, required=True, help="folder for checkpoints and logs")
    add("--only", nargs="+", metavar="NAME", help="these experiments, in this order")
    add("--minutes", type=float, help="machine time of a run (default: as protocol.yaml has it)")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("run_queue: ended"))  # and its processes
    os.chdir(ROOT)  # base.yaml names files of the repository
    os.environ.update(QUIET)
    os.nice(19)
    with readable_errors("run_queue"):
        protocol = read_protocol()
        if arguments.minutes:
            protocol = dataclasses.replace(protocol, minutes=arguments.minutes)
        experiments = read_experiments(FOLDER / "changes")
        chosen = arguments.only or list(experiments)
        if unknown := [name for name in chosen if name not in experiments]:
            raise ValueError(f"--only: no experiments of these names: {', '.join(unknown)}.")
        queue = Queue(
            protocol=protocol,
            experiments=experiments,
            rows=arguments.rows.resolve(),
            work=arguments.work.resolve(),
            results=FOLDER / "results",
            page=FOLDER / "README.md",
            lock=lock(arguments.work.resolve()),
        )
    if not run_all(queue, chosen):
        sys.exit(f"run_queue: some experiments have no result, see above and {queue.work}")


def run_all(queue: Queue, names: Sequence[str]) -> bool:
    """Runs experiments in turn; returns whether all have their results.

    Those that cannot work are named before the first is trained, and left out.
    """
    complete, ready = True, []
    for name in names:
        try:
            check(queue, queue.experiments[name])
            ready.append(name)
        except (OSError, ValueError) as error:
            print(f"{name}: left out: {error}", flush=True)
            complete = False
    for name in ready:
        complete &= run_experiment(queue, queue.experiments[name])
    return complete


def check(queue: Queue, experiment: Experiment) -> None:
    """Checks an experiment's settings and that its row sets are there.

    Raises:
        OSError, ValueError: naming the file or key that cannot work.
    """
    run = load_run(str(BASE_RUN), queue.overrides(experiment))
    for stage in experiment.stages:
        stage_steps(run, stage)
        tokens_of_a_step(run, stage)
    for rows in queue.held_out(experiment).values():
        read_manifest(rows)


def lock(work: Path) -> int:
    """Takes the folder for this queue and the runs that it starts.

    Raises:
        ValueError: if a queue, or a run that outlived its queue, has it.
    """
    work.mkdir(parents=True, exist_ok=True)
    file = os.open(work / "lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"{work} is in use by another queue or by a run of it.") from None
    return file


def run_experiment(queue: Queue, experiment: Experiment) -> bool:
    """Trains and evaluates the seeds that have no result yet; returns whether all now have one."""
    complete = True
    for seed in experiment.seeds:
        file = queue.result_file(experiment, seed)
        if file.exists():
            made = read_json(file)
            if not is_of(made, experiment):
                print(f"{file.stem}: its result is of other settings; remove {file}.", flush=True)
                complete = False
            continue
        print(f"{file.stem}: {experiment.change}", flush=True)
        try:
            write_json(file, run_seed(queue, experiment, seed))
        except (OSError, ValueError, RuntimeError) as error:
            print(f"{file.stem}: {error}", flush=True)
            complete = False
    write_leaderboard(queue.page, leaderboard(queue.experiments, read_results(queue.results)))
    return complete


def is_of(result: dict, experiment: Experiment) -> bool:
    """Whether a result was made with an experiment's settings as they are now."""
    now = [experiment.overrides, experiment.model, experiment.objective]
    now.append(list(experiment.time_shares))
    # The first results do not name the last two, which had these values.
    then = [result["overrides"], result["model"], result.get("objective", MASKED_TOKENS)]
    then.append(result.get("time_shares", [1.0]))
    return now == then


def run_seed(queue: Queue, experiment: Experiment, seed: int) -> dict:
    """The result of one run, which is trained or continued.

    Raises:
        OSError, ValueError, RuntimeError: if it could not be trained.
    """
    ratios = speed_ratios(queue, experiment)
    speeds = {stage: ratio * queue.protocol.tokens_per_second for stage, ratio in ratios.items()}
    overrides = [*queue.overrides(experiment), f"seed={seed}"]
    run = load_run(str(BASE_RUN), overrides)
    steps = steps_of_a_budget(experiment, run, 60 * queue.protocol.minutes, speeds)
    folder = queue.work / "runs" / run_name(experiment.name, queue.protocol.minutes, seed)
    train(queue, folder, with_steps(overrides, steps), experiment.objective)
    result = {
        "experiment": experiment.name,
        "change": experiment.change,
        "minutes": queue.protocol.minutes,
        "seed": seed,
        "overrides": experiment.overrides,
        "model": experiment.model,
        "objective": experiment.objective,
        "time_shares": list(experiment.time_shares),
        "steps": list(steps.values()),
        "tokens": sum(count * tokens_of_a_step(run, stage) for stage, count in steps.items()),
        "speed_ratios": list(ratios.values()),
        "stopped": stopped(folder),
        "held_out": {},
        "curve": [],
        "made_with": made_with(),
    }
    if result["stopped"] is None:
        finals = [folder / f"stage{number}" / "final" for number in steps]
        held_out = queue.held_out(experiment)
        # In a process of its own, whose threads follow QUIET.
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            result["held_out"] = pool.submit(evaluate, finals[-1], held_out).result()
        logs = [final / TRAINING_LOG for final in finals]
        result["curve"] = [entry for log in logs for entry in curve_of(log)]
        for checkpoint in folder.glob("stage*/checkpoint-*"):
            shutil.rmtree(checkpoint)
    return result


def speed_ratios(queue: Queue, experiment: Experiment) -> dict[int, float]:
    """Stage -> its tokens/s over the base's, measured once for each experiment.

    Raises:
        OSError, ValueError, RuntimeError: if it could not be measured.
    """
    if experiment.name == BASE:
        return {1: 1.0}
    if experiment.speed_of is not None:
        return speed_ratios(queue, queue.experiments[experiment.speed_of])
    file = queue.work / "speeds" / f"{experiment.name}.json"
    if not file.exists():
        base, other = queue.experiments[BASE], experiment
        ratios = [
            speed_ratio(side_of(queue, base, 1), side_of(queue, other, stage), file.with_suffix(""))
            for stage in experiment.stages
        ]
        print(f"  tokens/s over the base's: {', '.join(f'{each:.3f}' for each in ratios)}")
        write_json(file, ratios)
    return dict(zip(experiment.stages, read_json(file), strict=True))


def side_of(queue: Queue, experiment: Experiment, stage: int) -> Side:
    """A stage of an experiment, to be timed."""
    overrides = queue.overrides(experiment)
    tokens = tokens_of_a_step(load_run(str(BASE_RUN), overrides), stage)
    return Side(tuple(overrides), stage, tokens, experiment.objective)


def train(queue: Queue, folder: Path, overrides: list[str], objective: str) -> None:
    """Trains a run, or what is left of it; returns also if the guard stopped it.

    Raises:
        ValueError: if it was begun with other settings.
        RuntimeError: if it fails; the message names the log.
    """
    settings, begun = [*overrides, f"output_dir={folder}"], folder / "overrides.json"
    if not begun.exists():
        write_json(begun, settings)
    if read_json(begun) != settings:
        raise ValueError(f"{folder} was begun with other settings; remove it to start again.")
    if stopped(folder):
        return
    command = [sys.executable, *COMMANDS[objective], str(BASE_RUN), *settings]
    if objective == MASKED_TOKENS:
        both = any(each.startswith("stage2.") for each in settings)
        command += ["--stage", "both" if both else "1"]
    log = folder / "log.txt"
    with open(log, "a", encoding="utf-8") as file:
        ended = subprocess.run(
            [*command, "--resume"], stdout=file, stderr=file, pass_fds=[queue.lock], check=False
        )
    if ended.returncode and not stopped(folder):
        raise RuntimeError(f"training ended with status {ended.returncode}; see {log}")


def stopped(folder: Path) -> str | None:
    """Where and why the guard stopped a run, or None."""
    for file in folder.glob(f"stage*/{STOPPED_FILE}"):
        found = read_json(file)
        return f"step {found['step']}: {found['reason']}"
    return None


if __name__ == "__main__":
    main()
