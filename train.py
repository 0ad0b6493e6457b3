"""Trains a model: ``python train.py fit -c configs/rectified/digits.yaml``, the default."""

import sys

from genflow.cli import main

if __name__ == "__main__":
    arguments = sys.argv[1:] or ["fit", "-c", "configs/rectified/digits.yaml"]
    sys.exit(main(arguments, program="train.py", commands=("fit", "export")))
