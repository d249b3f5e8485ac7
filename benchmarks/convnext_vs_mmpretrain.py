"""ConvNeXt-T of this package beside mmpretrain's, in mmdet's detectors: a page of Markdown.

    python benchmarks/convnext_vs_mmpretrain.py [--transformers FOLDER]

Needs `pip install mmpretrain==1.2.0`, best in an environment of its own. FOLDER is where
`pip install --target FOLDER transformers` put one, to see what importing does beside it.
"""
import argparse
import os
import re
import subprocess
import sys
import tempfile
import textwrap
import time
import warnings
from copy import deepcopy
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import cmt_backbones.openmmlab  # noqa: F401  before mmdet, which imports mmcv's operators

# isort: split
import torch
from mmdet.registry import MODELS
from mmdet.structures.bbox import bbox_overlaps
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.logging import MMLogger
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
THEIRS = dict(type='mmpretrain.ConvNeXt', arch='tiny', drop_path_rate=0.,
              layer_scale_init_value=1.0)
OURS = dict(type='ConvNeXt', arch='tiny', drop_path_rate=0.)


def randomise(model, seed=0):
    """Weights of which each matters: as built, gammas are 1 and biases 0."""
    torch.manual_seed(seed)
    for p in model.parameters():
        spread = .2 if p.dim() == 1 else p.detach().std().clamp(min=.02)
        p.data.add_(torch.randn_like(p), alpha=float(spread) / 2)
    return model


def both_detectors(name, folder):
    """A detector of our configs on mmpretrain's ConvNeXt, and as it is, with one set of weights.

    Ours gets the backbone's from a file as mmpretrain writes it.
    """
    cfg = Config.fromfile(ROOT / f'configs/mmdet/{name}.py').model
    theirs = deepcopy(cfg)
    theirs.backbone = dict(THEIRS, out_indices=cfg.backbone.out_indices,
                           gap_before_final_norm=False)
    torch.manual_seed(0)
    theirs = MODELS.build(theirs)
    theirs.init_weights()  # as a detector starts
    randomise(theirs.backbone)
    for key, p in theirs.named_parameters():
        if re.search(r'(retina|rpn|fc)_(cls|reg)\.weight', key):
            p.data.mul_(10)  # else scores hardly differ, and rounding decides which come first
    state = theirs.state_dict()
    file = Path(folder) / f'{name}.pth'
    torch.save(dict(state_dict={k: v for k, v in state.items() if k.startswith('backbone.')}), file)
    cfg.backbone.update(drop_path_rate=0., init_cfg=dict(type='Pretrained', checkpoint=str(file)))
    ours = MODELS.build(cfg)
    ours.backbone.init_weights()
    heads = {k: v for k, v in state.items() if not k.startswith('backbone.')}
    assert not ours.load_state_dict(heads, strict=False).unexpected_keys
    return theirs, ours


def difference(a, b):
    """The relative difference of two lists of tensors, each taken as one vector."""
    a, b = (torch.cat([x.flatten() for x in tensors]) for tensors in (a, b))
    return float((a - b).norm() / a.norm())


def run(model):
    """Maps of backbone and neck, loss, its gradients at the heads, and predictions for an image."""
    def batch(training):
        data = demo_mm_inputs(1, (3, 192, 256), num_items=[4], num_classes=80, with_mask=True)
        return model.data_preprocessor(data, training)

    torch.manual_seed(0)  # the sampling of regions
    data = batch(True)
    loss, _ = model.train().parse_losses(model(**data, mode='loss'))
    loss.backward()
    gradients = [p.grad for k, p in model.named_parameters() if not k.startswith('backbone.')]
    for cfg in (model.test_cfg, model.test_cfg.get('rcnn', {})):
        cfg['score_thr'] = 0.
    data = batch(False)
    with torch.no_grad():
        maps = model.eval().backbone(data['inputs'])
        out, = model(**data, mode='predict')
    return dict(maps=maps, neck=model.neck(maps), loss=loss.detach(), gradients=gradients,
                found=out.pred_instances)


