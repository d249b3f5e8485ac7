"""Config and checkpoint of a small detector of each structure, with weights that find something."""
import torch
from torch import nn

import small_models
import tool
from cmt_backbones.openmmlab.inference import build_model, read_config

BASES = dict(retinanet='mmdet/_base_/retinanet_convnext.py', faster_rcnn='mmdet::_base_/models/faster-rcnn_r50_fpn.py',
             mask_rcnn='mmdet/_base_/mask_rcnn_cmt.py',
             cascade_mask_rcnn='mmdet/_base_/cascade_mask_rcnn_convnext.py')
TEXT = """
_base_ = [{base!r}, '{root}/configs/mmdet/_base_/coco_inst_1x.py']
model = {model!r}
metainfo = dict(classes={classes!r})
test_pipeline = [
    dict(type='LoadImageFromFile'), dict(type='Resize', scale=(128, 96), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask={masks}),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))]
test_dataloader = dict(batch_size=1, num_workers=0, persistent_workers=False, dataset=dict(
    metainfo=metainfo, pipeline=test_pipeline))
"""
CLASSES = ('ellipse', 'rectangle', 'triangle', 'star', 'cross')  # of the drawn scenes


def settle(model: nn.Module) -> nn.Module:
    """Gives BatchNorms running averages, as training does: folding must show. Then scores that differ."""
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)):
            nn.init.normal_(module.running_mean, std=.2)
            nn.init.uniform_(module.running_var, .5, 2)
    for name, module in model.named_modules():
        if name.endswith(('retina_cls', 'rpn_cls', 'fc_cls')):
            nn.init.normal_(module.weight, std=.02 if name.endswith('retina_cls') else .1)
        if name.endswith(('retina_reg', 'rpn_reg')):
            nn.init.normal_(module.weight, std=.005)
    return model.eval()


def box_head(base: dict, classes: int) -> dict:
    return dict(in_channels=16, fc_out_channels=16, num_classes=classes, **base)


def settings(structure: str, backbone: str) -> dict:
    """What a small model changes in the base config of its structure."""
    retina = structure == 'retinanet'
    model = dict(
        backbone=dict(_delete_=True, type=backbone, arch=small_models.ARCHS[backbone],
                      out_indices=(1, 2, 3) if retina else (0, 1, 2, 3)),
        neck=dict(in_channels=[8, 16, 32, 64][retina:], out_channels=16))
    test = dict(score_thr=.05, max_per_img=20)
    if retina:
        head = dict(in_channels=16, feat_channels=16, stacked_convs=1, num_classes=len(CLASSES))
        return dict(model, bbox_head=head, test_cfg=dict(nms_pre=200, **test))
    boxes = dict(in_channels=16, fc_out_channels=16, num_classes=len(CLASSES))
    roi_head = dict(bbox_roi_extractor=dict(out_channels=16), bbox_head=boxes)
    if 'mask' in structure:
        roi_head.update(
            mask_roi_extractor=dict(out_channels=16),
            mask_head=dict(in_channels=16, conv_out_channels=16, num_convs=1, num_classes=len(CLASSES)))
    if structure.startswith('cascade'):
        roi_head['bbox_head'] = [dict(
            type='ConvFCBBoxHead', num_shared_convs=1, num_shared_fcs=1, conv_out_channels=16, roi_feat_size=7,
            bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0.] * 4, target_stds=[s, s, 2 * s, 2 * s]),
            reg_class_agnostic=False, reg_decoded_bbox=True, norm_cfg=dict(type='SyncBN', requires_grad=True),
            loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.),
            loss_bbox=dict(type='GIoULoss', loss_weight=10.), **boxes) for s in (.1, .05, .033)]
    return dict(model, rpn_head=dict(in_channels=16, feat_channels=16), roi_head=roi_head,
                test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=50), rcnn=test))


def detector(folder, structure: str, backbone: str, seed: int = 0) -> tuple[str, str]:
    """The paths of a config and a checkpoint, written to a folder."""
    base = BASES[structure] if '::' in BASES[structure] else str(tool.ROOT / 'configs' / BASES[structure])
    config, weights = folder / f'{structure}_{backbone}.py', folder / f'{structure}_{backbone}.pth'
    config.write_text(TEXT.format(base=base, root=tool.ROOT, model=settings(structure, backbone), classes=CLASSES,
                                  masks='mask' in structure))
    torch.manual_seed(seed)
    model = settle(build_model(read_config(config)))
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=CLASSES))), weights)
    return str(config), str(weights)
