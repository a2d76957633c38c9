"""Our models and the twins in one table, from what `score.py` kept of each.

    python -m experiments.twin.compare --ours RESULTS/ours.seed1.json RESULTS/ours.seed2.json \\
        --twin RESULTS/twin.5e-4.seed1.json RESULTS/twin.5e-4.seed2.json

Several files of a side are its seeds.
"""

import argparse
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.twin.score import Scores
from pretraining.command import readable_errors
from pretraining.files import read_json


def read_scores(files: Sequence[Path]) -> list[Scores]:
    """The scores that files hold.

    Raises:
        OSError, ValueError: naming the file that cannot be read or is not one of scores.
    """
    names = [each.name for each in dataclasses.fields(Scores)]
    found = []
    for file in files:
        content = read_json(file)
        if not isinstance(content, dict) or not content.keys() >= set(names):
            raise ValueError(f"{file}: holds no scores; make it with experiments.twin.score.")
        found.append(Scores(**{name: content[name] for name in names}))
    return found


def check_same_text(files: Sequence[Path], scores: Sequence[Scores]) -> None:
    """Refuses to compare scores of different characters.

    Raises:
        ValueError: naming the first file that is unlike the first of all.
    """
    for file, each in zip(files, scores, strict=True):
        if each.text != scores[0].text:
            raise ValueError(
                f"{file}: other text or other masks than in {files[0]}; make both with the same "
                "--corpus and --tokenizers."
            )


def table(sides: dict[str, list[Scores]]) -> str:
    """Markdown: a line for all text and for each domain, means over the seeds.

    Args:
        sides: the scores of each side's seeds, by its name.
    """
    first = next(iter(sides.values()))[0]
    characters, domains = np.array(first.masked), np.array(first.domains)
    heads = ["masked characters", *(f"unknown, {name}" for name in sides)]
    heads += [f"{what}, {name}" for what in ("right", "bits per character") for name in sides]
    lines = [f"| held-out text | {' | '.join(heads)} |", f"|---|{'--:|' * len(heads)}"]
    for name in ("all", *np.unique(domains)):
        chosen = np.ones_like(domains, dtype=bool) if name == "all" else domains == name
        of = characters[chosen].sum()

        def mean(what: str, seeds: list[Scores], chosen=chosen, of=of) -> float:
            of_seeds = [np.array(getattr(each, what))[chosen].sum() / of for each in seeds]
            return float(np.mean(of_seeds))

        cells = [f"{of:,}"]
        cells += [f"{mean('unknown', seeds):.2%}" for seeds in sides.values()]
        cells += [f"{mean('right', seeds):.1%}" for seeds in sides.values()]
        cells += [f"{mean('bits', seeds):.3f}" for seeds in sides.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def verdict(ours: list[Scores], twin: list[Scores]) -> str:
    """The margin in bits per character, beside its standard error and the spread of the seeds.

    The standard error is over documents, which are what is independent of each other.
    """
    characters = np.array(ours[0].masked)
    seeds = [[sum(each.bits) / characters.sum() for each in side] for side in (ours, twin)]
    margin = float(np.mean(seeds[1]) - np.mean(seeds[0]))
    ahead = np.mean([each.bits for each in twin], axis=0) - np.mean(
        [each.bits for each in ours], axis=0
    )
    residuals = ahead - margin * characters
    error = math.sqrt((residuals**2).sum()) / characters.sum()
    shown = [", ".join(f"{each:.3f}" for each in side) for side in seeds]
    text = (
        f"bits per character by seed: ours {shown[0]}; twin {shown[1]}\n"
        f"ours is ahead by {margin:.3f} ± {error:.3f} (standard error over documents)"
    )
    if min(map(len, seeds)) < 2:
        return text + "; no verdict, which needs two seeds a side"
    spread = max(max(side) - min(side) for side in seeds)
    word = "larger" if margin > spread else "not larger"
    return text + f"; the margin is {word} than the spread of the seeds, {spread:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--ours", type=Path, nargs="+", required=True, help="scores of our models, one a seed")
    add("--twin", type=Path, nargs="+", required=True, help="scores of the twins, one a seed")
    arguments = parser.parse_args()
    with readable_errors("compare"):
        ours, twin = read_scores(arguments.ours), read_scores(arguments.twin)
        check_same_text([*arguments.ours, *arguments.twin], [*ours, *twin])
    print(table({"ours": ours, "twin": twin}))
    print(verdict(ours, twin))


if __name__ == "__main__":
    main()
