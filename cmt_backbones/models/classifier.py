"""The ImageNet classifiers of CMT, in timm's registry.

``import cmt_backbones.classifier`` makes ``timm.create_model('cmt_small')`` work. A classifier is the
backbone and the official head, so that what it learned goes into a detector's ``init_cfg`` as it is.
"""
from typing import Any, Dict, List, Mapping, Optional, Sequence, Set, Tuple, Union

from mmengine.logging import print_log
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import SelectAdaptivePool2d
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from timm.models._manipulate import adapt_input_conv
from torch import Tensor, nn

from ..weights import StateDict, WeightsNotFound, convert, depths, fit, read_checkpoint, resize_table, tensors_of
from . import folding
from .cmt import ARCHS, CMT, STRIDES, init_module
from .options import choose_arch

HEAD_WIDTH = 1280
POOLS = ('avg', 'max', 'avgmax', 'catavgmax', '')


class CMTClassifier(CMT):
    """CMT with the official head: a 1x1 convolution to 1280, BatchNorm, swish, pool, dropout, linear.

    Args:
        arch (str | dict): As of :class:`~cmt_backbones.CMT`.
        num_classes (int): Logits; 0 for none, the pooled features then.
        in_chans (int): Channels of the images.
        img_size (int, optional): Resolution whose grids the bias tables have, the arch's own if left
            out. Tables of a checkpoint are resized to it as it loads, by any of timm's ways; images of any
            size are accepted either way.
        global_pool (str): ``'avg'``, ``'max'``, ``'avgmax'``, ``'catavgmax'``, or ``''`` for no pooling,
            without classes only.
        drop_rate (float): Dropout before the last layer.
        drop_path_rate (float): Stochastic depth of the last block.
        kwargs: Others of :class:`~cmt_backbones.CMT`, such as ``bias_interpolation``.
    """

    def __init__(self,
                 arch: Union[str, Mapping] = 'small',
                 num_classes: int = 1000,
                 in_chans: int = 3,
                 img_size: Union[int, Tuple[int, int], None] = None,
                 global_pool: str = 'avg',
                 drop_rate: float = 0.1,
                 drop_path_rate: float = 0.,
                 **kwargs: Any) -> None:
        arch = choose_arch(arch, ARCHS)
        if img_size is not None:
            arch['pretrain_img_size'] = square_side(img_size)
        super().__init__(arch, drop_path_rate=drop_path_rate, in_channels=in_chans, **kwargs)
        self.num_features = self.embed_dims[-1]  # of forward_features
        self.feature_info = [dict(num_chs=dim, reduction=stride, module=f'stages.{i}')
                             for i, (dim, stride) in enumerate(zip(self.embed_dims, STRIDES))]
        self.head = Head(self.num_features, drop_rate)
        self.head.apply(init_module)
        self.reset_classifier(num_classes, global_pool)
        self._register_load_state_dict_pre_hook(adapt_state, with_module=True)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W), H and W of at least 32, to logits (N, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """The last stage's map (N, num_features, ceil(H / 32), ceil(W / 32))."""
        return super().forward(x)[-1]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """That map to logits, or to what the last layer would get (N, 1280)."""
        return self.head(x, pre_logits)

    def forward_intermediates(self,
                              x: Tensor,
                              indices: Union[int, Sequence[int], None] = None,
                              norm: bool = False,
                              stop_early: bool = False,
                              output_fmt: str = 'NCHW',
                              intermediates_only: bool = False
                              ) -> Union[List[Tensor], Tuple[Tensor, List[Tensor]]]:
        """Maps of some stages, in their order; with the last one's, unless those are enough.

        The arguments are timm's. The maps have no norms, and `stop_early` is what
        :meth:`prune_intermediate_layers` is for.
        """
        if output_fmt != 'NCHW':
            raise ValueError(f"output_fmt must be 'NCHW', not {output_fmt!r}")
        chosen, _ = feature_take_indices(len(self.stages), indices)
        maps = super().forward(x)
        intermediates = [maps[i] for i in sorted(chosen)]
        return intermediates if intermediates_only else (maps[-1], intermediates)

    def prune_intermediate_layers(self, indices: Union[int, Sequence[int]] = 1, prune_norm: bool = False,
                                  prune_head: bool = True) -> List[int]:
        """Removes the stages behind the last of `indices`, and the head; returns the indices."""
        chosen, last = feature_take_indices(len(self.stages), indices)
        del self.stages[last + 1:]
        self.out_indices = tuple(range(last + 1))
        if prune_head:
            self.reset_classifier(0, '')
            self.head = nn.Identity()
        return chosen

    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: Optional[str] = None) -> None:
        """A new last layer, or with 0 classes none, and optionally another pooling."""
        pool = self.head.pool.pool_type if global_pool is None else global_pool
        if pool not in POOLS:
            raise ValueError(f'global_pool must be one of {POOLS}, not {pool!r}')
        if num_classes > 0 and not pool:
            raise ValueError("global_pool='' leaves a map, which the last layer cannot take: num_classes "
                             f'must be 0 then, not {num_classes}')
        self.num_classes = num_classes
        self.head.pool = SelectAdaptivePool2d(pool_type=pool, flatten=bool(pool))
        self.head_hidden_size = HEAD_WIDTH * self.head.pool.feat_mult()  # of what goes into the last layer
        self.head.fc = nn.Linear(self.head_hidden_size, num_classes) if num_classes > 0 else nn.Identity()
        self.head.fc.apply(init_module)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.with_cp = enable

    def group_matcher(self, coarse: bool = False) -> Dict[str, object]:
        """For timm: each block is a layer, or with `coarse` each stage; what feeds a block is with it."""
        return dict(stem=r'^stem', blocks=r'^stages\.(\d+)' if coarse else [
            (r'^stages\.(\d+)\.(?:patch_aggregation|norm|relative_bias)', (0, )),
            (r'^stages\.(\d+)\.blocks\.(\d+)', None)])

    def no_weight_decay(self) -> Set[str]:
        """Nothing but what timm leaves out, norms and offsets, as in the official recipe.

        Bias tables start as noise of unit variance, and weight decay is what takes it away.
        """
        return set()

    def load_pretrained(self, checkpoint: str, new_head: bool = True) -> None:
        """Fills the classifier from a file, URL or hub, in any layout of :mod:`cmt_backbones.weights`.

        Args:
            checkpoint (str): An official classifier, one of ours, or a detector's backbone.
            new_head (bool): For fine-tuning: a last layer for other classes, or a head that the file
                has not, starts anew, and the log says so. Else every weight must be filled.

        Raises:
            ValueError: If the file does not fill the classifier, which then is as it was.
        """
        try:
            self.fill(read_checkpoint(checkpoint), checkpoint, new_head)
        except ValueError as error:
            kind = WeightsNotFound if isinstance(error, OSError) else ValueError
            raise kind(f'cannot load {checkpoint!r} into the classifier: {error}') from error

    def fill(self, state: StateDict, source: str, new_head: bool = True) -> None:
        """As :meth:`load_pretrained`, from weights in any layout; `source` is their name in the log."""
        wanted = self.state_dict()
        state, layout = convert(state)
        if layout.family != 'CMT':
            raise ValueError(f'it looks like {layout.name}')
        anew = unfilled(state, wanted) if new_head else ()
        filled = {k: v for k, v in wanted.items() if not k.startswith(tuple(anew))}
        stem = 'stem.layers.0.weight'
        if stem in state and state[stem].shape[1] == 3 != self.in_channels:
            state[stem] = adapt_input_conv(self.in_channels, state[stem])
        state, notes = fit(state, filled, layout)
        self.load_state_dict({**wanted, **state})
        notes += [f'{name}* starts anew' for name in anew]
        print_log(f'{source}: {layout.name}, {len(state)} of {len(wanted)} weights filled'
                  + ''.join(f'; {note}' for note in notes), logger='current')

    def fold(self) -> None:
        super().fold()
        if isinstance(self.head, Head):  # not pruned
            folding.fold_norm_after(self.head.conv, self.head.norm)
            self.head.norm = nn.Identity()


