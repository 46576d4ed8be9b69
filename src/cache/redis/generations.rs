//! The generations of the buckets, as this process knows them.
//!
//! Each bucket of a service has a number in Redis, and each record carries the number that its bucket had when the session
//! was stored: where they differ, the session was flushed. A flush raises the number to the time in microseconds, or by one
//! where it is higher already. Redis is only ever told to add to it (INCRBY), so two processes that raise it at once, or
//! one that repeats a request whose answer was lost, can only make it higher. A number that was seen lower than before
//! (a restored backup, a failover) is raised again by whoever knows better. A number that no flush can have made (text, a
//! negative one, a time to come) is nonsense: its bucket begins anew, and the sessions of that bucket are lost.

use super::super::Service;
use super::server::Connection;
use redis::{Cmd, RedisResult, Value};
use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub type Bucket = (Service, u8);

/// For so long nobody asks again.
const FRESH: Duration = Duration::from_secs(1);
/// A generation that begins is so much older than now: sessions that are waiting to be written at that moment belong to it.
const HOUR: u64 = 3_600_000_000;
/// So far may the clocks of a fleet be apart.
const SKEW: u64 = 24 * HOUR;

/// A generation that no process has asked for so long leaves Redis: no session of its bucket was written since.
const LIFE: Duration = Duration::from_secs(30 * 24 * 3600);

#[derive(Default)]
pub struct Generations(HashMap<Bucket, Known>);

struct Known {
    /// The highest that was seen.
    generation: u64,
    /// When Redis last said so; `None` if it is to be asked.
    confirmed: Option<Instant>,
}

/// What Redis has for a bucket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Told {
    Nothing,
    Number(u64),
    Nonsense,
}

impl Told {
    pub fn of(value: &Value) -> Told {
        let number = match value {
            Value::Nil => return Told::Nothing,
            Value::Int(number) => Some(*number),
            Value::BulkString(bytes) => std::str::from_utf8(bytes).ok().and_then(|text| text.parse().ok()),
            _ => None,
        };
        match number.and_then(|number: i64| u64::try_from(number).ok()) {
            Some(number) if (1..now().saturating_add(SKEW)).contains(&number) => Told::Number(number),
            _ => Told::Nonsense,
        }
    }
}

/// In microseconds since the epoch, as generations are.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_micros() as u64)
}

impl Generations {
    /// Redis has this number. `false` if it is lower than one that was seen before: somebody set it back, or a master
    /// that had not told its replicas was lost.
    pub fn learn(&mut self, bucket: Bucket, generation: u64) -> bool {
        let known = self.0.entry(bucket).or_insert(Known { generation, confirmed: None });
        if known.generation > generation {
            known.confirmed = None;
            return false;
        }
        *known = Known { generation, confirmed: Some(Instant::now()) };
        true
    }

    pub fn known(&self, bucket: Bucket) -> Option<u64> {
        self.0.get(&bucket).map(|known| known.generation)
    }

    /// Whether Redis is to be asked, because nobody has for a while.
    pub fn is_stale(&self, bucket: Bucket) -> bool {
        let confirmed = self.0.get(&bucket).and_then(|known| known.confirmed);
        confirmed.is_none_or(|confirmed| confirmed.elapsed() > FRESH)
    }

    /// What a bucket of which Redis told this is to have.
    pub fn wanted(&self, bucket: Bucket, told: Told) -> u64 {
        let known = self.known(bucket).unwrap_or_default();
        match told {
            Told::Number(number) => known.max(number),
            Told::Nothing | Told::Nonsense => known.max(now() - HOUR),
        }
    }

    /// What is there now is flushed, as far as this process is concerned, whether Redis can be told or not.
    pub fn raise(&mut self, bucket: Bucket) {
        let now = now();
        let known = self.0.entry(bucket).or_insert(Known { generation: 0, confirmed: None });
        *known = Known { generation: now.max(known.generation.saturating_add(1)), confirmed: None };
    }
}

/// The command that reads a generation; those that are in use do not expire.
pub fn get(key: &str) -> Cmd {
    let mut get = redis::cmd("GETEX");
    get.arg(key).arg("EX").arg(LIFE.as_secs());
    get
}

/// The command that brings what was `told` of a generation to `wanted`, or higher where others raise it as well.
pub fn set(key: &str, told: Told, wanted: u64) -> Cmd {
    match told {
        Told::Number(number) => {
            let mut add = redis::cmd("INCRBY");
            add.arg(key).arg(wanted.saturating_sub(number));
            add
        }
        Told::Nothing | Told::Nonsense => {
            let mut set = redis::cmd("SET");
            set.arg(key).arg(wanted).arg("EX").arg(LIFE.as_secs());
            if told == Told::Nothing {
                set.arg("NX");
            }
            set
        }
    }
}

/// Raises the generations under these keys, for an operator. A key of another type makes way for a number.
pub fn flush(connection: &mut Connection, keys: &[String]) -> RedisResult<()> {
    let told = connection.pipeline(keys.iter().map(|key| get(key)).collect())?;
    let raise = keys.iter().zip(told).map(|(key, told)| {
        let told = told.as_ref().map_or(Told::Nonsense, Told::of);
        let wanted = if let Told::Number(number) = told { now().max(number + 1) } else { now() };
        set(key, told, wanted)
    });
    connection.pipeline(raise.collect())?.into_iter().try_for_each(|answer| answer.map(drop))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_no_flush_makes_are_nonsense() {
        let told = |text: &str| Told::of(&Value::BulkString(text.into()));
        for text in ["foo", "", "-5", "0", "18446744073709551615", "9223372036854775807", "1.5"] {
            assert_eq!(told(text), Told::Nonsense, "{text}");
        }
        assert_eq!(Told::of(&Value::Nil), Told::Nothing);
        assert_eq!((told("17"), Told::of(&Value::Int(17))), (Told::Number(17), Told::Number(17)));
        assert!(matches!(told(&now().to_string()), Told::Number(_)));
    }

    #[test]
    fn what_is_known_never_falls() {
        let (bucket, mut generations) = (([1, 2], 3), Generations::default());
        assert!(generations.learn(bucket, 5));
        assert!(!generations.learn(bucket, 4) && generations.is_stale(bucket));
        generations.raise(bucket);
        let raised = generations.known(bucket).unwrap();
        assert!(raised > 5 && !generations.learn(bucket, 5));
        generations.raise(bucket);
        assert!(generations.known(bucket).unwrap() > raised);
    }
}
