"""What FSDP2 has to be told for checkpoints that open as models."""

from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import FullyShardedDataParallelPlugin

from pretraining.run.configuration import RunConfigError
from pretraining.run.sharding import check_sharding


def trainer_with(bf16: bool = False, **plugin) -> SimpleNamespace:
    """As much of a Trainer as is looked at, with accelerate's own plugin."""
    plugin = FullyShardedDataParallelPlugin(**plugin) if plugin else None
    state = SimpleNamespace(fsdp_plugin=plugin)
    return SimpleNamespace(
        accelerator=SimpleNamespace(state=state), args=SimpleNamespace(bf16=bf16)
    )


@pytest.mark.parametrize(("version", "saved"), [(2, "SHARDED_STATE_DICT"), (1, "FULL_STATE_DICT")])
def test_checkpoints_that_would_not_open_are_refused(version, saved):
    trainer = trainer_with(fsdp_version=version, state_dict_type=saved)
    with pytest.raises(RunConfigError, match="fsdp_state_dict_type: FULL_STATE_DICT"):
        check_sharding(trainer)


def test_under_bf16_gradients_are_added_up_in_fp32():
    trainer = trainer_with(bf16=True, fsdp_version=2, state_dict_type="FULL_STATE_DICT")
    check_sharding(trainer)
    policy = trainer.accelerator.state.fsdp_plugin.mixed_precision_policy
    assert (policy.param_dtype, policy.reduce_dtype) == (torch.bfloat16, torch.float32)


def test_without_fsdp_there_is_nothing_to_settle():
    check_sharding(trainer_with())
