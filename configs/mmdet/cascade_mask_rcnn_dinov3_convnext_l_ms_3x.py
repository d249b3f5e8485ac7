"""Cascade Mask R-CNN with ConvNeXt-L of DINOv3 (arXiv 2508.10104): 36 epochs at many scales.

The recipe is the official one of ConvNeXt-L, cascade_mask_rcnn_convnext_l_ms_3x.py, from another start.
Its weights are under the DINOv3 License (github.com/facebookresearch/dinov3, LICENSE.md), and so is what is
trained from them.

No published result. LightlyTrain reports 60.0 box AP for its LT-DETR, another detector and a longer
training, on this backbone (docs.lightly.ai/train, 0.12). 8 GPUs x 2 images:

    tools/dist_train.sh configs/mmdet/cascade_mask_rcnn_dinov3_convnext_l_ms_3x.py 8
"""
_base_ = './cascade_mask_rcnn_convnext_l_ms_3x.py'

checkpoint = 'hf-hub:timm/convnext_large.dinov3_lvd1689m'  # or Meta's own file, which has the same weights
model = dict(backbone=dict(init_cfg=dict(checkpoint=checkpoint)))
