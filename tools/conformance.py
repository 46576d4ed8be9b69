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
    print("(`REPRISE_SEMANTICS=stock`). Written by `make conformance`; `make check` compares it. Stock is the libssl 3.0")
    print("of Debian 12. First a row for each rule, with the first situation in which stock or the stock-like side")
    print("differs from the documented one; then every situation that was observed.\n")
    print("| rule | promise | stock | Reprise documented | Reprise stock-like |")
    print("|---|---|---|---|---|")
    for rule, text in rules.items():
        situations = sorted(seen[rule].items())
        cells = [difference(situations, "stock"), f"{len(situations)} observed", difference(situations, "stock-like")]
        print(f"| [{rule}](#{rule.lower()}) | {text} | " + " | ".join(cells) + " |")
    print()
    for rule, text in rules.items():
        print(f"## {rule}\n\n{text}\n")
        print("| situation | stock | Reprise documented | Reprise stock-like |")
        print("|---|---|---|---|")
        for what, by_side in sorted(seen[rule].items()):
            cells = [cell(by_side, side) for side in SIDES]
            mark = "" if len(set(cells)) == 1 else "**"
            print(f"| {mark}{what}{mark} | " + " | ".join(cells) + " |")
        print()


def cell(by_side, side):
    return by_side.get(side, "–").replace("|", "\\|")


def difference(situations, side):
    """How `side` differs from the documented one, in the words of the first situation where it does."""
    differing = [(what, by_side) for what, by_side in situations if cell(by_side, side) != cell(by_side, "documented")]
    if not differing:
        return "the same"
    what, by_side = differing[0]
    seen = f"{what}: {cell(by_side, side)}, documented {cell(by_side, 'documented')}"
    return f"{len(differing)} differ: {seen}"


main(pathlib.Path(sys.argv[1]))
