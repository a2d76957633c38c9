"""The benchmarks run, and refuse to print figures for wrong numbers. Nothing here is timed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import parity
import throughput
import word_borders
from pretraining.data.encoding import Encoder

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")


def test_what_make_gpu_runs_works_with_tiny_shapes(tmp_path):
    finished = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks/gpu.py"), "--tiny", "--output", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    assert {"parity.json", "throughput.json", "train_steps.json", "length.png"} <= {
        file.name for file in tmp_path.iterdir()
    }
    losses = json.loads((tmp_path / "train_steps.json").read_text())["losses"]
    assert len(losses) == 20
    results = json.loads((tmp_path / "throughput.json").read_text())["results"]
    sides = {"Chinese ModernBERT (sdpa)", "Chinese ModernBERT (sdpa, compiled)", "ModernBERT"}
    assert sides <= {result["side"] for result in results}


def test_parity_finds_a_backend_that_is_off_by_one(monkeypatch):
    right = parity.check("sdpa", torch.float32, CPU, longest=300)
    assert all(entry["ok"] for entry in right)
    build = parity.build

    def off_by_one(backend, dtype, device):
        model = build(backend, dtype, device)
        for layer in model.layers:
            if backend == "sdpa" and layer.attn.window is not None:
                layer.attn.window -= 1
        return model

    monkeypatch.setattr(parity, "build", off_by_one)
    wrong = {entry["input"]: entry["ok"] for entry in parity.check("sdpa", torch.float32, CPU, 300)}
    assert not wrong["mixed"] and not wrong["borders of window and block"]
    assert wrong["leak probe"] and wrong["one token"]  # a narrower window leaks nothing


def test_no_figure_is_printed_for_states_that_differ(monkeypatch):
    shape = throughput.Shape(layers=2, hidden=64, heads=2, intermediate=96, context=512)
    throughput.check_parity(shape, "sdpa", torch.float32, CPU)
    build = throughput.build

    def broken(name, shape, backend):
        model = build(name, shape, backend)
        if backend == "sdpa":
            model.model.final_norm.weight.data *= 1.1
        return model

    monkeypatch.setattr(throughput, "build", broken)
    with pytest.raises(SystemExit, match=r"sdpa in torch.float32 differs from eager"):
        throughput.check_parity(shape, "sdpa", torch.float32, CPU)


def test_packed_and_padded_batches_hold_the_same_documents():
    lengths = throughput.mixed_lengths(9, 64)
    padded = throughput.padded_batch(lengths, CPU)
    packed = throughput.packed_batch(lengths, 64, CPU)

    def documents(ids, starts):
        pieces = torch.tensor_split(ids, starts.nonzero().flatten()[1:])
        return sorted(tuple(piece.tolist()) for piece in pieces)

    real = packed["attention_mask"].bool()
    held = documents(packed["input_ids"][real], packed["position_ids"][real] == 0)
    rows = [row[mask.bool()] for row, mask in zip(*padded.values(), strict=True)]
    assert held == sorted(tuple(row.tolist()) for row in rows)


@pytest.mark.parametrize(
    ("words", "expected"),
    [(["我们", "在", "图书馆", "。"], 1.0), (["我们在", "图书馆", "。"], 2 * 3 / (3 + 4))],
)
def test_word_borders_are_compared_with_a_treebanks(tmp_path, words, expected):
    file = tmp_path / "treebank.conllu"
    lines = [f"{n}\t{word}" + "\t_" * 7 + "\tSpaceAfter=No\n" for n, word in enumerate(words, 1)]
    file.write_text("# text = …\n" + "".join(lines) + "\n", encoding="utf-8")
    assert word_borders.f1(Encoder(ROOT / "tokenizer.json"), file) == pytest.approx(expected)


def test_encoding_is_timed_beside_a_peer(tmp_path):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"text": "早市六点开门，卖菜的人来得早。"}\n', encoding="utf-8")
    finished = subprocess.run(
        [
            *(sys.executable, str(ROOT / "benchmarks/encoding.py"), "--corpus", str(corpus)),
            *("--peer", str(ROOT), "--rounds", "1", "--lines", "10", "100"),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert "ratio" in finished.stdout
    assert finished.stdout.count("ns a character") == 2
