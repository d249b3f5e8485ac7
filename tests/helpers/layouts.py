"""Our weights under the names of the published files: the other direction than pretrained.py."""
import re

import torch


def official_cmt(state):
    """Our CMT state dict (or gradients by our names) under the official names, with a classifier's head."""
    out = {}
    for key, value in state.items():
        for ours, theirs in [(r'^head\.fc', 'head'), (r'^head\.conv', '_fc'), (r'^head\.norm', '_bn')]:
            key = re.sub(ours, theirs, key)
        key = re.sub(r'stem\.layers\.(\d)', lambda m: 'stem_{}{}'.format(
            'norm' if int(m[1]) % 3 else 'conv', int(m[1]) // 3 + 1), key)
        stage = re.match(r'stages\.(\d)\.(.*)', key)
        if stage:
            letter, rest = 'abcd'[int(stage[1])], stage[2]
            for ours, theirs in [
                    (r'^patch_aggregation', f'patch_embed_{letter}.proj'),
                    (r'^norm', f'patch_embed_{letter}.norm'),
                    (r'^relative_bias\.table', f'relative_pos_{letter}'),
                    (r'^blocks', f'blocks_{letter}'),
                    (r'lpu', 'proj'), (r'attn\.reduce', 'attn.sr'),
                    (r'ffn\.expand', 'mlp.conv1.0'), (r'ffn\.norm1', 'mlp.conv1.2'),
                    (r'ffn\.dwconv', 'mlp.proj'), (r'ffn\.norm2', 'mlp.proj_bn'),
                    (r'ffn\.project', 'mlp.conv2.0'), (r'ffn\.norm3', 'mlp.conv2.1')]:
                rest = re.sub(ours, theirs, rest)
            key = rest
        if '.attn.kv.' in key:
            out[key.replace('.kv.', '.k.')], out[key.replace('.kv.', '.v.')] = torch.chunk(value, 2)
        else:
            out[key] = value
    return out


def facebook_convnext(state):
    """A classifier as Facebook publishes it: no output norms, and a head."""
    out = {k: v for k, v in state.items() if not re.match(r'norm\d', k)}
    channels = state['downsample_layers.3.1.weight'].shape[0]
    out.update({'norm.weight': torch.ones(channels), 'norm.bias': torch.zeros(channels),
                'head.weight': torch.zeros(7, channels), 'head.bias': torch.zeros(7)})
    return out


def dinov3_convnext(state):
    """Meta's DINOv3 file: no head, and the last norm twice, once in a list."""
    out = facebook_convnext(state)
    out = {k: v for k, v in out.items() if not k.startswith('head')}
    out['norms.3.weight'], out['norms.3.bias'] = out['norm.weight'], out['norm.bias']
    return out


def timm_convnext(state):
    out = {}
    for key, value in facebook_convnext(state).items():
        key = re.sub(r'^downsample_layers\.0', 'stem', key)
        key = re.sub(r'^downsample_layers\.(\d)', r'stages.\1.downsample', key)
        key = re.sub(r'^stages\.(\d)\.(\d+)\.', r'stages.\1.blocks.\2.', key)
        key = key.replace('dwconv', 'conv_dw').replace('pwconv', 'mlp.fc')
        key = key.replace('grn.gamma', 'mlp.grn.weight').replace('grn.beta', 'mlp.grn.bias')
        out[re.sub(r'^norm\.', 'head.norm.', re.sub(r'^head\.', 'head.fc.', key))] = value
    return out


def timm_dinov3_convnext(state):
    return {k: v for k, v in timm_convnext(state).items() if not k.startswith('head.fc')}


def timm_features(state):
    """What ``timm.create_model(..., features_only=True)`` saves."""
    return {re.sub(r'^(stem|stages)\.(\d)', r'\1_\2', k): v for k, v in timm_convnext(state).items()
            if not k.startswith('head')}


def mmpretrain_convnext(state):
    """A classifier of mmpretrain: its ``norm3`` is the classifier's, the other norms are not there."""
    out = {'backbone.' + k.replace('dwconv', 'depthwise_conv').replace('pwconv', 'pointwise_conv'): v
           for k, v in state.items() if not re.match(r'norm\d', k)}
    channels = state['downsample_layers.3.1.weight'].shape[0]
    out.update({'backbone.norm3.weight': torch.full((channels, ), 3.),
                'backbone.norm3.bias': torch.ones(channels),
                'head.fc.weight': torch.zeros(7, channels), 'head.fc.bias': torch.zeros(7)})
    return out


def under(prefix, state):
    """As the backbone of something larger."""
    return {**{prefix + k: v for k, v in state.items()}, 'neck.convs.0.weight': torch.zeros(2)}
