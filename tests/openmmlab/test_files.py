"""Files that are written whole, and what else is in their place."""
import multiprocessing
import os
import shutil
import stat
import tempfile
import threading
from pathlib import Path

import pytest
from mmengine.fileio import get_file_backend

from cmt_backbones import openmmlab

NOBODY = 65534


@pytest.fixture
def backend():
    return get_file_backend(backend_args=dict(backend='whole'))


def names(folder):
    return sorted(os.listdir(folder))


def test_files_are_written_aside(backend, tmp_path, monkeypatch):
    assert isinstance(backend, openmmlab.WholeFiles)
    path = tmp_path / 'folder' / 'epoch_1.pth'
    backend.put(b'old', path)

    def no_space(descriptor):
        raise OSError('No space left on device')

    monkeypatch.setattr('os.fsync', no_space)
    with pytest.raises(OSError, match='No space left'):
        backend.put(b'new', path)
    assert path.read_bytes() == b'old' and names(path.parent) == ['epoch_1.pth']
    monkeypatch.undo()
    backend.put(b'new', str(path))
    backend.put_text('täxt', tmp_path / 'note')
    assert path.read_bytes() == b'new' and (tmp_path / 'note').read_text(encoding='utf-8') == 'täxt'


def test_links_stay_links(backend, tmp_path):
    (tmp_path / 'disk').mkdir()
    target, link = tmp_path / 'disk' / 'real.pth', tmp_path / 'link.pth'
    link.symlink_to('disk/real.pth')
    for content in (b'first', b'second'):  # dangling, then not
        backend.put(content, link)
        assert link.is_symlink() and target.read_bytes() == content
    os.link(target, tmp_path / 'other_name.pth')
    backend.put(b'third', target)
    assert (tmp_path / 'other_name.pth').read_bytes() == b'third' and names(tmp_path / 'disk') == ['real.pth']


def test_modes_and_owners_stay(backend, tmp_path):
    before = os.umask(0o027)
    try:
        backend.put(b'', tmp_path / 'new.pth')
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(tmp_path / 'new.pth').st_mode) == 0o640
    os.chmod(tmp_path / 'new.pth', 0o604)
    if os.getuid() == 0:
        os.chown(tmp_path / 'new.pth', 1234, 5678)
    before = os.stat(tmp_path / 'new.pth')
    backend.put(b'content', tmp_path / 'new.pth')
    after = os.stat(tmp_path / 'new.pth')
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert after.st_ino != before.st_ino and after.st_size == 7


def test_devices_and_pipes_are_written_to(backend, tmp_path):
    backend.put(b'content', '/dev/null')
    assert stat.S_ISCHR(os.stat('/dev/null').st_mode)
    os.mkfifo(tmp_path / 'pipe')
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / 'pipe').read_bytes()))
    reader.start()
    backend.put(b'content', tmp_path / 'pipe')
    reader.join()
    assert read == [b'content'] and stat.S_ISFIFO(os.stat(tmp_path / 'pipe').st_mode)


def test_the_longest_names(backend, tmp_path):
    for _ in range(2):
        backend.put(b'content', tmp_path / ('n' * 255))
    assert names(tmp_path) == ['n' * 255]


def test_one_file_of_many_threads(backend, tmp_path):
    failed = []

    def write(number):
        for _ in range(50):
            try:
                backend.put(bytes([number]) * 1000, tmp_path / 'one')
            except OSError as error:
                failed.append(error)

    threads = [threading.Thread(target=write, args=(number, )) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    content = (tmp_path / 'one').read_bytes()
    assert not failed and len(content) == 1000 and len(set(content)) == 1 and names(tmp_path) == ['one']


def write_as_nobody(folder):
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    backend = openmmlab.WholeFiles()
    backend.put(b'new', folder / 'writable.pth')
    for name in ('read_only.pth', 'absent.pth'):
        with pytest.raises(PermissionError):
            backend.put(b'new', folder / name)


def test_a_writable_file_in_a_folder_that_is_not():
    folder = Path(tempfile.mkdtemp())  # whose parents anybody may enter
    try:
        for name, mode in (('writable.pth', 0o666), ('read_only.pth', 0o444)):
            (folder / name).write_bytes(b'older')
            os.chmod(folder / name, mode)
        os.chmod(folder, 0o555)
        process = multiprocessing.get_context('fork').Process(target=write_as_nobody, args=(folder, ))
        process.start()
        process.join()
        assert process.exitcode == 0
        assert (folder / 'writable.pth').read_bytes() == b'new'
        assert (folder / 'read_only.pth').read_bytes() == b'older'
    finally:
        os.chmod(folder, 0o755)
        shutil.rmtree(folder)


def test_what_is_on_no_disk(backend, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match='s3://bucket/epoch_1.pth is on none: name its own backend'):
        backend.put(b'', 's3://bucket/epoch_1.pth')
    assert names(tmp_path) == []
