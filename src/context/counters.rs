//! What happened in a context, counted without threads getting in each other's way: each has a lane of counters to
//! itself or nearly so, and reading adds the lanes up.

use crate::board::{self, About, Label, Lane, Place, Sums, LANES};
use crate::gate;
use crate::{thread, totals};
use once_cell::race::OnceBox;
use std::cell::Cell;
use std::sync::atomic::{
    AtomicBool, AtomicU32, AtomicU64, AtomicU8, AtomicUsize, Ordering::Acquire, Ordering::Relaxed, Ordering::Release,
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
const _: () = assert!(GROUPS == 1 << u8::BITS);
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

/// Which stripes of a context have ever counted, behind a bit for each [`Count`] that was; and whether it has something of
/// before a fork.
const STRIPE_BIT: usize = Count::ALL;
const HAS_BASE: u32 = 1 << (STRIPE_BIT + LANES);
const _: () = assert!(STRIPE_BIT + LANES < u32::BITS as usize);

/// The counters of one context, on the status board where there is room and else here.
#[derive(Default)]
pub struct Counters {
    place: Place,
    /// Which process of a line of forks this is for, see `GENERATION`.
    generation: AtomicU32,
    /// What is not marked here is 0, and need not be read: in a program with many contexts, each line that is read costs the
    /// time of many instructions.
    used: AtomicU32,
    rest: OnceBox<Rest>,
    /// Whether anything was counted since the last fork; and the group of contexts that says so, too.
    changed: AtomicBool,
    group: AtomicU8,
}

/// What counting and reading rarely need.
#[derive(Default)]
struct Rest {
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
    number: AtomicU32,
    semantics: AtomicU32,
    created: AtomicU64,
    cache: Label,
}

impl Counters {
    fn rest(&self) -> &Rest {
        self.rest.get_or_init(Box::default)
    }

    #[inline]
    pub fn add(&self, count: Count) {
        self.note_used(1 << count as usize);
        self.stripe().counts[count as usize].fetch_add(1, Relaxed);
        self.note_change();
        totals::count(count);
    }

    /// Fetches what is going to be counted in, before anything waits for it.
    #[inline]
    pub fn fetch(&self) {
        if let Some(row) = self.place.row() {
            row.lanes[lane()].counts[0].load(Relaxed);
        }
    }

    /// A [`Count::Taken`] that was not in the cache.
    pub fn taken_outside(&self) {
        self.stripe().taken_outside.fetch_add(1, Relaxed);
        self.note_change();
    }

    /// After a change: what a fork saw before it took the note is in what it saw.
    #[inline]
    fn note_change(&self) {
        if !self.changed.load(Relaxed) {
            self.changed.store(true, Relaxed);
            CHANGED[self.group.load(Relaxed) as usize].store(true, Release);
        }
    }

    #[inline]
    fn note_used(&self, bits: u32) {
        if self.used.load(Relaxed) & bits != bits {
            self.used.fetch_or(bits, Relaxed);
        }
    }

    /// Before anything is read or counted: this process may have been forked since.
    #[inline]
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
        let rest = self.rest();
        rest.base.iter().zip(&rest.at_fork).for_each(|(to, from)| to.store(from.load(Relaxed), Relaxed));
        rest.inherited.store(rest.inherits.load(Relaxed), Relaxed);
        self.note_used(HAS_BASE);
        self.clear_own();
        self.place.forget();
        self.generation.store(new, Release);
    }

    pub fn get(&self, count: Count) -> u64 {
        self.settle();
        self.sum(count)
    }

    fn sum(&self, count: Count) -> u64 {
        let used = self.used.load(Relaxed);
        if used & 1 << count as usize == 0 {
            return 0;
        }
        let of = |counts: &Sums| counts[count as usize].load(Relaxed);
        let stripes = |stripes: &[Lane; LANES]| {
            let used = stripes.iter().enumerate().filter(|(at, _)| used & 1 << (STRIPE_BIT + at) != 0);
            used.fold(0, |sum: u64, (_, stripe)| sum.wrapping_add(of(&stripe.counts)))
        };
        let on_board = self.place.row().map_or(0, |row| stripes(&row.lanes));
        let rest = self.rest();
        let own = rest.own.get().map_or(0, stripes);
        let base = if used & HAS_BASE == 0 { 0 } else { of(&rest.base) };
        on_board.wrapping_add(own).wrapping_add(base)
    }

    /// Where this thread counts.
    #[inline]
    fn stripe(&self) -> &Lane {
        self.settle();
        let at = lane();
        self.note_used(1 << (STRIPE_BIT + at));
        match self.place.row() {
            Some(row) => &row.lanes[at],
            None => &self.look_for_place()[at],
        }
    }

    #[cold]
    fn look_for_place(&self) -> &[Lane; LANES] {
        match self.place.find(&self.about()) {
            Some(row) => &row.lanes,
            None => self.rest().own.get_or_init(Box::default),
        }
    }

    fn about(&self) -> About<'_> {
        let rest = self.rest();
        About {
            number: rest.number.load(Relaxed),
            created: rest.created.load(Relaxed),
            semantics: rest.semantics.load(Relaxed),
            inherited: rest.inherited.load(Relaxed),
            cache: &rest.cache,
        }
    }

    /// For a new SSL_CTX.
    pub fn begin(&self, semantics: u32, group: usize) {
        let rest = self.rest();
        self.group.store((group % GROUPS) as u8, Relaxed);
        self.generation.store(GENERATION.load(Relaxed), Release);
        self.changed.store(false, Relaxed);
        rest.at_fork.iter().chain([&rest.inherits]).for_each(|word| word.store(0, Relaxed));
        self.place.forget();
        self.clear_own();
        self.used.store(0, Relaxed);
        rest.base.iter().chain([&rest.inherited]).for_each(|word| word.store(0, Relaxed));
        rest.number.store(board::number(), Relaxed);
        rest.created.store(board::now(), Relaxed);
        rest.semantics.store(semantics, Relaxed);
        self.place.find(&self.about());
    }

    /// The SSL_CTX is gone.
    pub fn end(&self) {
        self.settle();
        self.place.leave();
    }

    pub fn set_semantics(&self, semantics: u32) {
        self.settle();
        self.rest().semantics.store(semantics, Relaxed);
        if let Some(row) = self.place.row() {
            row.set_semantics(semantics);
        }
    }

    /// Names the cache for who looks on: `memory`, `shm:NAME`. At most 128 bytes of it are shown.
    pub fn set_cache(&self, label: &str) {
        self.settle();
        board::write_text(&self.rest().cache, label.as_bytes());
        if let Some(row) = self.place.row() {
            row.set_cache(&self.rest().cache);
        }
    }

    /// Notes what was counted, if anything was since the last fork, and how many `sessions` are cached now. A context that has
    /// not counted for itself in this process yet has nothing to note.
    pub fn before_fork(&self, sessions: impl FnOnce() -> usize) {
        let settled = self.generation.load(Acquire) == GENERATION.load(Relaxed);
        if self.changed.swap(false, Acquire) && settled {
            // `begin` has allocated it: nothing is allocated here.
            let Some(rest) = self.rest.get() else { return };
            Count::LIST.iter().zip(&rest.at_fork).for_each(|(&count, to)| to.store(self.sum(count), Relaxed));
            rest.inherits.store(sessions() as u64, Relaxed);
        }
    }

    fn clear_own(&self) {
        let own = self.rest().own.get();
        let words = own.into_iter().flatten().flat_map(|lane| lane.counts.iter().chain([&lane.taken_outside]));
        words.for_each(|word| word.store(0, Relaxed));
    }
}

#[inline]
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
