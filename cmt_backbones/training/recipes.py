"""Recipes of CMT classifiers: the official ones (github.com/ggjy/CMT.pytorch, README and train.py) and ours.

The presets `tiny`, `xsmall`, `small` and `base` are the official ImageNet recipes, whose batches are for 8
processes; `finetune` is a recipe of ours, since the paper gives none, and `plain` is one without augmentation.
"""
from types import SimpleNamespace
from typing import Any

from ..models.scaling import scaled_arch

# The official defaults. `model` is a name of timm's registry, in place of CMT of some `arch`; `lr` is for 512 images
# a step and grows with them; `batch_size` is a process's.
RECIPE = dict(
    model='', arch='small', img_size=224, epochs=300, batch_size=128, lr=5e-4, weight_decay=0.05, layer_decay=1.,
    warmup_epochs=20, warmup_lr=1e-6, min_lr=1e-5, cooldown_epochs=10, clip_grad=0., drop_path=0.1,
    drop_rate=0.1, ema=0.99996, repeats=3, smoothing=0.1, mixup=0.8, cutmix=1., color_jitter=0.4,
    auto_augment='rand-m9-mstd0.5-inc1', erasing=0.25, min_scale=0.08, hflip=0.5, vflip=0., crop_pct=0.875)
PRESETS = dict(
    tiny=dict(arch='tiny', img_size=160, epochs=800, batch_size=256, lr=8e-4, warmup_lr=1e-7, ema=0.),
    xsmall=dict(arch='xsmall', img_size=192, epochs=400, batch_size=256, lr=7e-4, weight_decay=0.04,
                drop_path=0.08, min_lr=2e-5, ema=0.9998),
    small=dict(warmup_lr=1e-7),
    base=dict(arch='base', img_size=256, batch_size=64, drop_path=0.25, drop_rate=0.3, min_lr=2e-5),
    finetune=dict(epochs=100, batch_size=64, lr=2e-4, layer_decay=0.85, warmup_epochs=5, cooldown_epochs=0,
                  min_lr=1e-6, ema=0.9998, repeats=1),
    plain=dict(epochs=20, batch_size=32, lr=8e-3, warmup_epochs=1, cooldown_epochs=0, drop_path=0., ema=0.,
               repeats=1, mixup=0., cutmix=0., color_jitter=0., auto_augment='', erasing=0., min_scale=1.,
               hflip=0., crop_pct=1.),
)


def settings(preset: str, phi: Any = None, **given: Any) -> SimpleNamespace:
    """A preset with some settings changed.

    Args:
        preset: One of PRESETS.
        phi: Scales CMT-S, see :func:`~cmt_backbones.models.scaling.scaled_arch`; takes the place of `arch`,
            and gives the `img_size` unless that is given.
        given: Settings of RECIPE, and others, which are passed on.

    Raises:
        ValueError: Mixup and cutmix pair images, and the batch is odd.
    """
    recipe = SimpleNamespace(**{**RECIPE, **PRESETS[preset], **given})
    if phi is not None:
        recipe.arch = scaled_arch(phi)
        recipe.img_size = given.get('img_size', recipe.arch['pretrain_img_size'])
    if recipe.batch_size % 2 and (recipe.mixup or recipe.cutmix):
        raise ValueError(f'mixup and cutmix pair images: --batch-size must be even, not {recipe.batch_size}')
    return recipe
