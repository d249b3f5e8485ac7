"""What is wrong with a config, told in one line each before a run starts.

Found in seconds, from the config, the annotation files and the first images; tools/check_dataset.py reads
all of them. What would train on something else than what was meant, or fail once it trains, is an error;
what is merely unwise is a warning.
"""
import json
import math
import os
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, TRANSFORMS, DefaultScope

from ..data import check
from ..data.check import ERROR, WARNING, Problem
from ..models.backbone import Backbone
from ..openmmlab.matching import ConfigError

IMAGES = 8  # of each split that are read
LARGEST = 100e6  # bytes of an annotation file that is read twice, here and by the dataset
SHOWN = 5  # errors of a config; the others are counted


def check_before_start(cfg: Config, splits: Sequence[str]) -> List[str]:
    """:func:`preflight` in the first process of a run; the others have nothing to say."""
    first = int(os.environ.get('RANK', os.environ.get('SLURM_PROCID', 0))) == 0
    return preflight(cfg, splits) if first else []


def preflight(cfg: Config, splits: Sequence[str]) -> List[str]:
    """Looks at a config before a run.

    Args:
        cfg: Of a detector or a segmentor; others have nothing to say here.
        splits: Such as ``('train', 'val')``. With ``'train'``, the schedule is looked at, too.

    Returns:
        list[str]: Warnings.

    Raises:
        ConfigError: With what was wrong, what was expected, and what to do.
    """
    if cfg.get('default_scope') not in ('mmdet', 'mmseg') or 'model' not in cfg:
        return []
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        problems = list(check_model(cfg.model))
        sizes = {}
        for split in splits:
            if cfg.get(f'{split}_dataloader') is not None:
                found, sizes[split] = check_data(cfg, split)
                problems += found
        if 'train' in splits and not any(problem.kind == ERROR for problem in problems):
            problems += check_training(cfg, sizes.get('train'))
    errors = told_once(problem for problem in problems if problem.kind == ERROR)
    if len(errors) > SHOWN:
        errors[SHOWN:] = [f'... and {len(errors) - SHOWN} more: tools/check_dataset.py lists all']
    if errors:
        raise ConfigError('\n'.join(errors))
    return told_once(problems)


def told_once(problems: Iterable[Problem]) -> List[str]:
    """A line for each thing that is wrong, with the first place where it is."""
    places: Dict[str, List[str]] = {}
    for problem in problems:
        places.setdefault(problem.what, []).append(problem.where)
    return [f'{where[0]}: {what}' + (f' (and {len(set(where)) - 1} more)' if len(set(where)) > 1 else '')
            for what, where in places.items()]


# ---------------------------------------------------------------------------- model


def check_model(model: Mapping) -> Iterator[Problem]:
    """The backbone's options, and whether what reads its maps expects as many channels."""
    cfg = model.get('backbone')
    cls = MODELS.get(cfg['type']) if isinstance(cfg, Mapping) and isinstance(cfg.get('type'), str) else None
    if cls is None or not isinstance(cls, type) or not issubclass(cls, Backbone):
        return
    try:
        with torch.device('meta'):
            backbone = MODELS.build(dict(cfg, init_cfg=None))
    except (TypeError, ValueError) as error:
        yield Problem(ERROR, 'model.backbone', str(error).split('\n')[0])
        return
    init = cfg.get('init_cfg') or {}
    file = init.get('checkpoint', '') if isinstance(init, Mapping) else ''
    if file and ':' not in file and not Path(file).expanduser().is_file():
        yield Problem(ERROR, 'model.backbone.init_cfg', f'there is no file {file}; init_cfg=None trains from scratch')
    gives = [backbone.embed_dims[i] for i in backbone.out_indices]
    of = f'{cfg["type"]} {cfg["arch"]!r}' if isinstance(cfg.get('arch'), str) else f'this {cfg["type"]}'
    told = f'{of} with out_indices={backbone.out_indices}'
    neck = model.get('neck')
    if isinstance(neck, Mapping) and isinstance(neck.get('in_channels'), (list, tuple)):
        yield from check_neck(neck, gives, told)
    elif neck is None:
        for name in ('decode_head', 'auxiliary_head'):
            heads = model.get(name) or []
            for head in heads if isinstance(heads, (list, tuple)) else [heads]:
                yield from check_head(head, f'model.{name}', gives, told)


