"""Every way of attention computes the same, with the same gradients, and the table takes the one that it says."""
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from cmt_backbones.models import attention as ways, cpu
from cmt_backbones.models.relative_bias import BiasFactors, RelativeBias

KINDS = [ways.Whole, ways.Queries, ways.WiderHeads, ways.NarrowValues, ways.Flash]
CASE = ways.Case(device='cuda', dtype=torch.bfloat16, gradient=True, native=False, pairs=2**26, heads=1, width=120,
                 fixed=False, capability=(9, 0), plain=False)


def relative_error(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize('kind', KINDS, ids=lambda kind: kind.__name__)
@settings(max_examples=25)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 20), st.integers(1, 40), st.integers(1, 10),
       st.integers(1, 30))
def test_all_ways_agree(kind, batch, heads, d, n, m, m0):
    factors = [torch.randn(heads, n, m0, dtype=torch.double), torch.randn(m, m0, dtype=torch.double)]
    q, k, v = (torch.randn(batch, heads, length, d, dtype=torch.double) for length in (n, m, m))
    inputs = [x.requires_grad_() for x in (q, k, v, *factors)]
    out = ways.attention(q, k, v, kind.of(BiasFactors(*factors), d, torch.double))
    expected = torch.softmax(q @ k.mT / d**.5 + factors[0] @ factors[1].mT, dim=-1) @ v
    assert relative_error(out, expected) < 1e-12
    probe = torch.randn_like(out)
    for got, want in zip(torch.autograd.grad((out * probe).sum(), inputs),
                         torch.autograd.grad((expected * probe).sum(), inputs)):
        assert torch.allclose(got, want, rtol=1e-9, atol=1e-10)


@settings(max_examples=25)
@given(st.integers(1, 2), st.integers(1, 700), st.integers(1, 9), st.integers(1, 2**13))
def test_attention_in_bands_of_any_size(batch, n, m, band_size):
    factors = BiasFactors(torch.randn(2, n, 4, requires_grad=True), torch.randn(m, 4))
    q, k, v = (torch.randn(batch, 2, length, 5, requires_grad=True) for length in (n, m, m))
    outs, grads, probe = [], [], torch.randn_like(q)
    for kind in (ways.WiderHeads, ways.Queries):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ways, 'BAND_SIZE', band_size)
            outs.append(ways.attention(q, k, v, kind.of(factors, 5, torch.float32)))
            grads.append(torch.autograd.grad((outs[-1] * probe).sum(), (q, k, v, factors.query)))
    assert relative_error(outs[1], outs[0]) < 1e-5
    for got, want in zip(*reversed(grads)):
        assert (got - want).norm() < 1e-5 * (want.norm() + probe.norm())


@pytest.mark.parametrize('kind, changes', [
    (ways.Flash, dict()),  # sizes vary
    (ways.Flash, dict(gradient=False)),
    (ways.Flash, dict(dtype=torch.float16, capability=(8, 0), fixed=True)),
    (ways.NarrowValues, dict(fixed=True)),
    (ways.Flash, dict(fixed=True, width=144)),  # CMT-B
    (ways.WiderHeads, dict(dtype=torch.float16, capability=(7, 0))),
    (ways.WiderHeads, dict(plain=True)),  # a compiler chooses the kernel
    (ways.Whole, dict(dtype=torch.float32)),
    (ways.Whole, dict(dtype=torch.float32, gradient=False)),
    (ways.NarrowValues, dict(dtype=torch.float32, pairs=2**30)),
    (ways.WiderHeads, dict(dtype=torch.float32, pairs=None, plain=True)),
    (ways.Whole, dict(gradient=False, native=True)),
    (ways.Flash, dict(native=True)),
    (ways.Queries, dict(device='cpu', dtype=torch.float32)),
    (ways.Queries, dict(device='cpu', dtype=torch.float32, gradient=False)),
    (ways.WiderHeads, dict(device='cpu', dtype=torch.float32, pairs=2**10)),
    (ways.Whole, dict(device='cpu', dtype=torch.float32, pairs=2**10, gradient=False)),
    (ways.WiderHeads, dict(device='cpu', dtype=torch.float32, pairs=None, plain=True)),
    (ways.Queries, dict(device='cpu')),
    (ways.Whole, dict(device='cpu', pairs=2**10, gradient=False)),
    (ways.WiderHeads, dict(device='cpu', dtype=torch.float16)),
    (ways.WiderHeads, dict(device='cpu', dtype=torch.double)),
    (ways.WiderHeads, dict(device='mps', dtype=torch.float32)),
], ids=str)
def test_the_table(kind, changes, monkeypatch):
    monkeypatch.setattr(cpu, 'has_bf16', lambda: True)
    case = CASE._replace(**changes)
    assert next(way.kind for way in ways.WAYS if way.fits(case)) is kind


def test_a_processor_without_bf16(monkeypatch):
    """Convolutions in it would go by loops: attention stays with PyTorch's own kernel."""
    monkeypatch.setattr(cpu, 'has_bf16', lambda: False)
    for changes in (dict(), dict(gradient=False), dict(pairs=2**10, gradient=False)):
        case = CASE._replace(device='cpu', **changes)
        assert next(way.kind for way in ways.WAYS if way.fits(case)) is ways.WiderHeads


