//! `cargo bench --bench paired`: session_cache.c on stock libssl and under libreprise.so, in turn.
//!
//! Machines are noisy, and noise comes in waves that last longer than a run. So a measurement is a row of pairs
//! (stock, Reprise, stock, Reprise, ...), and what is reported is the ratio within each pair. Ratios say how many
//! times better Reprise is: above 1 it wins, whether the measure is a rate or a cost.
//!
//! The table goes to stdout, progress to stderr.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const USAGE: &str = "\
usage: cargo bench --bench paired -- [options]
  --quick         under a minute: short runs, few pairs, a tenth of the sessions
  --pairs N       pairs for each measurement (5; 4 with --quick)
  --only WHAT     only the measurements whose name begins with WHAT (may be repeated)
  --json FILE     write every single figure to FILE
  --control       stock against stock: the ratios that noise alone makes on this machine
  --library FILE  the libreprise.so to measure (default: the release build, brought up to date first)";

struct Options {
    quick: bool,
    pairs: usize,
    only: Vec<String>,
    json: Option<PathBuf>,
    control: bool,
    library: Option<PathBuf>,
}

/// One figure out of the line that session_cache prints.
struct Metric {
    key: &'static str,
    unit: &'static str,
    lower_is_better: bool,
}

const RATE: &[Metric] = &[Metric { key: "rate", unit: "/s", lower_is_better: false }];
const LATENCY: &[Metric] = &[
    Metric { key: "p50_ns", unit: "ns", lower_is_better: true },
    Metric { key: "p9999_ns", unit: "ns", lower_is_better: true },
    Metric { key: "max_ns", unit: "ns", lower_is_better: true },
];
const MEMORY: &[Metric] = &[Metric { key: "rss_per_session", unit: "bytes", lower_is_better: true }];

/// One measurement: a line of session_cache's arguments and what to read from its answer.
struct Case {
    what: &'static str,
    threads: usize,
    sessions: Option<usize>,
    metrics: &'static [Metric],
    /// Stock takes minutes for some: they are measured on Reprise alone.
    on_stock: bool,
}

/// What the pairs gave for one metric of a case.
struct Outcome<'a> {
    case: &'a Case,
    metric: &'a Metric,
    stock: Vec<f64>,
    reprise: Vec<f64>,
}

impl Outcome<'_> {
    /// How many times better Reprise was, pair by pair.
    fn ratios(&self) -> Vec<f64> {
        let better = |(stock, reprise): (&f64, &f64)| match self.metric.lower_is_better {
            true => stock / reprise,
            false => reprise / stock,
        };
        self.stock.iter().zip(&self.reprise).map(better).collect()
    }

    fn name(&self) -> String {
        let mut name = self.case.what.to_string();
        if let Some(sessions) = self.case.sessions {
            let _ = write!(name, " of {sessions}");
        }
        if self.metric.key != "rate" {
            let _ = write!(name, ", {}", self.metric.key);
        }
        name
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("paired: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    if !std::env::args().any(|argument| argument == "--bench") {
        eprintln!("not run by cargo bench: nothing is measured"); // cargo test --all-targets comes here
        return Ok(());
    }
    let options = parse(std::env::args().skip(1))?;
    let program = compile()?;
    let library = match &options.library {
        _ if options.control => None,
        Some(path) => Some(path.canonicalize().map_err(|e| format!("{}: {e}", path.display()))?),
        None => Some(release_library()?),
    };
    let cases = cases(options.quick);
    let chosen: Vec<&Case> = cases.iter().filter(|case| options.wants(case)).collect();
    if chosen.is_empty() {
        return Err(format!("nothing begins with {}", options.only.join(" or ")));
    }

    let mut outcomes = Vec::new();
    for (number, case) in chosen.iter().enumerate() {
        eprint!("[{}/{}] {} threads={} ", number + 1, chosen.len(), case.what, case.threads);
        outcomes.extend(measure(case, &options, &program, library.as_deref())?);
        eprintln!();
    }
    print!("{}", table(&outcomes, options.control));
    if let Some(file) = &options.json {
        std::fs::write(file, json(&outcomes)).map_err(|e| format!("{}: {e}", file.display()))?;
    }
    Ok(())
}

