"""Our weights under the names of the published files: the other direction than pretrained.py."""
import re

import torch


def official_cmt(state):
    """Our CMT state dict (or gradients by our names) under the official names."""
    out = {}
    for key, value in state.items():
        key = re.sub(r'stem\.layers\.(\d)', lambda m: 'stem_%s%d' % (
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
