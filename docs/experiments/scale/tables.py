"""The page docs/scale.md: stored figures, and what is projected from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from results.common import markdown
from scale import projection
from vlm_edit.report import Table

CPU = "pairs a second of CPU"
COMMAND = "python docs/experiments scale.page --measure"
MOST_LARGE = 1.5e9  # bytes that a batch of large photographs may take


class Line(NamedTuple):
    """A stored figure: ``timing.Row`` in words."""

    section: str
    case: str
    figure: str
    value: str
    low: str
    high: str
    runs: str


class Figures:
    """Look stored figures up.

    Args:
        lines: All of them.
    """

    def __init__(self, lines: Sequence[Line]) -> None:
        self.by_name = {(line.section, line.case, line.figure): line for line in lines}

    def value(self, *name: str) -> float:
        """Return a median by section, case and figure."""
        return float(self.by_name[name].value)

    def cell(self, *name: str) -> str:
        """Return a median with the least and the greatest, where there are several."""
        line = self.by_name[name]
        low, high = number(float(line.low)), number(float(line.high))
        return number(float(line.value)) + (f" [{low}, {high}]" if int(line.runs) > 1 else "")

    def words(self, what: str) -> list[str]:
        """Return what is said of the runs of all sections, each once."""
        found = [line.value for line in self.by_name.values() if line.figure == what]
        return list(dict.fromkeys(found))

    def cases(self, section: str, figure: str) -> list[str]:
        """Return the cases of a section that have a figure."""
        return [case for one, case, name in self.by_name if (one, name) == (section, figure)]


def number(value: float) -> str:
    """Return a number in three digits, or whole."""
    if abs(value) >= 100:
        return f"{round(float(f'{value:.3g}')) if abs(value) < 1e15 else value:,}"
    return f"{float(f'{value:.3g}'):g}"


def page(lines: Sequence[Line]) -> str:
    """Return the page of what is stored; sections that nobody has measured yet are named."""
    stored = Figures(lines)
    measured = {line.section for line in lines}
    made = {
        "workers": workers,
        "sources": sources,
        "processes": processes,
        "early": early,
        "memory": memory,
        "large": large,
    }
    parts = [make(stored) for name, make in made.items() if name in measured]
    missing = [f"`--only {name}`" for name in made if name not in measured]
    if missing:
        parts.append(f"**Not measured yet**: {', '.join(missing)}.")
    return "\n\n".join((head(stored), *parts, projected(stored), sampled(stored))) + "\n"


def ran(only: str = "") -> str:
    """Return the command of a section."""
    return f"```bash\n{COMMAND}{f' --only {only}' if only else ''}\n```"


def head(stored: Figures) -> str:
    """Return what all tables need."""
    loads = stored.words("load before")
    cases = [name for name in stored.by_name if name[2] == "seconds in all"]
    minutes = sum(stored.value(*name) for name in cases) / 60
    return f"""# What reading pairs costs, and what large sets would

{ran()}

measures everything here, which took {minutes:.1f} minutes in all, and writes the figures
(`docs/experiments/results/scale.csv`) and this page; without `--measure` it writes the page
alone. Ways take turns within one run, after a round that is not counted: medians, with the least
and the greatest in brackets. One thread a process. A photograph is a JPEG file that the script
makes: smooth random colours with grain, of as many bytes as a camera's, each of other pixels.

Measured on {"; and ".join(stored.words("machine"))}. **Noise**: other work may have run beside it
(load before the sections {min(loads, key=float)} to {max(loads, key=float)}), and the brackets
show it. Times do not carry over to another machine."""


def workers(stored: Figures) -> str:
    """Return pairs a second against workers."""
    cases = stored.cases("workers", "bytes of a file")
    rows = []
    for case in cases:
        size = stored.value("workers", case, "bytes of a file") / 1e6
        cells = [stored.cell("workers", case, f"{n} workers") for n in (0, 1, 2)]
        cells += [stored.cell("workers", case, f"{n} workers, {CPU}") for n in (0, 2)]
        rows.append((case, f"{size:.2f}", *cells))
    columns = ("host, photographs", "MB a file", "0 workers", "1", "2")
    columns += ("0, a second of CPU", "2, likewise")
    first, last = (stored.value("workers", cases[1], f"{n} workers") for n in (0, 2))
    return f"""## Processes that read ahead

