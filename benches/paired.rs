//! `cargo bench --bench paired`: session_cache.c on stock libssl and under libreprise.so, in turn.
//!
//! Machines are noisy, and noise comes in waves that last longer than a run. So a measurement is a row of pairs
//! (stock, Reprise, Reprise, stock, ...), and what is reported is the ratio within each pair. Ratios say how many
//! times better Reprise is: above 1 it wins, whether the measure is a rate or a cost. Where even that is too coarse,
//! `--instructions` counts what noise does not change.
//!
//! The table goes to stdout, progress to stderr, pictures into the folder that `--plots` names.

use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;
use std::collections::HashMap;
use std::error::Error;
use std::fmt::Write as _;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const USAGE: &str = "\
usage: cargo bench --bench paired -- [options]
  --quick              a minute or two: short runs, few pairs, a tenth of the sessions
  --pairs N            pairs for each measurement (5; 4 with --quick)
  --handshake-pairs N  pairs for each measurement of whole handshakes, whose ratios are close to 1 (as --pairs)
  --only WHAT          only the measurements whose name begins with WHAT (may be repeated)
  --instructions       no measurements, but the instructions that callgrind counts for one operation
  --plots DIR          draw those of the SVG pictures for which all was measured; none of --quick or --control
  --json FILE          write every single figure to FILE
  --shared             Reprise's cache in memory against its cache in shared memory, instead of stock against Reprise
  --control            stock against stock: the ratios that noise alone makes on this machine
  --library FILE       the libreprise.so to measure (default: the release build, brought up to date first)";

struct Options {
    quick: bool,
    pairs: usize,
    handshake_pairs: usize,
    only: Vec<String>,
    instructions: bool,
    plots: Option<PathBuf>,
    json: Option<PathBuf>,
    control: bool,
    shared: bool,
    library: Option<PathBuf>,
}

/// What a program runs on: libssl alone or a libreprise.so, and where that caches.
#[derive(Clone, Copy)]
struct Side<'a> {
    name: &'static str,
    library: Option<&'a Path>,
    cache: Option<&'a str>,
}

/// One figure out of the line that session_cache prints.
struct Metric {
    key: &'static str,
    unit: &'static str,
    lower_is_better: bool,
}

const RATE: &[Metric] = &[Metric { key: "rate", unit: "/s", lower_is_better: false }];
const fn nanoseconds(key: &'static str) -> Metric {
    Metric { key, unit: "ns", lower_is_better: true }
}
const LATENCY: &[Metric] = &[
    nanoseconds("p50_ns"),
    nanoseconds("p90_ns"),
    nanoseconds("p99_ns"),
    nanoseconds("p999_ns"),
    nanoseconds("p9999_ns"),
    nanoseconds("p99999_ns"),
    nanoseconds("max_ns"),
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
    let shared = format!("shm:benchmark-{}?size=64M&keep=off", std::process::id());
    let (library, stock) = (library.as_deref(), Side { name: "stock", library: None, cache: None });
    let sides = match options.shared {
        false => [stock, Side { name: "Reprise", library, ..stock }],
        true => [
            Side { name: "memory", library, cache: None },
            Side { name: "shared memory", library, cache: Some(&shared) },
        ],
    };
    if options.instructions {
        return instructions(&options, &program, sides);
    }
    let cases = cases(options.quick);
    let chosen: Vec<&Case> = cases.iter().filter(|case| options.wants(case)).collect();
    if chosen.is_empty() {
        return Err(format!("nothing begins with {}", options.only.join(" or ")));
    }

    let mut outcomes = Vec::new();
    for (number, case) in chosen.iter().enumerate() {
        eprint!("[{}/{}] {} threads={} ", number + 1, chosen.len(), case.what, case.threads);
        outcomes.extend(measure(case, &options, &program, sides)?);
        eprintln!();
    }
    print!("{}", table(&outcomes, options.control, sides));
    if let Some(file) = &options.json {
        std::fs::write(file, json(&outcomes)).map_err(|e| format!("{}: {e}", file.display()))?;
    }
    match &options.plots {
        Some(_) if options.quick || options.control || options.shared => {
            eprintln!("no plots of --quick, --control or --shared")
        }
        Some(folder) => plots(folder, &outcomes).map_err(|e| format!("{}: {e}", folder.display()))?,
        None => {}
    }
    Ok(())
}

