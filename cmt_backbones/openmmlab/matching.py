"""Whether a checkpoint is of a config, told before its weights are used, in one line.

mmengine 0.10.7 loads what fits and warns of the rest, weight by weight: a test of the wrong checkpoint ends
well, at an AP of 0.
"""
import ast
import re
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor, nn

# What a config of a model says without changing its weights.
NEUTRAL = {'_scope_', 'init_cfg', 'train_cfg', 'test_cfg', 'data_preprocessor', 'drop_path_rate', 'frozen_stages',
           'norm_eval', 'with_cp'}
OF_OPTIMIZERS = {'alpha', 'amsgrad', 'betas', 'centered', 'momentum', 'nesterov', 'rho'}  # one is told by its options


class ConfigError(Exception):
    """Why a config cannot be run; a line for each reason."""


class ModelError(Exception):
    """Why there is no such model, in one line."""


class CheckpointMatches(Hook):
    """Refuses a checkpoint of another config: a ModelError names what differs.

    For a test, the weights and the order of the classes; for ``load_from``, the weights; for a run that
    resumes, the classes and the optimizer, too.

    Args:
        new_head (bool): With ``load_from``, what lies behind backbone and neck may start anew where it does
            not fit, as for other classes.
    """

    priority = 'VERY_LOW'  # EMAHook chooses between two sets of weights before

    def __init__(self, new_head: bool = False) -> None:
        self.new_head = new_head

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        model = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        training = runner._train_loop is not None and not isinstance(runner._train_loop, dict)
        dataset = (runner.train_dataloader if training else runner.test_dataloader).dataset
        classes = getattr(dataset, 'metainfo', {}).get('classes')
        resuming = training and runner._resume
        told = check_weights(model, checkpoint, str(runner._load_from), runner.cfg.get('model', {}), classes,
                             self.new_head and training and not resuming)
        if told:
            runner.logger.warning(told)
        if not training:
            self.check_order(runner, checkpoint, classes)
        elif resuming:
            what = [*class_differences(checkpoint, classes),
                    *optimizer_differences(checkpoint.get('optimizer', {}), runner.optim_wrapper)]
            if what:
                raise ModelError(f'{runner._load_from} is not of this config and cannot be resumed: '
                                 f'{"; ".join(what)}. Give the config it was made by, or start from its weights '
                                 'with --cfg-options load_from=FILE')

    def check_order(self, runner: Runner, checkpoint: dict, classes: Optional[Sequence[str]]) -> None:
        there = classes_of(checkpoint)
        if not there or not classes or list(there) == list(classes):
            return
        if sorted(there) == sorted(classes):
            raise ModelError(f'{runner._load_from} was trained on the same classes in another order: '
                             f'{names(there)}; the test data have {names(classes)}')
        runner.logger.warning(f'{runner._load_from} was trained on {names(there)}, and the test data have '
                              f'{names(classes)}')


def check_weights(model: nn.Module, checkpoint: Mapping, name: str, cfg: Mapping,
                  classes: Optional[Sequence[str]] = None, new_head: bool = False) -> str:
    """Raises ModelError for a checkpoint whose weights do not fill a model, or are of a deeper one.

    Args:
        checkpoint: As mmengine saves it, or weights alone. Where a head starts anew, the weights that it
            has now take the place of those in the checkpoint.
        name: Of the file.
        cfg: Of the model.
        classes: Of the data.
        new_head: Whether what lies behind backbone and neck may start anew.

    Returns:
        str: What starts anew, or nothing.
    """
    weights = checkpoint.get('state_dict', checkpoint)
    bare = {re.sub(r'^module\.', '', key): value for key, value in weights.items()}
    # Files from before PyTorch 0.4.1 count no batches.
    counted = {key for key in bare if key.endswith('num_batches_tracked')}
    wanted = {key: value for key, value in model.state_dict().items()
              if key in counted or not key.endswith('num_batches_tracked')}
    wrong = [key for key, value in wanted.items() if getattr(bare.get(key), 'shape', None) != value.shape]
    surplus = [key for key in bare if key not in wanted and is_of_a_stage(key, model)]
    anew = [key for key in wrong if not key.startswith(('backbone.', 'neck.'))] if new_head else []
    if len(wrong) == len(anew) and not surplus:
        weights.update({key: wanted[key] for key in anew})
        return '' if not anew else (f'{len(anew)} of {len(wanted)} weights start anew, since {name} has none of '
                                    f'their shape: {anew[0]}{more(anew)}')
    if not any(key.startswith('backbone.') for key in bare) and 'backbone' in cfg:
        raise ModelError(f'{name} has no weights of a whole model. If it is the file of a backbone, give it as '
                         "model.backbone.init_cfg=dict(type='Pretrained', checkpoint=FILE)")
    what = list(model_differences(checkpoint, cfg)) + class_differences(checkpoint, classes)
    if not what:
        key = (wrong or surplus)[0]
        what = [f'{key} is {shape(bare.get(key))} there and {shape(wanted.get(key))} here']
    hint = 'Give the config it was made by'
    if all(not key.startswith(('backbone.', 'neck.')) for key in wrong) and not surplus:
        hint += ', or, to train another head on its backbone and neck, --new-head'
    raise ModelError(f'{name} is not of this config: {len(wrong) or len(surplus)} of {len(wanted)} weights are '
                     f'not in {"it" if wrong else "the model"} or have another shape; {"; ".join(what)}. {hint}')


