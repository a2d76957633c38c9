"""Exports a model for ONNX Runtime, OpenVINO and JavaScript, and checks every file against torch.

    python -m serving.export --model . --output exported --int8
    python -m serving.export --model embedding-model --output exported --formats onnx

Writes `onnx/model.onnx` and `openvino/openvino_model.xml`, with --int8 also the int8 form of each,
and beside them the tokenizer, the configuration and a card: what transformers.js, optimum and
sentence-transformers look for. The head is the one that the folder's configuration names; a folder
of sentence-transformers also gives the pooled vector. `export_report.json` and the card say how far
each file is from torch, how large it is and how long it takes.

An int8 file whose outputs are not close enough is left out, and the report says so.
"""

import argparse
import importlib.util
import shutil
import tempfile
from pathlib import Path

import torch

from pretraining.command import readable_errors
from pretraining.files import check_output, new_folder, read_json, write_json
from serving.conversion import to_int8_onnx, to_int8_openvino, to_onnx, to_openvino
from serving.export_check import batches_for, compare, longest, timed
from serving.export_report import ExportedFile, front_matter, table, write_report
from serving.model_folder import ModelFolder, open_model_folder
from serving.runtime import FILES, FORWARDS, MISSING, Forward, torch_forward

FORMATS = ("onnx", "openvino")
# What conversion and checks import of each format.
PACKAGES = {
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "openvino": ("onnx", "onnxscript", "openvino"),
}

# Files of the model that belong beside an export: all but weights and the notes of a training run.
BESIDE = (
    *("config.json", "tokenizer*.json", "special_tokens_map.json", "added_tokens.json"),
    *("*_Pooling/config.json", "*_Normalize/config.json"),
    *("sentence_bert_config.json", "config_sentence_transformers.json"),
    "*_chinese_modernbert.py",
)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="folder of the model")
    parser.add_argument(
        "--output", type=Path, required=True, help="folder to make, or an empty one"
    )
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--int8", action="store_true", help="the int8 form of each, too")
    return parser.parse_args()


def missing_packages(formats: list[str]) -> list[str]:
    """What the formats need and is not installed."""
    names = dict.fromkeys(name for kind in formats for name in PACKAGES[kind])
    return [name for name in names if importlib.util.find_spec(name) is None]


def convert(folder: ModelFolder, formats: list[str], int8: bool, output: Path) -> None:
    """Writes the files of all formats, unchecked."""
    model = folder.load()
    with tempfile.TemporaryDirectory(dir=output) as temporary:
        onnx = (output if "onnx" in formats else Path(temporary)) / FILES["onnx", False]
        to_onnx(folder, model, onnx)
        if int8 and "onnx" in formats:
            to_int8_onnx(onnx, output / FILES["onnx", True])
        if "openvino" in formats:
            to_openvino(onnx, output / FILES["openvino", False])
            if int8:
                to_int8_openvino(onnx, output / FILES["openvino", True])


def check(folder: ModelFolder, formats: list[str], int8: bool, output: Path) -> list[ExportedFile]:
    """Compares each file with torch and times it; removes int8 files that are not close enough.

    Raises:
        ValueError: if an fp32 file differs from torch.
    """
    reference, batches = torch_forward(folder.load(attention="eager")), batches_for(folder)
    sides: dict[str, Forward] = {"torch": torch_forward(folder.load())}
    agreements = {}
    for runtime in formats:
        for is_int8 in (False, True)[: 1 + int8]:
            name = FILES[runtime, is_int8]
            forward = FORWARDS[runtime](output / name, torch.get_num_threads())
            agreement = agreements[name] = compare(folder, reference, forward, batches)
            if agreement.holds(is_int8):
                sides[name] = forward
            elif is_int8:
                remove(output / name)
            else:
                raise ValueError(
                    f"{name} differs from torch by {agreement.difference:.1e}, where outputs are "
                    f"up to {agreement.largest:.1f}. Nothing was written; please report this."
                )
    times = timed(folder, sides)
    files = [ExportedFile("torch", None, None, times["torch"])]
    for name, agreement in agreements.items():
        size = weight_of(output / name) if name in sides else None
        files.append(ExportedFile(name, size, agreement, times.get(name)))
    return files


def parts(file: Path) -> list[Path]:
    """A model file, and its weights where they are a file of their own."""
    others = (file.with_suffix(".bin"), file.with_name(f"{file.name}.data"))
    return [file, *(other for other in others if other.exists())]


def weight_of(file: Path) -> int:
    """Bytes of a model."""
    return sum(part.stat().st_size for part in parts(file))


def remove(file: Path) -> None:
    for part in parts(file):
        part.unlink()


def copy_beside(folder: ModelFolder, output: Path) -> None:
    """Copies tokenizer, configuration and code."""
    for file in sorted({file for pattern in BESIDE for file in folder.path.glob(pattern)}):
        target = output / file.relative_to(folder.path)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, target)
    if (modules := folder.path / "modules.json").is_file():
        # The graph's token embeddings are those that the pooling takes.
        pooling = folder.pooling
        inside = pooling.inside if pooling else None
        kept = [each for each in read_json(modules) if folder.path / each["path"] != inside]
        write_json(output / "modules.json", kept)
        if pooling and pooling.linear:
            shutil.copytree(pooling.linear, output / pooling.linear.name)


def main() -> None:
    arguments = parse()
    with readable_errors("export"):
        check_output(arguments.output)
        if missing := missing_packages(arguments.formats):
            raise ImportError(MISSING.format(", ".join(missing)))
        folder = open_model_folder(arguments.model)
        folder.tokenizer()  # a damaged one is told before the long work, as is such a card
        front_matter(folder.path / "README.md")
        with new_folder(arguments.output) as output:
            convert(folder, arguments.formats, arguments.int8, output)
            files = check(folder, arguments.formats, arguments.int8, output)
            copy_beside(folder, output)
            write_report(folder, files, longest(folder), output)
    print(table(files))


if __name__ == "__main__":
    main()
