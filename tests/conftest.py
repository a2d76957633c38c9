"""Shared by the tests: a model small enough to run everywhere, and a run that is made once."""

import os

# Tiny shapes gain nothing from threads, and on a busy machine they cost tenfold. Set before torch
# comes, and for the processes that tests start; as many everywhere, since they decide the order of
# sums.
os.environ["OMP_NUM_THREADS"] = "1"
# The Hub's stand-in is on this machine, and is always there.
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"
os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "0"

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from batches import VOCAB
from configuration_chinese_modernbert import ChineseModernBertConfig
from modeling_chinese_modernbert import ChineseModernBertModel


@pytest.fixture(scope="session")
def tiny_config():
    """Returns `tiny_config(**overrides)`: three layers (global, local, local) of two heads."""

    def build(**overrides) -> ChineseModernBertConfig:
        shape = {
            "vocab_size": VOCAB,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            # Ten times the real one: at this width the default leaves attention nearly uniform
            # and the blocks nearly silent, so a wrong mask would move nothing.
            "initializer_range": 0.2,
        }
        return ChineseModernBertConfig(**(shape | overrides))

    return build


@pytest.fixture(scope="session")
def make_model(tiny_config):
    """Returns `make_model(backend, cls, seed, **config)`: a model in eval mode."""

    def build(backend="sdpa", cls=ChineseModernBertModel, seed=0, **overrides):
        torch.manual_seed(seed)
        model = cls._from_config(tiny_config(**overrides), attn_implementation=backend)
        return model.eval()

    return build


def pytest_collection_modifyitems(items):
    """The longest first: started last, they would keep one process busy after the others."""
    slow = ("test_distributed.py", "test_executors.py", "test_train_mlm.py", "test_benchmarks.py")
    items.sort(key=lambda item: slow.index(item.path.name) if item.path.name in slow else len(slow))


@pytest.fixture(scope="session")
def made_once(tmp_path_factory, worker_id):
    """Returns `made_once(name, make)`: a folder for all test processes, which `make` fills."""
    base = tmp_path_factory.getbasetemp()
    base = base if worker_id == "master" else base.parent

    def folder_of(name: str, make: Callable[[Path], object]) -> Path:
        folder, done = base / name, base / f"{name}.done"
        with FileLock(base / f"{name}.lock"):
            if not done.exists():
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return folder_of


@pytest.fixture(scope="session")
def workspace(made_once) -> Path:
    """Rows, a model configuration and a run file; see `runs.make_workspace`. Not to be changed."""
    from runs import make_workspace

    return made_once("workspace", make_workspace)


@pytest.fixture(scope="session")
def run_dir(made_once, workspace) -> Path:
    """Both stages of the run, uninterrupted. Not to be changed."""
    from runs import run_here

    return made_once("run", lambda folder: run_here(workspace, f"output_dir={folder}"))
