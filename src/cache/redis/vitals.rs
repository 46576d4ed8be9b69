//! How a link to Redis is doing, as numbers that `reprise status` shows. They are counted on the status board, where there
//! is one with room, so that they are seen from outside also while nothing is asked.

use crate::board::LinkPlace;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

macro_rules! vitals {
    ($($(#[doc = $text:literal])* $name:ident,)*) => {
        /// What is counted of a link, in the order of the numbers.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Vital { $($(#[doc = $text])* $name,)* }

        impl Vital {
            pub const LIST: &[Vital] = &[$(Vital::$name),*];
            /// What each means, in a sentence.
            pub const MEANINGS: &[&str] = &[$(concat!($($text),*)),*];
        }
    };
}

vitals! {
    /// 1 while Redis is not asked because it did not answer.
    IsBroken,
    /// Sessions that wait to be written.
    Queue,
    /// Removals that Redis is still to be told.
    ToRemove,
    /// When the oldest session that waits to be written was stored, in seconds since the epoch; 0 if none waits.
    OldestUnwritten,
    /// Sessions that were written.
    Written,
    /// Sessions dropped because too many waited to be written.
    Overflowed,
    /// Sessions that were not written because they had been removed, used up or flushed meanwhile.
    Overtaken,
    /// Times that Redis refused to store sessions, as where it is full.
    StoreRefused,
    /// Lookups that found a session which was not written yet.
    FoundPending,
    /// Requests that failed or were not answered in time.
    Failed,
    /// Of those, the ones that were not answered in time.
    TimedOut,
    /// Lookups for which no connection could be had in time.
    NoConnection,
    /// Lookups for which Redis was not asked, because it had not answered before.
    NotAsked,
    /// How often so many requests failed that Redis was not asked any more.
    Broken,
    /// How often it answered again.
    Mended,
    /// Records that were not what a machine of the fleet had sealed for this session.
    SealBroken,
    /// Records that were flushed or expired before.
    Outdated,
    /// Lookups in a bucket whose generation was set back.
    SetBack,
    /// Tickets resumed without early data, because the server was another one, or started again, since they were issued.
    WithoutEarlyData,
    /// Ids that no machine of the fleet can have issued: nobody was asked.
    RefusedIds,
    /// Microseconds that all round trips took together, and what was waited in vain.
    RoundTripMicros,
}

/// Requests that took up to 2^(6 + n) microseconds, whether they were answered or not, are in the n-th slot, longer ones in
/// the last.
pub const SLOTS: usize = 12;
pub const NUMBERS: usize = Vital::LIST.len() + SLOTS;
/// In the order of [`Vital`], and the slots.
pub type Numbers = [AtomicU64; NUMBERS];

/// Whether a number counts what happened; others tell how it is now, and are nothing once the process has ended.
pub fn adds_up(number: usize) -> bool {
    ![Vital::IsBroken, Vital::Queue, Vital::ToRemove, Vital::OldestUnwritten]
        .iter()
        .any(|&state| state as usize == number)
}

/// The longest round trip that a slot has, in microseconds; `None` for the last.
pub fn slot_end(slot: usize) -> Option<u64> {
    (slot + 1 < SLOTS).then(|| 64 << slot)
}

pub struct Vitals {
    place: LinkPlace,
    /// Where there is no board.
    own: Numbers,
}

impl Default for Vitals {
    fn default() -> Vitals {
        Vitals { place: LinkPlace::default(), own: [const { AtomicU64::new(0) }; NUMBERS] }
    }
}

impl Vitals {
    pub fn numbers(&self) -> &Numbers {
        self.place.numbers().unwrap_or(&self.own)
    }

    pub fn count(&self, vital: Vital) {
        self.add(vital, 1);
    }

    pub fn add(&self, vital: Vital, by: u64) {
        self.numbers()[vital as usize].fetch_add(by, Relaxed);
    }

    pub fn set(&self, vital: Vital, to: u64) {
        self.numbers()[vital as usize].store(to, Relaxed);
    }

    pub fn get(&self, vital: Vital) -> u64 {
        self.numbers()[vital as usize].load(Relaxed)
    }

    pub fn waited(&self, time: Duration) {
        let micros = time.as_micros() as u64;
        let slot = (0..SLOTS).find(|&slot| slot_end(slot).is_none_or(|end| micros <= end)).unwrap_or(SLOTS - 1);
        self.numbers()[Vital::LIST.len() + slot].fetch_add(1, Relaxed);
        self.add(Vital::RoundTripMicros, micros);
    }

    /// In a process that begins to count, before anything else; `label` says for what.
    pub fn begin(&self, label: &str) {
        self.own.iter().for_each(|number| number.store(0, Relaxed));
        self.place.find(label);
    }
}
