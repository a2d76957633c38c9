"""What a run says of itself at each log, to every tracker and to a file of JSON lines."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import TrainerCallback

from configuration_chinese_modernbert import ChineseModernBertConfig
from pretraining.data.order import TrainingOrder
from pretraining.run.flops import matrix_product_rate
from pretraining.run.token_cost import flops_of_a_token

LOG_FILE = "log.jsonl"


class TrainingLog(TrainerCallback):
    """Adds to each training log what Trainer does not know.

    - `mask_rate`: the curriculum's rate of the step just done;
    - `bits_per_character`: the loss in bits, over the characters that a token stands for;
    - `tokens_per_second`: real tokens over wall-clock seconds since the last log, over all
      processes, evaluation and checkpoints included;
    - `matrix_product_share`: operations that these tokens need, over those which plain matrix
      products would have done in that time, as measured before the first step;
    - `padding_share`: padding over all positions since the last log;
    - `data_wait_seconds`: how long steps waited for their batches since the last log.

    It has to come before the callbacks that write logs down, because they share one dict.

    Args:
        mask_rate: update index, from 0 -> rate.
        order: the order that is trained on.
        config: the model's shape.
    """

    def __init__(
        self,
        mask_rate: Callable[[int], float],
        order: TrainingOrder,
        config: ChineseModernBertConfig,
    ):
        self.mask_rate = mask_rate
        self.order, manifest = order, order.rows.manifest
        self.characters_per_token = manifest["characters"] / manifest["tokens"]
        self.config = config

    def _note(self, state) -> None:
        self.last = (time.perf_counter(), state.num_input_tokens_seen, state.global_step)
        self.waited = 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        dtype = torch.bfloat16 if args.bf16 else torch.float32
        self.product_rate = args.world_size * matrix_product_rate(self.config, dtype, args.device)
        self.flops, self.masked_flops = flops_of_a_token(self.config, self.order, state.global_step)
        self._note(state)
        self.ready = time.perf_counter()

    def on_step_begin(self, args, state, control, **kwargs):
        self.waited += time.perf_counter() - self.ready

    def on_step_end(self, args, state, control, **kwargs):
        self.ready = time.perf_counter()

    # What follows a step before the next batch is asked for.
    on_evaluate = on_save = on_step_end

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.ready = time.perf_counter()
        if logs is None or "loss" not in logs:  # evaluation, or the summary at the end
            return
        then, tokens_then, step_then = self.last
        tokens = state.num_input_tokens_seen - tokens_then
        drawn = self.order.drawn_before(state.global_step) - self.order.drawn_before(step_then)
        positions = drawn * self.order.rows.seq_len
        rate = self.mask_rate(state.global_step - 1)
        speed = tokens / (time.perf_counter() - then)
        flops = self.flops + rate * self.masked_flops
        bits = logs["loss"] / math.log(2) / self.characters_per_token
        added = {
            "mask_rate": rate,
            "bits_per_character": round(bits, 4),
            "tokens_per_second": round(speed, 1),
            "matrix_product_share": round(speed * flops / self.product_rate, 4),
            "padding_share": round(1 - tokens / positions, 4),
            "data_wait_seconds": round(self.waited, 3),
        }
        logs.update(added)
        state.log_history[-1].update(added)
        self._note(state)


class JsonLinesLog(TrainerCallback):
    """Writes every log as a line of JSON, complete after a restart and without a line twice.

    Args:
        file: where to; only the first process writes.
    """

    def __init__(self, file: Path):
        self.file = file

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            # A resumed run knows the logs up to its checkpoint; later ones will come again.
            self.file.write_text("".join(map(_line, state.log_history)), encoding="utf-8")

    def on_log(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            with open(self.file, "a", encoding="utf-8") as lines:
                lines.write(_line(state.log_history[-1]))


def _line(entry: dict) -> str:
    return json.dumps(entry, ensure_ascii=False) + "\n"
