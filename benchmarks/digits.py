"""The samples of a pipeline of digits against the digits themselves.

The Fréchet distance of a feature to all the data, and, which is the fair number, at as many points
as the floor has: the distance between two halves of the data.

    python benchmarks/digits.py [--pipeline zoo:digits-1rf] [--quick]
"""

import argparse

from measure import write_results
import torch

from genflow.data.named import named
from genflow.metrics import compare
from genflow.metrics.features import features
from genflow.pipelines import Pipeline

SAMPLER, STEPS = "dpmpp-2m", 20


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pipeline", default="zoo:digits-1rf")
    parser.add_argument("--feature", default="random-conv")
    parser.add_argument("--seed", type=int, default=10**6, help="the first seed")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="a tenth of the samples")
    options = parser.parse_args()

    pipe = Pipeline.from_pretrained(options.pipeline, device=options.device)
    data = named("digits").reference()
    n = len(data) // 10 if options.quick else len(data)
    drawn = pipe(n, seed=options.seed, sampler=SAMPLER, steps=STEPS)
    report = compare(drawn.uint8.cpu(), data, features(options.feature, data.shape[1:]))
    if not options.pipeline.startswith("zoo:"):
        options.pipeline = "of one's own"  # which, and not where
    write_results("digits", {"report": report, "sampler": f"{SAMPLER}, {STEPS} steps"}, options)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
