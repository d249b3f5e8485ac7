"""Training from scratch on some hundreds to thousands of images: small_data.py at a higher rate.

To go with `model.backbone`'s init_cfg=None, norm_eval=False and drop_path_rate=0., and, where the neck and
the heads take one, norm_cfg=dict(type='GN', num_groups=32): a few images a step are too few for BatchNorm.
"""
_base_ = './small_data.py'

train_cfg = dict(max_epochs=48)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
