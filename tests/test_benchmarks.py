"""The benchmarks run, and give no figures for wrong numbers. No speed is tested here."""

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import encoding
import finetuning_speed
import gpu
import inputs
import memory
import modernbert_speed
import parity
import speed
import throughput
import train_steps
import word_borders
from commands import run_main
from pretraining.data.encoding import Encoder
from sides import OURS, Comparison, Shape, Side, sides_of

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
TINY = Shape(layers=2, hidden=64, heads=2, intermediate=96, context=512)


@pytest.fixture
def run_script():
    """Gives `run_script(module, *arguments)`: its main, in this process."""
    yield run_main
    torch.compiler.reset()  # other tests count compilations


@pytest.mark.parametrize("module", [parity, throughput, train_steps], ids=lambda m: m.__name__)
def test_what_make_gpu_runs_works_with_tiny_shapes(tmp_path, monkeypatch, run_script, module):
    commands = {command[0]: command[1:] for _, command in gpu.parts(tmp_path, tiny=True).values()}
    monkeypatch.setattr(throughput, "peak_memory", lambda comparison, length: {"none": length})
    monkeypatch.chdir(ROOT)  # where gpu.py starts them
    run_script(module, *commands[Path(module.__file__).name])
    told = json.loads((tmp_path / f"{module.__name__}.json").read_text())
    if module is parity:
        assert set(told) == {"sdpa fp32", "sdpa bf16"}
        assert all(entry["ok"] for entries in told.values() for entry in entries)
    elif module is throughput:
        sides = {f"{OURS} (sdpa)", f"{OURS} (sdpa, compiled)", "ModernBERT", "BERT"}
        assert sides <= {result["side"] for result in told["results"]}
        assert {result["workload"].split(",")[0] for result in told["results"]} == {
            "inference",
            "training",
        }
        assert set(told["microseconds_per_token"]["BERT"]) == {"64", "128"}
        assert told["peak_memory_mib"] == {"none": 128}
        assert (tmp_path / "length.png").read_bytes().startswith(b"\x89PNG")
    else:
        assert len(told["losses"]) == 20


def test_a_failing_part_does_not_stop_the_others(tmp_path, monkeypatch, run_script, capfd):
    (tmp_path / "benchmarks").mkdir()
    for name, code in {
        "slow": "import time; time.sleep(60)",
        "broken": "raise SystemExit('no such kernel')",
        "good": "print('two tables')",
    }.items():
        (tmp_path / "benchmarks" / f"{name}.py").write_text(code)
    limits = {"slow": 0.2, "broken": 30, "good": 30}
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    monkeypatch.setattr(
        gpu, "parts", lambda *_: {name: (limit, [f"{name}.py"]) for name, limit in limits.items()}
    )
    output = tmp_path / "logs"
    with pytest.raises(SystemExit, match="failed: slow, broken"):
        run_script(gpu, "--tiny", "--output", output)
    assert "stopped after 0.2 s" in (output / "slow.log").read_text()
    assert "no such kernel" in (output / "broken.log").read_text()
    assert "two tables" in capfd.readouterr().out
    with pytest.raises(SystemExit, match="failed: slow, broken, good"):
        run_script(gpu, "--tiny", "--minutes", 0, "--output", output)


