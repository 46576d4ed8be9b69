#!/usr/bin/env python3
"""The crates that Reprise is built from, for a release and for Debian.

    crates.py vendor FOLDER   their sources in FOLDER (cargo vendor), without what a build on Linux never reads
    crates.py copyright       debian/copyright on stdout: debian/copyright.in, with a paragraph for each crate
    crates.py check           whether that is what debian/copyright has

The last two read the crates where cargo has them: in vendor/ or in its registry.
"""

import json
import os
import pathlib
import re
import subprocess
import sys

ARCHITECTURES = ("aarch64", "i686", "powerpc64le", "riscv64gc", "s390x", "x86_64")
SYSTEMS = [f"{architecture}-unknown-linux-gnu" for architecture in ARCHITECTURES] + ["armv7-unknown-linux-gnueabihf"]
LICENCE_FILE = re.compile(r"(licen[sc]e|copying|copyright|notice|unlicense)", re.IGNORECASE)
# No build on Linux reads such files of a crate: objects and libraries for Windows, and manifests before cargo's changes.
UNREAD = (".a", ".dll", ".exe", ".lib", ".o", ".orig")

TEMPLATE = pathlib.Path("debian/copyright.in")
COPYRIGHT = pathlib.Path("debian/copyright")
STATEMENT = re.compile(r"^\W*((?:\(C\) )?Copyright (?!notice|license|assignment|and ).*)$", re.MULTILINE)
# SPDX's names, and Debian's where they differ.
DEBIAN_NAMES = {
    "Apache-2.0 WITH LLVM-exception": "Apache-2.0-with-LLVM-exception",
    "LGPL-2.1-or-later": "LGPL-2.1+",
    "MIT": "Expat",
}


def packages(*options):
    """What Cargo.lock names, as cargo describes it, sorted by name and version."""
    command = ["cargo", "metadata", "--format-version=1", "--locked", "--all-features", *options]
    told = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    crates = [package for package in told["packages"] if package["source"]]
    return sorted(crates, key=lambda crate: (crate["name"], crate["version"]))


def label(crate):
    return f"{crate['name']}-{crate['version']}"


def vendor(folder):
    folder = pathlib.Path(folder)
    subprocess.run(["cargo", "vendor", "--quiet", "--locked", "--versioned-dirs", folder], stdout=subprocess.DEVNULL,
                   check=True)
    # --filter-platform also leaves out what only `--cfg loom` builds.
    built = {label(crate) for crate in packages(*(word for name in SYSTEMS for word in ("--filter-platform", name)))}
    for crate in sorted(folder.iterdir()):
        prune(crate, crate.name in built)


def prune(crate, is_built):
    """cargo reads the manifest of each crate in Cargo.lock, also of those that it does not build: these keep no more."""
    for path in sorted(crate.rglob("*"), reverse=True):
        inside = path.relative_to(crate)
        if is_built:
            unread = path.suffix in UNREAD
        else:
            unread = inside.name not in ("Cargo.toml", ".cargo-checksum.json") and not LICENCE_FILE.match(inside.name)
        if path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        elif unread:
            path.unlink()
    if not is_built:
        (crate / "src").mkdir(exist_ok=True)
        (crate / "src/lib.rs").touch()
    # The checksums name each file. cargo wants those that they name to be there.
    checksums = crate / ".cargo-checksum.json"
    told = json.loads(checksums.read_text())
    told["files"] = {name: digest for name, digest in sorted(told["files"].items())
                     if is_built and (crate / name).is_file()}
    checksums.write_text(json.dumps(told, sort_keys=True) + "\n")


def holders(crate, folder):
    """The copyright statements in the licence files of a crate, else its authors."""
    found = {}
    for path in sorted(folder.rglob("*")):
        is_read = path.is_file() and LICENCE_FILE.match(path.name) and path.suffix not in (".rs", ".html")
        for statement in STATEMENT.findall(path.read_text(errors="replace")) if is_read else []:
            statement = " ".join(statement.split())
            # Apache's appendix shows what a statement looks like.
            if not re.search(r"[\[{](yyyy|year)[\]}]", statement):
                found.setdefault(re.sub(r"^(\(C\) )?Copyright (\(c\) |© )?", "", statement, flags=re.IGNORECASE))
    return list(found) or crate["authors"] or [f"the contributors to {crate['name']}"]


def licence(crate):
    expression = (crate["license"] or "").replace("/", " OR ")
    if not expression:
        sys.exit(f"crates.py: {label(crate)} names no licence")
    name = r"(?!OR\b|AND\b)[A-Z0-9][\w.+-]*(?: WITH [\w-]+)?"
    expression = re.sub(name, lambda found: DEBIAN_NAMES.get(found[0], found[0]), expression)
    # Debian has no parentheses: "(a OR b) AND c" is "a or b, and c".
    expression = expression.replace("(", "").replace(") AND", ", AND").replace(")", "")
    return expression.replace(" OR ", " or ").replace(" AND ", " and ")


def copyright():
    paragraphs = []
    used = set()
    for crate in packages():
        folder = pathlib.Path(crate["manifest_path"]).parent
        lines = "\n           ".join(holders(crate, folder))
        paragraphs.append(f"Files: vendor/{label(crate)}/*\nCopyright: {lines}\nLicense: {licence(crate)}\n")
        used.update(re.split(r",? or |,? and ", licence(crate)))
    template = TEMPLATE.read_text()
    missing = used - set(re.findall(r"^License: (\S+)$", template, re.MULTILINE))
    if missing:
        sys.exit(f"crates.py: {TEMPLATE} has no text for {', '.join(sorted(missing))}")
    return template.replace("@CRATES@\n", "\n".join(paragraphs))


def main(arguments):
    match arguments:
        case ["vendor", folder]:
            vendor(folder)
        case ["copyright"]:
            sys.stdout.write(copyright())
        case ["check"]:
            return subprocess.run(["diff", "-u", COPYRIGHT, "-"], input=copyright(), text=True).returncode
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    os.environ["LC_ALL"] = "C.UTF-8"
    sys.exit(main(sys.argv[1:]))
