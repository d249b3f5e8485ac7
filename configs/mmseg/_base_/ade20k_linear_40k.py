"""ADE20K in crops of 512x512 for a linear layer: 40k iterations, warmup of 1500, then a cosine to 0; 16 images.

AdamW with 1e-3 and a weight decay of 1e-3, as DINOv3's config-ade20k-linear-training.yaml.
"""
_base_ = './ade20k_160k.py'

optim_wrapper = dict(optimizer=dict(lr=1e-3, betas=(0.9, 0.999), weight_decay=1e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='CosineAnnealingLR', T_max=38500, eta_min=0.0, by_epoch=False, begin=1500, end=40000)
]
train_cfg = dict(max_iters=40000, val_interval=5000)
