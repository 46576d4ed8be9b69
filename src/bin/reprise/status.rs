//! `reprise status`: what every process and context on this machine counted, as a table, as JSON or for Prometheus.

use crate::{cache, say, wrong_use, Done};
use crossterm::event::{poll, read, Event, KeyCode, KeyModifiers};
use reprise::board::read::{all, Entry, Family};
use reprise::board::{now, Count};
use reprise::config::Semantics;
use serde::Serialize;
use serde_json::{json, Map, Value};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Show the programs that use Reprise and what happens in them
///
/// One line for each SSL_CTX in each process, and the sums of a program, with what its ended processes counted. Root sees
/// everybody's programs, others their own.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  reprise status
  reprise status nginx --watch
  reprise status 4711 --json
  reprise status --prometheus > /var/lib/node_exporter/reprise.prom

HITS were found in the cache or by the program's own callback. MISSES were not: ABSENT, there is no such session (also
what a client makes up for its first connection), or UNUSABLE, it may not be resumed. RATE is hits of both together.
REPLAYS are tickets for early data shown again, ERRORS sessions that could not be stored. A forked process is listed from
its first session on.")]
pub struct Args {
    /// Only this program, process id (with what was forked from it) or cache
    name: Option<String>,
    /// Show it anew each second, until q is pressed
    #[arg(long, short)]
    watch: bool,
    /// Print JSON
    #[arg(long, conflicts_with = "prometheus")]
    json: bool,
    /// Print the text format that Prometheus reads
    #[arg(long)]
    prometheus: bool,
}

pub fn run(args: &Args) -> Done {
    if !args.watch {
        say(&show(args));
        return Ok(0);
    }
    if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        loop {
            say(&show(args));
            std::thread::sleep(Duration::from_secs(1));
        }
    }
    let failed = |error: std::io::Error| wrong_use(format!("the terminal: {error}"));
    crossterm::terminal::enable_raw_mode().map_err(failed)?;
    say("\x1b[?1049h\x1b[?25l"); // a screen of its own, no cursor
    let seen = watch(args);
    say("\x1b[?25h\x1b[?1049l");
    crossterm::terminal::disable_raw_mode().map_err(failed)?;
    seen.map(|()| 0).map_err(failed)
}

fn watch(args: &Args) -> std::io::Result<()> {
    loop {
        // A terminal that does not know its size says 0.
        let (width, height) = match crossterm::terminal::size()? {
            (0, _) | (_, 0) => (u16::MAX, u16::MAX),
            size => size,
        };
        let text = show(args);
        let lines = text.lines().take(usize::from(height).saturating_sub(1));
        let lines = lines.map(|line| line.chars().take(width.into()).collect::<String>() + "\x1b[K\r\n");
        say(&format!("\x1b[H{}\x1b[Jq ends", lines.collect::<String>()));
        let next = Instant::now() + Duration::from_secs(1);
        while poll(next.saturating_duration_since(Instant::now()))? {
            if let Event::Key(key) = read()? {
                let interrupted = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
                if interrupted || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
                    return Ok(());
                }
            }
        }
    }
}

fn show(args: &Args) -> String {
    let (families, problems) = all();
    let programs: Vec<Program> =
        families.into_iter().filter_map(|family| Program::of(family, args.name.as_deref())).collect();
    for problem in &problems {
        eprintln!("reprise: {problem}");
    }
    match (args.json, args.prometheus) {
        (true, _) => json_text(&programs),
        (_, true) => prometheus(&programs),
        _ => table(&programs),
    }
}

/// A process that made a board, with those forked from it.
struct Program {
    name: String,
    creator: u32,
    ended: Counts,
    contexts: Vec<Context>,
}

struct Context {
    program: String,
    entry: Entry,
    counts: Counts,
}

