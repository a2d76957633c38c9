"""Converts a ModernBERT of transformers into a repository with our code and the same weights.

    python -m serving.convert_modernbert answerdotai/ModernBERT-base converted
    python -m serving.convert_modernbert FOLDER converted --check_only

SOURCE is a folder or a name on the Hub, of the model type `modernbert` and with any head that
transformers has. First both codes read the same texts in fp32 and a table says how far their
outputs are apart; above the tolerance nothing is written. Safetensors are copied byte for byte,
tokenizer, card and what else belongs to the model too.
"""

import argparse
import re
import shutil
from pathlib import Path

import torch
import transformers
from huggingface_hub import ModelCard, ModelCardData
from safetensors.torch import save_file
from transformers.dynamic_module_utils import custom_object_save

from pretraining.command import readable_errors
from pretraining.files import check_output, new_folder, read_json, write_json
from serving.modernbert_parity import HEADER, TOLERANCE, compare, open_tokenizer
from serving.modernbert_source import Source, find_source, load_pickled, read_source

# No tokenizer or card is larger; that of mmBERT with its 256,000 entries has 34 MB.
LARGEST_OTHER_FILE = 100 * 2**20

EMPTY_CARD = "---\nlibrary_name: transformers\n---\n"

NOTICE = """
> **Converted.** These are the weights of {link}, unchanged, with the code of Chinese ModernBERT,
> which gives the same outputs. Open it with `trust_remote_code=True`.
"""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("source", metavar="SOURCE", help="folder, or name on the Hub")
    add("output", metavar="OUTPUT", type=Path, nargs="?", help="folder to make, or an empty one")
    add("--check_only", action="store_true", help="compare, and write nothing; OUTPUT is not read")
    add(
        "--tolerance",
        type=float,
        default=TOLERANCE,
        help="largest difference, relative to the largest output (default: %(default)s)",
    )
    arguments = parser.parse_args()
    if not arguments.tolerance > 0:
        parser.error(f"--tolerance must be above 0, got {arguments.tolerance}.")
    if arguments.output is None and not arguments.check_only:
        parser.error("OUTPUT is missing: name the folder to make, or give --check_only.")
    return arguments


def check_outputs(source: Source, tolerance: float) -> None:
    """Prints how far both codes are apart.

    Raises:
        ValueError: if it is more than the tolerance.
    """
    agreements = compare(source, tolerance)
    print(HEADER)
    for agreement in agreements:
        print(agreement.line())
    if failed := [agreement.form for agreement in agreements if not agreement.holds]:
        raise ValueError(
            f"the outputs of both codes differ by more than the tolerance ({', '.join(failed)}). "
            "Nothing was written. If the differences are those of rounding, give a larger "
            "--tolerance."
        )


def write(source: Source, card: ModelCard, folder: Path) -> None:
    """Fills an empty folder with the converted model.

    Raises:
        OSError, ValueError: if that fails.
    """
    for name in source.other_files:
        if (source.folder / name).stat().st_size > LARGEST_OTHER_FILE:
            print(f"left out: {name}, larger than {LARGEST_OTHER_FILE >> 20} MiB")
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.folder / name, folder / name)
    write_weights(source, folder)
    with torch.device("meta"):
        model = source.model_class(source.config)  # its head names the pipelines
    model.config.architectures = source.config.architectures
    tokenizer = open_tokenizer(source.folder)
    if tokenizer is not None and (tokenizer.mask_token_id or 0) < model.config.vocab_size:
        model.config.mask_token_id = tokenizer.mask_token_id  # ModernBERT's configuration has none
    model.config.save_pretrained(folder)
    custom_object_save(model, folder)
    card.save(folder / "README.md")
    name_tokenizer_class(source, folder)


