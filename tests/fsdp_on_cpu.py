"""Runs train_mlm.py with its model divided by FSDP2 over CPUs, which accelerate keeps for GPUs."""

import accelerate
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

import train_mlm


class State(AcceleratorState):
    """Takes the plugin on CPUs as it does on GPUs."""

    def __init__(self, *args, fsdp_plugin=None, **settings):
        super().__init__(*args, fsdp_plugin=fsdp_plugin, **settings)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = self.distributed_type
            if self.mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self.mixed_precision)
            self.fsdp_plugin = fsdp_plugin


if __name__ == "__main__":
    accelerate.accelerator.AcceleratorState = State
    train_mlm.main()
