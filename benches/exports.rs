//! `cargo bench --bench exports`: what each exported function costs, beside stock libssl's, with 1, 1000 and 10 000
//! contexts in the process.
//!
//! exports.c runs on both sides at once, and is asked in turn for short rounds: stock, Reprise, Reprise, stock, ... The
//! least of the rounds of a side is what the function costs when nothing disturbs it. Each number of contexts has pairs of
//! processes of its own, since where things lie in memory differs from process to process; the median of the pairs counts.
//!
//! The table goes to stdout; with `--write FILE` it takes the place of the one that stands in FILE between two marks.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};

const USAGE: &str = "\
usage: cargo bench --bench exports -- [options]
  --quick         one pair of processes for each number of contexts, and fewer rounds
  --contexts N    only so many contexts (may be repeated)
  --only WHAT     only the functions whose name begins with WHAT (may be repeated)
  --library FILE  the libreprise.so to measure (default: the release build, brought up to date first)
  --write FILE    put the table into FILE, where the last one is
  --strict        fail if a function is above the limit";

const CONTEXTS: [usize; 3] = [1, 1000, 10_000];
/// Sessions in each of the contexts whose memory is measured.
const SESSIONS: [usize; 3] = [0, 3, 70];
/// COST1: the most that a call may cost.
const TIMES: f64 = 1.25;
const NANOSECONDS: f64 = 50.0;
/// What a round should take, in nanoseconds; and at most, so that each context has its turn twice.
const ROUND: f64 = 500_000.0;
const LONG_ROUND: f64 = 20_000_000.0;

const BEGIN: &str = "<!-- exports: begin (cargo bench --bench exports -- --write docs/performance.md) -->\n";
const END: &str = "<!-- exports: end -->\n";

struct Options {
    pairs: usize,
    rounds: usize,
    contexts: Vec<usize>,
    only: Vec<String>,
    library: Option<PathBuf>,
    write: Option<PathBuf>,
    strict: bool,
}

/// A process of exports.c that answers questions.
struct Side {
    child: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

/// Nanoseconds of one call on stock, if it has the function, and on Reprise.
type Cost = (Option<f64>, f64);

fn main() -> ExitCode {
    if !std::env::args().any(|argument| argument == "--bench") {
        eprintln!("not run by cargo bench: nothing is measured"); // cargo test --all-targets comes here
        return ExitCode::SUCCESS;
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("exports: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let options = parse(std::env::args().skip(1))?;
    let program = compile()?;
    let library = match &options.library {
        Some(path) => path.canonicalize().map_err(|e| format!("{}: {e}", path.display()))?,
        None => release_library()?,
    };
    let names = Command::new(&program).arg("names").output().map_err(|e| e.to_string())?;
    let names = String::from_utf8_lossy(&names.stdout).into_owned();
    let names: Vec<&str> = names
        .lines()
        .filter(|name| options.only.is_empty() || options.only.iter().any(|only| name.starts_with(only)))
        .collect();
    let exports = include_str!("../src/abi/symbols.txt");
    if let Some(missing) = exports.lines().find(|export| options.only.is_empty() && !names.contains(export)) {
        return Err(format!("exports.c does not measure {missing}"));
    }

    let mut costs: HashMap<(&str, usize), Vec<Cost>> = HashMap::new();
    for &contexts in &options.contexts {
        for pair in 0..options.pairs {
            eprint!("{contexts} contexts, pair {} ", pair + 1);
            let mut sides = [Side::start(&program, contexts, None)?, Side::start(&program, contexts, Some(&library))?];
            for &name in &names {
                costs.entry((name, contexts)).or_default().push(measure(name, &mut sides, contexts, options.rounds)?);
                eprint!(".");
            }
            for side in sides {
                side.end()?;
            }
            eprintln!();
        }
    }
    let costs = costs.into_iter().map(|(what, costs)| (what, median_cost(&costs))).collect();
    let memory = match options.only.is_empty() {
        true => SESSIONS
            .map(|sessions| Ok([memory(&program, sessions, None)?, memory(&program, sessions, Some(&library))?])),
        false => SESSIONS.map(|_| Err(String::new())),
    };
    let (table, above) = table(&options.contexts, &names, &costs, &memory);
    print!("{table}");
    if let Some(file) = &options.write {
        write(file, &table)?;
    }
    match above {
        0 => Ok(()),
        above if options.strict => Err(format!("{above} figures are above the limit")),
        above => {
            eprintln!("{above} figures are above the limit");
            Ok(())
        }
    }
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options {
        pairs: 3,
        rounds: 7,
        contexts: Vec::new(),
        only: Vec::new(),
        library: None,
        write: None,
        strict: false,
    };
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} wants a value\n{USAGE}"));
        match argument.as_str() {
            "--bench" => {} // cargo adds it
            "--quick" => (options.pairs, options.rounds) = (1, 5),
            "--contexts" => options.contexts.push(value()?.parse().map_err(|_| USAGE)?),
            "--only" => options.only.push(value()?),
            "--library" => options.library = Some(value()?.into()),
            "--write" => options.write = Some(value()?.into()),
            "--strict" => options.strict = true,
            _ => return Err(format!("unknown argument {argument}\n{USAGE}")),
        }
    }
    if options.write.is_some() && !(options.only.is_empty() && options.contexts.is_empty()) {
        return Err(format!("a table of some figures is not written to a file\n{USAGE}"));
    }
    if options.contexts.is_empty() {
        options.contexts = CONTEXTS.into();
    }
    Ok(options)
}

impl Side {
    fn start(program: &Path, contexts: usize, library: Option<&Path>) -> Result<Side, String> {
        let mut command = command(program, library);
        command.arg(contexts.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|e| format!("{}: {e}", program.display()))?;
        let (questions, answers) = (child.stdin.take(), child.stdout.take());
        let (Some(questions), Some(answers)) = (questions, answers) else { return Err("no pipes".into()) };
        let mut side = Side { child, questions, answers: BufReader::new(answers) };
        check_library(&side.line()?, library)?;
        Ok(side)
    }

