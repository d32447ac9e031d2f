"""The page of results: measured tables beside the paper's, and which of its claims hold, out of the files alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.fedavg_tables import plain_loop
from benchmarks.fedavg_tables.cells import GRID, Cell, Run
from benchmarks.fedavg_tables.claims import NEVER, claims
from benchmarks.fedavg_tables.initialisation import FILE, THETAS
from benchmarks.fedavg_tables.paper import TABLES, Entry, PaperTable
from benchmarks.fedavg_tables.planning import expected_rounds, minutes_left, search_of
from benchmarks.fedavg_tables.store import Result, Store, key_of, read_json
from lightning_sfl.records.curves import Spread, spread
from lightning_sfl.records.forms import PM

BEGIN, END = "<!-- measured: written by `report` -->", "<!-- end of measured -->"
UPDATES = 500  # mini-batch updates in a round of SGD


def write_report(store: Store, seeds: Sequence[int], page: Path) -> Path:
    """Put the measured part into the page, between its marks; a page without them is begun."""
    text = (
        page.read_text(encoding="utf-8") if page.is_file() else f"# The tables of the FedAvg paper\n\n{BEGIN}\n{END}\n"
    )
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(f"{before}{BEGIN}\n\n{measured_part(store, seeds)}\n{END}{after}", encoding="utf-8")
    return page


def measured_part(store: Store, seeds: Sequence[int]) -> str:
    """All tables, the claims, and the networks that were averaged."""
    parts = [extent(store, seeds), *(table_part(store, table, seeds) for table in TABLES.values())]
    parts += [claims_part(store, seeds), plain_part(store, seeds), init_part(store)]
    return "\n".join(parts)


def extent(store: Store, seeds: Sequence[int]) -> str:
    """How much of the tables is there, and on how many seeds it stands."""
    cells = list(dict.fromkeys(cell for table in TABLES.values() for cell in table.cells))
    counts = [len(results_of(store, cell, seeds)[1]) for cell in cells]
    trained = sum(len(store.results(cell, seed, GRID)) for cell in cells for seed in seeds)
    begun, several = sum(count > 0 for count in counts), sum(count > 1 for count in counts)
    said = f"{trained} trainings of {begun} of {len(cells)} cells are on file; {several} of these have several seeds."
    return f"{said}\nWhere there is one seed, a claim that holds below holds for that training.\n"


def results_of(store: Store, cell: Cell, seeds: Sequence[int]) -> tuple[float | None, list[Result]]:
    """The rate that was found and the finished runs at it, whatever seeds have one."""
    best = search_of(store, cell, seeds[0]).best
    if best is None:
        return None, []
    found = [store.read(Run(cell, best, seed)) for seed in seeds]
    return best, [result for result in found if result is not None]


def rounds_of(results: Sequence[Result], target: float) -> Spread:
    """Rounds to a target over the seeds; there is no mean while one seed has not got there."""
    return spread([result.rounds_to(target) for result in results])


def unit(cell: Cell) -> int:
    """What the table counts in a round: a round, or the updates of SGD."""
    return UPDATES if cell.method == "sgd" else 1


# --- tables ----------------------------------------------------------------------------------------------------------


def table_part(store: Store, table: PaperTable, seeds: Sequence[int]) -> str:
    """One table: figure by figure, ours beside the paper's."""
    lines = [f"## {table.title}", ""]
    lines += [table.unlike, ""] if table.unlike else []
    lines += ["| cell | paper | measured | ratio | seeds | rate | rates tried |", "|---|---:|---:|---:|---:|---:|---|"]
    lines += [row_of(store, entry, seeds) for entry in table.entries]
    return "\n".join([*lines, ""])


def row_of(store: Store, entry: Entry, seeds: Sequence[int]) -> str:
    """A row of a table."""
    cell = entry.cell
    best, results = results_of(store, cell, seeds)
    published = "-" if entry.published is None else str(entry.published)
    if best is None:
        tried = ", ".join(f"{rate:g}" for rate in sorted(search_of(store, cell, seeds[0]).results))
        return f"| {entry.where} | {published} | {not_run(store, cell, seeds)} | | | | {tried} |"
    found = rounds_of(results, entry.target)
    ratio = "" if entry.published is None or found.mean is None else f"{found.mean * unit(cell) / entry.published:.2f}"
    shown = [entry.where, published, shown_rounds(found, results, unit(cell)), ratio, str(len(results)), f"{best:g}"]
    return f"| {' | '.join(shown)} | {tried_rates(store, cell, seeds[0])} |"


def not_run(store: Store, cell: Cell, seeds: Sequence[int]) -> str:
    """What stands in the place of a figure: how long it would take."""
    minutes = minutes_left(store, cell, seeds)
    if minutes is None:
        return "not run, time not measured"
    seconds = store.times()[key_of(cell)]
    return f"not run: {shown_hours(minutes)} ({expected_rounds(store, cell):.0f} rounds of {seconds:.3g} s a training)"


