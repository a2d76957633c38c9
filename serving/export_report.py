"""The report of an export: a table, `export_report.json`, and the card of the exported folder."""

import importlib.util
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import torch

from pretraining.files import read_text, write_json
from serving.export_check import Agreement
from serving.model_folder import ModelFolder

VERSIONS = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime", "openvino")

CARD = """{front_matter}# {name}, exported

This folder holds the model for ONNX Runtime and OpenVINO, with its tokenizer. It was made by
`python -m serving.export` of Chinese ModernBERT from a folder in torch, which is where to train or
change it. Inputs are `input_ids` and `attention_mask`, (batch, tokens), int64; padding may be on
either side, and its outputs have no meaning.

## Exported files

{table}

"Difference" is the largest one from torch (fp32, attention `eager`) at tokens that are not padding,
on texts of 1 to {tokens} tokens padded on either side, beside the largest output; "cosine" is that
of a text's outputs with torch's, on average. Times are medians on a CPU, in turns, {threads}
threads.
{facts}.
"""


@dataclass(frozen=True)
class ExportedFile:
    """A file of the export, or the model in torch that it is compared with.

    Attributes:
        name: path in the folder, or "torch".
        size: in bytes, weights included; None for torch, and for a file that was left out.
        agreement: with torch; None for torch itself.
        times: from `timed`; None for a file that was left out.
    """

    name: str
    size: int | None
    agreement: Agreement | None
    times: dict[str, float] | None


def table(files: list[ExportedFile]) -> str:
    """Markdown, a line for each file."""
    lines = [
        "| file | MB | difference | cosine | one text of 32 tokens | 16 × 128, tokens/s |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for file in files:
        size = "–" if file.size is None else f"{file.size / 1e6:.1f}"
        difference = cosine = "–"
        if file.agreement:
            difference = f"{file.agreement.difference:.1e} of {file.agreement.largest:.1f}"
            cosine = f"{file.agreement.cosine:.4f}"
        times = "not close enough, left out | –"
        if file.times:
            times = "{milliseconds:.1f} ms | {tokens_per_second:,.0f}".format(**file.times)
        lines.append(f"| {file.name} | {size} | {difference} | {cosine} | {times} |")
    return "\n".join(lines)


def write_report(folder: ModelFolder, files: list[ExportedFile], tokens: int, output: Path) -> None:
    """Writes `export_report.json` and README.md.

    Args:
        folder: what was exported.
        files: what came of it.
        tokens: of the longest text that was compared.
        output: the folder to write to.
    """
    threads = torch.get_num_threads()
    # Not those of the distributions: onnxruntime may come from onnxruntime-gpu.
    versions = {
        name: str(importlib.import_module(name).__version__)
        for name in VERSIONS
        if importlib.util.find_spec(name) is not None
    }
    report = {"date": date.today().isoformat(), "threads": threads, "versions": versions}
    write_json(output / "export_report.json", report | {"files": [asdict(file) for file in files]})
    card = CARD.format(
        front_matter=front_matter(folder.path / "README.md"),
        name=folder.path.resolve().name,
        table=table(files),
        tokens=tokens,
        threads=threads,
        facts=", ".join([report["date"], *(f"{name} {value}" for name, value in versions.items())]),
    )
    (output / "README.md").write_text(card, encoding="utf-8")


def front_matter(card: Path) -> str:
    """The metadata at the start of a card, or nothing."""
    text = read_text(card) if card.is_file() else ""
    if not text.startswith("---\n") or "\n---\n" not in text:
        return ""
    return text[: text.index("\n---\n") + 5] + "\n"