def compare(name, folder):
    theirs, ours = both_detectors(name, folder)
    noisy = deepcopy(ours)
    for p in noisy.backbone.parameters():
        p.data.mul_(1 + 1e-7 * torch.randn_like(p))
    theirs, ours, noisy = run(theirs), run(ours), run(noisy)
    a, b = theirs['found'], ours['found']
    alike = (bbox_overlaps(a.bboxes, b.bboxes) > .999) & (a.labels[:, None] == b.labels) & (
        (a.scores[:, None] - b.scores).abs() < 1e-4)
    row = [name, difference(theirs['maps'], ours['maps']), difference(theirs['neck'], ours['neck']),
           difference([theirs['loss']], [ours['loss']]),
           difference(theirs['gradients'], ours['gradients']),
           difference(noisy['gradients'], ours['gradients'])]
    masks = '-'
    if 'masks' in a:
        i, j = alike.nonzero().T
        masks = f'{float((a.masks[i] == b.masks[j]).float().mean()):.2%}'
    return [*(x if isinstance(x, str) else f'{x:.1e}' for x in row),
            f'{int(alike.any(1).sum())} of {len(a)}', masks]


# ---------------------------------------------------------------------------- differences


def answer(question):
    """What a call returns, or how it fails, in a few words."""
    try:
        return str(question())
    except Exception as error:
        told = re.sub(r"'/\S*/", "'", str(error).splitlines()[0])  # folders are temporary
        return textwrap.shorten(f'{type(error).__name__}: {told}', 170, placeholder=' ...')


def needed(package):
    """The distributions that installing a package brings, itself included."""
    found, todo = set(), [package]
    while todo:
        name = re.sub('[-_.]+', '-', todo.pop()).lower()
        if name in found:
            continue
        try:
            specs = [Requirement(spec) for spec in requires(name) or []]
        except PackageNotFoundError:
            continue
        found.add(name)
        todo += [spec.name for spec in specs
                 if not spec.marker or spec.marker.evaluate(dict(extra=''))]
    return found


def importing(module, folder):
    """How `import module` ends beside a transformers in `folder`."""
    if folder is None:
        return 'not measured'
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', f'import {module}'], text=True,
                          capture_output=True, env=dict(os.environ, PYTHONPATH=f'{folder}:{ROOT}'))
    return 'works' if done.returncode == 0 else f'`{done.stderr.strip().splitlines()[-1][:90]}`'


def filled(backbone, arch, folder):
    """Whether a file of Facebook's layout and of this arch fills a ConvNeXt-T."""
    state = randomise(MODELS.build(dict(OURS, arch=arch)), seed=1).state_dict()
    file = Path(folder) / f'facebook_{arch}.pth'
    torch.save(dict(model={k: v for k, v in state.items() if not k.startswith('norm')}), file)
    model = MODELS.build(dict(backbone, init_cfg=dict(type='Pretrained', checkpoint=str(file))))
    model.init_weights()
    stem = model.state_dict()['downsample_layers.0.0.weight']
    return 'filled' if torch.equal(stem, state['downsample_layers.0.0.weight']) else (
        'random weights, and a line in the log')


def unused(backbone):
    model = MODELS.build(dict(backbone, out_indices=(0, 1)))
    sum(x.sum() for x in model(torch.rand(1, 3, 64, 64))).backward()
    return f'{sum(p.grad is None for p in model.parameters())} parameters without a gradient'


def seconds(models, x):
    """CPU time of forward and backward, the best of 3 in turns."""
    best = [float('inf')] * len(models)
    for _ in range(3):
        for i, model in enumerate(models):
            start = time.process_time()
            sum(out.sum() for out in model(x)).backward()
            best[i] = min(best[i], time.process_time() - start)
    return best