{ran("workers")}

{markdown(Table("Pairs a second by `measure`", columns, rows))}

`workers=` decode and make inputs beside the process of the host; each run starts and ends its
own. The random CLIP takes images of 224 pixels as CLIP L/14 does and has one layer of width 32,
so what is timed is reading: decoding, shrinking, the processor, digests. With two
workers there were {last / first:.2f} times as many pairs a second as with none, on two cores that
other work took too. A run reads 32 or 64 photographs, and what it takes once is in it, so the rates
are low ones."""


def sources(stored: Figures) -> str:
    """Return pairs a second by source."""
    cases = stored.cases("sources", CPU)
    rows = [(case, stored.cell("sources", case, CPU)) for case in cases]
    values = [stored.value("sources", case, CPU) for case in cases]
    title = "Pairs a second of CPU, emoji-clip, .2 megapixels, no workers"
    return f"""## Tar, parquet, files

{ran("sources")}

{markdown(Table(title, ("source", CPU), rows))}

The fastest is {max(values) / min(values):.2f} times as fast as the slowest, on a local disk whose
files the system holds in memory. On a network's disk shards are read in one piece and files are
not: that was not measured."""


def processes(stored: Figures) -> str:
    """Return pairs a second of several processes."""
    cases = stored.cases("processes", CPU)
    one = stored.value("processes", "1", "pairs a second")
    rows = [
        (case, stored.cell("processes", case, "pairs a second"),
         f"{stored.value('processes', case, 'pairs a second') / one:.2f}",
         stored.cell("processes", case, CPU))
        for case in cases
    ]  # fmt: skip
    table = Table(
        "Pairs a second until the parts are merged, emoji-clip, 2 megapixels",
        ("processes", "pairs a second", "times one", CPU),
        rows,
    )
    return f"""## Processes that share the pairs

{ran("processes")}

{markdown(table)}

Each measures a part, as `--part I/N` and ranks of `torchrun` do ([clusters](clusters.md)), and the
first merges; the seconds in which Python and torch start are not in it. There are two cores, and
where other work ran beside it more processes also got more of them: the last column says what a
pair cost whatever ran."""


def early(stored: Figures) -> str:
    """Return what ending a forward saves."""
    whole = stored.value("early", "whole", "seconds")
    rows = [
        (case, stored.cell("early", case, "seconds"),
         f"{whole / stored.value('early', case, 'seconds'):.2f}")
        for case in stored.cases("early", "seconds")
    ]  # fmt: skip
    table = Table(
        "Seconds of one forward's CPU, layer 8 of 16 is read", ("forward", "s", "as fast"), rows
    )
    return f"""## A forward that ends behind the layer that is read

{ran("early")}

{markdown(table)}

By `python docs/experiments scale.early_stop`: a random LLaVA of width 256 with 32,064 words, 16
rows of 40 tokens. Its head, which is not run, is two fifths of the weights that multiply; of a
large host's it is a fiftieth, so that stopping at half the layers saves half."""