impl Program {
    fn of(family: Family, wanted: Option<&str>) -> Option<Program> {
        let contexts: Vec<Context> = family
            .rows
            .into_iter()
            .map(|entry| Context { program: program(entry.process), counts: Counts(entry.counts), entry })
            .collect();
        let name = contexts.first().map_or_else(|| program(family.creator), |context| context.program.clone());
        let wholly = wanted.is_none_or(|wanted| wanted == name || wanted == family.creator.to_string());
        let contexts: Vec<Context> =
            contexts.into_iter().filter(|context| wholly || wanted.is_none_or(|wanted| context.is(wanted))).collect();
        let ended = if wholly { Counts(family.ended) } else { Counts::default() };
        let any = wholly || !contexts.is_empty();
        any.then_some(Program { name, creator: family.creator, ended, contexts })
    }

    /// What the processes have for themselves, and each shared cache once.
    fn sessions(&self) -> u64 {
        let own: u64 = self.contexts.iter().filter_map(Context::sessions).sum();
        let shared: BTreeSet<&str> = self.contexts.iter().map(|context| context.entry.cache.as_str()).collect();
        own + shared.into_iter().filter_map(cache::sessions).sum::<u64>()
    }

    fn sum(&self) -> Counts {
        self.contexts.iter().fold(self.ended, |sum, context| sum.plus(&context.counts))
    }

    fn processes(&self) -> usize {
        let mut processes: Vec<u32> = self.contexts.iter().map(|context| context.entry.process).collect();
        processes.sort_unstable();
        processes.dedup();
        processes.len()
    }
}

impl Context {
    fn is(&self, wanted: &str) -> bool {
        let cache = &self.entry.cache;
        self.program == wanted
            || self.entry.process.to_string() == wanted
            || cache == wanted
            || cache.split_once(':').is_some_and(|(_, name)| name == wanted)
    }

    fn semantics(&self) -> &'static str {
        match Semantics::from_number(self.entry.semantics as i32) {
            Some(Semantics::Documented) => "documented",
            Some(Semantics::Stock) => "stock",
            None => "?",
        }
    }

    /// In its own cache; `None` if that is shared with others.
    fn sessions(&self) -> Option<u64> {
        (self.entry.cache == "memory").then_some(self.entry.sessions)
    }

    fn age(&self) -> u64 {
        now().saturating_sub(self.entry.created)
    }
}

