//! What happened in a context, counted without threads getting in each other's way: each has a lane of counters to
//! itself or nearly so, and reading adds the lanes up.

use crate::board::{self, About, Label, Lane, Place, Sums, LANES};
use crate::gate;
use crate::{thread, totals};
use once_cell::race::OnceBox;
use std::cell::Cell;
use std::sync::atomic::{
    AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Acquire, Ordering::Relaxed, Ordering::Release,
};

macro_rules! counts {
    ($($(#[doc = $text:literal])* $name:ident,)*) => {
        /// Every outcome there is; the order is that of `reprise_stats`.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Count { $($(#[doc = $text])* $name,)* }

        impl Count {
            pub const ALL: usize = Count::LIST.len();
            pub const LIST: &[Count] = &[$(Count::$name),*];
            /// What each means, in a sentence.
            pub const MEANINGS: &[&str] = &[$($($text)*),*];
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

/// Raised in each forked child, which thus costs nothing for contexts that it does not use: a context counts for itself in
/// the child when it first counts there.
static GENERATION: AtomicU32 = AtomicU32::new(0);
/// Of a context that is going over to a new generation.
const CHANGING: u32 = u32::MAX;

/// The contexts fall into groups, so that a fork need not look at each of them.
pub const GROUPS: usize = 256;
static CHANGED: [AtomicBool; GROUPS] = [const { AtomicBool::new(false) }; GROUPS];

/// Whether something was counted in a group since this was last asked.
pub fn take_changed(group: usize) -> bool {
    CHANGED[group].load(Relaxed) && CHANGED[group].swap(false, Acquire)
}

/// In a forked child.
pub fn forked() {
    let next = GENERATION.load(Relaxed).wrapping_add(1);
    GENERATION.store(if next == CHANGING { 0 } else { next }, Relaxed);
}

/// The counters of one context, on the status board where there is room and else here.
#[derive(Default)]
pub struct Counters {
    place: Place,
    /// What could not be counted on the board.
    own: OnceBox<[Lane; LANES]>,
    /// What the context had counted when this process was forked: its statistics go on from there, and the board
    /// counts nothing twice.
    base: Sums,
    /// The same at the last fork that was made.
    at_fork: Sums,
    /// How many sessions the cache had when this process was forked, and at the last fork that was made.
    inherited: AtomicU64,
    inherits: AtomicU64,
    /// Which process of a line of forks this is for, see `GENERATION`.
    generation: AtomicU32,
    /// Whether anything was counted since the last fork; and the group of contexts that says so, too.
    changed: AtomicBool,
    group: AtomicU32,
    number: AtomicU32,
    created: AtomicU64,
    semantics: AtomicU32,
    cache: Label,
}

impl Counters {
    pub fn add(&self, count: Count) {
        self.lanes()[lane()].counts[count as usize].fetch_add(1, Relaxed);
        self.note_change();
        totals::count(count);
    }

    /// A [`Count::Taken`] that was not in the cache.
    pub fn taken_outside(&self) {
        self.lanes()[lane()].taken_outside.fetch_add(1, Relaxed);
        self.note_change();
    }

    /// After a change: what a fork saw before it took the note is in what it saw.
    fn note_change(&self) {
        if !self.changed.load(Relaxed) {
            self.changed.store(true, Relaxed);
            CHANGED[self.group.load(Relaxed) as usize % GROUPS].store(true, Release);
        }
    }

    /// Before anything is read or counted: this process may have been forked since.
    fn settle(&self) {
        if self.generation.load(Acquire) != GENERATION.load(Relaxed) {
            self.begin_anew();
        }
    }

    /// In a forked child: the statistics go on from what they were at the fork, and the row on the board is the parent's.
    #[cold]
    fn begin_anew(&self) {
        let _inside = gate::enter();
        let mut round = 0;
        let new = GENERATION.load(Relaxed);
        let old = self.generation.load(Acquire);
        if old == new {
            return;
        }
        if old == CHANGING || self.generation.compare_exchange(old, CHANGING, Acquire, Relaxed).is_err() {
            while self.generation.load(Acquire) == CHANGING {
                thread::pause(round);
                round += 1;
            }
            return;
        }
        self.base.iter().zip(&self.at_fork).for_each(|(to, from)| to.store(from.load(Relaxed), Relaxed));
        self.inherited.store(self.inherits.load(Relaxed), Relaxed);
        self.clear_own();
        self.place.forget();
        self.generation.store(new, Release);
    }

    pub fn get(&self, count: Count) -> u64 {
        self.settle();
        self.sum(count)
    }

    fn sum(&self, count: Count) -> u64 {
        let board = self.place.row().into_iter().flat_map(|row| &row.lanes);
        let lanes = self.own.get().into_iter().flatten().chain(board).map(|lane| &lane.counts);
        lanes.chain([&self.base]).fold(0, |sum, counts| sum.wrapping_add(counts[count as usize].load(Relaxed)))
    }

    fn lanes(&self) -> &[Lane; LANES] {
        self.settle();
        match self.place.row() {
            Some(row) => &row.lanes,
            None => self.look_for_place(),
        }
    }

    #[cold]
    fn look_for_place(&self) -> &[Lane; LANES] {
        match self.place.find(&self.about()) {
            Some(row) => &row.lanes,
            None => self.own.get_or_init(Box::default),
        }
    }

    fn about(&self) -> About<'_> {
        About {
            number: self.number.load(Relaxed),
            created: self.created.load(Relaxed),
            semantics: self.semantics.load(Relaxed),
            inherited: self.inherited.load(Relaxed),
            cache: &self.cache,
        }
    }

    /// For a new SSL_CTX.
    pub fn begin(&self, semantics: u32, group: usize) {
        self.group.store(group as u32, Relaxed);
        self.generation.store(GENERATION.load(Relaxed), Release);
        self.changed.store(false, Relaxed);
        self.at_fork.iter().chain([&self.inherits]).for_each(|word| word.store(0, Relaxed));
        self.place.forget();
        self.clear_own();
        self.base.iter().chain([&self.inherited]).for_each(|word| word.store(0, Relaxed));
        self.number.store(board::number(), Relaxed);
        self.created.store(board::now(), Relaxed);
        self.semantics.store(semantics, Relaxed);
        self.place.find(&self.about());
    }

    /// The SSL_CTX is gone.
    pub fn end(&self) {
        self.settle();
        self.place.leave();
    }

    pub fn set_semantics(&self, semantics: u32) {
        self.settle();
        self.semantics.store(semantics, Relaxed);
        if let Some(row) = self.place.row() {
            row.set_semantics(semantics);
        }
    }

    /// Names the cache for who looks on: `memory`, `shm:NAME`. At most 128 bytes of it are shown.
    pub fn set_cache(&self, label: &str) {
        self.settle();
        board::write_text(&self.cache, label.as_bytes());
        if let Some(row) = self.place.row() {
            row.set_cache(&self.cache);
        }
    }

    /// Notes what was counted, if anything was since the last fork, and how many `sessions` are cached now. A context that has
    /// not counted for itself in this process yet has nothing to note.
    pub fn before_fork(&self, sessions: impl FnOnce() -> usize) {
        let settled = self.generation.load(Acquire) == GENERATION.load(Relaxed);
        if self.changed.swap(false, Acquire) && settled {
            Count::LIST.iter().zip(&self.at_fork).for_each(|(&count, to)| to.store(self.sum(count), Relaxed));
            self.inherits.store(sessions() as u64, Relaxed);
        }
    }

    fn clear_own(&self) {
        let words =
            self.own.get().into_iter().flatten().flat_map(|lane| lane.counts.iter().chain([&lane.taken_outside]));
        words.for_each(|word| word.store(0, Relaxed));
    }
}

fn lane() -> usize {
    thread_local!(static LANE: Cell<usize> = const { Cell::new(LANES) });
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    match LANE.get() {
        LANES => {
            let lane = NEXT.fetch_add(1, Relaxed) % LANES;
            LANE.set(lane);
            lane
        }
        lane => lane,
    }
}
