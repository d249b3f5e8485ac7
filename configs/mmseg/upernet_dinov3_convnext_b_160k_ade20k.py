"""UperNet with ConvNeXt-B of DINOv3 (arXiv 2508.10104) on ADE20K: 512x512, 160k iterations.

The recipe is that of upernet_convnext_b_160k_ade20k.py, so that the two differ in where they start.
Its weights are under the DINOv3 License (github.com/facebookresearch/dinov3, LICENSE.md), and so is what is
trained from them.

No published result. 8 GPUs x 2 images:

    tools/dist_train.sh configs/mmseg/upernet_dinov3_convnext_b_160k_ade20k.py 8
"""
_base_ = './upernet_convnext_b_160k_ade20k.py'

checkpoint = 'hf-hub:timm/convnext_base.dinov3_lvd1689m'  # or Meta's own file, which has the same weights
model = dict(backbone=dict(init_cfg=dict(checkpoint=checkpoint)))
