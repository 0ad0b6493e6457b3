"""``python -m genflow`` is the command ``genflow``."""

import sys

from genflow.cli import main

sys.exit(main())