def write_weights(source: Source, folder: Path) -> None:
    """Copies safetensors, or writes them from pickled files, one at a time."""
    shard_of, size = {}, 0
    for name in source.weights:
        if ".bin" not in name:
            shutil.copyfile(source.folder / name, folder / name)
        elif not name.endswith(".index.json"):
            tensors = load_pickled(source.folder / name)
            tensors = separate(tensors, tied=source.config.tie_word_embeddings)
            save_file(tensors, folder / safetensors_name(name), metadata={"format": "pt"})
            shard_of |= dict.fromkeys(tensors, safetensors_name(name))
            size += sum(tensor.nbytes for tensor in tensors.values())
    if shard_of and len(source.weights) > 1:
        index = {"metadata": {"total_size": size}, "weight_map": shard_of}
        write_json(folder / "model.safetensors.index.json", index)


def safetensors_name(name: str) -> str:
    """`pytorch_model-00001-of-00002.bin` -> `model-00001-of-00002.safetensors`."""
    return name.replace("pytorch_model", "model").replace(".bin", ".safetensors")


def separate(tensors: dict[str, torch.Tensor], tied: bool) -> dict[str, torch.Tensor]:
    """The tensors, each contiguous and in memory of its own, as safetensors wants them.

    Only the decoder shares memory, with the embeddings. If it is tied to them, it is left out, and
    transformers ties it again; otherwise it is copied.
    """
    first = {}
    for name, tensor in sorted(tensors.items(), key=lambda item: item[0] == "decoder.weight"):
        place = tensor.data_ptr(), tensor.shape
        if place not in first:
            first[place] = name, tensor.contiguous()
        elif not tied:
            first[name] = name, tensor.clone()
    return dict(first.values())


def name_tokenizer_class(source: Source, folder: Path) -> None:
    """Writes the tokenizer's class into `tokenizer_config.json`, unless it is there already, and
    takes out where the source had its code, which does not come along.

    For the model type `modernbert` transformers passes over the class that the file names (mmBERT's
    names Gemma's, which would replace the normalizer); for ours it does not.
    """
    file = folder / "tokenizer_config.json"
    content = read_json(file) if file.is_file() else {}
    changed = content.pop("auto_map", None) is not None
    tokenizer = open_tokenizer(source.folder)
    named = getattr(transformers, content.get("tokenizer_class") or "", None)
    if tokenizer is not None and named is not type(tokenizer):
        content["tokenizer_class"], changed = type(tokenizer).__name__, True
    if changed:
        write_json(file, content)


def make_card(source: Source, name: str) -> ModelCard:
    """The source's card with a notice under its title, or a small new one.

    Args:
        name: of the source, on the Hub or of its folder.

    Raises:
        ValueError: if the metadata of the source's card cannot be read.
    """
    file = source.folder / "README.md"
    try:
        card = ModelCard.load(file) if file.is_file() else ModelCard(EMPTY_CARD)
    except Exception as error:  # of the YAML parser, or the library's own checks
        raise ValueError(f"{file}: its metadata cannot be read: {error}") from error
    if not isinstance(card.data, ModelCardData):
        card.data = ModelCardData()
    card.data.base_model = name
    card.data.library_name = card.data.library_name or "transformers"
    link = f"[{name}](https://huggingface.co/{name})" if "/" in name else f"`{name}`"
    card.text = with_notice(card.text, name, NOTICE.format(link=link))
    return card


def with_notice(text: str, name: str, notice: str) -> str:
    """A card's text with a notice under its title; one without a title gets it."""
    title = re.search(r"^# .+$", text.partition("```")[0], re.MULTILINE)
    if title is None:
        return f"\n# {name.rpartition('/')[2]}\n{notice}\n{text.lstrip()}"
    return f"{text[: title.end()]}\n{notice}{text[title.end() :]}"


def main() -> None:
    arguments = parse()
    with readable_errors("convert_modernbert"):
        if not arguments.check_only:
            check_output(arguments.output)
        folder = find_source(arguments.source)
        source = read_source(folder)
        local = Path(arguments.source).is_dir()
        card = make_card(source, folder.resolve().name if local else arguments.source)
        for note in source.notes:
            print(f"config.json: {note}")
        check_outputs(source, arguments.tolerance)
        if arguments.check_only:
            return
        with new_folder(arguments.output) as temporary:
            write(source, card, temporary)
    print(f"{arguments.output}: {source.model_class.__name__}, converted from {arguments.source}")


if __name__ == "__main__":
    main()