class Head(nn.Module):
    """Widen, pool, classify; the pool and the last layer are :meth:`CMTClassifier.reset_classifier`'s."""

    def __init__(self, channels: int, drop_rate: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, HEAD_WIDTH, 1)
        self.norm = nn.BatchNorm2d(HEAD_WIDTH)
        self.act = nn.SiLU()
        self.pool = SelectAdaptivePool2d(pool_type='avg', flatten=True)
        self.drop = nn.Dropout(drop_rate)
        self.fc = nn.Identity()

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.act(self.norm(self.conv(x)))  # (N, 1280, H, W)
        x = self.drop(self.pool(x))  # (N, 1280)
        return x if pre_logits else self.fc(x)


def square_side(img_size: Union[int, Sequence[int]]) -> int:
    """The side of a square image, given as timm gives it."""
    sides = (img_size, ) if isinstance(img_size, int) else tuple(img_size)
    if len(set(sides)) != 1:
        raise ValueError('img_size is the side of the square that the bias tables are for, not '
                         f'{img_size!r}; images of any size are accepted without it')
    return sides[0]


def unfilled(state: StateDict, wanted: StateDict) -> Tuple[str, ...]:
    """The beginning of the names of those weights of the head that a file has not."""
    if 'head.conv.weight' not in state:
        return ('head.', )
    fc = 'head.fc.weight'
    fits = fc not in wanted or fc in state and state[fc].shape == wanted[fc].shape
    return () if fits else ('head.fc.', )


