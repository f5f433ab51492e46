"""Reads what is named on the command line and says what became of it, in how long, and how much memory it took.

Called as ``bombs.py PATH``; the process that decodes counts as well. Imports are done before the clock starts.
"""

import json
import resource
import sys
import time
from pathlib import Path

from medisent.errors import MedisentError
from medisent.formats import read

_MB = 1024  # ru_maxrss is in kB


def peak() -> float:
    return sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / _MB


def main(path: Path) -> None:
    before, began = peak(), time.process_time()
    try:
        said = f"read {read(path).voxels.shape}"
    except MedisentError as error:
        said = f"{error.code}: {error}"
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = time.process_time() - began + spent.ru_utime + spent.ru_stime
    print(json.dumps({"said": said, "seconds": seconds, "megabytes": peak() - before}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
