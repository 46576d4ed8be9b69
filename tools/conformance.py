#!/usr/bin/env python3
"""docs/conformance.md from what the tests of c_tests/ observed on each libssl.

    conformance.py collect FOLDER [LIBSSL]   what tools/run_pages.sh left in FOLDER, on LIBSSL (the system's, else a folder
                                             of tools/libssl.sh), as one table on stdout: c_tests/observed/VERSION.tsv
    conformance.py check FOLDER [LIBSSL]     whether that is what c_tests/observed/ has of this very patch release; what one
                                             that is not there does otherwise than its next of kin, in one line
    conformance.py print                     docs/conformance.md from all of c_tests/observed/, on stdout

`print` fails if a rule has no observation or an observation no rule, if Reprise as documented does not do the same on
each libssl, or if Reprise as stock differs from stock where that does no harm.
"""

import collections
import pathlib
import re
import subprocess
import sys

RULES = pathlib.Path("c_tests/rules.tsv")
OBSERVED = pathlib.Path("c_tests/observed")
SIDES = ("stock", "documented", "stock-like")
# What stock does in these words nobody wants done again.
NEVER = ("crashes", "deadlocks", "a call fails")
# Nor what these rules' situations show: corrupted memory, and one connection that pays for all. And a connection that is
# there while a program goes past Reprise sees its context go back to libssl.
BETTER = {"GET6": "(bits)", "MODE5": "cleared by the busiest connection", "CB1": "set past the preload"}


def rows(path):
    return table_rows(path.read_text())


def table_rows(text):
    return [line.split("\t") for line in text.splitlines() if line and not line.startswith("# ")]


def title(path):
    """What the first line of a table of c_tests/observed/ says: which libssl it is of."""
    return path.read_text().split("\n", 1)[0][2:]


def label(libssl):
    """What the column is called: the exact version, because patch releases differ, and whose it is if the system's."""
    program = pathlib.Path(libssl) / "bin/openssl" if libssl else "openssl"
    environment = {"LD_LIBRARY_PATH": str(pathlib.Path(libssl) / "lib")} if libssl else None
    told = subprocess.run([program, "version"], env=environment, capture_output=True, text=True, check=True).stdout
    # "OpenSSL 3.0.22 25 Aug 2026 (Library: OpenSSL 3.0.22 25 Aug 2026)": the library is what runs the tests.
    version = told.rpartition("Library: ")[2].split()[1]
    if libssl:
        return version
    system = dict(line.split("=", 1) for line in pathlib.Path("/etc/os-release").read_text().splitlines() if "=" in line)
    name = " ".join(system.get(key, "").strip('"') for key in ("ID", "VERSION_ID")).capitalize()
    return f"{version} ({name})"


def collect(folder, libssl=None):
    seen = collections.defaultdict(dict)
    for side in SIDES:
        for rule, what, observed in rows(pathlib.Path(folder) / f"{side}.tsv"):
            seen[rule, what][side] = observed
    lines = ["\t".join((*where, *(sides.get(side, "–") for side in SIDES))) for where, sides in sorted(seen.items())]
    return "\n".join([f"# {label(libssl)}", *lines, ""])


def check(folder, libssl=None):
    name = label(libssl)
    recorded = {title(path): path for path in OBSERVED.glob("*.tsv")}
    if name in recorded:
        begun = noted(folder, "stock", "began")
        unfinished = noted(folder, "documented", "finished") - noted(folder, "stock", "finished")
        unfinished = sorted(test for test in unfinished if test.split(": ")[0] in begun)
        for test in unfinished:
            print(f"libssl {name} is recorded, but does not finish {test}")
        differs = subprocess.run(["diff", "-u", recorded[name], "-"], input=collect(folder, libssl), text=True).returncode
        return 1 if unfinished else differs
    kin = min(recorded, key=lambda other: distance(name, other))
    here = {tuple(where): sides for *where, sides, _, _ in table_rows(collect(folder, libssl))}
    there = {tuple(where): sides for *where, sides, _, _ in table_rows(recorded[kin].read_text())}
    other = [f"{rule} {what}" for rule, what in sorted(here.keys() & there.keys()) if here[rule, what] != there[rule, what]]
    only = len(here.keys() ^ there.keys())
    print(f"libssl {name} is not among {OBSERVED}/, which is no failure. Next of kin is {kin}: {len(other)} situations differ",
          f"({'; '.join(other)})," if other else "there,", f"{only} were met on one of them only.")
    return 0


def noted(folder, side, what):
    """The pages that a side "began", or the tests that it "finished", as "PAGE: TEST"."""
    lines = (pathlib.Path(folder) / f"{side}.tsv").read_text().splitlines()
    return {line.split("\t")[1] for line in lines if line.startswith(f"# {what}\t")}


def distance(name, other):
    """How far apart two libssl are: by version first, then by whether both are a system's."""
    numbers = [[int(part) for part in re.findall(r"\d+", label.split()[0])] for label in (name, other)]
    apart = [abs(one - two) for one, two in zip(*numbers)]
    return apart[:2], ("(" in name) != ("(" in other), apart[2:]