def adapt_state(model: CMTClassifier, state: StateDict, prefix: str, metadata: dict, strict: bool,
                *errors: list) -> None:
    """Official names and tables of another resolution, as ``load_state_dict`` meets them.

    That is what timm's ``checkpoint_path`` and ``load_checkpoint`` end in; all else is PyTorch's own check.
    """
    if prefix and strict and not any(key.startswith(prefix) for key in state):
        raise ValueError('timm loads a checkpoint_path into the wrapper of features_only, whose names no file has: '
                         'use pretrained=True, pretrained_cfg_overlay=dict(file=...) instead')
    official = f'{prefix}patch_embed_a.proj.weight' in state
    if official:
        ours, _ = convert({key[len(prefix):]: state.pop(key) for key in list(state) if key.startswith(prefix)})
        state.update((prefix + key, value) for key, value in ours.items())
    for name, wanted in model.named_parameters():
        if name.endswith('relative_bias.table') and prefix + name in state:
            state[prefix + name] = resize_table(state[prefix + name], wanted.shape)


def arch_of(state: StateDict) -> dict:
    """The ``arch`` that some weights, under our names, belong to."""
    dims = tuple(state[f'stages.{i}.patch_aggregation.weight'].shape[0] for i in range(4))
    hidden = state['stages.3.blocks.0.ffn.expand.weight'].shape[0]
    return dict(stem_channels=state['stem.layers.0.weight'].shape[0], embed_dims=dims, depths=depths(state),
                mlp_ratio=(hidden + 0.5) / dims[3],  # the hidden width is the ratio's, rounded down
                pretrain_img_size=STRIDES[0] * round(state['stages.0.relative_bias.table'].shape[1]**.5))


# ---------------------------------------------------------------------------- timm's registry


def _cfg(file: str, img_size: int) -> dict:
    url = f'https://github.com/ggjy/CMT.pytorch/releases/download/release-v1/{file}'
    return dict(url=url, custom_load=True, num_classes=1000, input_size=(3, img_size, img_size),
                pool_size=(img_size // 32, ) * 2, crop_pct=0.875, interpolation='bicubic',
                mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD,
                first_conv='stem.layers.0', classifier='head.fc')


default_cfgs = generate_default_cfgs({
    'cmt_tiny.in1k': _cfg('cmt_tiny.pth', 160),
    'cmt_xsmall.in1k': _cfg('cmt_xs.pth', 192),
    'cmt_small.in1k': _cfg('cmt_small.pth', 224),
    'cmt_base.in1k': _cfg('cmt_base.pth', 256),
})


def _create(variant: str, pretrained: bool, pretrained_cfg_overlay: Optional[Mapping] = None,
            **kwargs: Any) -> nn.Module:
    overlay = dict(pretrained_cfg_overlay or {})
    if overlay.get('file') or overlay.get('url'):  # for these timm would read the file itself, and by halves
        overlay.setdefault('custom_load', True)
    return build_model_with_cfg(CMTClassifier, variant, pretrained, pretrained_cfg_overlay=overlay,
                                pretrained_filter_fn=filled_by_timm,
                                feature_cfg=dict(out_indices=(0, 1, 2, 3), feature_cls='getter'), **kwargs)


def filled_by_timm(state: StateDict, model: CMTClassifier) -> StateDict:
    """What timm is to load of a state dict, local folder or hub: the model's own, which this fills.

    timm itself would drop what does not fit.
    """
    try:
        state = tensors_of(state)
        stem = convert(state)[0].get('stem.layers.0.weight')
        model.fill(state, "timm's weights")
    except ValueError as error:
        raise ValueError(f"cannot load timm's weights into the classifier: {error}") from error
    filled = dict(model.state_dict())
    if stem is not None and stem.shape[1] == 3:
        filled['stem.layers.0.weight'] = stem  # whose channels timm adapts after this
    return filled


@register_model
def cmt_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """CMT-Ti; officially 79.0% of ImageNet's top-1 at 160x160."""
    return _create('cmt_tiny', pretrained, **{'arch': 'tiny', **kwargs})


@register_model
def cmt_xsmall(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """CMT-XS; officially 81.8% at 192x192."""
    return _create('cmt_xsmall', pretrained, **{'arch': 'xsmall', **kwargs})


@register_model
def cmt_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """CMT-S; officially 83.5% at 224x224."""
    return _create('cmt_small', pretrained, **{'arch': 'small', **kwargs})


@register_model
def cmt_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """CMT-B; officially 84.5% at 256x256."""
    return _create('cmt_base', pretrained, **{'arch': 'base', 'drop_rate': 0.3, **kwargs})
