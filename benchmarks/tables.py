"""The tables of the benchmarks, from their results alone.

A benchmark prints what it found by these functions, and ``benchmarks/run.py`` writes the same into
``benchmarks/README.md``, between comments that name the table::

    <!-- table: sampling -->
    ...
    <!-- end -->

so what is printed, what is kept in ``results/NAME.json`` and what the page shows are one thing. A
table is a function from such a record to Markdown, with a line below it that says when and where
it was measured, who the peer is and in which version, and what the ratio is to.
"""

__all__ = ["TABLES", "markdown", "rendered", "show", "stale", "written"]

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
import json
from pathlib import Path
import re
from statistics import mean, stdev
from typing import Any

HERE = Path(__file__).parent
MARK = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.S)

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """A table of the page.

    Attributes:
        source: The name of the results that it is made of.
        make: Makes the Markdown.
    """

    source: str
    make: Callable[[Record], str]


TABLES: dict[str, Table] = {}
"""The tables by name; a name that differs from its source's begins with it."""


def table(name: str, source: str | None = None) -> Callable[[Any], Any]:
    """Registers a function as a table."""

    def register(make: Callable[[Record], str]) -> Callable[[Record], str]:
        TABLES[name] = Table(source or name, make)
        return make

    return register


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], below: str = "") -> str:
    """A table in Markdown, with a line below it."""

    lines = ["| " + " | ".join(cells) + " |" for cells in (header, *rows)]
    lines.insert(1, "|" + "---|" * len(header))
    return "\n".join(lines + (["", below] if below else []))


def show(name: str, record: Record) -> None:
    """Prints the tables that are made of a benchmark's results."""

    for entry in TABLES.values():
        if entry.source == name:
            print("\n" + entry.make(_plain(record)))


def _plain(record: Record) -> Record:
    """The record as it is read back from its file: keys are text."""

    return json.loads(json.dumps(record))


def told(record: Record, *peers: str, ratio: str) -> str:
    """The line below a table: day, machine, versions of what is compared, and the ratio."""

    here = record["machine"]
    where = here["gpu"] or f"{here['cpu']}, {here['cores']} cores"
    known = here["versions"]
    versions = ", ".join(f"{name} {known[name]}" for name in ("torch", *peers) if name in known)
    return f"{here['date']}, {where}; {versions}. {ratio}"


def _spread(values: Sequence[float], form: str = ".3g") -> str:
    tail = f" ± {stdev(values):.1g}" if len(values) > 1 else ""
    return f"{mean(values):{form}}{tail}"


# ------------------------------------------------------------------------------------ the tables


@table("sampling")
def sampling(record: Record) -> str:
    """N steps ÷ N bare calls, and microseconds a step over them."""

    cases, steps = record["cases"], record["steps"]
    names = [n for n in next(iter(cases.values())) if n != "bare"]
    small = next(c for c in cases if "batch 64" in c)
    rows = [
        [
            name,
            *(f"{found[name]['ratio']:.3f}" for found in cases.values()),
            f"{1e6 * cases[small][name]['over'] / steps:.0f}",
        ]
        for name in names
    ]
    header = ["sampler", *cases, "µs a step over bare (MLP, 64)"]
    ratio = f"Ratios are {steps} steps to {steps} bare calls of the network, in the same round."
    return markdown(header, rows, told(record, "diffusers", "torchdiffeq", ratio=ratio))


@table("training")
def training(record: Record) -> str:
    """A full step ÷ bare forward and backward pass, with quartiles."""

    cases = record["cases"]
    names = {
        "step": "genflow, no trainer",
        "trainer": "genflow, Lightning",
        "torchcfm": "torchcfm recipe",
    }
    rows = [
        [
            told_,
            *(
                "{:.3f} ({:.3f} to {:.3f})".format(found[n]["ratio"], *found[n]["quartiles"])
                for found in cases.values()
            ),
        ]
        for n, told_ in names.items()
    ]
    header = ["", *(f"{c}, {f['parameters'] / 1e6:.2f} M" for c, f in cases.items())]
    rounds = next(iter(cases.values()))["rounds"]
    ratio = f"Ratios are to the bare step of the same round: medians of {rounds}, with quartiles."
    return markdown(header, rows, told(record, "lightning", "torchcfm", ratio=ratio))


