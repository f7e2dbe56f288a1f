"""threadmail beside its peers: throughput, round trips, CPU and memory, in one run on one machine.

    python -m stress.bench --fetch                  only fetch the peers, for a run without a network
    python -m stress.bench                          about fifteen minutes
    python -m stress.bench --quick                  two or three
    python -m stress.bench --onto X.json            go on with a run that was cut short
    python -m stress.bench --onto X.json --part core    measure a part of it anew
    python -m stress.bench --only threadmail --only nodemailer --part speed --rtt 10 --connections 8
    python -m stress.bench --against COMMIT         the rows that measure threadmail, beside those of another commit

Peers that are not there (Django, aiosmtplib, nodemailer, Postfix with smtp-source and smtp-sink) are fetched by name
into the folder `--cache`, with pip, npm and apt-get; nothing is installed on the machine, and who cannot be had is
named and left out. Prints the targets row by row, and writes docs/performance.md (what stands between its marks), its
pictures, and the table in the README. Exits with 1 if a run failed, which is a message lost or come twice, a client
that broke or hung, each tried once more; a target not met is said, and is no failure.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import random
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import against, growth, plots, table
from .peers import PEERS, about
from .plan import KIB, MIB, PROFILES, Cell, Filter, Profile, cells, minutes
from .rounds import Bench, Results
from .tools import CACHE, Tools, Unavailable

DOCS = Path(__file__).resolve().parents[2] / "docs"
README = DOCS.parent / "README.md"
BUILD = Path("build/bench")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.fetch:
        return fetch(Tools(options.cache))
    if options.against:
        return against.main(options)
    earlier: Path | None = options.again
    results = Results.from_json(earlier.read_text(encoding="utf-8")) if earlier else measure(options)
    print()
    print(table.targets(results))
    _write(results, options)
    for failure in results.failures:
        print(f"FAILED {failure}")
    return 1 if results.failures else 0


def measure(options: argparse.Namespace) -> Results:
    """Everything that was asked for."""
    profile = PROFILES[options.profile]
    asked = {"seconds": options.seconds, "rtts": tuple(options.rtt), "sizes": tuple(options.size)}
    asked["connections"] = tuple(options.connections)
    if options.connections:
        profile = dataclasses.replace(profile, few=())
    profile = dataclasses.replace(profile, **{name: value for name, value in asked.items() if value})
    plan = _plan(options, profile)
    tools = Tools(options.cache, fetch=not options.offline)
    runs = sum(len(cell.peers) * cell.rounds for cell in plan)
    print(f"{runs:,} runs, about {max(1.0, minutes(plan)):.0f} min, seed {options.seed}")
    busy = busy_share()
    earlier = _earlier(options, plan)
    kept = BUILD / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    print(f"results so far are in {kept}: go on with --onto")

    started = time.monotonic()

    def tell(line: str) -> None:
        minutes_, seconds = divmod(int(time.monotonic() - started), 60)
        print(f"{minutes_}:{seconds:02} {line}", flush=True)

    def save(results: Results) -> None:
        _store({kept: results.to_json()})

    with Bench(tools, random.Random(options.seed), tell, earlier=earlier, save=save) as bench:
        first = [str(earlier.about["command"])] if earlier and "command" in earlier.about else []
        bench.results.about.update(
            command="`, then `".join([*first, _command(options)]),
            machine=f"{platform.python_implementation()} {platform.python_version()}, {platform.system()}, "
            f"{os.cpu_count()} cores, {busy:.0%} busy before",
            seed=options.seed,
            loaded=busy > 0.15,
        )
        if bench.results.about["loaded"]:
            print(f"the machine is {busy:.0%} busy with other work: what follows says little about time")
        bench.check_lines({cell.rtt for cell in plan})
        try:
            # Growth comes last, for it can be done without: who interrupts has the targets.
            for last in (False, True):
                bench.work([cell for cell in plan if cell.part.startswith("growth") is last])
        except KeyboardInterrupt:
            bench.results.failures.append("interrupted: what is shown is what there was by then")
        bench.results.about["versions"] = _versions(tools, bench.results)
        save(bench.results)
        return bench.results


def busy_share(seconds: float = 2.0) -> float:
    """What part of its processor time the machine spends on other work, now; its mean load would tell of before."""

    def times() -> tuple[int, int]:
        fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        return sum(fields), fields[3] + fields[4]  # idle, and waiting for disks

    try:
        total, idle = times()
        time.sleep(seconds)
        total, idle = (now - then for now, then in zip(times(), (total, idle), strict=True))
    except OSError:
        return min(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    return 1.0 - idle / max(1, total)


def fetch(tools: Tools) -> int:
    """Have everybody in the cache, and say who is not to be had."""
    short = 0
    for peer in PEERS.values():
        try:
            print(f"{peer.label}: {about(peer, tools) or 'comes with Python or with this repository'}")
        except Unavailable as error:
            short += 1
            print(f"{peer.label}: not to be had: {error}")
    return 1 if short else 0


def _earlier(options: argparse.Namespace, plan: list[Cell]) -> Results | None:
    """What is to be gone on with: without the cells that are asked for by name, which are measured anew."""
    if options.onto is None:
        return None
    results = Results.from_json(options.onto.read_text(encoding="utf-8"))
    anew = set(plan) if any(_chosen(options)) else set()
    places = {dataclasses.replace(cell, rounds=0, seconds=0.0, peers=()) for cell in anew}
    results.keep(lambda cell: dataclasses.replace(cell, rounds=0, seconds=0.0, peers=()) not in places)
    return results


def _chosen(options: argparse.Namespace) -> tuple[object, ...]:
    return (options.only, options.part, options.server, options.rtt, options.connections, options.size)


def _command(options: argparse.Namespace) -> str:
    """The command, less what is only this machine's: folders."""
    said = ["python -m stress.bench", *([f"--{options.profile}"] if options.profile != "default" else [])]
    said += ["--no-growth"] * (not options.growth)
    for name in ("only", "part", "server", "rtt", "connections", "size"):
        said += [f"--{name} {value}" for value in getattr(options, name)]
    said += [f"--{name} {getattr(options, name):g}" for name in ("rounds", "seconds") if getattr(options, name)]
    return " ".join([*said, f"--seed {options.seed}"])


