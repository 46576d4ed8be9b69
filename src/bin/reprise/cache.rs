//! `reprise cache`: the caches in shared memory, and what can be said and done of one in Redis. What they hold is counted
//! and never shown.

use crate::status::{age, aligned};
use crate::{say, wrong_use, Done, Failure};
use reprise::board::now;
use reprise::cache::redis::check::{self, FACTS};
use reprise::cache::redis::url::{without_password, Spec};
use reprise::cache::shm::{self, Area, Error, Info, COUNTERS};
use reprise::cache::Place;
use std::fmt::Write;

/// List, show, empty or remove the caches in shared memory; show or empty one in Redis
#[derive(clap::Subcommand)]
#[command(after_help = "\
Examples:
  reprise cache ls
  reprise cache show web
  reprise cache flush web     # every session ends, the programs go on
  reprise cache rm web        # programs that use it go on with it until they end

  reprise cache flush \"$REPRISE_CACHE\"    # a cache in Redis: its whole URL

NAME is as in shm:NAME, also an absolute path, or the URL of a cache in Redis as programs have it. Of that, `show` tells
what its servers say of themselves and, by a sample, how many sessions it has. `flush` ends the sessions of all services that
use its prefix, on all machines: it looks for their control keys among all keys of the database, in small steps. Sessions
that a process has yet to write stay. `ls` and `rm` know only shared memory.

Exit code: 0 if it was done, 1 if not, 2 for a wrong command line.")]
pub enum Command {
    /// List them: name, size, how full, sessions
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show one with its services and counters
    Show {
        /// A name, or the URL of a cache in Redis
        name: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove every session from one
    Flush {
        /// A name, or the URL of a cache in Redis
        name: String,
    },
    /// Remove one
    Rm { name: String },
}

/// Makes sure that a program will find its cache, so that errors are said before it starts.
pub fn prepare(url: &str) -> Result<(), Failure> {
    let place: Place =
        url.parse().map_err(|error| wrong_use(format!("REPRISE_CACHE={:?}: {error}", without_password(url))))?;
    match place {
        Place::Memory => Ok(()),
        Place::Shm(spec) => Area::open(&spec).map(drop).map_err(|error| wrong_use(error.to_string())),
        Place::Redis(spec) => {
            for warning in check::check(&spec).map_err(wrong_use)?.warnings {
                eprintln!("reprise: {warning}");
            }
            Ok(())
        }
    }
}

/// How many sessions the cache of a label as `shm:web` holds; `None` if it is another one, or cannot be read.
pub fn sessions(label: &str) -> Option<u64> {
    Some(Area::find(label.strip_prefix("shm:")?).ok()?.info().sessions)
}

pub fn run(command: &Command) -> Done {
    let failed = |error: Error| Failure(1, error.to_string());
    match command {
        Command::Ls { json } => {
            let mut all = Vec::new();
            for name in shm::list().map_err(failed)? {
                match Area::find(&name) {
                    Ok(area) => all.push(area.info()),
                    // Others have files there too; one that is gone by now is none.
                    Err(Error::NoCache(_) | Error::Missing(_)) => {}
                    Err(error) => eprintln!("reprise: {error}"),
                }
            }
            let objects: Vec<_> = all.iter().map(object).collect();
            say(&if *json {
                serde_json::json!({ "version": 1, "caches": objects }).to_string() + "\n"
            } else {
                list(&all)
            });
        }
        Command::Show { name, json } if is_redis(name) => {
            let spec = redis(name)?;
            let nodes = check::show(&spec).map_err(|error| Failure(1, error))?;
            say(&if *json { redis_object(&spec, &nodes).to_string() + "\n" } else { redis_text(&spec, &nodes) });
        }
        Command::Show { name, json } => {
            let info = Area::find(name).map_err(failed)?.info();
            say(&if *json { object(&info).to_string() + "\n" } else { show(&info) });
        }
        Command::Flush { name } if is_redis(name) => {
            let spec = redis(name)?;
            let services = check::flush(&spec).map_err(|error| Failure(1, error))?;
            say(&format!(
                "All sessions of {services} service{} removed from {spec}.\n",
                if services == 1 { "" } else { "s" }
            ));
        }
        Command::Rm { name } if is_redis(name) => {
            return Err(wrong_use("a cache in Redis is not removed from here: `reprise cache flush` empties it"));
        }
        Command::Flush { name } => {
            let flushed = Area::find(name).map_err(failed)?.flush();
            let flushed = flushed.ok_or_else(|| Failure(1, format!("the shared cache {name} is busy: try again")))?;
            say(&format!("{flushed} sessions removed from {name}.\n"));
        }
        Command::Rm { name } => shm::remove(name).map_err(failed)?,
    }
    Ok(0)
}

fn is_redis(name: &str) -> bool {
    name.starts_with("redis") && name.contains("://")
}

fn redis(url: &str) -> Result<Spec, Failure> {
    url.parse().map_err(|error| wrong_use(format!("{:?}: {error}", without_password(url))))
}

fn redis_text(spec: &Spec, nodes: &[check::Node]) -> String {
    let mut text = format!("{spec}\n");
    for node in nodes {
        if !node.name.is_empty() {
            let _ = writeln!(text, "\n{}", node.name);
        }
        for (name, fact) in FACTS.iter().zip(&node.facts).filter(|(_, fact)| !fact.is_empty()) {
            let _ = writeln!(text, "{name:<19}{fact}");
        }
        if let Some(keys) = node.keys {
            let _ = writeln!(text, "{:<19}{keys} (of everybody who uses the database)", "keys");
        }
        if let Some([sessions, voids]) = node.sessions {
            let _ = writeln!(text, "{:<19}{sessions}, about", "sessions");
            let _ = writeln!(
                text,
                "{:<19}{voids}, about: they stand for sessions that were removed or used up",
                "void records"
            );
        }
    }
    text
}

fn redis_object(spec: &Spec, nodes: &[check::Node]) -> serde_json::Value {
    let node = |node: &check::Node| {
        let facts: serde_json::Map<_, _> =
            FACTS.iter().zip(&node.facts).map(|(name, fact)| (name.to_string(), fact.as_str().into())).collect();
        serde_json::json!({ "address": node.name, "info": facts, "keys": node.keys,
            "sessions": node.sessions.map(|[sessions, _]| sessions), "void_records": node.sessions.map(|[_, voids]| voids) })
    };
    serde_json::json!({ "url": spec.to_string(), "nodes": nodes.iter().map(node).collect::<Vec<_>>() })
}

fn percent(info: &Info) -> f64 {
    info.used as f64 * 100.0 / info.room.max(1) as f64
}

/// Bytes as a person reads them.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["", "K", "M", "G"];
    let steps = (0..3).take_while(|step| bytes >> (10 * (step + 1)) > 0).count();
    let shown = bytes as f64 / f64::from(1u32 << (10 * steps));
    if shown.fract() == 0.0 {
        format!("{shown}{}", UNITS[steps])
    } else {
        format!("{shown:.1}{}", UNITS[steps])
    }
}

