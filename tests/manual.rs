//! The manual pages: one for each function of Reprise's own, with examples that compile; reprise(7) has every variable of
//! the environment and every parameter of a cache URL, and no other; mandoc finds nothing to complain about.

mod common;

use common::{compiler, libreprise, program, repository, run, succeed, text, Sandbox};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder of the hand-written pages.
fn pages() -> Vec<PathBuf> {
    let mut pages: Vec<_> = fs::read_dir(repository("docs/man")).unwrap().map(|entry| entry.unwrap().path()).collect();
    pages.sort();
    assert!(!pages.is_empty());
    pages
}

fn name(page: &Path) -> String {
    page.file_stem().unwrap().to_str().unwrap().to_owned()
}

fn file_name(page: &Path) -> String {
    page.file_name().unwrap().to_str().unwrap().to_owned()
}

fn read(path: impl AsRef<Path>) -> String {
    let path = repository(path.as_ref().to_str().unwrap());
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn functions() -> BTreeSet<String> {
    let symbols = read("src/abi/symbols.txt");
    symbols.lines().filter(|symbol| symbol.starts_with("reprise_")).map(str::to_owned).collect()
}

/// The names of the entries that a macro makes in a page: `.It Ev NAME`, `.It Cm NAME Ns =`.
fn entries(page: &str, r#macro: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for line in page.lines().filter(|line| line.starts_with(".It ")) {
        let words: Vec<_> = line.split_whitespace().collect();
        names.extend(words.windows(2).filter(|pair| pair[0] == r#macro).map(|pair| pair[1].to_owned()));
    }
    names
}

#[test]
fn each_function_has_a_page() {
    let written: BTreeSet<_> =
        pages().iter().filter(|page| page.extension().unwrap() == "3").map(|page| name(page)).collect();
    assert_eq!(written, functions());
    for function in functions() {
        let page = read(format!("docs/man/{function}.3"));
        for part in [
            &format!(".Nm {function}\n"),
            ".Sh SYNOPSIS\n.In reprise.h\n",
            &format!(".Fn {function} "),
            ".Sh DESCRIPTION\n",
            ".Sh RETURN VALUES\n",
            ".Sh ERRORS\n",
            ".Sh SEE ALSO\n",
        ] {
            assert!(page.contains(part), "{function}(3) lacks {part:?}");
        }
    }
}

#[test]
fn each_prototype_is_that_of_the_header() {
    let header = read("include/reprise.h");
    let spaceless = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<String>();
    let header = spaceless(&header);
    for function in functions() {
        let page = read(format!("docs/man/{function}.3"));
        let synopsis = page.split(".Sh SYNOPSIS").nth(1).unwrap().split(".Sh").next().unwrap();
        let line = |start: &str| synopsis.lines().find_map(|line| line.strip_prefix(start)).unwrap().to_owned();
        let arguments = line(&format!(".Fn {function} ")).replace("\" \"", ", ").replace('"', "");
        let prototype = spaceless(&format!("{}{function}({arguments});", line(".Ft ").replace('"', "")));
        assert!(header.contains(&prototype), "{prototype} is not in reprise.h");
    }
}

#[test]
fn each_error_of_the_queue_is_on_a_page() {
    let reasons = read("src/libssl/error.rs");
    let reasons = reasons.split("const REASONS").nth(1).unwrap().split("];").next().unwrap();
    let reasons: Vec<_> = reasons.split("c\"").skip(1).map(|reason| reason.split(['"', ':']).next().unwrap()).collect();
    assert!(reasons.len() >= 8, "{reasons:?}");
    let all: String = functions().iter().map(|function| read(format!("docs/man/{function}.3"))).collect();
    for reason in reasons {
        assert!(all.contains(&format!(".It Li \"{reason}\"")), "no page has the error {reason:?}");
    }
}

#[test]
fn the_overview_has_every_variable() {
    let config = read("src/config.rs");
    let config = config.split("#[cfg(test)]").next().unwrap();
    let quoted = config.split('"').skip(1).step_by(2);
    let read_there: BTreeSet<_> = quoted
        .filter(|text| text.starts_with("REPRISE_") && text.chars().all(|c| c.is_ascii_uppercase() || c == '_'))
        .map(str::to_owned)
        .collect();
    assert!(read_there.len() >= 8, "{read_there:?}");
    assert_eq!(entries(&read("docs/man/reprise.7"), "Ev"), read_there);
}

/// What a URL with an unknown parameter is told: the names of those that there are, which follow `before`.
fn parameters(url: &str, before: &str) -> BTreeSet<String> {
    let command = libreprise().with_file_name("reprise");
    let said = text(&run(Command::new(command).args(["run", "--cache", url, "true"])).stderr);
    let (_, named) = said.split_once(before).unwrap_or_else(|| panic!("{url}: {said}"));
    let words = named.split(')').next().unwrap().split([',', ' ']);
    words.filter(|word| !["", "and"].contains(word)).map(str::to_owned).collect()
}

#[test]
fn the_overview_has_every_parameter_of_a_url() {
    let mut known = parameters("shm:x?nothing=1", "(it has ");
    known.extend(parameters("redis://host?nothing=1", "(there are "));
    assert!(known.contains("keep") && known.contains("deadline"), "{known:?}");
    let mut written = entries(&read("docs/man/reprise.7"), "Cm");
    written.retain(|name| !["on", "off"].contains(&name.as_str()));
    assert_eq!(written, known);
}

/// The pages of the command, as `make install` has them written.
fn generated(sandbox: &Sandbox) -> Vec<PathBuf> {
    let folder = sandbox.file("man1");
    succeed(Command::new(libreprise().with_file_name("reprise")).args(["generate", "man"]).arg(&folder));
    let pages: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(pages.len() > 5, "{pages:?}");
    pages
}

/// What mandoc says of these pages. Whether a page that they refer to is installed on this machine is not asked:
/// [`references_to_our_pages_lead_somewhere`] is.
fn lint(pages: &[PathBuf], options: &[&str]) -> Vec<String> {
    let mut command = Command::new(program("mandoc", "mandoc"));
    let output = run(command.args(["-T", "lint"]).args(options).args(pages));
    let said = text(&output.stdout) + &text(&output.stderr);
    let machine = ["referenced manual not found", "outdated mandoc.db"];
    said.lines().filter(|line| !machine.iter().any(|about| line.contains(about))).map(str::to_owned).collect()
}

#[test]
fn mandoc_finds_nothing_in_the_hand_written_pages() {
    assert_eq!(lint(&pages(), &[]), [""; 0]);
    // It would find something.
    let sandbox = Sandbox::new();
    let broken = sandbox.file("broken.3");
    fs::write(&broken, fs::read_to_string(&pages()[0]).unwrap().replace(".Sh NAME", ".Sh NAMES")).unwrap();
    assert_ne!(lint(&[broken], &[]), [""; 0]);
}

#[test]
fn mandoc_finds_no_error_in_the_generated_pages() {
    let sandbox = Sandbox::new();
    assert_eq!(lint(&generated(&sandbox), &["-W", "error"]), [""; 0]);
}

#[test]
fn references_to_our_pages_lead_somewhere() {
    let sandbox = Sandbox::new();
    let mut there: BTreeSet<_> = pages().iter().chain(&generated(&sandbox)).map(|page| file_name(page)).collect();
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for reference in text.lines().filter_map(|line| line.strip_prefix(".Xr reprise")) {
            let (name, section) = reference.split_once(' ').unwrap();
            let wanted = format!("reprise{name}.{}", &section[..1]);
            assert!(there.contains(&wanted), "{}: {wanted}", page.display());
        }
    }
    there.retain(|name| name.ends_with(".3"));
    let overview = read("docs/man/reprise.7");
    for page in there {
        assert!(
            overview.contains(&format!(".Xr {} 3", page.trim_end_matches(".3"))),
            "reprise(7) does not name {page}"
        );
    }
}

#[test]
fn all_pages_have_a_date() {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        let date = text.lines().find_map(|line| line.strip_prefix(".Dd ")).unwrap_or_default();
        let words: Vec<_> = date.split([' ', ',']).filter(|word| !word.is_empty()).collect();
        assert!(words.len() == 3 && MONTHS.contains(&words[0]), "{}: {date:?}", page.display());
    }
    let sandbox = Sandbox::new();
    for path in generated(&sandbox) {
        let text = fs::read_to_string(&path).unwrap();
        let title = text.lines().find(|line| line.starts_with(".TH ")).unwrap().replace('"', "");
        let date = title.split_whitespace().nth(3).unwrap_or_default();
        let parts: Vec<_> = date.split('-').map(str::parse::<u32>).collect();
        assert!(matches!(parts[..], [Ok(2020..), Ok(1..=12), Ok(1..=31)]), "{}: {title:?}", path.display());
    }
}

#[test]
fn the_examples_in_c_compile() {
    let sandbox = Sandbox::new();
    let mut examples = 0;
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for (number, display) in text.split(".Bd -literal").skip(1).enumerate() {
            let code = display.split_once('\n').unwrap().1.split("\n.Ed").next().unwrap();
            if !code.contains("#include") {
                continue;
            }
            let source = sandbox.file(&format!("{}-{number}.c", name(&page)));
            fs::write(&source, code.replace("\\e", "\\") + "\n").unwrap();
            let mut compile = compiler("CC", "cc", "gcc libc6-dev libssl-dev");
            compile.args(["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only"]);
            succeed(compile.arg("-I").arg(repository("include")).arg(&source));
            examples += 1;
        }
    }
    assert!(examples >= 8, "{examples} examples");
}