impl Options {
    fn wants(&self, case: &Case) -> bool {
        let named = self.only.is_empty() || self.only.iter().any(|only| case.what.starts_with(only));
        named && (case.on_stock || !self.control)
    }
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options { quick: false, pairs: 0, only: Vec::new(), json: None, control: false, library: None };
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} wants a value\n{USAGE}"));
        match argument.as_str() {
            "--bench" => {} // cargo adds it
            "--quick" => options.quick = true,
            "--pairs" => match value()?.parse() {
                Ok(pairs) if pairs > 0 => options.pairs = pairs,
                _ => return Err(format!("--pairs wants a number above 0\n{USAGE}")),
            },
            "--only" => options.only.push(value()?),
            "--control" => options.control = true,
            "--json" => options.json = Some(value()?.into()),
            "--library" => options.library = Some(value()?.into()),
            _ => return Err(format!("unknown argument {argument}\n{USAGE}")),
        }
    }
    if options.pairs == 0 {
        options.pairs = if options.quick { 4 } else { 5 };
    }
    Ok(options)
}

fn cases(quick: bool) -> Vec<Case> {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let million = if quick { 100_000 } else { 1_000_000 };
    let mut cases = Vec::new();
    let mut add = |what, threads: &[usize], sessions, metrics, on_stock| {
        let mut threads = threads.to_vec();
        threads.dedup(); // one core: 1 and `cores` are the same
        cases.extend(threads.into_iter().map(|threads| Case { what, threads, sessions, metrics, on_stock }));
    };
    add("matching", &[1, cores], None, RATE, true);
    add("matching_miss", &[1, cores], None, RATE, true);
    add("add_remove", &[1, cores, 2 * cores], None, RATE, true);
    add("add_mixed", &[1], Some(10_000), RATE, true);
    if !quick {
        add("add_mixed", &[1], Some(40_000), RATE, true);
        add("add_mixed", &[1], Some(100_000), RATE, false);
        add("add_mixed", &[1], Some(1_000_000), RATE, false);
    }
    add("flush", &[1], Some(million), RATE, true);
    add("lookups_while_flush", &[1], Some(million), LATENCY, true);
    add("memory", &[1], Some(million), MEMORY, true);
    add("handshake_tls12_full", &[1, cores], None, RATE, true);
    add("handshake_tls12_resumed", &[1, cores], None, RATE, true);
    add("handshake_tls13_full", &[1, cores], None, RATE, true);
    add("handshake_tls13_stateful_resumed", &[1, cores], None, RATE, true);
    add("limit_up_ref", &[1, cores], None, RATE, true);
    add("limit_up_ref_shared", &[cores], None, RATE, true);
    add("limit_new_free", &[1, cores], None, RATE, true);
    cases
}

fn measure<'a>(
    case: &'a Case,
    options: &Options,
    program: &Path,
    library: Option<&Path>,
) -> Result<Vec<Outcome<'a>>, String> {
    let mut outcomes: Vec<Outcome> =
        case.metrics.iter().map(|metric| Outcome { case, metric, stock: Vec::new(), reprise: Vec::new() }).collect();
    for _ in 0..options.pairs {
        if case.on_stock {
            let line = run_once(case, options.quick, program, None)?;
            for outcome in &mut outcomes {
                outcome.stock.push(figure(&line, outcome.metric.key)?);
            }
            eprint!("s");
        }
        let line = run_once(case, options.quick, program, library)?;
        for outcome in &mut outcomes {
            outcome.reprise.push(figure(&line, outcome.metric.key)?);
        }
        eprint!("r");
    }
    Ok(outcomes)
}

/// One run of session_cache; `preload` or stock. Fails unless the library that answered is the one that was meant.
fn run_once(
    case: &Case,
    quick: bool,
    program: &Path,
    preload: Option<&Path>,
) -> Result<HashMap<String, String>, String> {
    let mut command = Command::new(program);
    command.arg(case.what).args(["-threads", &case.threads.to_string()]);
    command.args(["-seconds", if quick { "0.1" } else { "1" }]);
    if let Some(sessions) = case.sessions {
        command.args(["-sessions", &sessions.to_string()]);
    }
    command.env_remove("LD_PRELOAD");
    if let Some(library) = preload {
        command.env("LD_PRELOAD", library);
    }
    let output = command.output().map_err(|e| format!("{}: {e}", program.display()))?;
    let side = if preload.is_some() { "Reprise" } else { "stock" };
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{} on {side}: {}\n{stderr}", case.what, output.status));
    }
    let stdout = String::from_utf8_lossy(&output.stdout);
    let line: HashMap<String, String> =
        stdout.split_whitespace().filter_map(|word| word.split_once('=')).map(|(k, v)| (k.into(), v.into())).collect();
    let answered = line.get("library").ok_or(format!("{}: no line printed", case.what))?;
    let meant = preload.and_then(Path::file_name).map_or("libssl.so".into(), |name| name.to_string_lossy());
    if !answered.starts_with(&*meant) {
        return Err(format!("{} on {side}: {answered} answered, not {meant}", case.what));
    }
    Ok(line)
}

