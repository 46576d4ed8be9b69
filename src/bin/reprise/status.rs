//! `reprise status`: what every process and context on this machine counted, and how their links to a Redis are doing, as a
//! table, as JSON or for Prometheus.

use crate::{cache, say, wrong_use, Done};
use crossterm::event::{poll, read, Event, KeyCode, KeyModifiers};
use reprise::board::read::{all, Entry, Family};
use reprise::board::{now, Count};
use reprise::cache::redis::vitals::{adds_up, slot_end, Vital, NUMBERS, SLOTS};
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
its first session on.

Below is a line for each process and Redis that its cache is in. STATE is up, or broken: it did not answer, and is not
asked until it does. QUEUE sessions wait to be written, WRITTEN were; OVERFLOWED were dropped because too many waited.
ANSWERS to lookups took at most P50 in half of the cases, P99 in 99 of 100. FAILED requests had no answer in time, UNASKED
lookups were misses while the state was broken. UNSEALED records were not what a machine of the fleet had stored there.
REFUSED ids were issued by no machine of the fleet, and nobody was asked for them. The last table counts the answers by
the time that they took at most.")]
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
    // Who was asked for and is there is not among those that cannot be read.
    if args.name.is_none() || programs.is_empty() {
        problems.iter().for_each(|problem| eprintln!("reprise: {problem}"));
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
    links: Vec<Link>,
    ended_links: Numbers,
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
        let links: Vec<Link> = family
            .links
            .into_iter()
            .map(|link| Link {
                program: program(link.process),
                process: link.process,
                cache: link.cache,
                numbers: Numbers(link.numbers),
            })
            .collect();
        let name = contexts.first().map_or_else(|| program(family.creator), |context| context.program.clone());
        let wholly = wanted.is_none_or(|wanted| wanted == name || wanted == family.creator.to_string());
        let contexts: Vec<Context> =
            contexts.into_iter().filter(|context| wholly || wanted.is_none_or(|wanted| context.is(wanted))).collect();
        let ended = if wholly { Counts(family.ended) } else { Counts::default() };
        let links: Vec<Link> =
            links.into_iter().filter(|link| wholly || wanted.is_none_or(|wanted| link.is(wanted))).collect();
        let ended_links = if wholly { Numbers(family.ended_links) } else { Numbers::default() };
        let any = wholly || !contexts.is_empty() || !links.is_empty();
        any.then_some(Program { name, creator: family.creator, ended, contexts, links, ended_links })
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

/// How the link of a process to a Redis is doing.
struct Link {
    program: String,
    process: u32,
    cache: String,
    numbers: Numbers,
}

impl Link {
    fn is(&self, wanted: &str) -> bool {
        self.program == wanted || self.process.to_string() == wanted || self.cache == wanted
    }
}

#[derive(Clone, Copy)]
struct Numbers([u64; NUMBERS]);

impl Default for Numbers {
    fn default() -> Numbers {
        Numbers([0; NUMBERS])
    }
}

impl Numbers {
    fn of(&self, vital: Vital) -> u64 {
        self.0[vital as usize]
    }

    /// How many answers took at most [`slot_end`], and longer than that of the slot before.
    fn slots(&self) -> &[u64] {
        &self.0[NUMBERS - SLOTS..]
    }

    fn answers(&self) -> u64 {
        self.slots().iter().sum()
    }

    /// The slot of the answer that `share` of all are not slower than; `None` before the first.
    fn quantile(&self, share: f64) -> Option<usize> {
        let answers = self.answers();
        let rank = (answers as f64 * share).ceil().max(1.0) as u64;
        let mut seen = 0;
        self.slots().iter().position(|answers| {
            seen += answers;
            seen >= rank
        })
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
fn name(count: impl std::fmt::Debug) -> String {
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
    if rows.len() == 1 && programs.iter().all(|program| program.links.is_empty()) {
        return "No program uses Reprise here. `reprise run -- CMD` starts one.\n".into();
    }
    aligned(&rows, &[0, 4, 5]) + &link_tables(programs)
}

const LINK_TITLES: [&str; 14] = [
    "PROGRAM",
    "PID",
    "REDIS",
    "STATE",
    "QUEUE",
    "WRITTEN",
    "OVERFLOWED",
    "ANSWERS",
    "P50",
    "P99",
    "FAILED",
    "UNASKED",
    "UNSEALED",
    "REFUSED",
];

/// Of all links, if there are any: how they are doing, and how long the answers took.
fn link_tables(programs: &[Program]) -> String {
    let mut state = vec![LINK_TITLES.map(String::from).to_vec()];
    let mut times = vec![["PROGRAM", "PID", "ANSWERS"].map(String::from).to_vec()];
    times[0].extend((0..SLOTS).map(time));
    for link in programs.iter().flat_map(|program| &program.links) {
        let numbers = &link.numbers;
        let number = |vital| numbers.of(vital).to_string();
        let quantile = |share| numbers.quantile(share).map_or("-".into(), time);
        let who = [link.program.clone(), link.process.to_string()];
        let figures = [
            link.cache.clone(),
            if numbers.of(Vital::IsBroken) == 0 { "up".into() } else { "broken".into() },
            number(Vital::Queue),
            number(Vital::Written),
            number(Vital::Overflowed),
            numbers.answers().to_string(),
            quantile(0.5),
            quantile(0.99),
            number(Vital::Failed),
            number(Vital::NotAsked),
            number(Vital::SealBroken),
            number(Vital::RefusedIds),
        ];
        state.push(who.iter().cloned().chain(figures).collect());
        let slots = numbers.slots().iter().map(ToString::to_string);
        times.push(who.into_iter().chain([numbers.answers().to_string()]).chain(slots).collect());
    }
    if state.len() == 1 {
        return String::new();
    }
    format!("\n{}\n{}", aligned(&state, &[0, 2, 3]), aligned(&times, &[0]))
}

/// What a slot of answers took at most.
fn time(slot: usize) -> String {
    let shown = |micros: u64| match micros {
        0..1000 => format!("{micros}us"),
        1000..10_000 => format!("{:.1}ms", micros as f64 / 1000.0),
        _ => format!("{}ms", micros / 1000),
    };
    slot_end(slot).map_or_else(|| ">".to_string() + &slot_end(SLOTS - 2).map_or_else(String::new, shown), shown)
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
                "links": program.links.iter().map(link_json).collect::<Vec<_>>(),
                "ended_links": vital_json(&program.ended_links),
            })
        })
        .collect();
    json!({ "version": 1, "programs": list }).to_string() + "\n"
}

