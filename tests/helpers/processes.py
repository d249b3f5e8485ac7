"""Runs a function of a test module in two processes over gloo."""
import torch
import torch.multiprocessing

from cmt_backbones import openmmlab  # noqa: F401  without which an mmcv-lite has no mmcv.ops to import


def in_two(function, port, *args):
    """Calls ``function(rank, *args)`` in both; an error of either is raised here."""
    torch.multiprocessing.spawn(run, (function, port, args), nprocs=2)


def run(rank, function, port, args):
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', f'tcp://127.0.0.1:{port}', rank=rank, world_size=2)
    # What the function made is gone when it returns: a DistributedDataParallel that outlives its
    # process group can wait for ever.
    function(rank, *args)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
