"""Learning rates that decay with depth: what lies nearer to the image learns more slowly.

The recipes of ConvNeXt need it (arXiv 2201.03545, A.3). A backbone says itself which of its layers
a parameter belongs to. Layers are numbered from the image on, from 0 to ``num_layers``; what comes
after them (output norms, neck, heads) is layer ``num_layers + 1``, at the full rate.
"""
from typing import Dict, List, Optional, Protocol, Sequence, Tuple, Union, runtime_checkable

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from ..registration import register

KEYS = {'decay_rate', 'decay_type', 'num_layers', 'custom_keys'}
CUSTOM_KEYS = {'lr_mult', 'decay_mult'}
DECAY_TYPES = ('layer_wise', 'stage_wise')


@runtime_checkable
class Layered(Protocol):
    """A backbone that knows its layers, as ours do."""

    def num_layers(self, decay_type: str) -> int:
        """The number of the last layer."""

    def layer_of(self, name: str, decay_type: str) -> int:
        """The layer, 0 to ``num_layers + 1``, of the parameter of this name within the backbone."""


@register(OPTIM_WRAPPER_CONSTRUCTORS, 'cmt_backbones.LayerDecayOptimWrapperConstructor')
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Gives a parameter of layer i ``lr * decay_rate ** (num_layers + 1 - i)``.

    Finds the backbones wherever they are in a model, inside DDP too. One-dimensional parameters
    (norms, layer scales), biases and CMT's bias tables have no weight decay, in the whole model.

    Args:
        optim_wrapper_cfg (dict): With an ``optimizer`` that has an ``lr``.
        paramwise_cfg (dict): With the keys

            - ``decay_rate`` (float): Above 0, at most 1.
            - ``decay_type`` (str): ``'layer_wise'`` (the default) or ``'stage_wise'``.
            - ``num_layers`` (int, optional): Follows from the backbone's depths. Recipes for
              mmdet's constructor give it; here it is only checked.
            - ``custom_keys`` (dict, optional): ``{part of a name: dict(lr_mult=...,
              decay_mult=...)}``. Of the keys that a parameter's name contains, the longest counts.
              ``lr_mult`` multiplies what the layer gives; ``decay_mult`` multiplies the
              optimizer's weight decay and overrides the rule above.

    Raises:
        ValueError: For other keys or values, and for a model without a backbone of ours.

    Examples:
        >>> optim_wrapper = dict(
        ...     type='AmpOptimWrapper',
        ...     optimizer=dict(type='AdamW', lr=2e-4, weight_decay=.05),
        ...     constructor='cmt_backbones.LayerDecayOptimWrapperConstructor',
        ...     paramwise_cfg=dict(decay_rate=.7))
    """

    def _validate_cfg(self) -> None:
        super()._validate_cfg()
        cfg = self.paramwise_cfg
        unknown = sorted(set(cfg) - KEYS)
        if unknown:
            raise ValueError(f'paramwise_cfg has unknown keys {unknown}; known: {sorted(KEYS)}')
        rate, kind = cfg.get('decay_rate'), cfg.get('decay_type', DECAY_TYPES[0])
        if not isinstance(rate, (int, float)) or not 0 < rate <= 1:
            raise ValueError("paramwise_cfg['decay_rate'] must be above 0 and at most 1, "
                             f'not {rate!r}')
        if kind not in DECAY_TYPES:
            raise ValueError(f"paramwise_cfg['decay_type'] must be one of {DECAY_TYPES}, "
                             f'not {kind!r}')
        for key, mults in cfg.get('custom_keys', {}).items():
            if not isinstance(mults, dict) or not set(mults) <= CUSTOM_KEYS:
                raise ValueError(f"paramwise_cfg['custom_keys'][{key!r}] must be a dict of some of "
                                 f'{sorted(CUSTOM_KEYS)}, not {mults!r}')
        if self.base_lr is None:
            raise ValueError('layer decay multiplies the learning rate: the optimizer needs an lr')

    def add_params(self, params: List[dict], module: nn.Module, prefix: str = '',
                   is_dcn_module: Union[int, float, None] = None) -> None:
        """Appends the parameter groups of a model to `params`, each trainable parameter in one."""
        rate = self.paramwise_cfg['decay_rate']
        kind = self.paramwise_cfg.get('decay_type', DECAY_TYPES[0])
        below_heads = layers_below_heads(module, kind, self.paramwise_cfg.get('num_layers'))
        groups: Dict[Tuple[float, Optional[float]], dict] = {}
        first_names = []
        for name, param in module.named_parameters():
            if not param.requires_grad:
                continue
            custom = self.custom(name)
            lr = self.base_lr * custom.get('lr_mult', 1) * rate**below_heads.get(param, 0)
            group = dict(params=[], lr=lr)
            if 'decay_mult' in custom:
                group['weight_decay'] = self.base_wd * custom['decay_mult']
            elif not decays(name, param):
                group['weight_decay'] = 0.
            elif self.base_wd is not None:
                group['weight_decay'] = self.base_wd
            key = (lr, group.get('weight_decay'))
            if key not in groups:
                groups[key] = group
                first_names.append(name)
            groups[key]['params'].append(param)

        # Highest rate first: mmengine logs that of the first group, and the rate of a stem, many
        # times lower, reads as a mistake.
        ordered = sorted(zip(groups.values(), first_names), key=lambda pair: -pair[0]['lr'])
        params.extend(group for group, _ in ordered)
        print_log(f'{kind} decay of the learning rate by {rate}:\n{table(ordered)}',
                  logger='current')

    def custom(self, name: str) -> dict:
        """The multipliers of the longest custom key in a name, of equals the first by alphabet."""
        keys = self.paramwise_cfg.get('custom_keys', {})
        matching = sorted((key for key in keys if key in name), key=lambda key: (-len(key), key))
        return keys[matching[0]] if matching else {}


def layers_below_heads(model: nn.Module, decay_type: str,
                       given: Optional[int] = None) -> Dict[nn.Parameter, int]:
    """How many layers below the heads each parameter of a backbone is; 0 is at their rate.

    Raises:
        ValueError: If there is no backbone, or one whose number of layers is not the `given`.
    """
    below = {}
    for module in model.modules():  # a wrapper that passes for what it wraps comes first, and loses
        if not isinstance(module, Layered):
            continue
        last = module.num_layers(decay_type)
        if given not in (None, last):
            raise ValueError(f"paramwise_cfg['num_layers'] = {given} does not fit this "
                             f'{type(module).__name__}, which has {last} ({decay_type}); '
                             'leave it out')
        for name, param in module.named_parameters():
            below[param] = last + 1 - module.layer_of(name, decay_type)
    if not below:
        raise ValueError(f'{type(model).__name__} has no backbone of cmt_backbones, whose layers '
                         "could decay: use type='CMT' or type='ConvNeXt' (mmpretrain.ConvNeXt is "
                         'another), or leave out the constructor')
    return below


def decays(name: str, param: nn.Parameter) -> bool:
    """Whether weight decay is meant for a parameter: for matrices and kernels."""
    return param.dim() > 1 and not name.endswith(('.bias', 'relative_bias.table'))


def table(groups: Sequence[Tuple[dict, str]]) -> str:
    """Parameter groups, each with the name of its first parameter, as lines to read."""
    lines = [f'{"lr":>10}{"weight decay":>14}{"parameters":>13}  from']
    for group, name in groups:
        size = sum(param.numel() for param in group['params'])
        decay = group.get('weight_decay', 'default')
        lines.append(f'{group["lr"]:10.3g}{decay:>14}{size:13,}  {name}')
    return '\n'.join(lines)