def differences(folder, transformers):
    def row(what, question, theirs=None):
        maps = dict(THEIRS, gap_before_final_norm=False)
        return [what, answer(lambda: question(theirs or maps)), answer(lambda: question(OURS))]

    def all_maps(backbone):
        return dict(backbone, out_indices=(0, 1, 2, 3))

    def shapes(backbone):
        return [tuple(out.shape) for out in MODELS.build(backbone)(torch.rand(1, 3, 130, 157))]

    def layout(backbone):
        x = torch.rand(1, 3, 64, 96).contiguous(memory_format=torch.channels_last)
        return all(out.is_contiguous() for out in MODELS.build(all_maps(backbone))(x))

    base = needed('mmdet') | needed('torch') | needed('mmcv')
    extra = [sorted(needed(package) - base - {package})
             for package in ('mmpretrain', 'cmt-backbones')]
    models = [MODELS.build(all_maps(backbone))
              for backbone in (dict(THEIRS, gap_before_final_norm=False), OURS)]
    times = seconds(models, torch.rand(1, 3, 256, 256))
    found = ''
    if transformers:
        folders = Path(transformers).glob('transformers-*.dist-info')
        found = next(folders).name.removesuffix('.dist-info').replace('transformers-', ' ')
    return [
        ['packages beyond those of mmdet',
         *(f'{len(e)}: {", ".join(e)}' if e else '0' for e in extra)],
        [f'`import` beside transformers{found}', importing('mmpretrain.models', transformers),
         importing('cmt_backbones', transformers)],
        row('shapes for a 130x157 image, as configured by default', shapes, THEIRS),
        row('the same with `gap_before_final_norm=False`, `out_indices=(0, 1, 2, 3)`',
            lambda backbone: shapes(all_maps(backbone))),
        row('maps contiguous for a channels-last image', layout),
        row('`out_indices=(0, 1)`', unused),
        row('`.train()` and `.eval()` return', lambda backbone: [
            type(getattr(MODELS.build(backbone), mode)()).__name__ for mode in ('train', 'eval')]),
        row("Facebook's file in `init_cfg`, not converted",
            lambda backbone: filled(backbone, 'tiny', folder)),
        row("Facebook's file of ConvNeXt-S, by mistake",
            lambda backbone: filled(backbone, 'small', folder)),
        ['CPU time of forward and backward, one thread, 256x256', '1',
         f'{times[1] / times[0]:.2f}'],
    ]


def table(header, rows):
    lines = [header, ['-' * 3] * len(header), *rows]
    return '\n'.join('| ' + ' | '.join(map(str, line)) + ' |' for line in lines)


PAGE = """\
# ConvNeXt-T beside mmpretrain's

    pip install mmpretrain=={mmpretrain}
    python benchmarks/convnext_vs_mmpretrain.py{given}

torch {torch}, mmdet {mmdet}, mmcv {mmcv}, Python {python}, CPU.

## The same detections

Random weights in mmpretrain's layout, in detectors of mmdet with the same heads. Relative
differences; predictions are alike where boxes overlap by more than 0.999, labels agree and scores
differ by less than 1e-4. For scale: the gradients of ours against ours with weights that are off by
1e-7, which is what rounding does.
"""


def main():
    parser = argparse.ArgumentParser(description='ConvNeXt-T beside that of mmpretrain')
    parser.add_argument('--transformers', metavar='FOLDER', help='an installed transformers')
    args = parser.parse_args()
    warnings.simplefilter('ignore')
    MMLogger.get_current_instance().setLevel('ERROR')
    torch.set_num_threads(1)
    import mmpretrain.models  # noqa: F401  (registers theirs)
    with tempfile.TemporaryDirectory() as folder:
        same = [compare(name, folder)
                for name in ('retinanet_convnext_t_1x', 'mask_rcnn_convnext_t_1x')]
        different = differences(folder, args.transformers)
    given = ' --transformers FOLDER' if args.transformers else ''
    print(PAGE.format(given=given, torch=torch.__version__, python=sys.version.split()[0],
                      **{name: version(name) for name in ('mmpretrain', 'mmdet', 'mmcv')}))
    print(table(['detector', 'maps', 'FPN', 'loss', 'gradients of the heads',
                 'ours, weights off by 1e-7', 'predictions alike', 'mask pixels alike'], same))
    print('\n## The differences\n')
    print(table(['', 'mmpretrain', 'cmt_backbones'], different))


if __name__ == '__main__':
    main()
