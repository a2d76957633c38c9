"""A checkpoint of transformers' ModernBERT becomes a repository of ours, or nothing is written."""

import json
from dataclasses import make_dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers
from huggingface_hub import HfApi, ModelCard, snapshot_download
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, ModernBertConfig, PreTrainedTokenizerFast

from batches import documents, pad_rows
from commands import run_main
from hub_standin import HubStandIn
from modernbert import HEADS, SHAPE, modernbert
from serving import convert_modernbert, modernbert_source
from serving.modernbert_parity import probe_documents
from serving.modernbert_source import convert_config, other_files, weight_files
from test_remote_code import CODE

CARD = """---
license: apache-2.0
tags:
- fill-mask
---
# Grüner Tee

A model about tea.
"""


@pytest.fixture
def convert(capsys):
    """Returns `convert(*arguments)`: what the command prints; it ends as the command ends."""

    def convert(*arguments) -> str:
        run_main(convert_modernbert, *arguments)
        return capsys.readouterr().out

    return convert


@pytest.fixture
def refused(convert, tmp_path):
    """Returns `refused(source, *options)`: the message of a command that leaves nothing behind."""

    def refused(source, *options) -> str:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(SystemExit) as ended:
            convert(source, tmp_path / "new" / "out", *options)
        assert [path for path in tmp_path.rglob("*") if path not in before] in (
            [],
            [tmp_path / "new"],
        )
        return str(ended.value)

    return refused


@pytest.fixture
def save(tmp_path):
    """Returns `save(head, **settings)`: a folder of transformers' in several shards."""

    def save(head="ForMaskedLM", **settings) -> Path:
        folder = tmp_path / "source"
        modernbert(head, **settings).save_pretrained(folder, max_shard_size="20KB")
        assert len(list(folder.glob("*.safetensors"))) > 2
        return folder

    return save