def check_neck(neck: Mapping, gives: List[int], told: str) -> Iterator[Problem]:
    takes, start = list(neck['in_channels']), neck.get('start_level', 0)
    if len(takes) != len(gives):
        yield Problem(ERROR, 'model.neck', f'takes {len(takes)} maps (in_channels={takes}), and {told} gives '
                      f'{len(gives)}: change out_indices, or write in_channels={gives}')
    elif takes != gives:
        yield Problem(ERROR, 'model.neck', f'in_channels={takes} does not fit: {told} gives in_channels={gives}')
    elif start > 0:
        yield Problem(WARNING, 'model.neck', f'start_level={start} leaves maps of the backbone unread, whose norms get '
                      f'no gradient (several processes refuse that): {told}; give it those from {start} on alone, '
                      'and start_level=0')


def check_head(head: Any, where: str, gives: List[int], told: str) -> Iterator[Problem]:
    """A head of mmseg, which takes one of the maps or several by ``in_index``."""
    if not isinstance(head, Mapping) or 'in_channels' not in head:
        return
    takes, index = head['in_channels'], head.get('in_index', -1)
    several = isinstance(index, (list, tuple))
    if max(index if several else [index]) >= len(gives):
        yield Problem(ERROR, where, f'in_index={index} asks for a map that is not there: {told} gives {len(gives)}')
        return
    fitting = [gives[i] for i in index] if several else gives[index]
    if (list(takes) if several else takes) != fitting:
        yield Problem(ERROR, where, f'in_channels={takes} does not fit in_index={index}: {told} gives '
                      f'in_channels={fitting}')


# ---------------------------------------------------------------------------- data


def check_data(cfg: Config, split: str) -> Tuple[List[Problem], Optional[int]]:
    """What is wrong with a split, and how many images it has, where that is known."""
    problems, images = [], 0
    for dataset_cfg in check.datasets(cfg[f'{split}_dataloader'].dataset):
        classes = (dataset_cfg.get('metainfo') or {}).get('classes', ())
        if isinstance(classes, str) and not Path(classes).is_file():
            problems.append(Problem(ERROR, f'{split}_dataloader.dataset.metainfo', f'classes is the string '
                                    f'{classes!r}, and must be a tuple of names: one name has a comma behind it, '
                                    f'({classes!r},)'))
            continue
        dataset = DATASETS.build(dict(dataset_cfg, lazy_init=True, pipeline=[]))
        if hasattr(dataset, 'COCOAPI'):
            try:
                found, number = check_coco(dataset, dataset_cfg, cfg, split)
            except KeyError:
                return problems, None  # of LVIS or of panoptic segmentation, whose files are of another form
        elif hasattr(dataset, 'reduce_zero_label'):
            found, items = check.read_segmentation(dataset)
            number = len(items)
            if not found:
                found += read_first(dataset_cfg, cfg.model, [item['img_path'] for item in items[:IMAGES]])
                for item in items[:IMAGES]:
                    found += check.check_segmentation_image(item, [], len(dataset.metainfo['classes']),
                                                            dataset.ignore_index)
        else:
            return problems, None  # of a kind that is not known here
        if not any('of the classes of the config' in problem.what for problem in found):
            found += check.check_classes(cfg.model, dataset)
        problems += [problem for problem in found if problem.kind == ERROR]
        images += number
    return problems, images


def check_coco(dataset: Any, dataset_cfg: Mapping, cfg: Config, split: str) -> Tuple[List[Problem], int]:
    file, classes = dataset.ann_file, list(dataset.metainfo['classes'])
    evaluated = cfg.get(f'{split}_evaluator')
    if isinstance(evaluated, Mapping) and evaluated.get('ann_file') and not same(evaluated['ann_file'], file):
        return [Problem(ERROR, f'{split}_evaluator', f'its ann_file is {evaluated["ann_file"]}, and the images come '
                        f'from {file}: both must be one file')], 0
    if not Path(file).is_file():
        return [Problem(ERROR, file, f'there is no such annotation file ({split}_dataloader.dataset: data_root and '
                        'ann_file)')], 0
    if os.path.getsize(file) > LARGEST:
        return [], 0
    with_masks = check.with_masks(dataset_cfg)
    problems, items = check.read_coco(dataset, with_masks)
    if not items:
        return problems or [Problem(ERROR, file, 'has no images')], 0
    if any('has no category' in problem.what for problem in problems):
        there = [category['name'] for category in json.loads(Path(file).read_text(encoding='utf-8'))['categories']]
        missing = [name for name in classes if name not in there]
        copied = ', '.join(map(repr, there)) + (',' if len(there) == 1 else '')
        return [Problem(ERROR, file, f'has no category {missing[0]!r}{also(missing)}, of the classes of the config: '
                        f'the file has metainfo=dict(classes=({copied}))')], 0
    unknown = sorted({str(a.get('category_id')) for *_, annotations, known, _, _ in items for a in annotations
                      if a.get('category_id') not in known})
    if unknown:
        problems.append(Problem(ERROR, file, f'has annotations of category {unknown[0]}{also(unknown)}, which its '
                                '"categories" do not define'))
    if with_masks and not any(a.get('segmentation') for *_, annotations, _, _, _ in items for a in annotations):
        problems.append(Problem(ERROR, file, 'has boxes alone, and the pipeline asks for masks (with_mask=True): take '
                                'a detector without a mask head'))
    if not any(problem.kind == ERROR for problem in problems):
        scales = list(check.resize_scales(dataset_cfg.get('pipeline', [])))
        problems += read_first(dataset_cfg, cfg.model, [item[0] for item in items[:IMAGES]])
        for item in items[:IMAGES]:
            problems += check.check_detection_image(item, scales, split == 'train')
    wanted = items[0][4]
    return problems, sum(any(a.get('category_id') in wanted for a in item[2]) for item in items)


