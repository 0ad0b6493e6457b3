"""What the searches find, and what they cost.

    python benchmarks/search.py mixture           five calls on a mixture whose solution is known
    python benchmarks/search.py digits --pipeline zoo:digits-1rf
    python benchmarks/search.py digits --pipeline zoo:fashion-1rf --data FashionMNIST:ROOT
    python benchmarks/search.py guided            S³ against evolution and random search
    python benchmarks/search.py guided --pipeline zoo:digits-edm        the same on a network
    python benchmarks/search.py population        many schedules in one batch against one by one
    python benchmarks/search.py workers           two workers, one of them killed
    python benchmarks/search_blocks.py            blocks left out, by itself

Each section prints a table with its spread over seeds of the search, and writes
``results/search-SECTION.json``. Reported errors are on noise that no search has seen.
"""

import argparse

import search_digits
import search_guided
import search_mixture
import search_population
import search_workers

SECTIONS = {
    "mixture": search_mixture.best,
    "digits": search_digits.main,
    "guided": search_guided.main,
    "population": search_population.main,
    "workers": search_workers.main,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("section", choices=SECTIONS)
    parser.add_argument("--seeds", type=int, default=3, help="searches with different seeds")
    parser.add_argument("--calls", type=int, nargs="+", help="numbers of calls")
    parser.add_argument("--budget", type=int, help="schedules scored in a search")
    parser.add_argument("--steps", type=int, help="steps of the gradient")
    parser.add_argument("--pipeline", help="a saved pipeline")
    parser.add_argument("--data", default="digits", help="the data that it was trained on")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    SECTIONS[options.section](options)


if __name__ == "__main__":
    main()
