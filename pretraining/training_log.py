"""What a run says of itself at each log: mask rate, tokens per second, share of padding."""

import time
from collections.abc import Callable

from transformers import TrainerCallback


class TrainingLog(TrainerCallback):
    """Adds to each training log what Trainer does not know.

    - `mask_rate`: the curriculum's rate of the step just done;
    - `tokens_per_second`: real tokens over wall-clock seconds since the last log, over all
      processes, evaluation and checkpoints included;
    - `padding_share`: padding over all positions since the last log.

    It has to come before the callbacks that write logs down, because they share one dict.

    Args:
        mask_rate: update index, from 0 -> rate.
        positions_per_step: positions of one optimizer step, padding included.
    """

    def __init__(self, mask_rate: Callable[[int], float], positions_per_step: int):
        self.mask_rate = mask_rate
        self.positions_per_step = positions_per_step

    def _note(self, state) -> None:
        self.last = (time.perf_counter(), state.num_input_tokens_seen, state.global_step)

    def on_train_begin(self, args, state, control, **kwargs):
        self._note(state)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs is None or "loss" not in logs:  # evaluation, or the summary at the end
            return
        then, tokens_then, step_then = self.last
        tokens = state.num_input_tokens_seen - tokens_then
        positions = (state.global_step - step_then) * self.positions_per_step
        added = {
            "mask_rate": self.mask_rate(state.global_step - 1),
            "tokens_per_second": round(tokens / (time.perf_counter() - then), 1),
            "padding_share": round(1 - tokens / positions, 4),
        }
        logs.update(added)
        state.log_history[-1].update(added)
        self._note(state)
