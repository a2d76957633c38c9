"""A few hundred pretraining steps on the example corpus, with torch and transformers alone.

    python benchmarks/train_steps.py --size configs/small.json --steps 300 --output runs/gpu

`train_mlm.py` needs packages that a borrowed GPU machine may not have. This script shows what only
a GPU can show: that the default attention backend trains in bf16, that the loss falls, and how fast
it is. Rows are packed; single tokens are masked, not whole words.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from transformers import AutoTokenizer

from common import ROOT
from configuration_chinese_modernbert import ChineseModernBertConfig
from data_collator_wwm import IGNORED
from modeling_chinese_modernbert import ChineseModernBertForMaskedLM
from pretraining.files import write_json
from pretraining.machine import default_device


def packed_corpus(seq_len: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Rows (rows, seq_len) of ids and positions that restart with each document."""
    tokenizer = AutoTokenizer.from_pretrained(str(ROOT), trust_remote_code=True)
    lines = (ROOT / "examples/corpus/train.jsonl").read_text(encoding="utf-8").splitlines()
    ids, positions = [], []
    for line in lines:
        tokens = tokenizer(json.loads(line)["text"])["input_ids"]
        ids += tokens
        positions += range(len(tokens))
    rows = len(ids) // seq_len
    if rows == 0:
        raise ValueError(f"the corpus has {len(ids)} tokens, fewer than one row of {seq_len}.")
    return {
        name: torch.tensor(values[: rows * seq_len], device=device).view(rows, seq_len)
        for name, values in (("input_ids", ids), ("position_ids", positions))
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="configs/small.json", help="model configuration")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rows", type=int, default=32, help="rows per step")
    parser.add_argument("--seq_len", type=int, default=1024)
    parser.add_argument("--learning_rate", type=float, default=5e-4)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    tenth = arguments.steps // 10
    if tenth < 1:
        parser.error("--steps must be at least 10: the first tenth of them is not timed.")
    device = default_device()
    torch.manual_seed(0)
    config = ChineseModernBertConfig.from_json_file(arguments.size)
    with device:
        model = ChineseModernBertForMaskedLM(config).train()
    if arguments.compile:
        model.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.learning_rate, fused=True)
    corpus = packed_corpus(arguments.seq_len, device)
    generator = torch.Generator(device=device).manual_seed(0)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        backend, reason = model.attention_backend()
    losses: list[torch.Tensor | float] = []
    told = {
        "parameters": model.num_parameters(),
        "attention": f"{backend} ({reason})",
        "losses": losses,
    }
    for step in range(1, arguments.steps + 1):
        rows = torch.randint(
            len(corpus["input_ids"]), (arguments.rows,), generator=generator, device=device
        )
        batch = {name: values[rows] for name, values in corpus.items()}
        chosen = (
            torch.rand(batch["input_ids"].shape, generator=generator, device=device) < 0.3
        ) & (batch["input_ids"] > config.mask_token_id)
        labels = batch["input_ids"].masked_fill(~chosen, IGNORED)
        batch["input_ids"] = batch["input_ids"].masked_fill(chosen, config.mask_token_id)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = model(**batch, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        if step % tenth == 0 or step == arguments.steps:
            losses[:] = map(float, losses)  # waits for the device
            if step == tenth:  # the first steps load, compile and warm up
                start = time.perf_counter()
            else:
                tokens = (step - tenth) * arguments.rows * arguments.seq_len
                told["tokens_per_second"] = tokens / (time.perf_counter() - start)
            if device.type == "cuda":
                told["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
            write_json(arguments.output / "train_steps.json", told)  # should it be stopped
            print(f"step {step}: loss {losses[-1]:.3f}", flush=True)
    begun, ended = (sum(part) / tenth for part in (losses[:tenth], losses[-tenth:]))
    print(f"{told['parameters'] / 1e6:.1f} M parameters, attention: {told['attention']}")
    print(f"{told['tokens_per_second']:,.0f} tokens/s; loss {begun:.3f} -> {ended:.3f}")
    if not ended < begun:
        sys.exit("the loss did not fall.")


if __name__ == "__main__":
    main()