def _plan(options: argparse.Namespace, profile: Profile) -> list[Cell]:
    wanted = Filter(
        tuple(options.only), tuple(options.part), tuple(options.server),
        tuple(options.rtt), tuple(options.connections), tuple(options.size),
    )  # fmt: skip
    plan = cells(profile)
    if (options.growth and profile.growth) or any(part.startswith("growth") for part in options.part):
        plan += growth.cells(profile)
    found = wanted.of(plan)
    if options.rounds:
        found = [dataclasses.replace(cell, rounds=options.rounds) for cell in found]
    if not found:
        sys.exit("nothing in the plan is like that; parts, distances and connections: " + "; ".join(_offered(plan)))
    return found


def _offered(plan: Sequence[Cell]) -> list[str]:
    return list(dict.fromkeys(cell.where for cell in plan))


def _versions(tools: Tools, results: Results) -> dict[str, str]:
    seen = {peer for _, peer in results.runs}
    found = {}
    for peer in PEERS.values():
        try:
            told = about(peer, tools) if peer.name in seen else ""
        except Unavailable:
            told = ""
        if told:
            found[peer.label] = told
    return found


def _write(results: Results, options: argparse.Namespace) -> None:
    partial = (any(_chosen(options)) and not options.onto) or options.profile == "quick" or options.again
    folder: Path = options.out or (BUILD if partial else DOCS)
    drawn = plots.pictures(results)
    page = (DOCS / "performance.md").read_text(encoding="utf-8")
    written = {folder / "performance.md": table.into(page, table.measured(results, drawn))}
    written |= {folder / name: svg for name, svg in drawn.items()}
    if folder == DOCS:
        written[README] = table.into(README.read_text(encoding="utf-8"), table.brief(results))
    print()
    _store(written)
    print(*(f"wrote {path}" for path in written), sep="\n")


def _store(written: Mapping[Path, str]) -> None:
    """Write files so that each is whole, whenever the run ends."""
    for path, content in written.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(path.name + ".part")
        draft.write_text(content, encoding="utf-8")
        draft.replace(path)


def _size(text: str) -> int:
    units = {"kib": KIB, "mib": MIB}
    number, unit = text.lower().rstrip("bikm"), text.lower().lstrip("0123456789. ")
    if unit not in ("", *units):
        raise argparse.ArgumentTypeError(f"{text!r}: write 2KiB, 1MiB, 25MiB or a number of bytes")
    return int(float(number) * units.get(unit, 1))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m stress.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    profile = parser.add_mutually_exclusive_group()
    for name in ("quick", "full"):
        profile.add_argument(f"--{name}", dest="profile", action="store_const", const=name, default="default")
    parser.add_argument("--no-growth", dest="growth", action="store_false", help="leave out how cost grows")
    parser.add_argument(
        "--only", action="append", default=[], choices=list(PEERS), metavar="PEER", help=", ".join(PEERS)
    )
    parser.add_argument("--part", action="append", default=[], metavar="PART", help="as in stress/bench/plan.py")
    parser.add_argument("--server", action="append", default=[], choices=["sink", "smtp-sink", "postfix"])
    parser.add_argument("--rtt", action="append", default=[], type=float, metavar="MS")
    parser.add_argument("--connections", action="append", default=[], type=int, metavar="K")
    parser.add_argument("--size", action="append", default=[], type=_size, metavar="SIZE", help="2KiB, 1MiB, 25MiB")
    parser.add_argument("--rounds", type=int, help="in place of the profile's")
    parser.add_argument("--seconds", type=float, help="for a run, in place of the profile's")
    parser.add_argument("--seed", type=int, default=random.randrange(10_000))
    parser.add_argument("--cache", type=Path, default=CACHE, help="where what is fetched is kept")
    parser.add_argument("--fetch", action="store_true", help="fetch the peers, and end")
    parser.add_argument("--offline", action="store_true", help="fetch nothing")
    parser.add_argument(
        "--out", type=Path, help=f"default: docs/; {BUILD} for a part of the plan, with --quick and --again"
    )
    parser.add_argument("--onto", type=Path, metavar="JSON", help="go on with an earlier run, or measure parts anew")
    parser.add_argument(
        "--against", metavar="COMMIT", help="compare the working tree with it; ends with 1 if a row is below 0.97 of it"
    )
    parser.add_argument("--again", type=Path, metavar="JSON", help="write the page of an earlier run anew")
    return parser


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as with Ctrl-C: servers stopped, results written
    sys.exit(main())
