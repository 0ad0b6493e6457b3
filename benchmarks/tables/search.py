"""Tables of what searches find, and what they cost."""

__all__ = [
    "search_blocks",
    "search_digits",
    "search_guided",
    "search_mixture",
    "search_population",
    "search_workers",
]

from statistics import mean

from tables.entries import Record, markdown, spread, table, told


@table("search-mixture")
def search_mixture(record: Record) -> str:
    """What search and gradients find on a mixture, beside the best preset."""

    rows = []

    for calls, found in record["cases"].items():
        name, preset = found["preset"]
        rows.append(
            [
                *(calls, f"{preset:.4f} ({name})", f"{found['seed']:.4f}"),
                *(spread(found["found"]), f"{mean(found['found']) / preset:.2f}"),
                *(spread(found["tables"]), f"{mean(found['tables']) / preset:.2f}"),
                *(f"{found['preset_golden']:.4f}", spread(found["golden"])),
                f"{mean(found['seconds']):.0f}",
            ]
        )

    header = ["calls", "best preset", "best with AYS, Beta, GITS times", "searched", "÷ preset"]
    header += ["searched, then free weights", "÷ preset"]
    header += ["best preset, golden noise", "searched, golden noise", "CPU s"]
    ratio = "The peer is the best of all presets on all grids, on the same noise."
    return markdown(header, rows, told(record, ratio=ratio))


@table("search-guided-digits")
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


@table("search-fashionmnist")
@table("search-digits")
def search_digits(record: Record) -> str:
    """The best presets on images, searched schedules, and their tables with tuned weights."""

    rows = []

    for calls, found in record["cases"].items():
        names, cells = found["names"], []

        for feature in (f"FD-{name}" for name in record["features"]):
            preset, *ours = (found[f"{who}, {feature}"] for who in ("preset", "searched", "table"))
            ratios = ([a / b for a, b in zip(x, preset, strict=True)] for x in ours)
            cells += [spread(preset, ".2f"), *(spread(r, ".2f") for r in ratios)]

        name = max(sorted(set(names)), key=names.count)
        rows.append([calls, name, *cells, f"{mean(found['seconds']):.0f}"])

    header = ["calls", "best preset"]
    for feature in record["features"]:
        header += [f"preset, `{feature}`", "searched ÷ preset", "tuned table ÷ preset"]
    ratio = "The peer is the best of all presets on all grids, its distance over the floor."
    return markdown([*header, "CPU s"], rows, told(record, ratio=ratio))


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
    ratio = (
        "Of two workers on one ledger one was killed at a quarter of the budget; the peer is what "
        f"was planned, {budget} schedules, each once."
    )
    header = ["run", "scored", "unique", "legal"]
    return markdown(header, rows, told(record, "optuna", ratio=ratio))


@table("search_blocks")
def search_blocks(record: Record) -> str:
    """What is left out of a network, at equal FLOPs."""

    rows = [
        [
            *(name, f"{mean(found['flops']):.3f}", f"{found['latency']:.2f}"),
            *(spread(found[k]) for k in ("distance", "ratio", "ratio_to_better")),
            f"{mean(found['error']):.4f}",
        ]
        for name, found in record["contestants"].items()
    ]
    header = ["", "FLOPs", "CPU time", "distance to the data", "÷ full", "÷ the better full"]
    ratio = "FLOPs, times and distances ÷ full are to ten full calls on the pipeline's own grid."
    return markdown([*header, "error to the teacher"], rows, told(record, ratio=ratio))