def also(found: Sequence) -> str:
    return f' and {len(found) - 1} more' if len(found) > 1 else ''


def same(one: str, other: str) -> bool:
    return Path(one).resolve() == Path(other).resolve()


def read_first(dataset_cfg: Mapping, model: Mapping, paths: Sequence[str]) -> Iterator[Problem]:
    """Whether the pipeline reads images with as many channels as the model takes."""
    steps = [step for step in dataset_cfg.get('pipeline', []) if str(step.get('type')).endswith('LoadImageFromFile')]
    mean = model.get('data_preprocessor', {}).get('mean')
    if not steps or mean is None:
        return
    loader = TRANSFORMS.build(steps[0])
    for path in paths:
        if not Path(path).is_file():
            continue  # told by another check
        try:
            image = loader(dict(img_path=path))['img']
        except Exception:  # PIL's and OpenCV's errors have no common class; another check tells them
            continue
        channels = 1 if image.ndim == 2 else image.shape[2]
        if channels != len(mean):
            yield Problem(ERROR, path, f'is read with {channels} channels, and the model takes {len(mean)} '
                          "(data_preprocessor.mean): LoadImageFromFile's color_type='color' reads any image with 3")
            return


# ---------------------------------------------------------------------------- schedule


def check_training(cfg: Config, images: Optional[int]) -> Iterator[Problem]:
    """What would keep a run of this length from learning."""
    loop, batch = cfg.get('train_cfg') or {}, cfg.train_dataloader.get('batch_size', 1)
    epochs, iterations = loop.get('max_epochs'), loop.get('max_iters')
    batch *= int(os.environ.get('WORLD_SIZE', 1))
    if epochs and images:
        iterations = epochs * math.ceil(images / batch)
    schedulers = cfg.get('param_scheduler') or []
    for i, one in enumerate(schedulers if isinstance(schedulers, (list, tuple)) else [schedulers]):
        end = epochs if one.get('by_epoch', True) else iterations
        unit = 'epochs' if one.get('by_epoch', True) else 'iterations'
        last = one.get('end', 0)
        if not end:
            continue
        if one.get('type') in ('LinearLR', 'ConstantLR') and last > 0.5 * end:
            mend = 'take more of them' if one.get('by_epoch', True) else \
                f'write param_scheduler.{i}.end={max(1, end // 10)}, or build on small_data.py'
            yield Problem(WARNING, f'param_scheduler[{i}]', f'warms up for {last} {unit}, and the run has {end}: '
                          f'{mend}')
        behind = [at for at in one.get('milestones', []) if at >= end]
        if behind:
            yield Problem(WARNING, f'param_scheduler[{i}]', f'the milestones {one["milestones"]} lie behind the end of '
                          f'the run, after {end} {unit}: the learning rate does not fall')
    backbone = cfg.model.get('backbone', {})
    starts_anew = not (backbone.get('init_cfg') or cfg.get('load_from') or cfg.get('resume'))
    if backbone.get('norm_eval') and starts_anew:
        yield Problem(WARNING, 'model.backbone', 'norm_eval=True keeps the statistics of BatchNorms that never saw '
                      'images (init_cfg=None): write norm_eval=False to train from scratch')
    if batch == 1 and any(pools_to_a_pixel(cfg.model.get(name)) for name in ('decode_head', 'auxiliary_head')):
        yield Problem(ERROR, 'train_dataloader', 'batch_size=1 leaves the BatchNorms of the pyramid pooling a single '
                      "value in training: take 2 or more, or norm_cfg=dict(type='GN', num_groups=32)")


def pools_to_a_pixel(head: Any) -> bool:
    norm = head.get('norm_cfg') if isinstance(head, Mapping) else None
    return bool(norm) and norm.get('type') in ('BN', 'SyncBN') and 1 in head.get('pool_scales', (1, ) if
                                                                               'PPM' in str(head.get('type')) else ())