def change_config(folder: Path, **values) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def save_tokenizer(folder: Path, declared: str = "TokenizersBackend") -> None:
    """A tokenizer of single characters, in lower case, that names some class."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"今天早上好图书馆河边a"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_class": declared}))


# --- what is written ------------------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
def test_every_head_opens_by_its_auto_class_and_gives_the_same(convert, save, tmp_path, head):
    source, output = save(head, num_hidden_layers=2), tmp_path / "out"
    printed = convert(source, output)
    assert f"ChineseModernBert{head}, converted from {source}" in printed
    forms = ("padded right", "padded left", "packed")[: 2 if head == "ForMultipleChoice" else 3]
    assert [form for form in forms if f"| {form} | " in printed] == list(forms)
    auto = getattr(transformers, f"Auto{head if head == 'Model' else 'Model' + head}")
    batch = pad_rows(documents(30, 100))
    if head == "ForMultipleChoice":
        batch = {name: tensor[None] for name, tensor in batch.items()}
    with torch.no_grad():
        expected = auto.from_pretrained(source)(**batch)[0]
        model = auto.from_pretrained(output, trust_remote_code=True)
        found = model(**batch)[0]
    assert type(model).__name__ == f"ChineseModernBert{head}"
    real = batch["attention_mask"].bool()
    if expected.shape[:2] == real.shape:
        expected, found = expected[real], found[real]
    assert (found - expected).abs().max() <= 1e-5


def test_shards_are_copied_byte_for_byte_beside_all_code(convert, save, tmp_path):
    source, output = save(), tmp_path / "out"
    output.mkdir()  # an empty folder is no obstacle
    convert(source, output)
    weights = {path.name: path.read_bytes() for path in source.glob("model*")}
    assert {path.name: path.read_bytes() for path in output.glob("model*.[!p]*")} == weights
    assert {path.name for path in output.glob("*.py")} == set(CODE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_neither_code_nor_private_files_come_along(convert, save, tmp_path):
    source, output = save(), tmp_path / "out"
    (tmp_path / "secret.txt").write_text("secret")
    (source / "license.txt").symlink_to(tmp_path / "secret.txt")
    (source / "evil.py").write_text("")
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, "[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(source)
    file = source / "tokenizer_config.json"
    evil = {"auto_map": {"AutoTokenizer": [None, "evil.Tokenizer"]}}
    file.write_text(json.dumps(json.loads(file.read_text()) | evil))
    convert(source, output)
    assert {path.name for path in output.glob("*.py")} == set(CODE)
    assert not (output / "license.txt").exists()
    assert "auto_map" not in json.loads((output / "tokenizer_config.json").read_text())


def test_pickled_weights_become_safetensors_shard_by_shard(convert, save, tmp_path):
    source = save()
    index = json.loads((source / "model.safetensors.index.json").read_text())
    renamed = {name: name.replace("safetensors", "bin") for name in index["weight_map"].values()}
    first = min(renamed)
    for old, new in renamed.items():
        tensors = load_file(source / old)
        if "model.embeddings.tok_embeddings.weight" in tensors:  # as torch.save keeps tied weights
            tensors["decoder.weight"] = tensors["model.embeddings.tok_embeddings.weight"]
            index["weight_map"]["decoder.weight"] = old
        # One of them as torch wrote before 1.6.
        torch.save(tensors, source / f"pytorch_{new}", _use_new_zipfile_serialization=old > first)
        (source / old).unlink()
    names = {key: f"pytorch_{renamed[file]}" for key, file in index["weight_map"].items()}
    (source / "model.safetensors.index.json").unlink()
    (source / "pytorch_model.bin.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": names})
    )
    output = tmp_path / "out"
    convert(source, output)
    assert list(output.glob("*.bin*")) == []
    assert {path.name for path in output.glob("*.safetensors")} == set(renamed)
    for old, new in renamed.items():
        kept, before = load_file(output / old), torch.load(source / f"pytorch_{new}")
        assert kept.keys() == before.keys() - {"decoder.weight"}
        assert all(torch.equal(tensor, before[name]) for name, tensor in kept.items())
    opened = transformers.AutoModelForMaskedLM.from_pretrained(output, trust_remote_code=True)
    assert opened.decoder.weight is opened.get_input_embeddings().weight


def test_a_pickled_decoder_of_its_own_stays_where_it_shares_memory(convert, save, tmp_path):
    source = save(tie_word_embeddings=False)
    tensors = transformers.ModernBertForMaskedLM.from_pretrained(source).state_dict()
    for file in source.glob("model*"):
        file.unlink()
    tensors["decoder.weight"] = tensors["model.embeddings.tok_embeddings.weight"]
    torch.save(tensors, source / "pytorch_model.bin")
    convert(source, tmp_path / "out")
    kept = load_file(tmp_path / "out" / "model.safetensors")
    assert kept.keys() == tensors.keys()
    assert torch.equal(kept["decoder.weight"], tensors["decoder.weight"])


def test_tokenizer_card_and_modules_come_along_and_other_formats_do_not(convert, save, tmp_path):
    source, output = save("Model"), tmp_path / "out"
    save_tokenizer(source)
    (source / "README.md").write_text(CARD, encoding="utf-8")
    along = ["LICENSE", "modules.json", "1_Pooling/config.json", "2_Dense/model.safetensors"]
    left = ["onnx/model.onnx", "flax_model.msgpack", "pytorch_model.bin", "checkpoint-5/trainer.pt"]
    for name in along + left:
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(name)
    printed = convert(source, output)
    assert [name for name in along if (output / name).read_text() != name] == []
    assert [
        name for name in left if (output / name).parent.exists() and (output / name).exists()
    ] == []
    assert "padded left" in printed
    card = ModelCard.load(output / "README.md")
    assert card.data.base_model == "source"
    assert card.data.license == "apache-2.0"
    assert card.data.tags == ["fill-mask"]
    lines = [line for line in card.text.splitlines() if line]
    assert lines[0] == "# Grüner Tee"
    assert lines[1].startswith("> **Converted.** These are the weights of `source`, unchanged")
    assert lines[-1] == "A model about tea."


def test_the_tokenizer_stays_the_one_that_transformers_chose(convert, save, tmp_path):
    """For a ModernBERT it passes over the class that the file names, here one that would differ."""
    source, output = save(), tmp_path / "out"
    save_tokenizer(source, declared="GemmaTokenizerFast")
    convert(source, output)
    before = AutoTokenizer.from_pretrained(source)
    after = AutoTokenizer.from_pretrained(output, trust_remote_code=True)
    assert after("今天A图书馆")["input_ids"] == before("今天A图书馆")["input_ids"]
    assert type(after) is type(before)
    assert (output / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    mask = json.loads((output / "config.json").read_text())["mask_token_id"]
    assert mask == before.mask_token_id is not None


def test_a_model_without_a_card_gets_a_small_one(convert, save, tmp_path):
    convert(save(), tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.text.strip().startswith("# source\n\n> **Converted.**")
    assert card.data.base_model == "source"


def test_a_model_of_the_hub_is_converted_by_its_name(convert, save, tmp_path, monkeypatch):
    source, output, cache = save(), tmp_path / "out", tmp_path / "cache"
    with HubStandIn() as hub:
        for file in source.iterdir():
            hub.files[file.name] = file.read_bytes()
        hub.files |= {"README.md": CARD.encode(), "onnx/model.onnx": b"another format"}
        there = {"endpoint": hub.endpoint}
        monkeypatch.setattr(modernbert_source, "HfApi", partial(HfApi, **there))
        download = partial(snapshot_download, cache_dir=cache, **there)
        monkeypatch.setattr(modernbert_source, "snapshot_download", download)
        convert("someone/tea", output)
    card = ModelCard.load(output / "README.md")
    assert card.data.base_model == "someone/tea"
    assert "[someone/tea](https://huggingface.co/someone/tea)" in card.text
    assert list(cache.rglob("*.safetensors"))
    assert list(cache.rglob("*.onnx")) == []
    weights = {path.name: path.read_bytes() for path in source.glob("model*")}
    assert {path.name: path.read_bytes() for path in output.glob("model*.[!p]*")} == weights
    assert not any(path.is_symlink() for path in output.iterdir())  # as files of the cache are


def test_looking_writes_nothing(convert, save, tmp_path):
    source = save()
    before = sorted(tmp_path.rglob("*"))
    assert "| packed | " in convert(source, "--check_only")
    assert "| packed | " in convert(source, source, "--check_only")  # OUTPUT is not read
    assert sorted(tmp_path.rglob("*")) == before


def test_weights_are_looked_for_as_transformers_does():
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = "model.safetensors.index.json"
    assert weight_files([*shards, index, "pytorch_model.bin"]) == [index, *shards]
    assert weight_files(["model.safetensors", index, *shards]) == ["model.safetensors"]
    assert weight_files(["pytorch_model.bin", "tf_model.h5"]) == ["pytorch_model.bin"]
    assert weight_files(["tf_model.h5"]) == []
    assert other_files(["a/b.txt", ".git/x", "config.json", "training_args.bin"]) == ["a/b.txt"]


# --- the configuration ----------------------------------------------------------------------------


LLAMA3 = {
    kind: {
        "rope_type": "llama3",
        "rope_theta": 1e4,
        "factor": 2.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    for kind in ("full_attention", "sliding_attention")
}


def ours(**settings):
    return convert_config(ModernBertConfig(**SHAPE | settings))


def test_older_keys_mean_what_transformers_takes_them_for():
    config, notes = ours(
        global_attn_every_n_layers=2,
        global_rope_theta=123.0,
        local_rope_theta=45.0,
        local_attention=65,
        reference_compile=True,
        layer_norm_eps=1e-2,
        position_embedding_type="absolute",
        head_dim=16,
    )
    assert config.layer_types == ["full_attention", "sliding_attention", "full_attention"]
    assert [entry["rope_theta"] for entry in config.rope_parameters.values()] == [45.0, 123.0]
    assert config.local_attention == 64
    assert config.norm_eps == 1e-5
    assert not {"reference_compile", "layer_norm_eps", "head_dim"} & config.to_dict().keys()
    assert notes == []


def test_rotary_settings_of_layers_that_are_not_there_may_be_incomplete():
    entry = {"rope_type": "default", "rope_theta": 9.0}
    layers = ["full_attention"] * SHAPE["num_hidden_layers"]
    both = {"full_attention": entry, "sliding_attention": {"rope_theta": 7.0}}
    config, _ = ours(layer_types=layers, rope_parameters=both)
    assert config.rope_parameters["full_attention"] == entry


def test_token_ids_that_we_cannot_keep_are_named():
    config, notes = ours(eos_token_id=[7, 3], bos_token_id=50_281)
    assert (config.eos_token_id, config.bos_token_id, config.mask_token_id) == (7, None, None)
    assert notes == [
        "eos_token_id: the first of [7, 3]",
        "bos_token_id: none, 50281 lies outside the 50 entries",
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head_dim": 8}, "head_dim 8 is not hidden_size / num_attention_heads, 16"),
        ({"rope_parameters": LLAMA3}, "rope_type 'llama3'"),
        ({"per_layer_config": {}}, "'per_layer_config' is not supported"),
        ({"local_attention": 1}, "local_attention must be a whole number of at least 1"),
    ],
)
def test_settings_that_our_model_lacks_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        ours(**settings)


def test_a_setting_of_a_later_transformers_is_refused_unless_at_its_default():
    later = make_dataclass("Later", [("qk_norm", bool, False)], bases=(ModernBertConfig,))
    assert convert_config(later(**SHAPE))[0].norm_type == "layernorm"
    with pytest.raises(ValueError, match="qk_norm is True, which our model cannot express"):
        convert_config(later(**SHAPE, qk_norm=True))


# --- what is refused ------------------------------------------------------------------------------


def test_what_is_no_modernbert_is_refused(refused, save, tmp_path):
    source = save()
    assert "no config.json" in refused(tmp_path)
    assert "there is no such folder" in refused("no such/name/at all")
    change_config(source, norm_bias="yes")
    assert "config.json: transformers does not accept it: " in refused(source)
    change_config(source, architectures=["BertForMaskedLM"])
    assert "architectures begins with 'BertForMaskedLM'" in refused(source)
    change_config(source, model_type="bert")
    assert "model_type is 'bert'; only 'modernbert'" in refused(source)
    (source / "config.json").write_text("{")
    assert "config.json: not a JSON file" in refused(source)


def edit_shard(source: Path, name: str, change) -> str:
    """Changes the tensors of the shard that holds `name`, and returns its file name."""
    index = json.loads((source / "model.safetensors.index.json").read_text())
    file = index["weight_map"][name]
    tensors = load_file(source / file)
    change(tensors)
    save_file(tensors, source / file, metadata={"format": "pt"})
    index["weight_map"] = {k: f for k, f in index["weight_map"].items() if f != file}
    index["weight_map"] |= dict.fromkeys(tensors, file)
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    return file


NORM = "model.layers.1.mlp_norm.weight"


def test_a_missing_tensor_is_named(refused, save):
    source = save()
    edit_shard(source, NORM, lambda tensors: tensors.pop(NORM))
    assert f"{NORM} is missing (1 in all)" in refused(source)


def test_an_unexpected_tensor_is_named_with_its_file(refused, save):
    source = save()
    file = edit_shard(source, NORM, lambda tensors: tensors.update({"head.gate": torch.ones(2)}))
    assert f"{file}: head.gate is unexpected (1 in all)" in refused(source)


def test_a_tensor_of_another_shape_is_named_with_its_file(refused, save):
    source = save()
    file = edit_shard(source, NORM, lambda tensors: tensors.update({NORM: torch.ones(7)}))
    assert f"{file}: {NORM} has the shape [7], but by config.json it is [32]" in refused(source)


def test_missing_and_damaged_files_are_named(refused, save):
    source = save()
    first, *_ = sorted(source.glob("*.safetensors"))
    first.write_bytes(first.read_bytes()[:100])
    assert f"{first}: not a file of weights" in refused(source)
    first.unlink()
    assert f"names {first.name}, which is not there" in refused(source)
    for file in source.glob("model*"):
        file.unlink()
    assert f"{source}: no weights" in refused(source)


def test_a_tokenizer_of_another_model_is_refused(refused, save):
    source = save("Model", vocab_size=6, num_hidden_layers=2)
    save_tokenizer(source)
    assert "but vocab_size is 6. Tokenizer and weights belong to different" in refused(source)


def test_a_damaged_tokenizer_is_named(refused, save):
    source = save()
    (source / "tokenizer.json").write_text("{}")
    assert f"{source}: its tokenizer cannot be opened" in refused(source)


def test_a_checkpoint_that_holds_more_than_weights_is_refused(refused, save):
    source = save()
    for file in source.glob("model*"):
        file.unlink()
    torch.save({"epoch": 3, "state_dict": {}}, source / "pytorch_model.bin")
    assert "pytorch_model.bin holds more than tensors (epoch, state_dict)" in refused(source)
    torch.save([torch.ones(2)], source / "pytorch_model.bin")
    assert "pytorch_model.bin holds a list, no dictionary of weights" in refused(source)


def test_the_last_probe_is_longer_than_the_window_whatever_the_tokenizer(save):
    source = save()
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, "[UNK]"))  # a text is one token
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(source)
    opened = modernbert_source.read_source(source)
    longest = opened.config.local_attention + 40
    lengths = [len(document) for document in probe_documents(opened)]
    assert lengths[0] == 1
    assert lengths[-1] == longest <= opened.config.max_position_embeddings
    tokenizer = Tokenizer(models.BPE({"A": 0, "C": 1}, []))  # of DNA: a text is no token at all
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(source)
    assert all(map(len, probe_documents(opened)))


def test_a_difference_above_the_tolerance_stops_it(refused, save, monkeypatch):
    source = save()
    assert "differ by more than the tolerance" in refused(source, "--tolerance", "1e-9")

    def under_the_wrong_norm(config):
        converted, notes = convert_config(config)
        converted.norm_type = "rmsnorm"
        return converted, notes

    monkeypatch.setattr(modernbert_source, "convert_config", under_the_wrong_norm)
    assert "(padded right, padded left, packed)" in refused(source)
    # With outputs near 0, too.
    scale = "head.norm.weight"
    edit_shard(source, scale, lambda tensors: tensors.update({scale: tensors[scale] * 1e-3}))
    assert "(padded right, padded left, packed)" in refused(source)


@pytest.mark.parametrize("tolerance", ["0", "-1", "nan"])
def test_a_tolerance_that_nothing_passes_is_refused(refused, save, capsys, tolerance):
    assert refused(save(), "--tolerance", tolerance) == "2"
    assert "--tolerance must be above 0" in capsys.readouterr().err


def test_an_output_folder_that_holds_something_is_left_alone(convert, save, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(SystemExit, match="out is not an empty folder"):
        convert(save(), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
    with pytest.raises(SystemExit, match="2"):
        convert(tmp_path / "source")  # without OUTPUT


def test_nothing_is_left_of_a_conversion_that_fails_while_it_writes(refused, save, monkeypatch):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(convert_modernbert, "write_weights", full)
    assert "No space left" in refused(save())
