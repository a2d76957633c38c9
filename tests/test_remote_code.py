"""What a machine that has never seen this code does with a saved folder.

Each test runs in a fresh process whose only source of the model is that folder: isolated mode, an
empty working directory and an empty module cache, because files that were once imported are not
read again, and because the checkout on `sys.path` would hide a file missing from the folder.
"""

import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch

from modeling_chinese_modernbert import ChineseModernBertForMaskedLM, ChineseModernBertModel

CODE = (
    "attention_chinese_modernbert.py",
    "configuration_chinese_modernbert.py",
    "modeling_chinese_modernbert.py",
    "question_answering_chinese_modernbert.py",
    "spans_chinese_modernbert.py",
    "stream_chinese_modernbert.py",
    "token_classification_chinese_modernbert.py",
)
HEADS = (
    "MaskedLM",
    "SequenceClassification",
    "TokenClassification",
    "QuestionAnswering",
    "MultipleChoice",
)
AUTO_MAP = {
    "AutoConfig": "configuration_chinese_modernbert.ChineseModernBertConfig",
    "AutoModel": "modeling_chinese_modernbert.ChineseModernBertModel",
} | {
    f"AutoModelFor{head}": f"modeling_chinese_modernbert.ChineseModernBertFor{head}"
    for head in HEADS
}
# What training, preparation and evaluation use; none of it is needed to open a model.
OPTIONAL = ("rjieba", "datasets", "opencc", "evaluate", "sklearn", "flash_attn")


@pytest.fixture
def saved(tiny_config, tmp_path):
    """A folder with a masked-language model, what it was fed, and what it answered."""
    torch.manual_seed(0)
    model = ChineseModernBertForMaskedLM(tiny_config()).eval()
    folder = tmp_path / "saved"
    model.save_pretrained(folder)
    ids = torch.randint(5, 50, (2, 150))
    mask = torch.ones_like(ids)
    mask[0, :40] = 0
    with torch.no_grad():
        states = model.model(input_ids=ids, attention_mask=mask).last_hidden_state
        logits = model(input_ids=ids, attention_mask=mask).logits
    torch.save({"ids": ids, "mask": mask, "states": states, "logits": logits}, tmp_path / "io.pt")
    return folder