def test_each_script_finds_the_repository_and_make_gpu_needs_no_optional_package(tmp_path):
    # As scripts they have benchmarks/ on sys.path, and not the root.
    script = f"""
        import importlib, sys
        from pathlib import Path
        root = {str(ROOT)!r}
        clean = [root + "/benchmarks", *(p for p in sys.path if p != root)]
        optional = ["accelerate", "datasets", "matplotlib", "opencc", "pyarrow", "rjieba"]
        scripts = sorted(file.stem for file in Path(root, "benchmarks").glob("*.py"))
        ours = [file.stem for file in Path(root).glob("*.py")] + ["pretraining", *scripts]
        for name in scripts:
            sys.path[:] = clean
            for loaded in list(sys.modules):
                if loaded.split(".")[0] in ours or sys.modules[loaded] is None:
                    del sys.modules[loaded]
            if name not in ("data", "encoding", "finetuning_speed", "search", "word_borders"):
                sys.modules |= dict.fromkeys(optional)
            importlib.import_module(name)
            print(name)
    """
    finished = subprocess.run(
        [sys.executable, "-I", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr[-3000:]
    assert {"data", "gpu", "parity", "throughput"} <= set(finished.stdout.split())


def test_peak_memory_is_measured_in_a_process_of_its_own():
    sides = {"eager": Side(OURS, "eager"), "compiled": Side(OURS, "eager", compiler="inductor")}
    peaks = memory.peak_memory(Comparison(TINY, sides, CPU, rounds=1), length=2048)
    # The scores alone, of two heads, are 16 MiB in bf16, and no machine's page is that large.
    assert peaks.keys() == {"eager"} and 16 < peaks["eager"] < 1000


def test_parity_finds_a_backend_that_is_off_by_one(monkeypatch):
    build = parity.build

    def off_by_one(backend, dtype, device):
        model = build(backend, dtype, device)
        for layer in model.layers:
            if backend == "sdpa" and layer.attn.window is not None:
                layer.attn.window -= 1
        return model

    monkeypatch.setattr(parity, "build", off_by_one)
    wrong = {entry["input"]: entry["ok"] for entry in parity.check("sdpa", torch.float32, CPU, 200)}
    assert not wrong["mixed"] and not wrong["borders of window and block"]
    assert wrong["leak probe"] and wrong["one token"]  # a narrower window leaks nothing


def test_parity_keeps_what_is_known_when_a_backend_breaks(tmp_path, run_script, monkeypatch):
    def check(backend, *_):
        if backend == "sdpa":
            raise RuntimeError("no such kernel")
        return [{"input": "mixed", "form": "packed", "ok": True}]

    monkeypatch.setattr(parity, "check", check)
    with pytest.raises(RuntimeError, match="no such kernel"):
        run_script(parity, "--backends", "eager", "sdpa", "--output", tmp_path)
    assert set(json.loads((tmp_path / "parity.json").read_text())) == {"eager fp32", "eager bf16"}


def test_no_figures_are_given_for_states_that_differ(monkeypatch):
    speed.check_parity(TINY, "sdpa", torch.float32, CPU)
    build = speed.build

    def broken(name, shape, backend):
        model = build(name, shape, backend)
        if backend == "sdpa":
            model.model.final_norm.weight.data *= 1.1
        return model

    monkeypatch.setattr(speed, "build", broken)
    with pytest.raises(SystemExit, match=r"sdpa in torch.float32 differs from eager"):
        speed.check_parity(TINY, "sdpa", torch.float32, CPU)


def test_every_side_has_its_label():
    assert list(sides_of(["sdpa", "eager"], peers=False, compiler=None)) == [
        f"{OURS} (sdpa)",
        f"{OURS} (eager)",
    ]
    assert list(sides_of(["sdpa"], peers=True, compiler="inductor")) == [
        f"{OURS} (sdpa)",
        "ModernBERT",
        "BERT",
        f"{OURS} (sdpa, compiled)",
        "ModernBERT (compiled)",
    ]
    fewer = sides_of(["sdpa"], peers=True, compiler="inductor", compiled_peer=False)
    assert list(fewer)[-2:] == ["BERT", f"{OURS} (sdpa, compiled)"]


def test_ratios_are_taken_within_a_round(capsys):
    workload = speed.Workload("forward", "fp32", tokens=100, flops=40.0)
    # Round two runs on a machine half as fast.
    times = {OURS: [1.0, 2.0], "ModernBERT": [3.0, 6.0], speed.PRODUCTS: [0.5, 1.0]}
    ours, peer = speed.report(workload, times, product_flops=10.0)
    assert (ours.against_modernbert, peer.against_modernbert) == (3.0, None)
    assert (ours.share_of_matrix_rate, peer.share_of_matrix_rate) == (2.0, None)
    assert ours.tokens_per_second == pytest.approx(100 / 1.5)
    assert f"| forward | fp32 | {OURS} | 67 | 3.00 | 200% |" in capsys.readouterr().out


def test_packed_and_padded_batches_hold_the_same_documents():
    lengths = inputs.mixed_lengths(9, 64)
    padded = inputs.padded_batch(lengths, CPU)
    packed = inputs.packed_batch(lengths, 64, CPU)

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


def test_encoding_is_timed_beside_a_peer(tmp_path, run_script, capsys):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"text": "早市六点开门，卖菜的人来得早。"}\n', encoding="utf-8")
    run_script(encoding, "--corpus", corpus, "--peer", ROOT, "--rounds", 1, "--lines", 10, 100)
    out = capsys.readouterr().out
    assert "ratio" in out
    assert out.count("ns per character") == 2


def test_a_converted_modernbert_is_timed_only_if_it_is_right(run_script, monkeypatch, capsys):
    tiny = ("--layers", 2, "--hidden", 64, "--rounds", 1, "--lengths", "tiny")
    monkeypatch.setitem(modernbert_speed.WORKLOADS, "tiny", ("2 × 40", [40, 40]))
    run_script(modernbert_speed, *tiny)
    assert "| 2 × 40 | " in capsys.readouterr().out
    convert = modernbert_speed.convert_config

    def under_the_wrong_norm(config):
        converted, notes = convert(config)
        converted.norm_type = "rmsnorm"
        return converted, notes

    monkeypatch.setattr(modernbert_speed, "convert_config", under_the_wrong_norm)
    with pytest.raises(SystemExit, match="so no figures are given"):
        run_script(modernbert_speed, *tiny)
    assert "2 × 40" not in capsys.readouterr().out


def test_fine_tuning_is_timed_beside_a_bert_of_the_same_size(run_script, tmp_path, capsys):
    run_script(
        *(finetuning_speed, "--layers", 2, "--hidden", 64, "--rows", 4, "--rounds", 1),
        *("--output", tmp_path),
    )
    sizes = re.findall(r"\| (?:BERT|ours) \| ([\d.]+) \|", capsys.readouterr().out)
    assert len(sizes) == 2 and float(sizes[0]) == pytest.approx(float(sizes[1]), rel=0.06)