COUNTS = ("3", "5", "8", "10", "15", "20")
ON_MIXTURE = (
    *("ddim", "karras-heun", "dpm-2m", "dpmpp-2m", "dpmpp-3m", "unipc", "ipndm", "deis"),
    *("unipc, order 3", "dpm-v3", "diffusers Euler", "diffusers DPM++ 2M", "diffusers DPM++ 3M"),
    *("diffusers UniPC 2", "diffusers UniPC 3", "diffusers DEIS 3"),
)
ON_DIGITS = (
    *("euler", "midpoint", "heun", "ddim", "dpm-2m", "dpmpp-2m", "dpmpp-3m", "unipc", "ipndm"),
    *("deis", "unipc, order 3", "dpm-v3", "diffusers DPM++ 2M", "diffusers DPM++ 3M"),
    *("diffusers UniPC 2", "diffusers UniPC 3", "diffusers DEIS 3"),
)
IN_COSTS = (
    *("euler", "heun", "ddim", "dpmpp-2m", "unipc", "deis", "dpm-v3", "diffusers DDIM"),
    *("diffusers Euler", "diffusers FlowMatchEuler", "diffusers DPM++ 2M"),
    *("diffusers DPM++ 3M", "diffusers UniPC 2", "diffusers UniPC 3", "diffusers DEIS 3"),
)


def _errors(record: Record, problem: str, names: Sequence[str]) -> str:
    found = record["errors"].get(problem)

    if found is None:
        return "Not measured in this run."

    counts = [n for n in COUNTS if any(n in row for row in found.values())]
    rows = [
        [n, *(f"{found[n][c]['median']:.3f}" if c in found[n] else "–" for c in counts)]
        for n in names
        if n in found
    ]

    def best(count: str, theirs: bool) -> float:
        side = [n for n in names if n in found and n.startswith("diffusers") == theirs]
        return min(found[n][count]["median"] for n in side if count in found[n])

    ratios = [best(c, theirs=False) / best(c, theirs=True) for c in counts]
    rows.append(["best of ours ÷ best of diffusers", *(f"{r:.2f}" for r in ratios)])
    ratio = "The last row is the ratio of the best in each column."
    return markdown(["sampler", *counts], rows, told(record, "diffusers", ratio=ratio))


@table("solvers-mixture", "solvers")
def solvers_mixture(record: Record) -> str:
    """Errors on the mixture in 16 dimensions."""

    return _errors(record, "gm16d, λ grid", ON_MIXTURE)


@table("solvers-digits", "solvers")
def solvers_digits(record: Record) -> str:
    """Errors on a saved pipeline."""

    return _errors(record, "pipeline", ON_DIGITS)


@table("solvers-costs", "solvers")
def solvers_costs(record: Record) -> str:
    """Kernels and host reads of one call more."""

    costs = record["costs"]
    rows = [
        [n, f"{costs[n]['kernels']:.1f}", f"{costs[n]['host_reads']:.1f}"]
        for n in IN_COSTS
        if n in costs
    ]
    ours, theirs = costs["unipc"]["kernels"], costs["diffusers UniPC 2"]["kernels"]
    ratio = f"UniPC of diffusers launches {theirs / ours:.0f} kernels for one of ours."
    header = ["sampler", "kernels a call", "host reads a call"]
    return markdown(header, rows, told(record, "diffusers", ratio=ratio))


@table("robustness")
def robustness(record: Record) -> str:
    """Distance ÷ floor by stressor, D and strength: mean, smallest to largest over seeds."""

    parts = []

    for title, curves in record["ratios"].items():
        strengths = sorted({float(s) for curve in curves.values() for s in curve})
        keys = {float(s): s for curve in curves.values() for s in curve}
        rows = [[D, *(_range(curve[keys[s]]) for s in strengths)] for D, curve in curves.items()]
        parts.append(f"**{title}**\n\n" + markdown(["", *(f"{s:g}" for s in strengths)], rows))

    ratio = (
        "The peer is D = ∞, which is EDM; ratios are distances to that of two halves of the data, "
        "the mean, and smallest to largest, over training seeds."
    )
    return "\n\n".join([*parts, told(record, ratio=ratio)])


