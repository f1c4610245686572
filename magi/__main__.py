"""``python -m magi``: the command line, also as the module that torchrun starts."""

import os
import sys

from magi.cli.main import main

# NOTE: the guard matters. Child processes that read videos or load clips import this module anew.
if __name__ == "__main__":
    code = main()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # NOTE: gloo's threads may outlive the process group and ask for the interpreter while it shuts down, which
        # now and then aborts a process that has done all its work. All files are closed here, so leave at once.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