def is_of_a_stage(key: str, model: nn.Module) -> bool:
    """Whether a weight is of a stage that the model has: without it, the model would be a part of another."""
    stage = re.match(r'backbone\.(stages\.\d+|layer\d+)\.', key)
    return stage is not None and any(name == stage[0][:-1] for name, _ in model.named_modules())


def shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else 'missing'


def more(found: Sequence) -> str:
    return f' and {len(found) - 1} more' if len(found) > 1 else ''


def names(classes: Sequence[str]) -> str:
    return f'{len(classes)} classes ({", ".join(classes[:3])}{", ..." if len(classes) > 3 else ""})'


def classes_of(checkpoint: Mapping) -> Optional[Sequence[str]]:
    meta = (checkpoint.get('meta') or {}).get('dataset_meta') or {}
    return meta.get('classes', meta.get('CLASSES'))


def class_differences(checkpoint: Mapping, classes: Optional[Sequence[str]]) -> List[str]:
    there = classes_of(checkpoint)
    if not there or not classes or list(there) == list(classes):
        return []
    return [f'{names(there)} there, {names(classes)} here']


def model_differences(checkpoint: Mapping, cfg: Mapping, at_most: int = 3) -> Iterator[str]:
    """Where the config in a checkpoint says something else of the model, the backbone's arch first."""
    there = written_config(str((checkpoint.get('meta') or {}).get('cfg', ''))).get('model', {})
    found = list(differences(there, cfg, 'model')) if there else []
    found.sort(key=lambda item: not item[0].startswith('model.backbone'))
    for path, one, other in found[:at_most]:
        yield f'{path} is {one} there and {other} here'


def differences(one: Any, other: Any, path: str) -> Iterator[Tuple[str, str, str]]:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in [*one, *(key for key in other if key not in one)]:
            if key not in NEUTRAL:
                yield from differences(one.get(key), other.get(key), f'{path}.{key}')
    elif isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        for i, pair in enumerate(zip(one, other)):
            yield from differences(*pair, f'{path}[{i}]')
    elif one != other:
        yield path, brief(one), brief(other)


def brief(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a {value['type']}" if 'type' in value else 'a dict'
    return 'not set' if value is None else repr(value)


def written_config(text: str) -> Dict[str, Any]:
    """The values of a config that mmengine wrote, read without running it; of what is not plain, nothing."""
    found = {}
    try:
        for statement in ast.parse(text).body:
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                found[statement.targets[0].id] = plain(statement.value)
    except (SyntaxError, ValueError):
        return {}
    return found


def plain(node: ast.AST) -> Any:
    """A literal, or calls of ``dict`` with keywords around such."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict':
        return {keyword.arg: plain(keyword.value) for keyword in node.keywords}
    if isinstance(node, (ast.List, ast.Tuple)):
        items = [plain(item) for item in node.elts]
        return items if isinstance(node, ast.List) else tuple(items)
    if isinstance(node, ast.Dict):
        return {plain(key): plain(value) for key, value in zip(node.keys, node.values) if key is not None}
    return ast.literal_eval(node)


def optimizer_differences(saved: Mapping, wrapper: Any) -> List[str]:
    """What keeps an optimizer from going on with what another one kept."""
    if not isinstance(wrapper, OptimWrapper) or 'param_groups' not in saved:
        return []
    there, here = saved['param_groups'], wrapper.param_groups
    options = [OF_OPTIMIZERS & set(groups[0]) for groups in (there, here)]
    if options[0] != options[1]:
        return [f'the optimizer there has {", ".join(sorted(options[0]))}, '
                f'{type(wrapper.optimizer).__name__} has {", ".join(sorted(options[1])) or "none of them"}']
    if len(there) != len(here):
        return [f'the optimizer has {len(there)} groups of parameters there and {len(here)} here (paramwise_cfg, '
                'layer decay)']
    sizes = [[len(group['params']) for group in groups] for groups in (there, here)]
    if sizes[0] != sizes[1]:
        return [f'the optimizer has {sum(sizes[0])} parameters there and {sum(sizes[1])} here (frozen_stages with '
                'paramwise_cfg)']
    return []