/// The name of a process, "?" for one that is gone.
fn program(process: u32) -> String {
    let name = std::fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_else(|_| "?".into());
    name.trim_end().chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[derive(Clone, Copy, Default)]
struct Counts([u64; Count::ALL]);

impl Counts {
    fn of(&self, count: Count) -> u64 {
        self.0[count as usize]
    }

    fn plus(self, other: &Counts) -> Counts {
        Counts(std::array::from_fn(|i| self.0[i].wrapping_add(other.0[i])))
    }

    fn hits(&self) -> u64 {
        self.of(Count::Hits) + self.of(Count::ExternalHits)
    }

    /// What was not found anywhere. A miss in the cache is followed by a question to the program's callback if it has
    /// one, and is one miss.
    fn misses(&self) -> u64 {
        let inside = self.of(Count::Misses) + self.of(Count::Unusable);
        let asked = self.of(Count::ExternalHits) + self.of(Count::ExternalMisses) + self.of(Count::ExternalRefused);
        inside.max(asked).saturating_sub(self.of(Count::ExternalHits))
    }

    fn unusable(&self) -> u64 {
        (self.of(Count::Unusable) + self.of(Count::ExternalRefused)).min(self.misses())
    }

    fn absent(&self) -> u64 {
        self.misses() - self.unusable()
    }

    /// From 0 to 1; `None` before the first lookup.
    fn hit_rate(&self) -> Option<f64> {
        let all = self.hits() + self.misses();
        (all > 0).then(|| self.hits() as f64 / all as f64)
    }
}

/// `external_hits` for `ExternalHits`
fn name(count: Count) -> String {
    let mut name = String::new();
    for c in format!("{count:?}").chars() {
        if c.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(c.to_ascii_lowercase());
    }
    name
}

// ---- The table ------------------------------------------------------------------------------------------------

const TITLES: [&str; 15] = [
    "PROGRAM",
    "PID",
    "CTX",
    "AGE",
    "SEMANTICS",
    "CACHE",
    "SESSIONS",
    "HITS",
    "MISSES",
    "ABSENT",
    "UNUSABLE",
    "RATE",
    "EVICTED",
    "EXPIRED",
    "REPLAYS",
];

fn table(programs: &[Program]) -> String {
    let mut rows: Vec<Vec<String>> = vec![TITLES.iter().map(ToString::to_string).chain(["ERRORS".into()]).collect()];
    for program in programs {
        for context in &program.contexts {
            let first = [
                context.program.clone(),
                context.entry.process.to_string(),
                context.entry.number.to_string(),
                age(context.age()),
                context.semantics().into(),
                context.entry.cache.clone(),
                context.sessions().map_or("shared".into(), |sessions| sessions.to_string()),
            ];
            rows.push(first.into_iter().chain(figures(&context.counts)).collect());
        }
        let has_ended = program.ended.0.iter().any(|&count| count > 0);
        if program.contexts.len() > 1 || has_ended && !program.contexts.is_empty() {
            let processes = program.processes();
            let what = format!("{} {}", processes, if processes == 1 { "process" } else { "processes" });
            let and = if has_ended { "+ ended" } else { "" };
            let first = [program.name.clone(), "all".into(), String::new(), String::new(), what, and.into()];
            let sessions = program.sessions().to_string();
            rows.push(first.into_iter().chain([sessions]).chain(figures(&program.sum())).collect());
        }
    }
    if rows.len() == 1 {
        return "No program uses Reprise here. `reprise run -- CMD` starts one.\n".into();
    }
    aligned(&rows, &[0, 4, 5])
}

fn figures(counts: &Counts) -> [String; 9] {
    let rate = counts.hit_rate().map_or("-".into(), |rate| format!("{:.1}%", rate * 100.0));
    let number = |count| counts.of(count).to_string();
    [
        counts.hits().to_string(),
        counts.misses().to_string(),
        counts.absent().to_string(),
        counts.unusable().to_string(),
        rate,
        number(Count::Evicted),
        number(Count::Expired),
        number(Count::Replays),
        number(Count::StoreErrors),
    ]
}

/// A table: the columns `texts` to the left, numbers to the right.
pub fn aligned(rows: &[Vec<String>], texts: &[usize]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|text| text.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().enumerate().map(|(at, cell)| match texts.contains(&at) {
            true => format!("{cell:<width$}", width = widths[at]),
            false => format!("{cell:>width$}", width = widths[at]),
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

pub fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86400 => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d{:02}h", seconds / 86400, seconds % 86400 / 3600),
    }
}

// ---- For machines ---------------------------------------------------------------------------------------------

#[derive(Serialize)]
struct Figures {
    sessions: Option<u64>,
    hits: u64,
    misses: u64,
    absent: u64,
    unusable: u64,
    hit_rate: Option<f64>,
    counters: Map<String, Value>,
}

impl Figures {
    fn of(sessions: Option<u64>, counts: &Counts) -> Figures {
        Figures {
            sessions,
            hits: counts.hits(),
            misses: counts.misses(),
            absent: counts.absent(),
            unusable: counts.unusable(),
            hit_rate: counts.hit_rate(),
            counters: Count::LIST.iter().map(|&count| (name(count), counts.of(count).into())).collect(),
        }
    }
}

fn json_text(programs: &[Program]) -> String {
    let list: Vec<Value> = programs
        .iter()
        .map(|program| {
            let contexts: Vec<Value> = program.contexts.iter().map(context_json).collect();
            json!({
                "program": program.name,
                "creator": program.creator,
                "processes": program.processes(),
                "sums": Figures::of(Some(program.sessions()), &program.sum()),
                "ended": Figures::of(None, &program.ended).counters,
                "contexts": contexts,
            })
        })
        .collect();
    json!({ "version": 1, "programs": list }).to_string() + "\n"
}

fn context_json(context: &Context) -> Value {
    let entry = &context.entry;
    json!({
        "pid": entry.process,
        "program": context.program,
        "context": entry.number,
        "created": entry.created,
        "age_seconds": context.age(),
        "semantics": context.semantics(),
        "cache": entry.cache,
        "libssl": entry.libssl,
        "figures": Figures::of(context.sessions(), &context.counts),
    })
}

fn prometheus(programs: &[Program]) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "# HELP reprise_sessions Sessions in the cache now.\n# TYPE reprise_sessions gauge");
    for context in programs.iter().flat_map(|program| &program.contexts) {
        if let Some(sessions) = context.sessions() {
            let _ = writeln!(text, "reprise_sessions{{{}}} {sessions}", labels(context));
        }
    }
    let contexts = programs.iter().flat_map(|program| &program.contexts);
    for label in contexts.map(|context| context.entry.cache.as_str()).collect::<BTreeSet<_>>() {
        if let Some(sessions) = cache::sessions(label) {
            let _ = writeln!(text, "reprise_sessions{{{}}} {sessions}", joined(&[("cache", label)]));
        }
    }
    for (&count, meaning) in Count::LIST.iter().zip(Count::MEANINGS) {
        let metric = format!("reprise_{}_total", name(count));
        let _ = writeln!(text, "# HELP {metric} {}\n# TYPE {metric} counter", meaning.trim());
        for program in programs {
            for context in &program.contexts {
                let _ = writeln!(text, "{metric}{{{}}} {}", labels(context), context.counts.of(count));
            }
            // So that a sum over a program never goes down when one of its processes ends.
            let ended =
                [("program", program.name.as_str()), ("pid", "ended"), ("creator", &program.creator.to_string())];
            let _ = writeln!(text, "{metric}{{{}}} {}", joined(&ended), program.ended.of(count));
        }
    }
    text
}

