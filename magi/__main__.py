"""``python -m magi``: the command line, also as the module that torchrun starts."""

import os
import sys
from typing import NoReturn


def exit_process(code: int) -> NoReturn:
    """End this process with ``code``, whatever threads are still running.

    NOTE: gloo's threads may outlive the process group, and a process that shuts down in the ordinary way while one
    of them is alive is sometimes aborted after it has done all its work. All files are closed by then, so a process
    of a group exits at once.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


# NOTE: the guard matters. Child processes that read videos or load clips import this module anew.
if __name__ == "__main__":
    from magi.cli.main import main

    exit_process(main())