def oldest_first(path):
    name = title(path)
    return [int(part) if part.isdigit() else -1 for part in name.replace("w", "").split()[0].split(".")], name


def load():
    """{rule: {situation: {libssl: {side: observed}}}}, and the columns' names."""
    rules = dict(rows(RULES))
    seen = {rule: collections.defaultdict(dict) for rule in rules}
    wrong = []
    paths = sorted(OBSERVED.glob("*.tsv"), key=oldest_first)
    names = [oldest_first(path)[1] for path in paths]
    for path, name in zip(paths, names):
        for rule, what, *observed in rows(path):
            if rule not in seen:
                wrong.append(f"{name}: {rule} is no rule")
            else:
                seen[rule][what][name] = dict(zip(SIDES, observed))
    for rule, situations in seen.items():
        if not situations:
            wrong.append(f"{rule}: no test")
        for what, by_libssl in situations.items():
            if len({sides["documented"] for sides in by_libssl.values()}) > 1:
                told = {name: sides["documented"] for name, sides in by_libssl.items()}
                wrong.append(f"{rule}, {what}: documented is not the same everywhere: {told}")
            for name, sides in by_libssl.items():
                if sides["stock-like"] != sides["stock"] and not avoids(rule, what, sides):
                    wrong.append(f"{rule}, {what}, {name}: stock {sides['stock']}, stock-like {sides['stock-like']}")
    if wrong:
        sys.exit("\n".join(wrong))
    return rules, seen, names


def avoids(rule, what, sides):
    """Whether Reprise as stock does on purpose what stock does not; or one of them was not asked."""
    never = any(word in sides["stock"] for word in NEVER) or BETTER.get(rule, "\n") in what
    return never or "–" in (sides["stock"], sides["stock-like"])


def table(headings, lines):
    for line in (headings, ["---"] * len(headings), *lines):
        print("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |")
    print()


def page():
    rules, seen, names = load()
    print("# Conformance\n")
    print("What the manual pages promise, rule by rule, and what was observed. The same C programs (`c_tests/`) ran on each")
    print("libssl alone (stock), on Reprise with documented semantics, and on Reprise with stock semantics")
    print("(`REPRISE_SEMANTICS=stock`).\n")
    print("- **Documented semantics**: the same on every libssl, in every situation (one column for all).")
    print("- **Stock semantics**: what the libssl that is loaded does; but where that crashes, deadlocks, corrupts memory or")
    print("  lets one connection pay for all (MODE5), Reprise does what is documented, and where a program replaces callbacks")
    print("  by functions that it found past Reprise (CB1), the connection that notices may miss once. The tables name those")
    print("  places.\n")
    print("Patch releases differ. Each test of Reprise with stock semantics is compared with what stock does in the same run,")
    print("on whatever libssl is loaded; this page names the patch releases that were recorded. `make conformance` writes it")
    print("from `c_tests/observed/`. `make check` compares both with what it sees on the system's libssl, if that very")
    print("release is recorded, and `make check-all` with what it sees on all. A system's libssl calls its own functions")
    print("through the PLT, the others are built as their authors do, with `-Bsymbolic`.\n")
    print("## Where stock differs from the manual\n")
    print("How many of a rule's situations each stock libssl handles otherwise than documented. Details are below, rule by")
    print("rule.\n")
    lines = []
    for rule, text in rules.items():
        situations = seen[rule]
        counts = [sum(differs(by_libssl, name) for by_libssl in situations.values()) for name in names]
        cells = [f"**{count}**" if count else "the same" for count in counts]
        lines.append([f"[{rule}](#{rule.lower()})", text, len(situations), *cells])
    table(["rule", "promise", "situations", *names], lines)
    for rule, text in rules.items():
        print(f"## {rule}\n\n{text}\n")
        lines = []
        for what, by_libssl in sorted(seen[rule].items()):
            documented = next(iter(by_libssl.values()))["documented"]
            cells = [cell(by_libssl, name) for name in names]
            mark = "**" if any(differs(by_libssl, name) for name in names) else ""
            lines.append([f"{mark}{what}{mark}", documented, *cells])
        table(["situation", "Reprise documented", *(f"stock {name}" for name in names)], lines)


def differs(by_libssl, name):
    sides = by_libssl.get(name)
    return sides is not None and sides["stock"] not in ("–", sides["documented"])


def cell(by_libssl, name):
    sides = by_libssl.get(name)
    if sides is None:
        return "–"
    if sides["stock-like"] != sides["stock"]:
        return f"{sides['stock']} (Reprise as stock: {sides['stock-like']})"
    return "the same" if sides["stock"] == sides["documented"] else sides["stock"]


if len(sys.argv) in (3, 4) and sys.argv[1] == "collect":
    print(collect(*sys.argv[2:]), end="")
elif len(sys.argv) in (3, 4) and sys.argv[1] == "check":
    sys.exit(check(*sys.argv[2:]))
elif sys.argv[1:] == ["print"]:
    page()
else:
    sys.exit(__doc__)
