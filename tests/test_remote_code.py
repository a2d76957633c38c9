"""What a machine that has never seen this code does with a saved folder.

It runs in a fresh process whose only source of the model is that folder: isolated mode, an empty
working directory and an empty module cache, because files that were once imported are not read
again, and because the checkout on `sys.path` would hide a file missing from the folder. One process
does it all, because importing torch and transformers takes it seconds; what it found is checked in
the tests.
"""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from modeling_chinese_modernbert import ChineseModernBertForMaskedLM, ChineseModernBertModel

CODE = (
    "attention_chinese_modernbert.py",
    "backends_chinese_modernbert.py",
    "configuration_chinese_modernbert.py",
    "losses_chinese_modernbert.py",
    "modeling_chinese_modernbert.py",
    "products_chinese_modernbert.py",
    "question_answering_chinese_modernbert.py",
    "spans_chinese_modernbert.py",
    "static_chinese_modernbert.py",
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


@pytest.fixture(scope="module")
def saved(tiny_config, tmp_path_factory):
    """A folder with a masked-language model, what it was fed, and what it answered."""
    torch.manual_seed(0)
    model = ChineseModernBertForMaskedLM(tiny_config()).eval()
    folder = tmp_path_factory.mktemp("remote") / "saved"
    model.save_pretrained(folder)
    ids = torch.randint(5, 50, (2, 150))
    mask = torch.ones_like(ids)
    mask[0, :40] = 0
    with torch.no_grad():
        states = model.model(input_ids=ids, attention_mask=mask).last_hidden_state
        logits = model(input_ids=ids, attention_mask=mask).logits
    answers = {"ids": ids, "mask": mask, "states": states, "logits": logits}
    torch.save(answers, folder.parent / "io.pt")
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


SCRIPT = """
    remote, told = {"trust_remote_code": True}, {}

    # What training, preparation and evaluation use must not be needed, or cost seconds at each
    # start where it is installed.
    before = set(sys.modules)
    config = AutoConfig.from_pretrained(folder, **remote)
    base = AutoModel.from_pretrained(folder, **remote)
    model = AutoModelForMaskedLM.from_pretrained(folder, **remote)
    states, logits = base(**batch).last_hidden_state, model(**batch).logits
    told["optional"] = sorted(set(OPTIONAL) & (set(sys.modules) - before))
    package = type(model).__module__.rpartition(".")[0]
    told["loaded"] = {
        "config": type(config).__name__,
        "base": type(base).__name__,
        "model": type(model).__name__,
        "training": base.training or model.training,
        "states": torch.equal(states, io["states"]),
        "logits": torch.equal(logits, io["logits"]),
        "tied": model.decoder.weight is model.get_input_embeddings().weight,
    }
    told["files"] = {
        name.rpartition(".")[2]: module.__file__
        for name, module in sys.modules.items() if name.startswith(package + ".")
    }

    base.save_pretrained(folder + "_base")
    model.save_pretrained(folder + "_model")
    again = AutoModelForMaskedLM.from_pretrained(folder + "_model", **remote)
    told["again"] = torch.equal(again(**batch).logits, io["logits"])

    half = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.bfloat16, **remote)
    told["half"] = {
        "dtypes": sorted({str(parameter.dtype) for parameter in half.parameters()}),
        "mean": (half.model(**batch).last_hidden_state.float() - io["states"]).abs().mean().item(),
        "finite": half(**batch).logits.isfinite().all().item(),
    }

    # Wide enough that a standard deviation is known to 1 %.
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = 128, 192, 4
    config.layer_types = [*config.layer_types, "full_attention"]
    config.initializer_range = 0.02
    torch.manual_seed(0)
    told["initialized"] = {
        f"{auto.__name__} {name}": [weight.mean().item(), weight.std().item()]
        for auto in (AutoModel, AutoModelForMaskedLM)
        for name, weight in auto.from_config(config, **remote).named_parameters()
    }

    # None in sys.modules makes every import of the name fail, as if it were not installed.
    for name in OPTIONAL:
        sys.modules.setdefault(name, None)  # older transformers have imported some by now
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]
    bare = AutoModelForMaskedLM.from_pretrained(folder, **remote)
    told["bare"] = torch.equal(bare(**batch).logits, io["logits"])
    told["bare_is_new"] = type(bare) is not type(model)
    print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told(saved):
    """What the fresh process found."""
    script = f"OPTIONAL = {OPTIONAL!r}\n" + textwrap.dedent(SCRIPT)
    return in_fresh_process(script, saved, saved.parent)


def test_auto_classes_open_the_folder_and_give_the_same_numbers(told):
    assert told["loaded"] == {
        "config": "ChineseModernBertConfig",
        "base": "ChineseModernBertModel",
        "model": "ChineseModernBertForMaskedLM",
        "training": False,
        # Bit for bit: the same weights, code and kernels on the same machine.
        "states": True,
        "logits": True,
        "tied": True,
    }


def test_every_file_of_the_code_comes_from_the_folder(told, saved):
    cache = str(saved.parent / "hf_modules")
    assert all(file.startswith(cache) for file in told["files"].values())
    assert {"attention", "configuration", "modeling", "stream"} <= {
        name.removesuffix("_chinese_modernbert") for name in told["files"]
    }
    # The pipelines are fetched with the others, and imported when somebody asks for them.
    fetched = Path(told["files"]["modeling_chinese_modernbert"]).parent
    assert {file.name for file in fetched.glob("*_*.py")} - {"__init__.py"} == set(CODE)


@pytest.mark.parametrize("cls", [ChineseModernBertModel, ChineseModernBertForMaskedLM])
def test_auto_map_is_complete_whichever_class_was_saved(tiny_config, tmp_path, cls):
    cls(tiny_config()).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["auto_map"] == AUTO_MAP
    assert config["architectures"] == [cls.__name__]
    assert {path.name for path in tmp_path.glob("*.py")} == set(CODE)


def test_saving_again_keeps_code_and_auto_map(told, saved):
    assert told["again"] is True
    first = json.loads((saved / "config.json").read_text())
    assert first["auto_map"] == AUTO_MAP
    for again in (saved.with_name("saved_base"), saved.with_name("saved_model")):
        config = json.loads((again / "config.json").read_text())
        assert config.pop("auto_map") == AUTO_MAP
        # Saved by the base class, the folder names it; nothing else may change.
        different = {key for key in first.keys() - {"auto_map"} if config.get(key) != first[key]}
        assert different <= {"architectures"} and config.keys() < first.keys()
        for name in CODE:
            assert (again / name).read_bytes() == (saved / name).read_bytes()


def test_loading_in_bf16(told):
    assert told["half"]["dtypes"] == ["torch.bfloat16"] and told["half"]["finite"] is True
    # bf16 rounds to 0.4 %; three layers of states of size one come to about 0.5 % on average.
    assert told["half"]["mean"] <= 0.01


def test_initialization_reaches_every_layer_built_by_the_auto_classes(told):
    # transformers passes over containers of remote code, so a scale set in a block's own
    # initialization would be lost, and output projections would start at 0.02.
    # Cut off at two standard deviations, a normal keeps 0.880 of its own.
    wide, narrow = 0.880 * 0.02, 0.880 * 0.02 / 8**0.5
    counted = {"narrow": 0, "wide": 0}
    for name, (mean, std) in told["initialized"].items():
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


def test_loading_needs_and_imports_no_optional_package(told):
    assert told["bare"] is True and told["bare_is_new"] is True
    assert told["optional"] == []
