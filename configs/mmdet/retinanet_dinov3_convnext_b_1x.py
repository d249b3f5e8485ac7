"""RetinaNet with ConvNeXt-B of DINOv3 (arXiv 2508.10104): 12 epochs at one scale, all of it trained.

The recipe is that of retinanet_convnext_b_1x.py, so that the two differ in where they start alone.
Its weights are under the DINOv3 License (github.com/facebookresearch/dinov3, LICENSE.md), and so is what is
trained from them.

No published result. LightlyTrain reports 58.6 box AP for its LT-DETR, another detector and a longer
training, on this backbone (docs.lightly.ai/train, 0.12). 8 GPUs x 2 images:

    tools/dist_train.sh configs/mmdet/retinanet_dinov3_convnext_b_1x.py 8
"""
_base_ = './retinanet_convnext_b_1x.py'

checkpoint = 'hf-hub:timm/convnext_base.dinov3_lvd1689m'  # or Meta's own file, which has the same weights
model = dict(backbone=dict(init_cfg=dict(checkpoint=checkpoint)))
