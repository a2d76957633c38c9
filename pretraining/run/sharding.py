"""What a model that FSDP2 divides among processes needs to be trained and saved like any other."""

import os

import torch
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from transformers import Trainer, TrainerCallback, TrainingArguments

from pretraining.run.configuration import RunConfigError


def is_sharded(arguments: TrainingArguments) -> bool:
    """Whether FSDP will divide the model: the run file asks for it, or `accelerate launch` does."""
    return bool(arguments.fsdp) or os.environ.get("ACCELERATE_USE_FSDP") == "true"


def check_sharding(trainer: Trainer) -> None:
    """Settles how FSDP2 will treat the model, where the launcher asks for it.

    Under bf16 the gradients are added up in fp32 and the loss stays fp32, as without FSDP2;
    accelerate's policy would round both.

    Raises:
        RunConfigError: if checkpoints would not open as models.
    """
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if plugin is None:
        return
    if plugin.fsdp_version != 2 or "FULL_STATE_DICT" not in str(plugin.state_dict_type):
        raise RunConfigError(
            "the checkpoints of this FSDP would not open as models. Set fsdp_version: 2 and "
            "fsdp_state_dict_type: FULL_STATE_DICT, as configs/launch/fsdp2-node.yaml does."
        )
    if trainer.args.bf16:
        plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32
        )


class SavedLikeAny(TrainerCallback):
    """Lets a model that FSDP2 divides be saved as if it were whole.

    FSDP2 makes a subclass in a module of torch: a checkpoint would name that class, and contain its
    module instead of ours.
    """

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if isinstance(model, FSDPModule):
            made = type(model)
            own = made.__mro__[made.__mro__.index(FSDPModule) + 1]
            made.__name__, made.__module__ = own.__name__, own.__module__
