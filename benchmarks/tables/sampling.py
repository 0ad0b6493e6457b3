"""Tables of what sampling costs, how near it comes, and what its gradients cost."""

__all__ = [
    "capture",
    "gradients",
    "sampling",
    "solvers_costs",
    "solvers_digits",
    "solvers_mixture",
]

from collections.abc import Callable, Sequence

from tables.entries import Record, markdown, table, told


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


@table("capture")
def capture(record: Record) -> str:
    """Milliseconds of a whole solve, and the ratio to the plain one."""

    names = ("plain", "captured", "compiled", "compiled, captured")
    rows = [
        [
            case,
            *(f"{1e3 * row[n]['seconds']:.1f} ({row[n]['ratio']:.2f})" for n in names),
            "yes" if row["bit for bit"] else "no",
        ]
        for case, row in record["cases"].items()
    ]
    ratio = (
        f"Milliseconds a solve of {record['steps']} calls; in brackets the ratio to the plain "
        "sampler, which is the peer, of the same round."
    )
    header = ["network", *names, "captured equals plain"]
    return markdown(header, rows, told(record, ratio=ratio))