impl Options {
    fn names(&self, what: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| what.starts_with(only))
    }

    fn wants(&self, case: &Case) -> bool {
        self.names(case.what) && (case.on_stock || !self.control)
    }

    fn pairs_of(&self, case: &Case) -> usize {
        if case.what.starts_with("handshake") {
            self.handshake_pairs
        } else {
            self.pairs
        }
    }
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options {
        quick: false,
        pairs: 0,
        handshake_pairs: 0,
        only: Vec::new(),
        instructions: false,
        plots: None,
        json: None,
        control: false,
        shared: false,
        library: None,
    };
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} wants a value\n{USAGE}"));
        match argument.as_str() {
            "--bench" => {} // cargo adds it
            "--quick" => options.quick = true,
            "--pairs" => options.pairs = number(value()?)?,
            "--handshake-pairs" => options.handshake_pairs = number(value()?)?,
            "--instructions" => options.instructions = true,
            "--plots" => options.plots = Some(value()?.into()),
            "--only" => options.only.push(value()?),
            "--control" => options.control = true,
            "--shared" => options.shared = true,
            "--json" => options.json = Some(value()?.into()),
            "--library" => options.library = Some(value()?.into()),
            _ => return Err(format!("unknown argument {argument}\n{USAGE}")),
        }
    }
    if options.pairs == 0 {
        options.pairs = if options.quick { 4 } else { 5 };
    }
    if options.handshake_pairs == 0 {
        options.handshake_pairs = options.pairs;
    }
    Ok(options)
}

fn number(word: String) -> Result<usize, String> {
    word.parse().ok().filter(|&number| number > 0).ok_or(format!("{word} is not a number above 0\n{USAGE}"))
}

fn cases(quick: bool) -> Vec<Case> {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let doubled: Vec<usize> = (0..).map(|power| 1 << power).take_while(|&threads| threads <= 2 * cores).collect();
    let million = if quick { 100_000 } else { 1_000_000 };
    let mut cases = Vec::new();
    let mut add = |what, threads: &[usize], sessions, metrics, on_stock| {
        let mut threads = threads.to_vec();
        threads.dedup(); // one core: 1 and `cores` are the same
        cases.extend(threads.into_iter().map(|threads| Case { what, threads, sessions, metrics, on_stock }));
    };
    add("matching", &doubled, None, RATE, true);
    add("matching_miss", &[1, cores], None, RATE, true);
    add("add_remove", &doubled, None, RATE, true);
    add("add_remove_scattered", &[1], None, RATE, true);
    add("add_remove_hot", &[1], None, RATE, true);
    let longest = if quick { 10_000 } else { 1_000_000 };
    add("add_mixed_warm", &[1], Some(10_000), RATE, true);
    for sessions in [1_000, 3_000, 10_000, 20_000, 40_000, 100_000, 300_000, 1_000_000] {
        if sessions <= longest {
            add("add_mixed", &[1], Some(sessions), RATE, sessions <= 40_000);
        }
    }
    add("add_mixed_warm", &[1], Some(million), RATE, false);
    add("flush", &[1], Some(million), RATE, true);
    add("flush_scattered", &[1], Some(million), RATE, true);
    add("lookups_while_flush", &[1], Some(million), LATENCY, true);
    add("memory", &[1], Some(million), MEMORY, true);
    add("handshake_tls12_full", &[1, cores], None, RATE, true);
    add("handshake_tls12_resumed", &[1, cores], None, RATE, true);
    add("handshake_tls13_full", &[1, cores], None, RATE, true);
    add("handshake_tls13_stateful_resumed", &[1, cores], None, RATE, true);
    add("limit_probe", &[1, cores], None, RATE, true);
    add("limit_mark", &[1, cores], None, RATE, true);
    add("limit_up_ref", &[1, cores], None, RATE, true);
    add("limit_up_ref_shared", &[cores], None, RATE, true);
    add("limit_new_free", &[1, cores], None, RATE, true);
    cases
}

