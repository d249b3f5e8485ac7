"""Which layer a parameter belongs to, for learning rates that decay with depth (training/layer_decay.py)."""
from typing import Sequence


def cmt_num_layers(depths: Sequence[int], decay_type: str) -> int:
    """The layer of the last stage, which the other stages count up to."""
    return 3 if decay_type == 'stage_wise' else 2 + -(-depths[2] // 3)


def cmt_layer_of(name: str, depths: Sequence[int], decay_type: str) -> int:
    """The layer of a parameter, after the rules of ConvNeXt; CMT's own recipes have none.

    Stage-wise, each stage is a layer. Layer-wise, every three blocks of the third stage are one.
    The stem lies with the first stage, a patch aggregation with the block that it feeds, and a bias
    table with the first of the blocks that share it.

    Args:
        name (str): The parameter's name within the backbone.
        depths (Sequence[int]): The blocks of each stage.
        decay_type (str): ``'layer_wise'`` or ``'stage_wise'``.
    """
    kind, *rest = name.split('.')
    if kind not in ('stem', 'stages'):  # what a subclass adds behind the stages
        return cmt_num_layers(depths, decay_type) + 1
    stage = int(rest[0]) if kind == 'stages' else 0
    if decay_type == 'stage_wise' or stage < 2:
        return stage
    block = int(rest[2]) if rest[1] == 'blocks' else 0
    return 2 + block // 3 if stage == 2 else cmt_num_layers(depths, decay_type)


def convnext_num_layers(depths: Sequence[int]) -> int:
    """6, or 12 where the third stage has more than 9 blocks, as in all official recipes.

    More than 27 blocks, which no official arch has, make more layers.
    """
    return 6 if depths[2] <= 9 else max(12, 3 + -(-depths[2] // 3))


def convnext_layer_of(name: str, depths: Sequence[int], decay_type: str) -> int:
    """The layer of a parameter, by the official rules.

    Those are in the official mmcv_custom/layer_decay_optimizer_constructor.py. Layer-wise, 0 is the
    stem, 1 the first stage, 2 the second with the downsampling before it, then follow the blocks of
    the third stage in threes, and the last stage. Stage-wise, all downsampling shares layer 0 with
    the stem, so that it learns more slowly than the stages before it: a quirk, kept because the
    official results have it.

    Args:
        name (str): The parameter's name within the backbone.
        depths (Sequence[int]): The blocks of each stage.
        decay_type (str): ``'layer_wise'`` or ``'stage_wise'``.
    """
    kind, *rest = name.split('.')
    last = convnext_num_layers(depths)
    if kind not in ('downsample_layers', 'stages'):  # such as norm0
        return last + 1
    stage, is_block = int(rest[0]), kind == 'stages'
    if decay_type == 'stage_wise':
        return stage + 1 if is_block else 0
    if stage == 0:
        return 1 if is_block else 0
    block = int(rest[1]) if is_block else 0
    return (1, 2, 3 + block // 3, last)[stage]