def in_fresh_process(script, folder, tmp_path):
    """Runs the script with `folder` and `io` at hand; returns what it printed last, as JSON."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    prelude = f"""
        import json, sys, torch
        from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM
        folder, io = {str(folder)!r}, torch.load({str(tmp_path / "io.pt")!r})
        batch = {{"input_ids": io["ids"], "attention_mask": io["mask"]}}
        torch.set_grad_enabled(False)
    """
    environment = os.environ | {
        "HF_HOME": str(tmp_path / "hf_home"),
        "HF_MODULES_CACHE": str(tmp_path / "hf_modules"),
        "HF_HUB_OFFLINE": "1",
    }
    # -I: neither the working directory nor PYTHONPATH reaches sys.path.
    finished = subprocess.run(
        [sys.executable, "-I", "-c", textwrap.dedent(prelude) + textwrap.dedent(script)],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])


def test_auto_classes_open_the_folder_and_give_the_same_numbers(saved, tmp_path):
    script = """
        config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
        base = AutoModel.from_pretrained(folder, trust_remote_code=True)
        model = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True)
        print(json.dumps({
            "config": type(config).__name__,
            "base": type(base).__name__,
            "model": type(model).__name__,
            "training": base.training or model.training,
            "states": torch.equal(base(**batch).last_hidden_state, io["states"]),
            "logits": torch.equal(model(**batch).logits, io["logits"]),
            "tied": model.decoder.weight is model.get_input_embeddings().weight,
            "files": sorted({getattr(sys.modules[type(x).__module__], "__file__")
                             for x in (config, base, model)}),
        }))
    """
    told = in_fresh_process(script, saved, tmp_path)
    files = told.pop("files")
    assert told == {
        "config": "ChineseModernBertConfig",
        "base": "ChineseModernBertModel",
        "model": "ChineseModernBertForMaskedLM",
        "training": False,
        # Bit for bit: the same weights, code and kernels on the same machine.
        "states": True,
        "logits": True,
        "tied": True,
    }
    assert files and all(file.startswith(str(tmp_path / "hf_modules")) for file in files)


@pytest.mark.parametrize("cls", [ChineseModernBertModel, ChineseModernBertForMaskedLM])
def test_auto_map_is_complete_whichever_class_was_saved(tiny_config, tmp_path, cls):
    cls(tiny_config()).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["auto_map"] == AUTO_MAP
    assert config["architectures"] == [cls.__name__]
    assert {path.name for path in tmp_path.glob("*.py")} == set(CODE)


def test_saving_again_keeps_code_and_auto_map(saved, tmp_path):
    script = """
        base = AutoModel.from_pretrained(folder, trust_remote_code=True)
        model = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True)
        base.save_pretrained(folder + "_base")
        model.save_pretrained(folder + "_model")
        again = AutoModelForMaskedLM.from_pretrained(folder + "_model", trust_remote_code=True)
        print(json.dumps(torch.equal(again(**batch).logits, io["logits"])))
    """
    assert in_fresh_process(script, saved, tmp_path) is True
    first = json.loads((saved / "config.json").read_text())
    assert first["auto_map"] == AUTO_MAP
    for again in (tmp_path / "saved_base", tmp_path / "saved_model"):
        config = json.loads((again / "config.json").read_text())
        assert config.pop("auto_map") == AUTO_MAP
        # Saved by the base class, the folder names it; nothing else may change.
        different = {key for key in first.keys() - {"auto_map"} if config.get(key) != first[key]}
        assert different <= {"architectures"} and config.keys() < first.keys()
        for name in CODE:
            assert (again / name).read_bytes() == (saved / name).read_bytes()


def test_loading_in_bf16(saved, tmp_path):
    script = """
        model = AutoModelForMaskedLM.from_pretrained(
            folder, trust_remote_code=True, dtype=torch.bfloat16
        )
        states = model.model(**batch).last_hidden_state
        print(json.dumps({
            "dtypes": sorted({str(parameter.dtype) for parameter in model.parameters()}),
            "mean": (states.float() - io["states"]).abs().mean().item(),
            "logits": model(**batch).logits.isfinite().all().item(),
        }))
    """
    told = in_fresh_process(script, saved, tmp_path)
    assert told["dtypes"] == ["torch.bfloat16"] and told["logits"] is True
    # bf16 rounds to 0.4 %; three layers of states of size one come to about 0.5 % on average.
    assert told["mean"] <= 0.01


def test_initialisation_reaches_every_layer_built_by_the_auto_classes(tmp_path, tiny_config):
    # transformers passes over containers of remote code, so a scale set in a block's own
    # initialisation would be lost, and output projections would start at 0.02.
    shape = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 4}
    config = tiny_config(initializer_range=0.02, **shape)
    ChineseModernBertForMaskedLM(config).save_pretrained(tmp_path / "wide")
    torch.save({"ids": None, "mask": None}, tmp_path / "io.pt")
    script = """
        config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
        torch.manual_seed(0)
        stds = {}
        for auto in (AutoModel, AutoModelForMaskedLM):
            model = auto.from_config(config, trust_remote_code=True)
            for name, weight in model.named_parameters():
                stds[f"{auto.__name__} {name}"] = [weight.mean().item(), weight.std().item()]
        print(json.dumps(stds))
    """
    stds = in_fresh_process(script, tmp_path / "wide", tmp_path)
    # Cut off at two standard deviations, a normal keeps 0.880 of its own.
    wide, narrow = 0.880 * 0.02, 0.880 * 0.02 / 8**0.5
    counted = {"narrow": 0, "wide": 0}
    for name, (mean, std) in stds.items():
        if "norm" in name:
            assert (mean, std) == (1, 0), name
        elif name.endswith("bias"):
            assert (mean, std) == (0, 0), name
        else:
            kind = "narrow" if name.endswith("Wo.weight") else "wide"
            counted[kind] += 1
            # Three times the sampling error of 6,400 entries or more, which is 0.9 %.
            assert std == pytest.approx({"narrow": narrow, "wide": wide}[kind], rel=0.03), name
    # Two models of four layers: Wo twice; Wqkv and Wi, the embeddings, and the head's projection.
    assert counted == {"narrow": 2 * 4 * 2, "wide": 2 * (4 * 2 + 1) + 1}


def test_loading_needs_no_optional_package(saved, tmp_path):
    # None in sys.modules makes every import of the name fail, as if it were not installed.
    script = f"""
        for name in {OPTIONAL!r}:
            sys.modules.setdefault(name, None)  # older transformers have imported some by now
        model = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True)
        print(json.dumps(torch.equal(model(**batch).logits, io["logits"])))
    """
    assert in_fresh_process(script, saved, tmp_path) is True


def test_loading_imports_no_optional_package(saved, tmp_path):
    # Where they are installed, importing them would still cost seconds at every start.
    script = f"""
        before = set(sys.modules)
        model = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True)
        model(**batch)
        print(json.dumps([name for name in {OPTIONAL!r} if name in set(sys.modules) - before]))
    """
    assert in_fresh_process(script, saved, tmp_path) == []