def memory(stored: Figures) -> str:
    """Return peaks against the number of pairs."""
    rows = []
    for case in stored.cases("memory", "peak MiB"):
        kind, pairs = case.split()
        first = stored.value("memory", f"{kind} 1000", "peak MiB")
        more = stored.value("memory", case, "peak MiB") - first
        seconds = stored.cell("memory", case, "seconds")
        rows.append((kind, f"{int(pairs):,}", stored.cell("memory", case, "peak MiB"),
                     f"{more:+.0f}" if pairs != "1000" else "", seconds))  # fmt: skip
    columns = ("what", "pairs", "peak MiB", "beyond 1,000 pairs'", "s")
    return f"""## Memory against pairs

{ran("memory")}

{markdown(Table("Peak of a fresh process, by the kernel's count", columns, rows))}

*measure*: the real `measure` of a tiny CLIP of 32 features, on pairs in a shard that are made
when they are asked for, in batches of 64; *cuts*: what is to be read, cut, without a host. Most
of a peak is Python, torch and transformers. **Flat is the claim**, but for what tells how often
texts and images come again: a key and a count, 16 bytes, of at most 262,144 texts and as many
images, and as much again for a moment while they are sorted. A measurement grows until there are so
many pairs, and no further. Pairs of a CSV file are listed in memory; shards are not."""


def large(stored: Figures) -> str:
    """Return peaks of a batch of large photographs."""
    rows, added = [], []
    for case in stored.cases("large", "peak MiB"):
        peak, before = (stored.value("large", case, f) for f in ("peak MiB", "MiB before"))
        added.append(peak - before)
        seconds = stored.cell("large", case, "seconds")
        rows.append((case, stored.cell("large", case, "peak MiB"), f"{peak - before:.0f}", seconds))
    columns = ("pixels a host needs", "peak MiB", "of it by the batch", "s")
    size = stored.value("large", "files", "bytes of a file") / 1e6
    peak = max(
        stored.value("large", case, "peak MiB") for case in stored.cases("large", "peak MiB")
    )
    within = peak * 2**20 <= MOST_LARGE
    return f"""## A batch of large photographs

{ran("large")}

{markdown(Table("One batch of 64 photographs of 24 megapixels, a fresh process", columns, rows))}

JPEG files of {size:.1f} MB. Whole, as 8-bit colours, they would take {64 * 72 / 1000:.1f} GB;
they are shrunk while they are decoded, to no less than twice the side that the host needs. **The
whole process {"stays within" if within else "does not stay within"} 1.5 GB**
({peak * 2**20 / 1e9:.2f} GB at most). A host that cuts images into pieces, or a PNG file, is not
helped: `--batch-size` is."""


def projected(stored: Figures) -> str:
    """Return what sets of pairs would take."""
    names = tuple(projection.SETS)
    hosts = [
        (host.name, number(host.flop / 1e12), number(host.pairs_a_second),
         *(number(host.hours(pairs)) for pairs in projection.SETS.values()))
        for host in projection.HOSTS
    ]  # fmt: skip
    table = Table(
        "Hours of H100, not measured",
        ("host", "TFLOP a pair", "pairs a second and H100", *names),
        hosts,
    )
    return f"""## CC3M, DataComp-1B, LAION-2B: not measured

No large host and no H100 was at hand. This is arithmetic, which
`docs/experiments/scale/projection.py` computes:

- FLOP a pair = 2 x weights x tokens, of the weights that multiply. CLIP L/14: 303.2 M x 257
  tokens of the image, 85.1 M x 77 of the text. LLaVA: the image tower at 336 pixels, 303.2 M x
  577, and a language model of 636 tokens: of 7B 6.476 G in 32 layers and .131 G in the head,
  stopped at half 16 layers and no head; of 70B 68.45 G and .262 G.
- An H100 does 989 TFLOP/s (bf16, dense) at most. **Assumed**: 40 % of that is reached, 34 % where
  8 of them hold a host by tensor parallel. Not one was timed.
- Hours = pairs x FLOP / (989e12 x share) / 3600; of the 70B all 8 are counted. For example
  LLaVA-7B, whole, on CC3M: {example(projection.HOSTS[1], "CC3M")}.
- Left out: attention's own products (2 % at 636 tokens), the dictionary, copies, and waiting.

{markdown(table)}

{reading(stored)}"""


