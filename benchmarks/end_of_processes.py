"""How often two processes over gloo end with 0 after a last broadcast, as they are and ended in order.

    python benchmarks/end_of_processes.py --runs 30

What a run of mmengine does last is to send its metrics to all processes. A thread of gloo may then still have to
free a tensor when the interpreter ends, and the process aborts.
"""
import argparse
import os
import shutil
import tempfile

import torch
import torch.distributed

from cmt_backbones.openmmlab import ended_in_order


def work(folder, rank):
    torch.distributed.init_process_group('gloo', f'file://{folder}/store', rank=rank, world_size=2)
    for _ in range(20):
        torch.distributed.broadcast(torch.ones(100), 0)


def main():
    """Returns in every process that it makes, so that the interpreter ends there as it does after a run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--runs', type=int, default=30)
    runs = parser.parse_args().runs
    torch.set_num_threads(1)
    for name, function in (('as they are', work), ('ended in order', ended_in_order()(work))):
        failed = 0
        for _ in range(runs):
            folder = tempfile.mkdtemp()
            children = []
            for rank in range(2):
                child = os.fork()
                if child == 0:
                    return function(folder, rank)
                children.append(child)
            codes = [os.waitpid(child, 0)[1] for child in children]
            shutil.rmtree(folder)
            failed += any(codes)
        print(f'{name}: {runs - failed} of {runs} runs ended with 0', flush=True)
    return None


if __name__ == '__main__':
    main()
