"""The command, as ``python -m genflow``."""

__all__ = []

import sys

from genflow.cli import main

if __name__ == "__main__":
    sys.exit(main())