    fn line(&mut self) -> Result<String, String> {
        let mut line = String::new();
        self.answers.read_line(&mut line).map_err(|e| e.to_string())?;
        if line.is_empty() {
            return Err("exports.c ended".into());
        }
        Ok(line)
    }

    /// Nanoseconds of one of so many calls.
    fn ask(&mut self, name: &str, calls: usize) -> Result<f64, String> {
        writeln!(self.questions, "{name}\t{calls}").map_err(|e| format!("{name}: {e}"))?;
        let line = self.line().map_err(|e| format!("{name}: {e}"))?;
        line.trim().parse().map_err(|e| format!("{name}: {line}: {e}"))
    }

    fn end(self) -> Result<(), String> {
        let Side { mut child, questions, answers } = self;
        drop((questions, answers));
        let status = child.wait().map_err(|e| e.to_string())?;
        status.success().then_some(()).ok_or(format!("exports.c: {status}"))
    }
}

/// Both sides make the same calls. A side that made fewer would find less of its contexts in the processor's caches.
fn measure(name: &str, sides: &mut [Side; 2], contexts: usize, rounds: usize) -> Result<Cost, String> {
    let has_counterpart = !name.starts_with("reprise_");
    let mut least = [f64::INFINITY; 2];
    let mut once: f64 = 1.0;
    for side in sides.iter_mut().skip(usize::from(!has_counterpart)) {
        side.ask(name, 20)?; // what the first calls set up
        once = once.max(side.ask(name, 20)?);
    }
    let all_twice = (2 * contexts).min((LONG_ROUND / once) as usize);
    let calls = ((ROUND / once) as usize).clamp(20, 20_000).max(all_twice);
    for round in 0..rounds {
        for is_stock in [round % 2 == 0, round % 2 != 0] {
            let at = usize::from(!is_stock);
            if has_counterpart || !is_stock {
                least[at] = least[at].min(sides[at].ask(name, calls)?);
            }
        }
    }
    Ok((has_counterpart.then_some(least[0]), least[1]))
}

fn command(program: &Path, library: Option<&Path>) -> Command {
    let mut command = Command::new(program);
    command.env_remove("LD_PRELOAD").env_remove("REPRISE_CACHE");
    if let Some(library) = library {
        command.env("LD_PRELOAD", library);
    }
    command
}

/// The first line of exports.c names the library that answered.
fn check_library(line: &str, library: Option<&Path>) -> Result<(), String> {
    let meant = library.and_then(Path::file_name).map_or("libssl.so".into(), |name| name.to_string_lossy());
    match line.strip_prefix("library=").is_some_and(|answered| answered.starts_with(&*meant)) {
        true => Ok(()),
        false => Err(format!("{} answered, not {meant}", line.trim())),
    }
}

/// The bytes of one context with so many sessions, of a thousand.
fn memory(program: &Path, sessions: usize, library: Option<&Path>) -> Result<f64, String> {
    let output = command(program, library)
        .args(["memory", "1000", &sessions.to_string()])
        .output()
        .map_err(|e| format!("{}: {e}", program.display()))?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    let mut lines = stdout.lines();
    check_library(lines.next().unwrap_or_default(), library)?;
    lines.next().and_then(|bytes| bytes.parse().ok()).ok_or("exports.c printed no memory".into())
}

fn median_cost(costs: &[Cost]) -> Cost {
    let stock: Vec<f64> = costs.iter().filter_map(|cost| cost.0).collect();
    let reprise: Vec<f64> = costs.iter().map(|cost| cost.1).collect();
    ((!stock.is_empty()).then(|| median(&stock)), median(&reprise))
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// The tables, and how many figures are above the limit.
fn table(
    contexts: &[usize],
    names: &[&str],
    costs: &HashMap<(&str, usize), Cost>,
    memory: &[Result<[f64; 2], String>; 3],
) -> (String, usize) {
    let mut table = String::from("| ns for each call |");
    for contexts in contexts {
        let _ = write!(table, " {contexts}: stock | Reprise |");
    }
    table.push_str("\n|---|");
    table.push_str(&"--:|--:|".repeat(contexts.len()));
    table.push('\n');
    let mut above = 0;
    for &name in names {
        let _ = write!(table, "| {name} |");
        for &contexts in contexts {
            let (stock, reprise) = costs[&(name, contexts)];
            match stock {
                Some(stock) if reprise > TIMES * stock + NANOSECONDS => {
                    above += 1;
                    let _ = write!(table, " {stock:.0} | **{reprise:.0}** |");
                }
                Some(stock) => {
                    let _ = write!(table, " {stock:.0} | {reprise:.0} |");
                }
                None => {
                    let _ = write!(table, " | {reprise:.0} |");
                }
            }
        }
        table.push('\n');
    }
    if memory.iter().all(Result::is_ok) {
        table.push_str("\n| bytes of an SSL_CTX | stock | Reprise | more |\n|---|--:|--:|--:|\n");
        for (sessions, [stock, reprise]) in SESSIONS.iter().zip(memory.iter().flatten()) {
            let more = reprise - stock;
            let mark = if more > 4096.0 { "**" } else { "" };
            above += usize::from(more > 4096.0);
            let _ = writeln!(table, "| with {sessions} sessions | {stock:.0} | {reprise:.0} | {mark}{more:.0}{mark} |");
        }
    }
    (table, above)
}

fn write(file: &Path, table: &str) -> Result<(), String> {
    let name = file.display();
    let text = std::fs::read_to_string(file).map_err(|e| format!("{name}: {e}"))?;
    let parts = text.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let (before, after) = parts.ok_or(format!("{name} has no marks between which the table goes"))?;
    std::fs::write(file, format!("{before}{BEGIN}{table}{END}{after}")).map_err(|e| format!("{name}: {e}"))
}

/// Compiles exports.c into the target folder.
fn compile() -> Result<PathBuf, String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/exports.c");
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("exports");
    let compiler = std::env::var("CC").unwrap_or("cc".into());
    let status = Command::new(&compiler)
        .args(["-std=c11", "-O2", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-o"])
        .args([&program, &source])
        .args(["-lssl", "-lcrypto", "-ldl"])
        .status()
        .map_err(|e| format!("{compiler}: {e}"))?;
    status.success().then_some(program).ok_or(format!("{compiler} could not compile {}", source.display()))
}

/// target/release/libreprise.so. `cargo bench` alone does not renew that file, and an old one would be measured.
fn release_library() -> Result<PathBuf, String> {
    if let Ok(cargo) = std::env::var("CARGO") {
        let build = Command::new(cargo).args(["build", "--release", "--lib"]).status();
        if !build.is_ok_and(|status| status.success()) {
            return Err("cargo build --release failed".into());
        }
    }
    // This executable is target/release/deps/exports-HASH.
    let executable = std::env::current_exe().map_err(|e| e.to_string())?;
    let library = executable.parent().and_then(Path::parent).map(|release| release.join("libreprise.so"));
    library.filter(|path| path.exists()).ok_or("no libreprise.so in the release folder; name one with --library".into())
}