def _range(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


@table("gradients")
def gradients(record: Record) -> str:
    """Memory, time and error of the gradients, by the number of steps."""

    cells, steps = record["cells"], [str(n) for n in record["options"]["steps"]]

    def column(method: str, key: str, form: Callable[[float], str]) -> str:
        return ", ".join(
            "–" if (value := cells[method][n].get(key)) is None else form(value) for n in steps
        )

    rows = [
        [
            method,
            column(method, "peak_mb", lambda v: f"{v:.0f}"),
            column(method, "seconds", lambda v: f"{v:.1f}"),
            column(method, "error_x", lambda v: f"{v:.2g}"),
            column(method, "error_weights", lambda v: f"{v:.2g}"),
        ]
        for method in cells
    ]
    turns = record["turns"]["exact"]
    ratio = (
        f"In turns in one process, at N = {steps[0]}, exact costs {turns['ratio']:.2f} of "
        f"autograd, which is {turns['of autograd + forward']:.2f} of autograd and a forward pass."
    )
    header = ["method", f"peak MB, N = {', '.join(steps)}", "CPU s"]
    header += ["error of the noise's gradient", "of the weights'"]
    return markdown(header, rows, told(record, "torchdiffeq", ratio=ratio))


@table("flows")
def flows(record: Record) -> str:
    """Distance ÷ floor of flows at few Euler steps, and how straight they are."""

    found = record["flows"]
    counts = [k for k in next(iter(found.values()))["distances"] if k != "rk45"]
    rows = []

    for name, flow in found.items():
        over = [f"{flow['distances'][k]['over_floor']:.1f}" for k in counts]
        last = flow["distances"]["rk45"]
        report = flow["report"]
        rows.append(
            [
                *(name, *over, f"{last['over_floor']:.1f} ({last['nfe']})"),
                *(f"{report['straightness']:.3g}", f"{report['error']['1']:.3g}"),
            ]
        )

    header = ["flow", *(f"{k} NFE" for k in counts)]
    header += ["RK45 (NFE)", "straightness", "1-step error"]
    ratio = "Distances are in units of that between two halves of the data; RK45 is torchdiffeq's."
    return markdown(header, rows, told(record, "torchdiffeq", ratio=ratio))


@table("search-mixture")
def search_mixture(record: Record) -> str:
    """What search and gradients find on a mixture, beside the best preset."""

    rows = []

    for calls, found in record["cases"].items():
        name, preset = found["preset"]
        rows.append(
            [
                *(calls, f"{preset:.4f} ({name})", f"{found['seed']:.4f}"),
                *(_spread(found["found"]), f"{mean(found['found']) / preset:.2f}"),
                *(_spread(found["tables"]), f"{mean(found['tables']) / preset:.2f}"),
                *(f"{found['preset_golden']:.4f}", _spread(found["golden"])),
                f"{mean(found['seconds']):.0f}",
            ]
        )

    header = ["calls", "best preset", "best with AYS, Beta, GITS times", "searched", "÷ preset"]
    header += ["searched, then free weights", "÷ preset"]
    header += ["best preset, golden noise", "searched, golden noise", "CPU s"]
    ratio = "The peer is the best of all presets on all grids, on the same noise."
    return markdown(header, rows, told(record, ratio=ratio))


@table("search-guided")
def search_guided(record: Record) -> str:
    """S³ against evolution and random search at equal numbers of scores."""

    budget, rows = record["budget"], []

    for case, found in record["cases"].items():
        curves = found["curves"]
        rows.append(
            [
                case.replace("/", ", "),
                *(f"{curve[-1]:.4f}" for curve in curves.values()),
                *(f"{v:.4f}" for v in found.get("held", {}).values()),
                f"{curves['S³'][budget // 2 - 1]:.4f}",
                str(found["reached"] or f"> {budget}"),
                f"{mean(found['taus']):.2f}",
            ]
        )

    first = next(iter(record["cases"].values()))
    header = ["calls, seed", *first["curves"], *(f"{n}, held out" for n in first.get("held", {}))]
    header += ["S³ at half the budget", "S³ reaches evolution's at", "mean τ"]
    ratio = f"The peer is the same evolution without a predictor; {budget} schedules each."
    return markdown(header, rows, told(record, ratio=ratio))


@table("search-digits")
def search_digits(record: Record) -> str:
    """Searched schedules and the best presets on the digits."""

    rows = []

    for calls, found in record["cases"].items():
        ours, theirs, names = found["searched"], found["preset"], found["names"]
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        rows.append(
            [
                *(calls, max(sorted(set(names)), key=names.count)),
                *(f"{mean(theirs):.4f}", f"{mean(ours):.4f}", _spread(ratios, ".2f")),
                f"{mean(found['seconds']):.0f}",
            ]
        )

    header = ["calls", "best preset", "its distance", "searched", "searched ÷ preset", "CPU s"]
    ratio = "The peer is the best of all presets on all grids, chosen on seeds of its own."
    return markdown(header, rows, told(record, ratio=ratio))


@table("search-population")
def search_population(record: Record) -> str:
    """Many schedules in one batch against one by one."""

    rows = []

    for name, found in record["cases"].items():
        one, together, one_c, together_c = found["seconds"].values()
        rows.append(
            [
                *(name, f"{1e3 * one:.2f}", f"{1e3 * together:.2f}"),
                *(f"{one / together:.1f}×", f"{one_c / together_c:.1f}×", f"{found['apart']:.0e}"),
            ]
        )

    header = ["network", "one by one, ms a schedule", "population, ms"]
    header += ["ratio", "with compiling", "scores apart by"]
    ratio = "The peer is the same sampler, one schedule after the other; tables made beforehand, "
    ratio += "but in the column with compiling."
    return markdown(header, rows, told(record, ratio=ratio))


@table("search-workers")
def search_workers(record: Record) -> str:
    """Two workers on one ledger, one of them killed."""

    rows = [
        [run, *(str(found[k]) for k in ("scored", "unique", "legal"))]
        for run, found in record["cases"].items()
    ]
    budget = record["options"]["budget"] or 120
    ratio = f"Of two workers on one ledger one was killed at a quarter of the budget, {budget}."
    header = ["run", "scored", "unique", "legal"]
    return markdown(header, rows, told(record, "optuna", ratio=ratio))


@table("search_blocks")
def search_blocks(record: Record) -> str:
    """What is left out of a network, at equal FLOPs."""

    rows = [
        [
            *(name, f"{mean(found['flops']):.3f}", f"{found['latency']:.2f}"),
            *(_spread(found[k]) for k in ("distance", "ratio", "ratio_to_better")),
            f"{mean(found['error']):.4f}",
        ]
        for name, found in record["contestants"].items()
    ]
    header = ["", "FLOPs", "CPU time", "distance to data", "÷ full", "÷ the better full"]
    ratio = "FLOPs, times and distances ÷ full are to ten full calls on the pipeline's own grid."
    return markdown([*header, "error to the teacher"], rows, told(record, ratio=ratio))


@table("bridges")
def bridges(record: Record) -> str:
    """Error and time of bridges by case and contestant."""

    cases: dict[str, dict[str, list[Record]]] = {}
    for cell in record["cells"]:
        cases.setdefault(cell["case"], {}).setdefault(cell["name"], []).append(cell)

    rows = []

    for case, found in cases.items():
        base = [c["seconds"] for c in found.get("published", ())]
        for name, cells in found.items():
            seconds, cbw, gap = ([c[k] for c in cells] for k in ("seconds", "cbw", "gap"))
            spread = f" ({min(cbw):.2g} to {max(cbw):.2g})" if len(cbw) > 1 else ""
            rows.append(
                [
                    *(case, name, f"{mean(seconds):.1f}"),
                    f"{mean(seconds) / mean(base):.2f}" if base else "–",
                    f"{mean(cbw):.2g}{spread}",
                    "–" if None in gap else f"{mean(gap):.4f}",
                ]
            )

    header = ["family, dimension, ε", "contestant", "CPU s", "÷ published", "cBW₂-UVP %", "KL gap"]
    ratio = "The peer is the published settings on the same points, and POT's Sinkhorn."
    return markdown(header, rows, told(record, "POT", ratio=ratio))


DISTANCES = ("frechet", "kernel", "mmd", "sliced-wasserstein", "energy")
RATES = ("precision", "recall", "density", "coverage", "memorisation")


@table("metrics")
def metrics(record: Record) -> str:
    """What each metric says of known damages, data by data and net by net."""

    parts = []

    for data, nets in record["tables"].items():
        for net, found in nets.items():
            first = found["test set"]
            labels = [first[m]["label"].split(" (")[0] for m in (*DISTANCES, *RATES)]
            rows = [
                [row, *(_said(m, numbers[m]) for m in (*DISTANCES, *RATES))]
                for row, numbers in found.items()
            ]
            parts.append(f"**{data}, features {net}**\n\n" + markdown(["", *labels], rows))

    ratio = "Ratios are to the floor, two real parts at equal numbers; memorisation is a fraction."
    return "\n\n".join([*parts, told(record, ratio=ratio)])


def _said(metric: str, numbers: Record) -> str:
    if metric == "memorisation":
        return f"{numbers['value']:.3f}"
    ratio = numbers["ratio"]
    return "–" if ratio is None else f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"


# -------------------------------------------------------------------------------------- the page


def rendered(page: str, results: Path) -> str:
    """A page with the tables between its marks made anew, of what results there are.

    Args:
        page: The page; tables without results stay as they are.
        results: The folder of the results.

    Raises:
        KeyError: If a mark names no table.
    """

    def made(mark: re.Match[str]) -> str:
        entry = TABLES[mark[2]]
        file = results / f"{entry.source}.json"
        if not file.exists():
            return mark[0]
        record = json.loads(file.read_text(encoding="utf-8"))
        return f"{mark[1]}{entry.make(record)}\n{mark[3]}"

    return MARK.sub(made, page)


def stale(page: str, results: Path) -> list[str]:
    """The results that no mark of a page shows."""

    shown = {TABLES[name].source for _, name, _ in MARK.findall(page)}
    return sorted({f.stem for f in results.glob("*.json")} - shown)


def written(file: Path, results: Path) -> bool:
    """Makes the tables of a page anew; says whether anything changed."""

    old = file.read_text(encoding="utf-8")
    new = rendered(old, results)
    file.write_text(new, encoding="utf-8")
    return new != old
