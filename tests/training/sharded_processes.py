"""Runs recipes/train.py with FSDP2 on CPU processes.

accelerate ignores FSDP on CPUs, so this script makes it treat the processes as GPU processes.
"""

from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor

from hcal_hf import HcalTrainer
from hcal_hf.commands.run_arguments import parse_arguments
from hcal_hf.commands.training_run import end_processes, run_training

start_process, train = PartialState.__init__, HcalTrainer.train


def start_as_gpu(self, *args, **kwargs):
    start_process(self, *args, **kwargs)
    if PartialState._shared_state["distributed_type"] == DistributedType.MULTI_CPU:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def checked_train(self, *args, **kwargs):
    output = train(self, *args, **kwargs)
    assert self.accelerator.num_processes == 2
    assert self.accelerator.is_fsdp2
    parameters = dict(self.model_wrapped.named_parameters())
    assert all(isinstance(parameter, DTensor) for parameter in parameters.values())
    held, whole = (sum(f(p).numel() for p in parameters.values()) for f in (DTensor.to_local, lambda p: p))
    assert held < 0.7 * whole
    return output


if __name__ == "__main__":
    PartialState.__init__ = start_as_gpu
    HcalTrainer.train = checked_train
    run_training(*parse_arguments())
    end_processes()
