"""CMT against the official numbers, and what a detector may rely on."""
import pytest
import torch

import golden_numbers
from cmt_backbones import CMT
from cmt_backbones.pretrained import convert
from layouts import official_cmt

GOLDEN = {'tiny': 'cmt_ti_160', 'xsmall': 'cmt_xs_192', 'small': 'cmt_s_224', 'base': 'cmt_b_256'}
RESIZED = {'tiny': 'cmt_ti_160_at_192x320', 'small': 'cmt_s_224_at_96x160'}
CASES = [*GOLDEN.items(), *RESIZED.items()]


def golden_model(arch, golden):
    model = CMT(arch, drop_path_rate=0)
    state = golden_numbers.formula_state(official_cmt(model.state_dict()), int(golden['seed']))
    model.load_state_dict(convert(state)[0])
    return model


@pytest.mark.parametrize('arch, name', CASES, ids=[name for _, name in CASES])
def test_outputs_and_gradients_are_the_official_ones(arch, name):
    golden = golden_numbers.load(name)
    seed, x = int(golden['seed']), golden_numbers.images(golden)
    model = golden_model(arch, golden)
    assert sum(p.numel() for p in model.parameters()) == golden['n_params']

    with torch.no_grad():
        for i, out in enumerate(model.eval()(x)):
            assert golden_numbers.error(golden, f'eval/{i}', out) < 1e-5
    if 'train/0/val' not in golden:
        return
    outs = model.train()(x)
    for i, out in enumerate(outs):
        assert golden_numbers.error(golden, f'train/{i}', out) < 1e-5
    golden_numbers.loss(outs, seed).backward()
    grads = official_cmt({k: p.grad for k, p in model.named_parameters()})
    held = {key.split('/')[1] for key in golden if key.startswith('grad/')}
    assert held and held <= set(grads)
    for key in held:
        assert golden_numbers.error(golden, f'grad/{key}', grads[key]) < 2e-5, key