@pytest.mark.skipif(not cpu.has_bf16(), reason='bfloat16 is not in this build of PyTorch or processor')
@settings(max_examples=25)
@given(st.integers(1, 2), st.integers(1, 700), st.integers(1, 40), st.integers(1, 2**13))
def test_attention_in_bfloat16(batch, n, m, band_size):
    """Not much further from float32 than PyTorch's kernel for bfloat16, its gradients neither, in bands of any size."""
    factors = BiasFactors(torch.randn(2, n, 4, requires_grad=True), torch.randn(m, 4))
    inputs = [torch.randn(batch, 2, length, 16, requires_grad=True) for length in (n, m, m)]
    probe = torch.randn_like(inputs[0])

    def result(kind, dtype):
        out = ways.attention(*(x.to(dtype) for x in inputs), kind.of(factors, 16, dtype)).float()
        return out, *torch.autograd.grad((out * probe).sum(), (*inputs, factors.query))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ways, 'BAND_SIZE', band_size)
        for got, usual, want in zip(result(ways.Queries, torch.bfloat16), result(ways.WiderHeads, torch.bfloat16),
                                    result(ways.WiderHeads, torch.float32)):
            assert (got - want).norm() < 2 * (usual - want).norm() + 4e-3 * (want.norm() + probe.norm())


@pytest.mark.parametrize('kind', [ways.Queries, ways.WiderHeads, ways.Flash], ids=lambda kind: kind.__name__)
def test_what_is_prepared_is_prepared_once(kind, monkeypatch):
    """The factors of a table on the grids at hand, and the gradient that reaches the table from several blocks."""
    monkeypatch.setattr(ways, 'WAYS', (ways.Way(kind, lambda case: True, ''), ))
    table, grids, x = RelativeBias(2, (6, 4), (3, 2)), ((9, 8), (3, 4)), torch.randn(1, 72, 10)
    bias = ways.prepare_bias(table, grids, 5, x)
    q, k, v = (torch.randn(2, 2, length, 5) for length in (72, 12, 12))
    sum(ways.attention(q * i, k, v, bias).square().sum() for i in (1, 2)).backward()
    got, table.table.grad = table.table.grad, None
    factors = table.factors(*grids)
    whole = factors.query @ factors.key.T
    sum((torch.softmax(q * i @ k.mT / 5**.5 + whole, -1) @ v).square().sum() for i in (1, 2)).backward()
    assert relative_error(got, table.table.grad) < 1e-5


def test_the_whole_bias_only_where_it_is_there_or_small_and_needs_no_gradient():
    table, x = RelativeBias(2, (6, 4), (3, 2)), torch.zeros(1)
    native, small, large = ((6, 4), (3, 2)), ((9, 8), (3, 4)), ((140, 160), (10, 12))
    for grids in (native, small, large):
        assert not isinstance(ways.prepare_bias(table, grids, 4, x), ways.Whole)
    with torch.no_grad():
        mask, = ways.prepare_bias(table, native, 4, x)
        assert torch.equal(mask, table.table[None]) and not mask.requires_grad
        factors, (mask, ) = table.factors(*small), ways.prepare_bias(table, small, 4, x)
        assert relative_error(mask[0], factors.query @ factors.key.T) < 1e-6
        assert isinstance(ways.prepare_bias(table, large, 4, x), ways.Queries)


class LargestTensor(TorchDispatchMode):
    """Records the largest number of elements that any operation returned."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.numel())
        return out


@pytest.mark.parametrize('kind', [ways.Queries, ways.WiderHeads, ways.Flash], ids=lambda kind: kind.__name__)
def test_nothing_of_size_n_by_m_is_made(kind, monkeypatch):
    monkeypatch.setattr(ways, 'BAND_SIZE', 256 * 24 * 32)
    table = RelativeBias(1, (8, 8), (2, 2))
    query_grid, key_grid = (48, 64), (24, 32)
    n, m, d = 48 * 64, 24 * 32, 12
    q, k, v = (torch.randn(1, 1, length, d, requires_grad=True) for length in (n, m, m))
    with LargestTensor() as largest:
        bias = kind.of(table.factors(query_grid, key_grid), d, torch.float32)
        ways.attention(q, k, v, bias).square().sum().backward()
    assert table.table.grad.abs().sum() > 0
    assert largest.elements <= n * 8 * 8  # the rows of the resize; wider heads and a band are no more
    assert n * m > 10 * largest.elements


def test_a_second_derivative_is_right_or_refused():
    q, k, v = (torch.randn(1, 1, length, 3, dtype=torch.double, requires_grad=True) for length in (9, 4, 4))
    factors = BiasFactors(torch.randn(1, 9, 2, dtype=torch.double, requires_grad=True),
                          torch.randn(4, 2, dtype=torch.double, requires_grad=True))

    def attend(*inputs):
        return ways.AttentionByQueries.apply(*inputs)
    assert torch.autograd.gradgradcheck(attend, (q, k, v, *factors))
    out = ways.attention(q, k, v, ways.Flash.of(factors, 3, torch.double))
    with pytest.raises(RuntimeError, match='no second derivative'):
        torch.autograd.grad(out.sum(), q, create_graph=True)
