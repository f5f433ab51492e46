"""``python -m medisent``: the command line, for machines whose path does not have it."""

import sys

from medisent.cli import main

if __name__ == "__main__":
    sys.exit(main())
