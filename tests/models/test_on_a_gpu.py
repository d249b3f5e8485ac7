"""Golden numbers and all ways of attention on a GPU; on the CPU where there is none. `make gpu-report` runs it."""
import pytest
import torch

import golden_numbers
from cmt_backbones import CMT, ConvNeXt
from cmt_backbones.models import attention
from cmt_backbones.models.relative_bias import BiasFactors
from cmt_backbones.openmmlab.options import tf32
from cmt_backbones.weights import convert
from layouts import official_cmt

DEVICE = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
KINDS = [attention.Whole, attention.WiderHeads, attention.NarrowValues, attention.Flash]
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}


@pytest.fixture(autouse=True)
def exact():
    with tf32(False):
        yield


@pytest.mark.parametrize('name', ['cmt_ti_160', 'cmt_ti_160_at_192x320', 'convnext_tiny'])
def test_golden_numbers(name):
    golden, cmt = golden_numbers.load(name), name.startswith('cmt')
    model = CMT('tiny', drop_path_rate=0) if cmt else ConvNeXt('tiny')
    seed, state = int(golden['seed']), model.state_dict()
    state = golden_numbers.formula_state(official_cmt(state) if cmt else state, seed)
    model.load_state_dict(convert(state)[0] if cmt else state)
    model = model.to(DEVICE).eval()
    with torch.no_grad():
        outs = model(golden_numbers.images(golden).to(DEVICE))
    errors = [golden_numbers.error(golden, f'eval/{i}', out.cpu()) for i, out in enumerate(outs)]
    assert max(errors) < 1e-5, errors


@pytest.mark.parametrize('dtype', TOLERANCES, ids=str)
@pytest.mark.parametrize('kind', KINDS, ids=lambda kind: kind.__name__)
def test_ways_of_attention(kind, dtype):
    """Outputs and gradients, against double precision on the CPU."""
    torch.manual_seed(0)
    n, m, m0, d = 600, 150, 49, 64
    q, k, v = (torch.randn(2, length, 2, d).transpose(1, 2) for length in (n, m, m))
    probe, inputs = torch.randn_like(q), [q, k, v, torch.randn(2, n, m0) / 7, torch.randn(m, m0) / 7]
    if dtype != torch.float32:
        inputs = [x.to(dtype).float() for x in inputs]
    got, expected = [], []
    for some, device, precision in ((got, DEVICE, dtype), (expected, 'cpu', torch.double)):
        wanted = [x.to(device, precision if i < 3 or precision == torch.double else torch.float32).requires_grad_()
                  for i, x in enumerate(inputs)]
        way = kind if precision == dtype else attention.WiderHeads
        out = attention.attention(*wanted[:3], way.of(BiasFactors(*wanted[3:]), d, precision))
        some += [out, *torch.autograd.grad(out, wanted, probe.to(out))]
    for one, other in zip(got, expected):
        assert (one.double().cpu() - other).norm() < TOLERANCES[dtype] * other.norm()