def shown_hours(minutes: float) -> str:
    """Minutes, or hours where there are many."""
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def shown_rounds(found: Spread, results: Sequence[Result], unit: int) -> str:
    """Mean and deviation; how many seeds got there where not all did; the best accuracy where none did."""
    if found.mean is not None:
        return shown_spread(found, unit)
    if found.known:
        return f"{found.known} of {found.seeds} seeds got there"
    best = max(value for result in results for _, value in result.curve)
    return f"not in {max(result.rounds for result in results)} rounds (best {best:.4f})"


def shown_spread(found: Spread, unit: int = 1) -> str:
    """Mean and deviation; nothing where there is no mean."""
    if found.mean is None:
        return ""
    return f"{found.mean * unit:.0f}" + (f" {PM} {found.sd * unit:.0f}" if found.sd is not None else "")


def tried_rates(store: Store, cell: Cell, seed: int) -> str:
    """Every rate of the search with the rounds it needed, or what became of it."""
    search = search_of(store, cell, seed)
    shown = []
    for rate, result in sorted(search.results.items()):
        rounds = result.rounds_to(cell.target)
        shown.append(f"{rate:g}: {result.end if rounds is None else f'{rounds:.0f}'}")
    return "; ".join(shown) + ("" if search.is_over else "; search not over")


# --- claims ----------------------------------------------------------------------------------------------------------


def claims_part(store: Store, seeds: Sequence[int]) -> str:
    """Every claim with its verdict and the comparisons behind it."""

    def rounds(cell: Cell, target: float) -> Spread | None:
        _, results = results_of(store, cell, seeds)
        if results and all(result.end == "capped" for result in results):
            return NEVER
        return rounds_of(results, target) if results else None

    lines = ["## What holds of the paper's claims", ""]
    for claim in claims(rounds):
        lines += [f"**{claim.text}**: {claim.verdict}.", ""]
        lines += [*(f"- {line}" for line in claim.lines), *([""] if claim.lines else [])]
    return "\n".join(lines)


def plain_part(store: Store, seeds: Sequence[int]) -> str:
    """Rounds of the same cells and rates in the platform and in a loop written apart."""
    known = read_json(store.folder / plain_loop.FILE) or {}
    lines = ["## The same cells in a loop of plain PyTorch", ""]
    if not known:
        return "\n".join([*lines, "Not run.", ""])
    lines += ["| cell | rate | platform | plain loop | paper |", "|---|---:|---:|---:|---:|"]
    entries = {entry.cell: entry for entry in TABLES["table1"].entries}
    for cell in plain_loop.plain_cells():
        rate, results = results_of(store, cell, seeds)
        if rate is None:
            continue
        found = [known[name] for seed in seeds if (name := Run(cell, rate, seed).name) in known]
        ours, plain = (shown_spread(one) for one in (rounds_of(results, cell.target), spread(found)))
        entry = entries[cell]
        lines.append(f"| {entry.where} | {rate:g} | {ours} | {plain} | {entry.published} |")
    return "\n".join([*lines, ""])


def init_part(store: Store) -> str:
    """Losses along the line between two networks."""
    known = read_json(store.folder / FILE) or {}
    lines = ["## Networks that began alike can be averaged", ""]
    if not known:
        return "\n".join([*lines, "Not run.", ""])
    lines += ["| theta | began alike | began apart |", "|---:|---:|---:|"]
    for place, theta in enumerate(THETAS):
        cells = [spread([one[way][place] for one in known.values()]) for way in ("alike", "apart")]
        lines.append(f"| {theta} | {' | '.join(shown_loss(cell) for cell in cells)} |")
    lines += ["", verdict_on_init(list(known.values())), ""]
    return "\n".join(lines)


def shown_loss(found: Spread) -> str:
    """Mean and deviation of a loss."""
    return f"{found.mean:.3f}" + (f" {PM} {found.sd:.3f}" if found.sd is not None else "")


def verdict_on_init(known: Sequence[dict[str, list[float]]]) -> str:
    """In how many seeds the average is better than both parents, and worse than both, as the paper has it."""
    half, zero, one = (THETAS.index(theta) for theta in (0.5, 0.0, 1.0))
    better = sum(way["alike"][half] < min(way["alike"][zero], way["alike"][one]) for way in known)
    worse = sum(way["apart"][half] > max(way["apart"][zero], way["apart"][one]) for way in known)
    return (
        f"Halfway (theta 0.5) the loss on all training digits is below both parents' in {better} of {len(known)} seeds "
        f"when they began alike, and above both parents' in {worse} of {len(known)} when they did not."
    )
