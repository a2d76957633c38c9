"""Puts a model that came back in parts together again.

python -m experiments.gpu_train.join PARTS --output runs/gpu_train/model
"""

import argparse
from pathlib import Path

from experiments.gpu_train.parts import join
from pretraining.command import readable_errors


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", type=Path, help="folder of what came back")
    parser.add_argument("--output", type=Path, required=True, help="folder for the model")
    arguments = parser.parse_args()
    with readable_errors("join"):
        index = join(arguments.parts, arguments.output)
    for stage in index["stages"]:
        print(
            f"{arguments.output}: stage {stage['stage']}, {stage['steps']:,} steps, "
            f"{stage['positions']:,} positions, {stage['ended_by']}"
        )


if __name__ == "__main__":
    main()
