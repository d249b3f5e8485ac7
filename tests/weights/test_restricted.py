"""Unpickling that runs nothing, by pickles written by hand."""
import io
import os
import pickle
from collections import OrderedDict

import pytest
import torch

from cmt_backbones.weights import read_torch
from cmt_backbones.weights.restricted import Inert, restricted_pickle


def load(data, **restored):
    return restricted_pickle(restored).load(io.BytesIO(data))


def refuses(data, reason, **restored):
    with pytest.raises(pickle.UnpicklingError, match=reason):
        load(data, **restored)


class Counted:
    made = 0

    def __new__(cls, *args, **kwargs):
        cls.made += 1
        return super().__new__(cls)


# A call of os.mkdir('FIRED') by each opcode that calls.
CALLS = {
    'REDUCE': b"cposix\nmkdir\n(S'FIRED'\ntR.",
    'STACK_GLOBAL': b'\x80\x04\x8c\x05posix\x8c\x05mkdir\x93\x8c\x05FIRED\x85R.',
    'INST': b"(S'FIRED'\niposix\nmkdir\n.",
    'OBJ': b"(cposix\nmkdir\nS'FIRED'\no.",
    'NEWOBJ': b"\x80\x02cposix\nmkdir\nS'FIRED'\n\x85\x81.",
    'NEWOBJ_EX': b"\x80\x04cposix\nmkdir\nS'FIRED'\n\x85}\x92.",
    'nested name': b"\x80\x04\x8c\x08builtins\x8c\x0bopen.__call\x93S'FIRED'\nS'w'\n\x86R.",
}


@pytest.mark.parametrize('opcode', CALLS)
def test_calls_make_inert_things(opcode, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert isinstance(load(CALLS[opcode]), Inert)
    assert os.listdir(tmp_path) == []


def test_a_file_cannot_call_what_is_only_named():
    refuses(b'ctorch\nFloatStorage\n(I9\ntR.', 'it calls')
    refuses(b'ctorch\nfloat32\n(tR.', 'it calls')
    refuses(b"cos\nsystem\n(tR(S'true'\ntR.", 'it calls')  # nor what a call has made
    refuses(b'ccollections\nOrderedDict\n(tR(tR.', 'it calls')
    refuses(b'\x82\x01.', 'by its number')


def test_a_file_cannot_call_through_the_functions_of_tensors():
    refuses(b'ctorch._tensor\n_rebuild_from_type_v2\n(ccollections\nOrderedDict\n(tRctorch\nTensor\n(t}tR.', 'it calls')
    refuses(b"c_codecs\nencode\n(S'x'\nS'zlib'\ntR.", "it encodes as 'zlib'")
    assert load(b"c_codecs\nencode\n(V\xff\nS'latin1'\ntR.") == b'\xff'


@pytest.mark.parametrize('target', ['ctorch._utils\n_rebuild_tensor_v2\n', 'ccollections\nOrderedDict\n',
                                    'ctorch.nn.parameter\nParameter\n', 'cmodule\nCounted\n', 'cmodule\nOther\n'])
def test_a_file_cannot_change_functions_and_classes(target):
    before = dict(vars(Counted))
    state = b"(N(S'made'\nS'changed'\ndtb."  # sets an attribute
    refuses(target.encode() + state, 'it changes', **{'module.Counted': Counted})
    assert dict(vars(Counted)) == before and not hasattr(torch._utils._rebuild_tensor_v2, 'made')


def test_only_what_is_told_is_made():
    data = b'\x80\x02cmodule\nCounted\n)\x81.'
    assert isinstance(load(data), Inert) and Counted.made == 0
    assert isinstance(load(data, **{'module.Counted': Counted}), Counted) and Counted.made == 1


def test_inert_things_take_what_a_file_puts_into_them():
    found = load(pickle.dumps([FakeDict(a=1), FakeList([1]), FakeSet([1])], protocol=4))
    assert all(isinstance(item, Inert) for item in found)
    assert [item.path.rpartition('.')[2] for item in found] == ['FakeDict', 'FakeList', 'FakeSet']
    assert not any(vars(item) for item in found)


class FakeDict(OrderedDict):
    pass


class FakeList(list):
    pass


class FakeSet(set):
    pass


class OwnTensor(torch.Tensor):
    pass


@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'before torch 1.6'])
def test_all_kinds_of_tensors(zipped, tmp_path):
    tensors = [torch.arange(6.).view(2, 3).t(), torch.zeros(0), torch.tensor(True), torch.ones(2, dtype=torch.bfloat16),
               torch.nn.Parameter(torch.ones(2)), torch.eye(3).to_sparse(), torch.ones(2, dtype=torch.complex64),
               torch.quantize_per_tensor(torch.ones(2), .1, 0, torch.qint8), torch.ones(3).as_subclass(OwnTensor)]
    torch.save(tensors, tmp_path / 'w.pth', _use_new_zipfile_serialization=zipped)
    for found, tensor in zip(read_torch(tmp_path / 'w.pth'), tensors):
        assert found.dtype == tensor.dtype and found.stride() == tensor.stride() if not tensor.is_sparse else True
        assert isinstance(found, torch.nn.Parameter) == isinstance(tensor, torch.nn.Parameter)
        assert (found.dequantize() if tensor.is_quantized else found).to_dense().tolist() == (
            tensor.dequantize() if tensor.is_quantized else tensor).to_dense().tolist()


def test_a_program_is_not_run(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), str(tmp_path / 'w.pth'))
    with pytest.raises(ValueError, match='or holds code .it is a TorchScript program'):
        read_torch(tmp_path / 'w.pth')


def test_pytorch_told_to_be_strict(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
    torch.save({'w': torch.ones(1)}, tmp_path / 'w.pth')
    assert read_torch(tmp_path / 'w.pth') == {'w': torch.ones(1)}