fn figure(line: &HashMap<String, String>, key: &str) -> Result<f64, String> {
    line.get(key).and_then(|value| value.parse().ok()).ok_or(format!("session_cache printed no {key}"))
}

/// Compiles session_cache.c into the target folder.
fn compile() -> Result<PathBuf, String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/session_cache.c");
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("session_cache");
    let compiler = std::env::var("CC").unwrap_or("cc".into());
    let status = Command::new(&compiler)
        .args(["-std=c11", "-O2", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-pthread", "-o"])
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
    // This executable is target/release/deps/paired-HASH.
    let executable = std::env::current_exe().map_err(|e| e.to_string())?;
    let library = executable.parent().and_then(Path::parent).map(|release| release.join("libreprise.so"));
    library.filter(|path| path.exists()).ok_or("no libreprise.so in the release folder; name one with --library".into())
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 0 => (sorted[middle - 1] + sorted[middle]) / 2.0,
        _ => sorted[middle],
    }
}

fn geometric_mean(values: &[f64]) -> f64 {
    (values.iter().map(|value| value.ln()).sum::<f64>() / values.len() as f64).exp()
}

/// Three significant digits: 23.1 M/s, 482 k/s, 8.46 ms, 36.2 bytes.
fn short(value: f64, unit: &str) -> String {
    let prefixes = match unit {
        "ns" => [(1e6, "ms"), (1e3, "µs"), (1.0, "ns")],
        "/s" => [(1e6, "M/s"), (1e3, "k/s"), (1.0, "/s")],
        _ => [(f64::INFINITY, ""), (f64::INFINITY, ""), (1.0, unit)],
    };
    let fits = |(scale, _): &&(f64, &str)| value.abs() >= *scale;
    let (scale, name) = prefixes.iter().find(fits).unwrap_or(&prefixes[2]);
    let scaled = value / scale;
    let decimals = match scaled.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        _ => 2,
    };
    format!("{scaled:.decimals$} {name}")
}

fn table(outcomes: &[Outcome], control: bool) -> String {
    let other = if control { "stock again" } else { "Reprise" };
    let mut table = format!(
        "| what | threads | stock | {other} | times better, median | geometric mean | min..max |\n\
         |---|--:|--:|--:|--:|--:|--:|\n",
    );
    for outcome in outcomes {
        let value = |values: &[f64]| match values.is_empty() {
            true => "not run".into(),
            false => short(median(values), outcome.metric.unit),
        };
        let ratios = outcome.ratios();
        let ratio_columns = match ratios.is_empty() {
            true => " | | ".into(),
            false => format!(
                "**{:.2}** | {:.2} | {:.2}..{:.2}",
                median(&ratios),
                geometric_mean(&ratios),
                ratios.iter().copied().fold(f64::INFINITY, f64::min),
                ratios.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            ),
        };
        let (stock, reprise) = (value(&outcome.stock), value(&outcome.reprise));
        let _ = writeln!(
            table,
            "| {} | {} | {stock} | {reprise} | {ratio_columns} |",
            outcome.name(),
            outcome.case.threads
        );
    }
    table
}

/// An array with one object for each row of the table, with the figures of every run. All names are plain words.
fn json(outcomes: &[Outcome]) -> String {
    let list = |values: &[f64]| {
        // JSON knows neither infinity nor "not a number".
        let words = values.iter().map(|v| if v.is_finite() { v.to_string() } else { "null".into() });
        format!("[{}]", words.collect::<Vec<_>>().join(", "))
    };
    let objects = outcomes.iter().map(|outcome| {
        format!(
            "  {{\"what\": \"{}\", \"threads\": {}, \"sessions\": {}, \"metric\": \"{}\", \"unit\": \"{}\", \
             \"lower_is_better\": {}, \"stock\": {}, \"reprise\": {}, \"times_better\": {}}}",
            outcome.case.what,
            outcome.case.threads,
            outcome.case.sessions.map_or("null".into(), |n| n.to_string()),
            outcome.metric.key,
            outcome.metric.unit,
            outcome.metric.lower_is_better,
            list(&outcome.stock),
            list(&outcome.reprise),
            list(&outcome.ratios()),
        )
    });
    format!("[\n{}\n]\n", objects.collect::<Vec<_>>().join(",\n"))
}