def example(host: projection.Projected, name: str) -> str:
    """Return one figure of the table with its arithmetic."""
    pairs = projection.SETS[name]
    products = " + ".join(f"2 x {tower.weights:.4g} x {tower.tokens}" for tower in host.towers)
    return (
        f"{products} = {host.flop:.3g} FLOP; {pairs:.3g} x {host.flop:.3g} / "
        f"(989e12 x {host.share:g}) / 3600 = {number(host.hours(pairs))}"
    )


def reading(stored: Figures) -> str:
    """Return what decoding would take, at the measured rates."""
    rates = {
        size: stored.value("workers", f"random CLIP, {size}", f"0 workers, {CPU}")
        for size in (".2 megapixels", "2 megapixels")
    }
    beside = ("cores beside an H100 of CLIP L/14", "beside one of LLaVA-7B, whole")
    columns = ("photographs", "pairs a second and core", *projection.SETS, *beside)
    rows = [
        (size, number(rate),
         *(number(projection.core_hours(pairs, rate)) for pairs in projection.SETS.values()),
         *(number(host.pairs_a_second / rate) for host in projection.HOSTS[:2]))
        for size, rate in rates.items()
    ]  # fmt: skip
    title = "Hours of a core that reads, at the rates measured above"
    return f"""{markdown(Table(title, columns, rows))}

Sets are usually stored small (`img2dataset` resizes), so the first line is the likelier. Beside
CLIP reading is the bottleneck: so many cores an H100 as the table says. Beside LLaVA it is
not."""


def sampled(stored: Figures) -> str:
    """Return what a sample settles."""
    sd, low, high = (
        float(getattr(stored.by_name["spread", "emoji-clip", "standard deviation"], name))
        for name in ("value", "low", "high")
    )
    features = stored.by_name["spread", "emoji-clip", "standard deviation"].runs
    counts = (30, 100, 300, 1000, 3000, 10000)
    rows = [
        (f"{n:,}", f"{projection.width(n):.3f}", f"{projection.width(n, sd):.3f}",
         f"1 in {projection.SAMPLE / n:,.0f}")
        for n in counts
    ]  # fmt: skip
    columns = ("pairs in which it fires", "width, at most", f"at a deviation of {sd:.2f}",
               "of 3 M pairs: fires in")  # fmt: skip
    costs = [f"{host.name} {number(host.hours(projection.SAMPLE))}" for host in projection.HOSTS]
    n = projection.active_for(0.1)
    share, sure = 1e-4, projection.SAMPLE * 1e-4
    rare = f"{projection.width(sure):.3f}"
    return f"""## A billion pairs are sampled, not read

{ran("spread")}

A feature's MDS is the mean, over the pairs in which it fires, of a ratio between 0 and 1. Its
standard error is s / sqrt(n): **n is the pairs in which the feature fires, not the pairs read**,
and s is .5 at most. A 90 % interval is 2 x 1.645 x s / sqrt(n) wide.

{markdown(Table("Width of a 90 % interval of an MDS", columns, rows))}

The deviation is the median of {features} features of emoji-clip that fire in 30 of the 1,024
shipped pairs or more, their middle half {low:.2f} to {high:.2f}; a real host's may be another. A
width of .1, whatever s, takes 3.29^2 x .25 / .1^2 = {n} firing pairs. So 3 M pairs drawn at
random give a feature that fires in {share:g} of them {sure:,.0f} firing pairs, and a width of
{rare} at most: **they settle every feature that fires in 1e-4 of the pairs**, and DataComp's 1.4
G pairs would narrow that to {projection.width(projection.SETS["DataComp-1B"] * share):.4f}, which
no class hangs on. Hours of H100 for 3 M pairs, not measured: {"; ".join(costs)}. What needs more
pairs is rarer features, and top examples. Captions of one image count once.
`how_many_pairs(measurement)` says how many a measurement of yours wants."""
