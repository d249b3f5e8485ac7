"""RetinaNet on a frozen ConvNeXt-S of DINOv3 (arXiv 2508.10104): 12 epochs at one scale.

As retinanet_dinov3_convnext_s_1x.py, but that the backbone stays as DINOv3 left it, as in the paper's own
detector, and only neck and heads are trained; without the stochastic depth of a training.
Its weights are under the DINOv3 License (github.com/facebookresearch/dinov3, LICENSE.md), and so is what is
trained from them.

No published result. 8 GPUs x 2 images:

    tools/dist_train.sh configs/mmdet/retinanet_dinov3_convnext_s_frozen.py 8
"""
_base_ = './retinanet_dinov3_convnext_s_1x.py'

model = dict(backbone=dict(frozen_stages=4, drop_path_rate=0.))
