"""`python -m flawmap`: the same as the command `flawmap`."""

import sys

from flawmap.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
