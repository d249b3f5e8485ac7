"""What a published model says of itself, in Markdown; every number is of its run."""
from pathlib import Path
from typing import Any, Dict, List

from mmengine.config import Config
from torch import Tensor

TASKS = dict(mmdet='object-detection', mmseg='image-segmentation')


def model_card(told: Dict[str, Any], cfg: Config, state: Dict[str, Tensor], log: List[dict], weights: Path,
               by_epoch: bool) -> str:
    """The text of a model card.

    Args:
        told: What the header of the file says.
        cfg: Of the training.
        state: The weights.
        log: Evaluations by step.
        weights: The file.
        by_epoch: Whether a step is an epoch; else an iteration.
    """
    backbone, task = cfg.model.backbone, TASKS.get(cfg.get('default_scope'), 'other')
    what = f'{cfg.model.type} with {backbone.type}' if told['part'] == 'model' else str(backbone.type)
    classes = told['dataset_meta'].get('classes', [])
    start = (backbone.get('init_cfg') or {}).get('checkpoint', 'random weights')
    facts = [('network', f'{what} `{backbone.get("arch")}`'),
             ('parameters', f'{sum(value.numel() for value in state.values()) / 1e6:.2f}M, buffers included'),
             ('started from', f'`{start}`'),
             ('trained', f'{told["epoch"]} epochs' if by_epoch else f'{told["iter"]} iterations'),
             ('optimizer', f'{cfg.optim_wrapper.optimizer.type}, learning rate {cfg.optim_wrapper.optimizer.lr}'),
             ('data', f'`{cfg.train_dataloader.dataset.type}`, {len(classes)} classes: ' + ', '.join(classes[:20])
              + (', ...' if len(classes) > 20 else '')),
             ('licence', told['licence']),
             ('SHA-256 of the weights', f'`{told["sha256"]}`'),
             ('versions', ', '.join(f'{name} {version}' for name, version in told['versions'].items() if version))]
    lines = ['---', f'license: {told["licence"]}' if '-license' not in told['licence'] else
             f'license: other\nlicense_name: {told["licence"]}', 'library_name: cmt_backbones',
             f'pipeline_tag: {task}', f'tags: [{backbone.type}, {cfg.get("default_scope")}, cmt_backbones]', '---',
             '', f'# {told["name"]}', '', *table(['', ''], facts), '', '## Evaluations of the run', '']
    names = sorted({name for row in log for name in row} - {'step', 'time', 'data_time'})
    step = 'epoch' if by_epoch else 'iteration'
    if names:
        lines += table([step, *names], [[row['step'], *(number(row.get(name)) for name in names)] for row in log])
        mine = told['epoch' if by_epoch else 'iter']
        lines += ['', f'The weights are those of {step} {mine}'
                  + ('.' if told['metrics'] else ', which was not evaluated.')]
    else:
        lines += ['None were logged beside the checkpoint.']
    lines += ['', '## Use', '', 'As the start of a training, in a config:', '', '```python',
              "init_cfg=dict(type='Pretrained', checkpoint='hf-hub:OWNER/NAME')", '```']
    if told['part'] == 'model':
        lines += ['', 'As it is, with `config.py` beside it:', '', '```sh',
                  'python tools/test.py config.py hf-hub:OWNER/NAME',
                  'python tools/image_demo.py photos config.py hf-hub:OWNER/NAME --out pictures', '```']
    return '\n'.join([*lines, '', f'`{weights.name}`: the digits are the first of its SHA-256.', ''])


def table(head: List[str], rows: List[Any]) -> List[str]:
    lines = [head, ['---'] * len(head), *rows]
    return ['| ' + ' | '.join(str(cell) for cell in line) + ' |' for line in lines]


def number(value: Any) -> str:
    return f'{value:.4g}' if isinstance(value, float) else '' if value is None else str(value)
