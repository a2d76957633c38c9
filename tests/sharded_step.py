"""Three training steps on a gloo mesh, sharded by FSDP2: what each process of the test runs."""

import os
import sys
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from configuration_chinese_modernbert import ChineseModernBertConfig
from modeling_chinese_modernbert import ChineseModernBertForMaskedLM
from pretraining.run.guard import Guard

STEPS = 3
ROWS, LENGTH = 4, 24


def fresh_model() -> ChineseModernBertForMaskedLM:
    torch.manual_seed(0)
    config = ChineseModernBertConfig(
        vocab_size=101,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=2,
        max_position_embeddings=64,
        local_attention=8,
    )
    return ChineseModernBertForMaskedLM(config).train()


def batches() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    made = []
    for _ in range(STEPS):
        ids = torch.randint(5, 101, (ROWS, LENGTH), generator=generator)
        masked = torch.rand(ids.shape, generator=generator) < 0.3
        made.append({"input_ids": ids.masked_fill(masked, 4), "labels": ids.where(masked, -100)})
    return made


def train(model: torch.nn.Module, rank: int, world_size: int) -> list[float]:
    """Steps on this process's share of each batch; returns the gradients' norms."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    guard, norms = Guard(folder=None, positions=lambda step: range(ROWS)), []
    for step, batch in enumerate(batches()):
        masked = (batch["labels"] != -100).sum()
        share = {name: values.chunk(world_size)[rank] for name, values in batch.items()}
        # Processes average their gradients, so each counts for as many as there are.
        (world_size * model(**share, num_items_in_batch=masked).loss).backward()
        guard.on_pre_optimizer_step(None, SimpleNamespace(global_step=step), None, model=model)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        norms.append(float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm))
        optimizer.step()
        optimizer.zero_grad()
    return norms


def main() -> None:
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model = fresh_model()
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    norms = train(model, dist.get_rank(), dist.get_world_size())
    weights = {name: weight.full_tensor() for name, weight in model.state_dict().items()}
    if dist.get_rank() == 0:
        torch.save({"norms": norms, "weights": weights}, sys.argv[1])
    dist.barrier()  # a process that leaves while the other still sends would abort
    dist.destroy_process_group()
    # Without the interpreter's clean-up: gloo's threads now and then outlive it, which aborts.
    os._exit(0)


if __name__ == "__main__":
    main()