fn labels(context: &Context) -> String {
    let entry = &context.entry;
    joined(&[
        ("program", &context.program),
        ("pid", &entry.process.to_string()),
        ("context", &entry.number.to_string()),
        ("semantics", context.semantics()),
        ("cache", &entry.cache),
    ])
}

fn joined(labels: &[(&str, &str)]) -> String {
    let escaped = |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let labels: Vec<_> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
    labels.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(pairs: &[(Count, u64)]) -> Counts {
        let mut counts = Counts::default();
        pairs.iter().for_each(|&(count, value)| counts.0[count as usize] = value);
        counts
    }

    #[test]
    fn a_miss_that_the_programs_callback_settles_is_a_hit() {
        let seen = counts(&[(Count::Misses, 10), (Count::ExternalHits, 7), (Count::ExternalMisses, 3)]);
        assert_eq!((seen.hits(), seen.misses(), seen.absent(), seen.hit_rate()), (7, 3, 3, Some(0.7)));
    }

    #[test]
    fn a_miss_without_a_callback_is_a_miss() {
        let seen = counts(&[(Count::Hits, 5), (Count::Misses, 4), (Count::Unusable, 1)]);
        assert_eq!((seen.hits(), seen.misses(), seen.absent(), seen.unusable()), (5, 5, 4, 1));
        assert_eq!(Counts::default().hit_rate(), None);
    }

    #[test]
    fn labels_are_escaped() {
        assert_eq!(joined(&[("a", "x\"y\\z\n")]), r#"a="x\"y\\z\n""#);
    }

    #[test]
    fn counters_are_named_as_in_the_struct_of_the_library() {
        assert_eq!(name(Count::ExternalRefused), "external_refused");
    }
}
