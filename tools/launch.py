"""torchrun, with exit code 143 where SIGTERM ended the run, 130 where Ctrl-C did; torchrun would exit with 1.

Signalled itself, it hands the signal on and gives the processes 30 seconds to save a checkpoint.
"""
import signal
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

if __name__ == '__main__':
    try:
        main()
    except SignalException as error:
        sys.exit(128 + error.sigval)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        if failure.exitcode in (128 + signal.SIGTERM, 128 + signal.SIGINT):  # the processes were signalled
            sys.exit(failure.exitcode)
        raise