fn measure<'a>(
    case: &'a Case,
    options: &Options,
    program: &Path,
    sides: [Side; 2],
) -> Result<Vec<Outcome<'a>>, String> {
    let mut outcomes: Vec<Outcome> =
        case.metrics.iter().map(|metric| Outcome { case, metric, stock: Vec::new(), reprise: Vec::new() }).collect();
    for pair in 0..options.pairs_of(case) {
        // Stock first, then Reprise first: what changes steadily meanwhile favours neither.
        for is_stock in [pair % 2 == 0, pair % 2 != 0] {
            if is_stock && !case.on_stock {
                continue;
            }
            let line = run_once(case, options.quick, program, sides[usize::from(!is_stock)])?;
            for outcome in &mut outcomes {
                let figures = if is_stock { &mut outcome.stock } else { &mut outcome.reprise };
                figures.push(figure(&line, outcome.metric.key)?);
            }
            eprint!("{}", if is_stock { "s" } else { "r" });
        }
    }
    Ok(outcomes)
}

/// One run of session_cache. Fails unless the library that answered is the one that was meant.
fn run_once(case: &Case, quick: bool, program: &Path, side: Side) -> Result<HashMap<String, String>, String> {
    let mut command = Command::new(program);
    command.arg(case.what).args(["-threads", &case.threads.to_string()]);
    command.args(["-seconds", if quick { "0.1" } else { "1" }]);
    if let Some(sessions) = case.sessions {
        command.args(["-sessions", &sessions.to_string()]);
    }
    Ok(answer(command, case.what, side)?.0)
}

/// What session_cache printed as name=value, and what went to stderr.
fn answer(mut command: Command, what: &str, side: Side) -> Result<(HashMap<String, String>, String), String> {
    command.env_remove("LD_PRELOAD").env_remove("REPRISE_CACHE");
    if let Some(library) = side.library {
        command.env("LD_PRELOAD", library);
    }
    if let Some(cache) = side.cache {
        command.env("REPRISE_CACHE", cache);
    }
    let output = command.output().map_err(|e| format!("{}: {e}", Path::new(command.get_program()).display()))?;
    let (preload, side) = (side.library, side.name);
    let stderr = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("{what} on {side}: {}\n{stderr}", output.status));
    }
    let stdout = String::from_utf8_lossy(&output.stdout);
    let line: HashMap<String, String> =
        stdout.split_whitespace().filter_map(|word| word.split_once('=')).map(|(k, v)| (k.into(), v.into())).collect();
    let answered = line.get("library").ok_or(format!("{what}: no line printed"))?;
    let meant = preload.and_then(Path::file_name).map_or("libssl.so".into(), |name| name.to_string_lossy());
    if !answered.starts_with(&*meant) {
        return Err(format!("{what} on {side}: {answered} answered, not {meant}"));
    }
    Ok((line, stderr.into()))
}

fn figure(line: &HashMap<String, String>, key: &str) -> Result<f64, String> {
    line.get(key).and_then(|value| value.parse().ok()).ok_or(format!("session_cache printed no {key}"))
}

