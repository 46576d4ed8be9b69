//! Which SSL_CTX is ours: from its address to its [`Context`], without a lock and without counting references.
//!
//! Whoever calls with an SSL_CTX keeps it alive meanwhile, and so its context too. The contexts themselves are never
//! freed but used again for the next SSL_CTX: an address that outlives its SSL_CTX finds nothing or, at worst, another
//! context, never freed memory. (Library-wide ex_data would be the usual way, but OSSL_LIB_CTX_set0_default gives
//! it another space of indices.)

use super::{counters::GROUPS, Context};
use crate::libssl::types::SSL_CTX;
use once_cell::race::OnceBox;
use std::sync::atomic::{
    AtomicBool, AtomicU64, AtomicUsize,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

static USED: AtomicBool = AtomicBool::new(false);

/// A bit for each bucket in which there ever was a context: most programs have a few.
static FILLED: [AtomicU64; GROUPS / 64] = [const { AtomicU64::new(0) }; GROUPS / 64];
static BUCKET: [OnceBox<Node>; GROUPS] = [const { OnceBox::new() }; GROUPS];

/// Address of a node in which an SSL_CTX is being taken over.
const RESERVED: usize = 1;
/// Of one that was handed back to libssl: a hook may still be at work in it, so it is not used again.
const RETIRED: usize = 2;

struct Node {
    /// 0 when free.
    address: AtomicUsize,
    /// Of the SSL_CTX that was handed back, as long as no other is known to have its address.
    before: AtomicUsize,
    context: Context,
    next: OnceBox<Node>,
}

impl Node {
    #[cold]
    #[inline(never)]
    fn new() -> Box<Node> {
        Box::new(Node {
            address: AtomicUsize::new(0),
            before: AtomicUsize::new(0),
            context: Context::new(),
            next: OnceBox::new(),
        })
    }
}

fn nodes(bucket: &'static OnceBox<Node>) -> impl Iterator<Item = &'static Node> {
    std::iter::successors(bucket.get(), |node| node.next.get())
}

/// Neighbours on the heap go to different buckets.
fn bucket(address: usize) -> &'static OnceBox<Node> {
    &BUCKET[group(address)]
}

/// Which of the buckets an SSL_CTX is in.
pub fn group(address: usize) -> usize {
    (address >> 4).wrapping_mul(0x9e37_79b9_7f4a_7c15_u64 as usize) >> (usize::BITS - 8)
}

/// All contexts in use in one of the [`GROUPS`].
pub fn of_group(group: usize) -> impl Iterator<Item = &'static Context> {
    nodes(&BUCKET[group]).filter(|node| node.address.load(Acquire) > RETIRED).map(|node| &node.context)
}

/// The context of an SSL_CTX; `None` for one that is not ours, NULL included.
pub fn find(ctx: *mut SSL_CTX) -> Option<&'static Context> {
    let address = ctx as usize;
    if address <= RETIRED {
        return None;
    }
    nodes(bucket(address)).find(|node| node.address.load(Acquire) == address).map(|node| &node.context)
}

/// Whether there has been a context in this process: mostly not, where a preload reaches everything.
pub fn is_used() -> bool {
    USED.load(Relaxed)
}

/// All contexts in use.
pub fn all() -> impl Iterator<Item = &'static Context> {
    let filled = FILLED.iter().enumerate().flat_map(|(word, bits)| {
        let rest = |bits: u64| Some(bits & bits.wrapping_sub(1)).filter(|&rest| rest != 0);
        let bits = Some(bits.load(Acquire)).filter(|&bits| bits != 0);
        std::iter::successors(bits, move |&bits| rest(bits)).map(move |bits| word * 64 + bits.trailing_zeros() as usize)
    });
    filled.flat_map(of_group)
}

/// A context for `ctx`, prepared by `prepare` before anybody finds it; `None` if that fails.
pub fn enter(ctx: *mut SSL_CTX, prepare: impl FnOnce(&'static Context) -> bool) -> Option<&'static Context> {
    USED.store(true, Relaxed);
    let group = group(ctx as usize);
    FILLED[group / 64].fetch_or(1 << (group % 64), AcqRel);
    // One that ended unheard: its sentinel had been flushed past us, and nothing was done with it since.
    if let Some(context) = find(ctx) {
        context.forget();
    }
    for node in nodes(bucket(ctx as usize)) {
        let _ = node.before.compare_exchange(ctx as usize, 0, AcqRel, Relaxed);
    }
    let mut place = bucket(ctx as usize);
    let node = loop {
        let node = place.get_or_init(Node::new);
        if node.address.compare_exchange(0, RESERVED, AcqRel, Relaxed).is_ok() {
            break node;
        }
        place = &node.next;
    };
    let mut entering = Entering { node, address: 0 };
    let ready = prepare(&node.context);
    if ready {
        entering.address = ctx as usize;
    }
    drop(entering);
    ready.then_some(&node.context)
}

/// A reserved node, which gets its address or becomes free again.
struct Entering {
    node: &'static Node,
    address: usize,
}

impl Drop for Entering {
    fn drop(&mut self) {
        self.node.address.store(self.address, Release);
    }
}

/// Forgets `ctx`. Its context must not be used for it any more.
pub fn leave(ctx: *mut SSL_CTX) {
    replace(ctx, 0);
}

/// The same for an SSL_CTX that lives on. Whether it was there: one caller only hears that.
pub fn retire(ctx: *mut SSL_CTX) -> bool {
    let node = replace(ctx, RETIRED);
    if let Some(node) = node {
        node.before.store(ctx as usize, Release);
    }
    node.is_some()
}

fn replace(ctx: *mut SSL_CTX, by: usize) -> Option<&'static Node> {
    let address = ctx as usize;
    nodes(bucket(address)).find(|node| node.address.compare_exchange(address, by, AcqRel, Relaxed).is_ok())
}

/// What was the context of an SSL_CTX that was handed back.
pub fn retired(ctx: *mut SSL_CTX) -> Option<&'static Context> {
    let address = ctx as usize;
    nodes(bucket(address)).find(|node| address != 0 && node.before.load(Acquire) == address).map(|node| &node.context)
}
