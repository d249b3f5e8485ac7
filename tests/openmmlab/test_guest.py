"""What importing the package changes in a project that has nothing to do with it: nothing."""
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from cmt_backbones.versions import check_versions

ROOT = Path(__file__).parents[2]


def start(script, *arguments, **env):
    """Python in a process of its own, which has to succeed."""
    return subprocess.Popen([sys.executable, '-W', 'ignore::DeprecationWarning', '-c', textwrap.dedent(script),
                             *map(str, arguments)], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT,
                            env=dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1', **env))


def output(process):
    text = process.communicate(timeout=300)[0]
    assert process.returncode == 0, text
    return text


@pytest.mark.parametrize('found, python, message', [
    (dict(torch='2.0.1', numpy='1.26.4', mmengine='0.10.7'), (3, 11), 'and here is torch 2.0.1: install a later one'),
    (dict(torch='1.13', numpy='1.23.5', mmengine='0.8.4'), (3, 7),
     'needs Python 3.8, torch 2.1, numpy 1.24, mmengine 0.9 or later, and here is Python 3.7, torch 1.13, '
     'numpy 1.23.5, mmengine 0.8.4'),
    (dict(torch='2.2.2+cu121', numpy='2.1.0', mmengine='0.10.7'), (3, 11), 'cannot use numpy 2.1.0: pip'),
])
def test_versions_that_are_refused(found, python, message):
    with pytest.raises(ImportError, match=re.escape(message)):
        check_versions(found, python)


def test_versions_that_are_taken():
    check_versions(dict(torch='2.1.0a0+git32f93b1', numpy='1.24.0', mmengine='0.9.0'), (3, 8))
    check_versions(dict(torch='3.0', numpy='3.0.0rc1', mmengine='0.11.0rc0'), (4, 0))


STATE = """
    import copyreg, locale, logging, os, random, signal, sys, warnings
    import mmengine, mmengine.runner, numpy, torch
    import torch.utils.data
    from mmengine.config.utils import MODULE2PACKAGE
    from mmengine.fileio.backends.registry_utils import backends, prefix_to_backends
    from mmengine.logging import MMLogger
    from mmengine.registry import DefaultScope, Registry, root
    from mmengine.runner import CheckpointLoader

    def state():
        registries = {name: dict(value.module_dict) for name, value in vars(root).items()
                      if isinstance(value, Registry)}
        return dict(
            loaders=dict(CheckpointLoader._schemes), backends=dict(backends), prefixes=dict(prefix_to_backends),
            torch=[torch.load, torch.save, torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(),
                   torch.backends.mkldnn.flags, torch.backends.cudnn.benchmark, torch.utils.data.DataLoader.__init__],
            safe=set(map(str, getattr(torch.serialization, 'get_safe_globals', list)())),
            signals={number: signal.getsignal(number) for number in signal.Signals},
            random=[random.getstate(), str(numpy.random.get_state()), torch.get_rng_state().tolist()],
            python=[sys.excepthook, sys.stdout, dict(os.environ), os.getcwd(), locale.getlocale(),
                    sys.getrecursionlimit(), dict(copyreg.dispatch_table), list(logging.root.handlers),
                    list(warnings.filters)],
            mmengine=[dict(MMLogger._instance_dict), dict(DefaultScope._instance_dict)],
            packages=dict(MODULE2PACKAGE), **registries)

    def added(before, after):
        # What is new in the parts that changed, none of which lost anything.
        found = {}
        for key, value in after.items():
            if value != before[key]:
                assert all(item in (value if isinstance(value, set) else value.items())
                           for item in (before[key] if isinstance(value, set) else before[key].items())), key
                found[key] = sorted(set(value) - set(before[key]))
        return found
"""


def test_importing_registers_names_and_changes_nothing():
    assert 'as it was' in output(start(STATE + """
    before = state()
    import cmt_backbones
    first = state()
    names = added(before, first)
    assert names == dict(
        MODELS=['CMT', 'ConvNeXt'], OPTIM_WRAPPER_CONSTRUCTORS=['LayerDecayOptimWrapperConstructor'],
        HOOKS=['FiniteLossHook', 'ResumableRandomness', 'SaveOnSigterm'], packages=['cmt_backbones']), names
    assert 'cmt_backbones.openmmlab' not in sys.modules

    # What our configs import beyond that adds.
    import cmt_backbones.openmmlab
    names = added(first, state())
    safe = names.pop('safe', None)
    loaders = names.pop('loaders')  # of names that mmengine has none for
    assert loaders == [r'(?!\\S*://).*\\.safetensors$', 'hf-hub:', 'timm:'], loaders
    assert names == dict(backends=['whole'], MODEL_WRAPPERS=['CPUDistributedDataParallel'], HOOKS=['DeployHook']), names
    assert not safe or not any('Namespace' in name or "'builtins." in name and 'getattr' not in name for name in safe)

    # And so does a hook of ours, by its name, in a project that imports no more than the package.
    from mmengine.registry import HOOKS
    for name in ('SaveOnSigterm', 'cmt_backbones.training.SaveOnSigterm', 'cmt_backbones.training.FiniteLossHook'):
        assert type(HOOKS.build(dict(type=name))).__name__ == name.split('.')[-1]
    print('as it was')
    """))


PROJECT = """
    import argparse, collections, dataclasses, datetime, enum, sys
    from pathlib import Path
    import numpy as np
    import torch
    from mmengine.config import Config
    from mmengine.hooks import Hook
    from mmengine.model import BaseModel
    from mmengine.runner import CheckpointLoader, Runner
    if sys.argv[2] == 'with':
        import cmt_backbones, cmt_backbones.openmmlab

    class Toy(BaseModel):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(2, 1)
        def forward(self, *x, mode):
            return dict(loss=self.linear(torch.stack(x)).square().mean())

    @dataclasses.dataclass
    class Note:
        text: str = 'of the project'

    class Stage(enum.Enum):
        first = 1

    def kept():
        return dict(args=argparse.Namespace(lr=.1), folder=Path('a'), note=Note(), stage=Stage.first,
                    day=datetime.datetime(2026, 1, 1), config=Config(dict(a=1)), model=torch.nn.Linear(1, 1),
                    counts=collections.defaultdict(int, a=1), last=collections.deque([1, 2], 3),
                    objects=np.array([{'a': 1}, None], object), table=np.zeros(2, [('x', 'f4'), ('y', 'i8')]))

    class Keep(Hook):
        def before_train(self, runner):
            if runner.iter:
                for name, value in kept().items():
                    found = runner.message_hub.runtime_info.get(name)
                    same = repr(found) == repr(value) or name == 'counts' and found == value  # mmengine drops it
                    assert type(found) is type(value) and same, (name, found)
            for name, value in kept().items():
                runner.message_hub.update_info(name, value, resumed=True)

    torch.manual_seed(0)
    for epochs in (1, 2):
        runner = Runner(
            Toy(), sys.argv[1], train_cfg=dict(by_epoch=True, max_epochs=epochs), randomness=dict(seed=0),
            train_dataloader=dict(dataset=[torch.ones(2) * i for i in range(4)], batch_size=2,
                                  sampler=dict(type='DefaultSampler', shuffle=True)),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=.1)), custom_hooks=[Keep()], resume=epochs == 2,
            experiment_name=f'toy{epochs}', log_level='WARNING')
        runner.train()
    torch.save(runner.model, sys.argv[1] + '/whole.pth')
    assert type(CheckpointLoader.load_checkpoint(sys.argv[1] + '/whole.pth')) is Toy
    last = torch.load(sys.argv[1] + '/epoch_2.pth')
    found = last['message_hub']['runtime_info']
    print(last.keys(), last['meta'].keys(), found.keys(), [found[name] for name in kept()], last['state_dict'],
          last['optimizer'])
"""


def test_a_project_trains_resumes_and_saves_as_without_us(tmp_path):
    env = dict(TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD='1')  # a choice of the project's own, for its Namespace
    processes = [start(PROJECT, tmp_path / kind, kind, **env) for kind in ('with', 'without')]
    one, other = ([line for line in output(process).splitlines() if line.startswith('dict_keys')]
                  for process in processes)
    assert len(one) == 1 and one == other and "Note(text='of the project')" in one[0]


def test_loaders_and_backends_that_somebody_has():
    output(start("""
    import warnings
    from mmengine.fileio import LocalBackend, get_file_backend, register_backend
    from mmengine.runner import CheckpointLoader

    class Mine(LocalBackend):
        pass

    register_backend('whole', Mine)
    CheckpointLoader.register_scheme('hf-hub:', mine := lambda name, map_location: {})
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        import cmt_backbones.openmmlab
    told = [str(warning.message) for warning in told if 'backend' in str(warning.message)]
    assert told == ["the file backend 'whole' stays what was registered under that name before"], told
    assert type(get_file_backend(backend_args=dict(backend='whole'))) is Mine
    assert CheckpointLoader.load_checkpoint('hf-hub:me/cmt') == {}
    """))


RECIPE = """
    import warnings
    import torch
    from mmengine.optim import build_optim_wrapper
    from mmdet.registry import MODELS as DETECTORS
    from mmengine.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS, DefaultScope

    def theirs():
        # mmpose 1.3.2 does the first, and somebody the second.
        class LayerDecayOptimWrapperConstructor:
            def __init__(self, optim_wrapper_cfg, paramwise_cfg=None):
                raise TypeError('that of another package')
        OPTIM_WRAPPER_CONSTRUCTORS.register_module(module=LayerDecayOptimWrapperConstructor, force=True)
        class CMT:
            pass
        MODELS.register_module(module=CMT, force=True)
        return CMT, LayerDecayOptimWrapperConstructor

    class ConvNeXt:
        pass

    def check(*others):
        import cmt_backbones.openmmlab  # without it, an mmcv-lite has no operators for mmdet to import
        with DefaultScope.overwrite_default_scope('mmdet'):
            for name in ('CMT', 'ConvNeXt'):
                model = DETECTORS.build(dict(type=f'cmt_backbones.{name}', arch='tiny' if name == 'CMT' else 'v2_atto'))
                assert type(model) is getattr(cmt_backbones, name)
            wrapper = build_optim_wrapper(model, dict(
                optimizer=dict(type='AdamW', lr=1e-4, weight_decay=.05), paramwise_cfg=dict(decay_rate=.7),
                constructor='cmt_backbones.LayerDecayOptimWrapperConstructor'))
        assert len({group['lr'] for group in wrapper.optimizer.param_groups}) > 5
        assert (MODELS.get('CMT'), OPTIM_WRAPPER_CONSTRUCTORS.get('LayerDecayOptimWrapperConstructor')) == others
"""


def test_names_that_somebody_has():
    pytest.importorskip('mmdet')
    before = start(RECIPE + """
    others = theirs()
    DETECTORS.register_module(module=ConvNeXt)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        import cmt_backbones
    told = [str(warning.message) for warning in told if 'cmt_backbones' in str(warning.message)]
    assert told == [
        "type='CMT' stays what __main__ registered as that in 'model'; the one of cmt_backbones is "
        "type='cmt_backbones.CMT'",
        "type='LayerDecayOptimWrapperConstructor' stays what __main__ registered as that in 'optimizer wrapper "
        "constructor'; the one of cmt_backbones is type='cmt_backbones.LayerDecayOptimWrapperConstructor'"], told
    check(*others)
    assert DETECTORS.get('ConvNeXt') is ConvNeXt and MODELS.get('ConvNeXt') is cmt_backbones.ConvNeXt
    """)
    after = start(RECIPE + """
    import cmt_backbones
    DETECTORS.register_module(module=ConvNeXt)
    check(*theirs())
    assert DETECTORS.get('ConvNeXt') is ConvNeXt and MODELS.get('ConvNeXt') is cmt_backbones.ConvNeXt
    """)
    output(before)
    output(after)