/// What callgrind counts, for one operation of one thread. Handshakes differ by their random numbers, so the median of
/// three runs is taken.
fn instructions(options: &Options, program: &Path, sides: [Side; 2]) -> Result<(), String> {
    const COUNTED: [(&str, u32); 6] = [
        ("matching", 100_000),
        ("add_remove", 50_000),
        ("handshake_tls12_full", 200),
        ("handshake_tls12_resumed", 1_000),
        ("handshake_tls13_full", 200),
        ("handshake_tls13_stateful_resumed", 500),
    ];
    let count = |what: &str, operations: u32, side: Side| {
        let mut runs = Vec::new();
        for _ in 0..3 {
            let mut command = Command::new("valgrind");
            command.args(["--tool=callgrind", "--toggle-collect=timed", "--callgrind-out-file=/dev/null"]);
            command.arg(program).args([what, "-count", &operations.to_string()]);
            let (_, stderr) = answer(command, what, side)?;
            let collected = stderr.lines().find_map(|line| line.split_once("Collected : "));
            let instructions = collected.and_then(|(_, count)| count.trim().parse::<f64>().ok());
            runs.push(instructions.ok_or(format!("{what}: callgrind counted nothing"))? / f64::from(operations));
            eprint!(".");
        }
        Ok::<f64, String>(median(&runs))
    };
    println!("| instructions of one | {} | {} | more |\n|---|--:|--:|--:|", sides[0].name, sides[1].name);
    for (what, operations) in COUNTED.into_iter().filter(|(what, _)| options.names(what)) {
        eprint!("{what} ");
        let (stock, reprise) = (count(what, operations, sides[0])?, count(what, operations, sides[1])?);
        eprintln!();
        println!("| {what} | {stock:.0} | {reprise:.0} | {:+.2} % |", (reprise / stock - 1.0) * 100.0);
    }
    Ok(())
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

fn table(outcomes: &[Outcome], control: bool, [first, second]: [Side; 2]) -> String {
    let other = if control { "stock again" } else { second.name };
    let mut table = format!(
        "| what | threads | {} | {other} | times better, median | geometric mean | min..max |\n\
         |---|--:|--:|--:|--:|--:|--:|\n",
        first.name
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

/// A curve: x, the median, the smallest and the largest.
struct Curve {
    name: &'static str,
    colour: RGBColor,
    points: Vec<(f64, f64, f64, f64)>,
}

/// What a picture shows, but for its axes.
struct Picture<'a> {
    file: &'a str,
    title: &'a str,
    x: &'a str,
    y: &'a str,
    curves: [Curve; 2],
}

impl Curve {
    /// Of stock and of Reprise, out of all outcomes for which `x` has a place on the axis.
    fn both(outcomes: &[Outcome], x: impl Fn(&Outcome) -> Option<f64>, y: impl Fn(f64) -> f64) -> [Curve; 2] {
        let curve = |name, colour, values: &dyn for<'a> Fn(&'a Outcome) -> &'a [f64]| {
            let point = |outcome| {
                let at = x(outcome)?;
                let values: Vec<f64> = values(outcome).iter().map(|&value| y(value)).collect();
                let (least, most) = span(&values)?;
                Some((at, median(&values), least, most))
            };
            Curve { name, colour, points: outcomes.iter().filter_map(point).collect() }
        };
        [
            curve("stock libssl", RGBColor(200, 80, 40), &|outcome| &outcome.stock),
            curve("Reprise", RGBColor(20, 90, 170), &|outcome| &outcome.reprise),
        ]
    }
}

fn span(values: &[f64]) -> Option<(f64, f64)> {
    values.iter().fold(None, |span, &value| {
        let (least, most) = span.unwrap_or((value, value));
        Some((least.min(value), most.max(value)))
    })
}

/// Draws the pictures of which nothing is missing.
fn plots(folder: &Path, outcomes: &[Outcome]) -> Result<(), Box<dyn Error>> {
    std::fs::create_dir_all(folder)?;
    for (what, file, title) in [
        ("matching", "lookups.svg", "SSL_has_matching_session_id, 20,000 sessions cached"),
        ("add_remove", "add_remove.svg", "SSL_CTX_add_session and SSL_CTX_remove_session, 20,000 others cached"),
    ] {
        let threads = |outcome: &Outcome| (outcome.case.what == what).then_some(outcome.case.threads as f64);
        let curves = Curve::both(outcomes, threads, |rate| rate / 1e6);
        let is_thread = |x: &f64| x.log2().fract() == 0.0;
        let (x, y) = ("threads that share one SSL_CTX", "million operations per second, all threads together");
        let picture = Picture { file, title, x, y, curves };
        if let Some((xs, ys)) = picture.span() {
            let bottom = 0.0..ys.end * 1.08;
            let label = |x: &f64| if is_thread(x) { x.to_string() } else { String::new() };
            picture.draw(folder, 0.0..xs.end + 1.0, bottom, xs.end as usize + 2, &label, &|y| format!("{y}"))?;
        }
    }

    let sessions = |outcome: &Outcome| outcome.case.sessions.filter(|_| outcome.case.what == "add_mixed");
    let picture = Picture {
        file: "add_cost.svg",
        title: "SSL_CTX_add_session, sessions with mixed expiry times",
        x: "sessions added to an empty cache",
        y: "time to add one",
        curves: Curve::both(outcomes, |outcome| sessions(outcome).map(|n| n as f64), |rate| 1e9 / rate),
    };
    picture.draw_log(folder, &|x| grouped(*x))?;

    let slower = |outcome: &Outcome| {
        let keys = LATENCY.iter().position(|metric| metric.key == outcome.metric.key)?;
        (outcome.case.what == "lookups_while_flush").then_some([2.0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6][keys])
    };
    let picture = Picture {
        file: "lookups_while_flush.svg",
        title: "A million lookups while another thread flushes a million expired sessions",
        x: "one lookup in so many takes at least ...",
        y: "time for that lookup",
        curves: Curve::both(outcomes, slower, |nanoseconds| nanoseconds),
    };
    picture.draw_log(folder, &|x| grouped(*x))
}

