"""A linear layer on a frozen ConvNeXt-S of DINOv3 (arXiv 2508.10104) on ADE20K: 512x512, 40k iterations.

Its weights are under the DINOv3 License (github.com/facebookresearch/dinov3, LICENSE.md), and so is what is
trained from them.

DINOv3's model card: 44.8 mIoU. 8 GPUs x 2 images:

    tools/dist_train.sh configs/mmseg/linear_dinov3_convnext_s_40k_ade20k.py 8
"""
_base_ = ['./_base_/linear_convnext.py', './_base_/ade20k_linear_40k.py']

checkpoint = 'hf-hub:timm/convnext_small.dinov3_lvd1689m'  # or Meta's own file, which has the same weights
model = dict(
    backbone=dict(arch='small', init_cfg=dict(type='Pretrained', checkpoint=checkpoint)),
    decode_head=dict(in_channels=768, channels=768))