fn since(created: i64) -> String {
    age(now().saturating_sub(created.max(0) as u64))
}

fn list(all: &[Info]) -> String {
    if all.is_empty() {
        return "There is no cache in shared memory. `reprise run --cache shm:NAME -- CMD` makes one.\n".into();
    }
    let titles = ["NAME", "SIZE", "FULL", "AGE", "SESSIONS", "EVICTED"].map(String::from);
    let row = |info: &Info| {
        let numbers =
            [size(info.size), format!("{:.0}%", percent(info)), since(info.created), info.sessions.to_string()];
        let evicted = info.count(shm::Counter::Evicted).to_string();
        std::iter::once(info.name.clone()).chain(numbers).chain([evicted]).collect::<Vec<_>>()
    };
    aligned(&std::iter::once(titles.to_vec()).chain(all.iter().map(row)).collect::<Vec<_>>(), &[0])
}

/// A service by its hash: it tells contexts apart and says nothing of them.
fn service(identity: [u64; 2]) -> String {
    format!("{:016x}{:016x}", identity[0], identity[1])
}

fn show(info: &Info) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "{}: {}", info.name, info.path.display());
    let _ = writeln!(text, "size      {}, {:.0}% full", size(info.size), percent(info));
    let _ = writeln!(text, "age       {}", since(info.created));
    let kept = if info.keep { "stays when nobody uses it" } else { "goes with its last user" };
    let _ = writeln!(text, "keep      {kept}");
    let _ = writeln!(text, "sessions  {}", info.sessions);
    for (name, value) in COUNTERS.iter().zip(info.counters) {
        let _ = writeln!(text, "{name:<10}{value}");
    }
    if !info.services.is_empty() {
        let titles = ["SERVICE", "SESSIONS", "BYTES", "SOONEST EXPIRY"].map(String::from).to_vec();
        let rows = info.services.iter().map(|row| {
            let left = row.soonest_expiry.saturating_sub(now() as i64);
            let expiry = if left < 0 { "expired".into() } else { format!("in {}", age(left as u64)) };
            vec![service(row.identity), row.sessions.to_string(), size(row.bytes), expiry]
        });
        text.push('\n');
        text.push_str(&aligned(&std::iter::once(titles).chain(rows).collect::<Vec<_>>(), &[0]));
    }
    text
}

fn object(info: &Info) -> serde_json::Value {
    let counters: serde_json::Map<_, _> =
        COUNTERS.iter().zip(info.counters).map(|(name, value)| (name.to_string(), value.into())).collect();
    let services: Vec<_> = info
        .services
        .iter()
        .map(|row| {
            serde_json::json!({
                "service": service(row.identity),
                "sessions": row.sessions,
                "bytes": row.bytes,
                "soonest_expiry": row.soonest_expiry,
            })
        })
        .collect();
    serde_json::json!({
        "name": info.name,
        "path": info.path,
        "size": info.size,
        "used": info.used,
        "room": info.room,
        "keep": info.keep,
        "created": info.created,
        "sessions": info.sessions,
        "counters": counters,
        "services": services,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_a_person_reads_them() {
        let cases = [(0, "0"), (1023, "1023"), (64 << 20, "64M"), (1536, "1.5K"), (3 << 30, "3G")];
        cases.iter().for_each(|&(bytes, text)| assert_eq!(size(bytes), text));
    }
}