/// 1,000,000
fn grouped(number: f64) -> String {
    let digits = format!("{number:.0}");
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).unwrap_or_default()).collect();
    groups.join(",")
}

impl Picture<'_> {
    /// From the smallest to the largest x and y; `None`, and a word about it, when there is nothing to see.
    fn span(&self) -> Option<(Range<f64>, Range<f64>)> {
        if self.curves.iter().any(|curve| curve.points.len() < 2) {
            eprintln!("{}: left as it is, not all of it was measured", self.file);
            return None;
        }
        let points = || self.curves.iter().flat_map(|curve| &curve.points);
        let xs = span(&points().map(|point| point.0).collect::<Vec<_>>())?;
        let ys = span(&points().flat_map(|point| [point.2, point.3]).collect::<Vec<_>>())?;
        Some((xs.0..xs.1, ys.0..ys.1))
    }

    /// With logarithmic axes and times upwards.
    fn draw_log(&self, folder: &Path, x_label: &dyn Fn(&f64) -> String) -> Result<(), Box<dyn Error>> {
        let Some((xs, ys)) = self.span() else { return Ok(()) };
        let xs = (xs.start / 1.5..xs.end * 1.5).log_scale();
        let ys = (ys.start / 2.0..ys.end * 2.0).log_scale();
        let is_power = |value: &f64| (value.log10() - value.log10().round()).abs() < 1e-6;
        let x_label = |x: &f64| if is_power(x) { x_label(x) } else { String::new() };
        let y_label =
            |y: &f64| if is_power(y) { short(*y, "ns").replace(".00", "").replace(".0", "") } else { String::new() };
        self.draw(folder, xs, ys, 8, &x_label, &y_label)
    }

    fn draw<X, Y>(
        &self,
        folder: &Path,
        xs: X,
        ys: Y,
        x_labels: usize,
        x_label: &dyn Fn(&f64) -> String,
        y_label: &dyn Fn(&f64) -> String,
    ) -> Result<(), Box<dyn Error>>
    where
        X: AsRangedCoord<Value = f64, CoordDescType: ValueFormatter<f64>>,
        Y: AsRangedCoord<Value = f64, CoordDescType: ValueFormatter<f64>>,
    {
        let file = folder.join(self.file);
        let area = SVGBackend::new(&file, (800, 480)).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(self.title, ("sans-serif", 20))
            .margin(16)
            .margin_right(48)
            .x_label_area_size(52)
            .y_label_area_size(88)
            .build_cartesian_2d(xs, ys)?;
        chart
            .configure_mesh()
            .x_labels(x_labels)
            .x_label_formatter(&x_label)
            .y_label_formatter(&y_label)
            .x_desc(self.x)
            .y_desc(self.y)
            .label_style(("sans-serif", 15))
            .axis_desc_style(("sans-serif", 16))
            .light_line_style(WHITE)
            .draw()?;
        for curve in &self.curves {
            let colour = curve.colour;
            let medians = curve.points.iter().map(|&(x, y, ..)| (x, y));
            chart
                .draw_series(LineSeries::new(medians.clone(), colour.stroke_width(2)))?
                .label(curve.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 24, y)], colour.stroke_width(3)));
            chart.draw_series(medians.map(|point| Circle::new(point, 4, colour.filled())))?;
            let spans = curve.points.iter().map(|&(x, _, least, most)| [(x, least), (x, most)]);
            chart.draw_series(spans.map(|span| PathElement::new(span, colour.stroke_width(1))))?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .label_font(("sans-serif", 16))
            .legend_area_size(32)
            .background_style(WHITE)
            .border_style(RGBColor(180, 180, 180))
            .draw()?;
        area.present()?;
        Ok(())
    }
}
