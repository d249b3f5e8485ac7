import os
import random
import signal
import socket

import numpy as np
import pytest
import torch
from hypothesis import settings
from mmengine.utils import ManagerMixin

from browser import chromium
from cmt_backbones import openmmlab  # noqa: F401  without which an mmcv-lite has no mmcv.ops to import

# Real examples, the same ones in every run, without a deadline on shared machines.
settings.register_profile('suite', deadline=None, derandomize=True, print_blob=True)
settings.load_profile('suite')

# Processes that test side by side (pytest -n 2) share the cores, and so do those that they start.
THREADS = max(1, os.cpu_count() // int(os.environ.get('PYTEST_XDIST_WORKER_COUNT', 1)))
os.environ.setdefault('OMP_NUM_THREADS', str(THREADS))
torch.set_num_threads(THREADS)

# Runs end within this process, and the garbage collector their loaders: it cannot reach the workers, and would
# wait 5 seconds for each before it ends them.
torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = .2


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """What a test and its fixtures draw does not depend on the tests that this process ran before."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def same_signals():
    """A run that ends with an error keeps its handlers until the next signal, which is another test's."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def same_instances():
    """Loggers and scopes of a test's runs stay in the process, and the next test would write to their files."""
    kept, kinds = {}, [ManagerMixin]
    for kind in kinds:
        kinds += kind.__subclasses__()
        kept[kind] = kind._instance_dict.copy()
    yield
    for kind, instances in kept.items():
        kind._instance_dict.clear()
        kind._instance_dict.update(instances)


@pytest.fixture
def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


@pytest.fixture(scope='module')  # while it is open, an event loop runs that others would trip over
def browser():
    with chromium() as started:
        yield started
