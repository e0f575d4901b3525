"""One rank of PyTorch's DistributedDataParallel over Gloo, with one thread: dist.py starts as many as it wants.

    ddp_rank.py MODEL BATCH PRECISION CONFIGURATION        BATCH: images of a step of all ranks

A line of JSON when ready; then for each line "ARM STEPS" of stdin the milliseconds of a step, averaged over STEPS in a row.
Arms: dense, the ranks together; alone, this rank by itself with its part of the batch.
"""
import json
import sys

import pytorch_steps as pytorch
import torch.distributed


def main():
    model, batch, precision, configuration = sys.argv[1], int(sys.argv[2]), *sys.argv[3:]
    pytorch.torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")  # who and where: the environment, as torchrun makes it
    own = batch // torch.distributed.get_world_size()
    arms = {"dense": pytorch.training_step(model, own, precision, configuration, parallel=True),
            "alone": pytorch.training_step(model, own, precision, configuration)}
    for step in arms.values():
        step(), step()  # compiles, allocates, and DDP finds its buckets
    print(json.dumps({"versions": {"torch": torch.__version__, "timm": pytorch.timm.__version__}}), flush=True)
    for line in sys.stdin:
        arm, steps = line.split()
        print(pytorch.average_milliseconds(arms[arm], int(steps)), flush=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
