"""`python -m tests.faults.campaign --seed 7`: the whole campaign; `--case NAME` repeats one case."""

from __future__ import annotations

import argparse
import fnmatch
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.faults.campaign.verdict import NAMED, OK, OUTCOMES, TRACEBACK, WRONG, Case, Verdict


def report(cases: Sequence[Case], found: dict[str, Verdict], seed: int) -> str:
    """The table of outcomes by group, and every case that is neither ok nor named."""
    counts: dict[str, Counter[str]] = {}
    for case in cases:
        counts.setdefault(case.group, Counter())[found[case.name].outcome] += 1
    width = max(len(group) for group in counts)
    lines = [f"{'':{width}}  cases " + " ".join(f"{name:>15}" for name in OUTCOMES)]
    for group, line in [*counts.items(), ("all", sum(counts.values(), Counter()))]:
        shown = " ".join(f"{line[name] or '':>15}" for name in OUTCOMES)
        lines.append(f"{group:{width}}  {line.total():5} {shown}")
    for case in cases:
        verdict = found[case.name]
        if verdict.outcome not in (OK, NAMED):
            lines += ["", f"{verdict.outcome}: {case.name}: {verdict.done}"]
            lines.append(f"  {verdict.why.strip()[-3000:]}")
            lines.append(f"  again: make faults SEED={seed} ARGS=\"--case '{case.name}'\"")
    return "\n".join(lines)


def main() -> int:
    """The command line; its status is 1 if something was silently wrong or crashed."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"  # before torch is imported: repeatable, and each process has its core
    from tests.faults.campaign.runner import all_cases, run

    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", default="*", help="names of cases to run, as a pattern")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--place", type=Path, help="a folder that keeps the reference store")
    parser.add_argument("--verbose", action="store_true", help="print every case and what was seen")
    chosen = parser.parse_args()
    exact = [case for case in all_cases() if case.name == chosen.case]
    cases = exact or [case for case in all_cases() if fnmatch.fnmatchcase(case.name, chosen.case)]
    if not cases:
        parser.error(f"no case is called {chosen.case}")
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        place = (chosen.place or Path(scratch)).resolve()
        place.mkdir(parents=True, exist_ok=True)
        os.environ["MIMBENCH_CACHE"] = str(place / "cache")  # never the user's own
        started, found = time.monotonic(), {}
        names = [case.name for case in cases]
        for name, verdict, seconds in run(names, chosen.seed, place, min(chosen.jobs, len(names))):
            found[name] = verdict
            if chosen.verbose:
                print(f"{verdict.outcome}: {name} ({seconds:.1f} s): {verdict.done}")
                print(f"  {verdict.why.strip()}", flush=True)
    print(report(cases, found, chosen.seed))
    bad = Counter(verdict.outcome for verdict in found.values())
    print(f"\nseed {chosen.seed}: {len(found)} cases in {time.monotonic() - started:.0f} s; {dict(bad)}")
    return 1 if bad[WRONG] or bad[TRACEBACK] else 0


if __name__ == "__main__":
    sys.exit(main())
