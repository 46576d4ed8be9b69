//! What happened in a context, counted without threads getting in each other's way: each has a row of counters to
//! itself or nearly so, and reading adds the rows up.

use crate::totals;
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

const ROWS: usize = 8;

macro_rules! counts {
    ($($(#[doc = $text:literal])* $name:ident,)*) => {
        /// Every outcome there is; the order is that of `reprise_stats`.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Count { $($(#[doc = $text])* $name,)* }

        impl Count {
            pub const ALL: usize = [$(Count::$name),*].len();
        }
    };
}

counts! {
    /// Sessions that entered the cache.
    Stored,
    /// Left because another object with the same id came.
    Replaced,
    /// Left because the cache was full.
    Evicted,
    /// Cleared on their own after they had expired.
    Expired,
    /// Left through SSL_CTX_flush_sessions or with their SSL_CTX.
    Flushed,
    /// Left through SSL_CTX_remove_session, called by the program or by libssl.
    Removed,
    /// Left because the program's new_cb returned 0.
    Rejected,
    /// Left for good to the one connection that may use them for early data.
    Taken,
    /// Removals of sessions that were not cached.
    Condemned,
    /// A server asked the cache for a session and had it.
    Hits,
    /// A server asked the cache for a session that was not there.
    Misses,
    /// A server asked for a session that is there but marked not resumable.
    Unusable,
    /// The program's get_cb had the session.
    ExternalHits,
    /// The program's get_cb had none.
    ExternalMisses,
    /// The program's get_cb returned one that could not be used: another id or version, incomplete, marked.
    ExternalRefused,
    /// Tickets for early data that were shown again after they had been accepted.
    Replays,
    /// Sessions that libssl negotiated and handed to the cache.
    Negotiated,
    /// Sessions that could not be stored for want of memory.
    StoreErrors,
}

#[derive(Default)]
#[repr(align(128))]
struct Row([AtomicU64; Count::ALL]);

#[derive(Default)]
pub struct Counters([Row; ROWS]);

impl Counters {
    pub fn add(&self, count: Count) {
        self.0[row()].0[count as usize].fetch_add(1, Relaxed);
        totals::count(count);
    }

    pub fn get(&self, count: Count) -> u64 {
        self.0.iter().fold(0, |sum, row| sum.wrapping_add(row.0[count as usize].load(Relaxed)))
    }

    pub fn reset(&self) {
        self.0.iter().flat_map(|row| &row.0).for_each(|counter| counter.store(0, Relaxed));
    }
}

fn row() -> usize {
    thread_local!(static ROW: Cell<usize> = const { Cell::new(ROWS) });
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    match ROW.get() {
        ROWS => {
            let row = NEXT.fetch_add(1, Relaxed) % ROWS;
            ROW.set(row);
            row
        }
        row => row,
    }
}
