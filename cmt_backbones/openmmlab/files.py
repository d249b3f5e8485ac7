"""Files that are written whole or not at all."""
import errno
import os
import stat
import uuid
from pathlib import Path
from typing import Optional, Union

from mmengine.fileio import LocalBackend

BACKEND = 'whole'  # its name in mmengine's table: CheckpointHook(backend_args=dict(backend='whole'))
# A folder that may not be written to, a file of somebody else in it, a disk or a file mounted as it is.
NOT_REPLACEABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY}


class WholeFiles(LocalBackend):
    """mmengine's files on the disk, but that one is either written whole or not there.

    mmengine 0.10.7 writes a checkpoint in its place: killed meanwhile, it leaves a torn one. Here it is
    written beside it, and takes its place, mode and owner. What cannot be replaced without changing more than
    its content is written in its place: devices, pipes, files of several names, of other owners, or in
    folders that may not be written to.
    """

    def put(self, obj: bytes, filepath: Union[str, Path]) -> None:
        if '://' in str(filepath):
            raise ValueError(f'backend_args=dict(backend={BACKEND!r}) writes to disks, and {filepath} is on none: '
                             'name its own backend')
        path = Path(os.path.realpath(filepath))  # a link stays one
        path.parent.mkdir(parents=True, exist_ok=True)
        there = os.stat(filepath) if os.path.exists(filepath) else None
        if there and (not stat.S_ISREG(there.st_mode) or there.st_nlink > 1):
            return super().put(obj, filepath)
        try:
            replace(path, obj, there)
        except OSError as error:
            if error.errno not in NOT_REPLACEABLE:
                raise
            super().put(obj, filepath)

    def put_text(self, obj: str, filepath: Union[str, Path], encoding: str = 'utf-8') -> None:
        self.put(obj.encode(encoding), filepath)


def replace(path: Path, content: bytes, there: Optional[os.stat_result]) -> None:
    """Writes a file beside `path`, then puts it there; with mode and owner of the one that is `there`."""
    partial = path.with_name(f'.{uuid.uuid4().hex}.partial')
    try:
        with open(partial, 'xb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if there:
            new = os.stat(partial)
            if (new.st_uid, new.st_gid) != (there.st_uid, there.st_gid):
                os.chown(partial, there.st_uid, there.st_gid)
            os.chmod(partial, stat.S_IMODE(there.st_mode))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
