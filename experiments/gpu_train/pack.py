"""Packs rows for a machine with a GPU that nothing but the checkout and one folder reaches.

    python -m experiments.gpu_train.pack --train ROWS/train-512 --long ROWS/train-8192 \\
        --held_out ROWS/valid-512 ROWS/valid-everyday-512

Held-out sets travel whole; of the training sets, as many rows as fit beside the checkout. Run it
last of all: what is committed afterwards takes room, too. What does not fit in one journey can take
two, where the machine is kept in between: `--part 1/2` and `--part 2/2` have no row in common.
"""

import argparse
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from experiments.gpu_train.packed_rows import PACKED as PACKED_ROWS
from experiments.gpu_train.packed_rows import pack_all, pack_some, size_of
from pretraining.command import readable_errors
from pretraining.data.rows import open_rows, read_manifest
from pretraining.files import check_output

ROOT = Path(__file__).resolve().parents[2]
PACKED = Path("runs/gpu_train/packed")
TRAIN, LONG, HELD_OUT = "train", "train-long", "held_out"

MIB = 1 << 20
CARRIED = 64 * MIB  # what may travel, the checkout's files among it
SPARE = MIB // 2  # for a commit or two after packing

# Of the room for rows to train on, where there are long ones too.
LONG_SHARE = 0.2

# Weights: a fresh model does not need them, and they would take most of the room.
STAYS = ("model.safetensors", "models")


def files_of_checkout(root: Path) -> list[Path]:
    """What travels of a checkout: tracked files, and those that git does not ignore.

    Raises:
        OSError, ValueError: if git does not list them.
    """
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if listed.returncode:
        raise ValueError(f"{root}: git does not list its files; give --limit. {listed.stderr}")
    files = (root / name for name in listed.stdout.split("\0") if name)
    return [file for file in files if file.is_file()]


def room_beside_checkout(root: Path) -> int:
    """Bytes that are left for rows beside the checkout, its weights aside."""
    files = (
        file for file in files_of_checkout(root) if file.relative_to(root).parts[0] not in STAYS
    )
    return CARRIED - SPARE - sum(file.stat().st_size for file in files)


def pack(
    train: Path,
    held_out: Sequence[Path],
    output: Path,
    limit: int,
    seed: int,
    long: Path | None = None,
    part: tuple[int, int] = (1, 1),
) -> str:
    """Packs row sets into a folder; returns a summary.

    Args:
        long: row set of stage 2.
        part: (i, n) takes the i-th of n parts of the training set, and of `long`.

    Raises:
        OSError, ValueError: if a row set cannot be used, the folder holds something else, or the
            limit is too small.
    """
    names = [folder.name for folder in held_out]
    if len({*names}) < len(names):
        raise ValueError("--held_out: two sets of one name; rename one of their folders.")
    sets = [open_rows(folder) for folder in held_out]
    to_train = {TRAIN: open_rows(train)} | ({LONG: open_rows(long)} if long else {})
    if len({each.manifest["tokenizer_sha256"] for each in (*to_train.values(), *sets)}) > 1:
        raise ValueError("the row sets were made with different tokenizers; prepare them again.")
    if (output / TRAIN / PACKED_ROWS).exists():  # packed earlier
        shutil.rmtree(output)
    check_output(output)
    taken = sum(
        pack_all(each, output / HELD_OUT / name) for name, each in zip(names, sets, strict=True)
    )
    if taken >= limit:
        raise ValueError(f"the held-out sets take {taken:,} bytes of {limit:,}; give fewer.")
    lines = []
    shares = {TRAIN: 1 - LONG_SHARE, LONG: LONG_SHARE} if long else {TRAIN: 1}
    for name, rows in to_train.items():
        room = int(shares[name] * (limit - taken))
        count = pack_some(rows, output / name, room, seed, part)
        tokens = read_manifest(output / name)["tokens"]
        lines.append(f"{name}: {count:,} of {len(rows):,} rows, about {tokens / 1e6:.1f} M tokens")
    size = f"{size_of(output) / MIB:.1f} of {limit / MIB:.1f} MiB"
    return "\n".join([f"{output}: {size}", *lines])


def part_of(text: str) -> tuple[int, int]:
    """ "1/2" -> (1, 2)."""
    number, count = map(int, text.split("/"))
    if not 1 <= number <= count:
        raise ValueError
    return number, count


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--train", type=Path, required=True, help="row set to train on")
    add("--long", type=Path, help="row set to train stage 2 on")
    add("--held_out", type=Path, nargs="*", default=[], help="row sets to evaluate on")
    add("--part", type=part_of, default=(1, 1), metavar="I/N", help="takes the I-th of N parts")
    add("--output", type=Path, default=ROOT / PACKED, help="a folder that git ignores")
    add("--limit", type=float, metavar="MIB", help="default: what the checkout leaves of 64 MiB")
    add("--seed", type=int, default=0, help="decides which rows travel")
    arguments = parser.parse_args()
    with readable_errors("pack"):
        limit = arguments.limit and int(arguments.limit * MIB)
        limit = limit or room_beside_checkout(ROOT)
        told = pack(
            *(arguments.train, arguments.held_out, arguments.output, limit, arguments.seed),
            *(arguments.long, arguments.part),
        )
    print(told)
    if not arguments.limit:
        print(f"{' and '.join(STAYS)} are not counted: move them away before the checkout travels.")


if __name__ == "__main__":
    main()
