#!/usr/bin/env python3
"""docs/conformance.md from what the tests of c_tests/ observed: conformance.py FOLDER > docs/conformance.md

FOLDER holds stock.tsv, documented.tsv and stock-like.tsv (tools/run_pages.sh); c_tests/rules.tsv has the rules. Fails if
a rule has no observation, or an observation no rule.
"""

import collections
import pathlib
import sys

SIDES = ("stock", "documented", "stock-like")


def rows(path):
    for line in path.read_text().splitlines():
        if line:
            yield line.split("\t")


def main(folder):
    rules = dict(rows(pathlib.Path("c_tests/rules.tsv")))
    seen = {rule: collections.defaultdict(dict) for rule in rules}
    unknown = set()
    for side in SIDES:
        for rule, what, observed in rows(folder / f"{side}.tsv"):
            if rule in seen:
                seen[rule][what][side] = observed
            else:
                unknown.add(rule)
    untested = [rule for rule, what in seen.items() if not what]
    if unknown or untested:
        sys.exit(f"rules without a test: {untested}; tests of unknown rules: {sorted(unknown)}")

    print("# Conformance\n")
    print("What the manual pages promise, rule by rule, and what was observed: the same C programs (`c_tests/`) ran on")
    print("libssl alone (stock), on Reprise with documented semantics, and on Reprise with stock semantics")
    print("(`REPRISE_SEMANTICS=stock`). Written by `make conformance`; `make check` compares it. Where the three")
    print("columns are not the same the row is **bold**. Stock is Debian 12's libssl 3.0.\n")
    for rule, text in rules.items():
        print(f"## {rule}\n\n{text}\n")
        print("| situation | stock | Reprise documented | Reprise stock-like |")
        print("|---|---|---|---|")
        for what, by_side in sorted(seen[rule].items()):
            cells = [by_side.get(side, "–").replace("|", "\\|") for side in SIDES]
            mark = "" if len(set(cells)) == 1 else "**"
            print(f"| {mark}{what}{mark} | " + " | ".join(cells) + " |")
        print()


main(pathlib.Path(sys.argv[1]))
