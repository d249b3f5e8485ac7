"""Files that are written whole or not at all."""
import os
from pathlib import Path
from typing import Union

from mmengine.fileio import LocalBackend


class WholeFiles(LocalBackend):
    """mmengine's files on the disk, but that one is either written whole or not there.

    mmengine 0.10.7 writes a checkpoint in its place: killed meanwhile, it leaves a torn one.
    """

    def put(self, obj: bytes, filepath: Union[str, Path]) -> None:
        path = Path(filepath)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f'.{path.name}.{os.getpid()}.partial')
        with open(partial, 'wb') as file:
            file.write(obj)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)

    def put_text(self, obj: str, filepath: Union[str, Path], encoding: str = 'utf-8') -> None:
        self.put(obj.encode(encoding), filepath)