fn link_json(link: &Link) -> Value {
    let seconds = |slot: usize| slot_end(slot).map(|micros| micros as f64 / 1e6);
    let slots = link.numbers.slots().iter().enumerate();
    let slots: Vec<Value> =
        slots.map(|(slot, answers)| json!({ "at_most_seconds": seconds(slot), "answers": answers })).collect();
    json!({
        "pid": link.process,
        "program": link.program,
        "cache": link.cache,
        "broken": link.numbers.of(Vital::IsBroken) != 0,
        "queue": link.numbers.of(Vital::Queue),
        "to_remove": link.numbers.of(Vital::ToRemove),
        "oldest_unwritten": link.numbers.of(Vital::OldestUnwritten),
        "counters": vital_json(&link.numbers),
        "answers": link.numbers.answers(),
        "p50_seconds": link.numbers.quantile(0.5).and_then(seconds),
        "p99_seconds": link.numbers.quantile(0.99).and_then(seconds),
        "slots": slots,
    })
}

fn vital_json(numbers: &Numbers) -> Map<String, Value> {
    let counters = Vital::LIST.iter().filter(|&&vital| adds_up(vital as usize));
    counters.map(|&vital| (name(vital), numbers.of(vital).into())).collect()
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
    link_metrics(&mut text, programs);
    text
}

fn link_metrics(text: &mut String, programs: &[Program]) {
    // Of programs that use none, nothing is said; what ended links counted stays in the sums of the others.
    let uses = |program: &&Program| !program.links.is_empty() || program.ended_links.0.iter().any(|&number| number > 0);
    let programs: Vec<&Program> = programs.iter().filter(uses).collect();
    if programs.is_empty() {
        return;
    }
    let ended = |program: &Program| {
        joined(&[("program", &program.name), ("pid", "ended"), ("creator", &program.creator.to_string())])
    };
    for (&vital, meaning) in Vital::LIST.iter().zip(Vital::MEANINGS) {
        if vital == Vital::RoundTripMicros {
            continue; // the sum of the histogram
        }
        let counts = adds_up(vital as usize);
        let metric = format!("reprise_redis_{}{}", name(vital), if counts { "_total" } else { "" });
        let kind = if counts { "counter" } else { "gauge" };
        let _ = writeln!(text, "# HELP {metric} {}\n# TYPE {metric} {kind}", meaning.trim());
        for program in &programs {
            for link in &program.links {
                let _ = writeln!(text, "{metric}{{{}}} {}", link_labels(link), link.numbers.of(vital));
            }
            if counts {
                let _ = writeln!(text, "{metric}{{{}}} {}", ended(program), program.ended_links.of(vital));
            }
        }
    }
    let metric = "reprise_redis_round_trip_seconds";
    let _ = writeln!(text, "# HELP {metric} How long lookups waited for an answer.\n# TYPE {metric} histogram");
    for program in &programs {
        let links = program.links.iter().map(|link| (link_labels(link), &link.numbers));
        for (labels, numbers) in links.chain([(ended(program), &program.ended_links)]) {
            let mut sum = 0;
            for (slot, answers) in numbers.slots().iter().enumerate() {
                sum += answers;
                let end = slot_end(slot).map_or("+Inf".into(), |micros| (micros as f64 / 1e6).to_string());
                let _ = writeln!(text, "{metric}_bucket{{{labels},le=\"{end}\"}} {sum}");
            }
            let seconds = numbers.of(Vital::RoundTripMicros) as f64 / 1e6;
            let _ = writeln!(text, "{metric}_sum{{{labels}}} {seconds}\n{metric}_count{{{labels}}} {sum}");
        }
    }
}

fn link_labels(link: &Link) -> String {
    joined(&[("program", &link.program), ("pid", &link.process.to_string()), ("cache", &link.cache)])
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
    fn quantiles_are_the_slots_in_which_they_lie() {
        let mut numbers = Numbers::default();
        assert_eq!(numbers.quantile(0.5), None);
        let first = NUMBERS - SLOTS;
        (numbers.0[first], numbers.0[first + 2], numbers.0[NUMBERS - 1]) = (49, 50, 1);
        let slots = [0.0, 0.49, 0.5, 0.99, 1.0].map(|share| numbers.quantile(share).unwrap());
        assert_eq!(slots, [0, 0, 2, 2, SLOTS - 1]);
        assert_eq!([0, 2, 5, SLOTS - 1].map(time), ["64us", "256us", "2.0ms", ">65ms"]);
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
