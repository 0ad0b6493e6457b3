"""Samples and evaluates: ``python sample.py generate PIPELINE --output FOLDER``."""

import sys

from genflow.cli import main

if __name__ == "__main__":
    commands = ("generate", "evaluate", "reference", "samplers")
    sys.exit(main(sys.argv[1:], program="sample.py", commands=commands))
