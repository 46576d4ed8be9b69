//! Which SSL_CTX is ours: from its address to its [`Context`], without a lock and without counting references.
//!
//! Whoever calls with an SSL_CTX keeps it alive meanwhile, and so its context too. The contexts themselves are never
//! freed but used again for the next SSL_CTX: an address that outlives its SSL_CTX finds nothing or, at worst, another
//! context, never freed memory. (Library-wide ex_data would be the usual way, but OSSL_LIB_CTX_set0_default gives
//! it another space of indices.)
//!
//! It is a hash table of chains. Who changes it holds a lock; who searches may meet a context that leaves one chain for
//! another, follow it there, and miss what it is looking for: then `MOVED` has changed, and it searches again.
//!
//! A program with thousands of contexts finds little of them in the processor's caches, so a call reads few lines. Nodes lie
//! side by side, a page of them after the other, and have only what most calls read. What is needed rarely is
//! [`super::Rest`], allocated when a node is first used.

use super::{counters::GROUPS, Context};
use crate::gate;
use crate::libssl::types::SSL_CTX;
use once_cell::race::OnceBox;
use std::sync::atomic::{
    AtomicBool, AtomicU32, AtomicUsize,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};
use std::sync::{Mutex, MutexGuard, PoisonError};

static USED: AtomicBool = AtomicBool::new(false);

/// So many that chains are short with ten thousand contexts. What is never used takes no memory.
const BUCKETS: usize = 1 << 15;
/// The number of the first context in each chain, and one more; 0 for none.
static BUCKET: [AtomicU32; BUCKETS] = [const { AtomicU32::new(0) }; BUCKETS];

/// All contexts by their numbers, a page of them together.
const CHUNK: usize = 4096 / size_of::<Node>();
const CHUNKS: usize = (1 << 20) / CHUNK;
type Chunk = [Node; CHUNK];
static NODES: [OnceBox<Chunk>; CHUNKS] = [const { OnceBox::new() }; CHUNKS];
const _: () = assert!(CHUNK * size_of::<Node>() == 4096);
/// How many there are.
static MADE: AtomicU32 = AtomicU32::new(0);

/// How often a context has left its chain.
static MOVED: AtomicU32 = AtomicU32::new(0);
/// Who changes the chains holds it: the numbers of contexts that may be used.
static FREE: Mutex<Vec<u32>> = Mutex::new(Vec::new());

/// Address of a node that is in no chain.
const NONE: usize = 0;
/// Of one that was handed back to libssl: a hook may still be at work in it. It can be used again when another SSL_CTX has
/// its address.
const RETIRED: usize = 1;

#[repr(C, align(256))]
struct Node {
    address: AtomicUsize,
    /// The number of the next one in the chain, and one more.
    next: AtomicU32,
    context: Context,
}

/// The nodes from a number on. They are made on the heap: some threads have little stack.
#[cold]
#[inline(never)]
fn chunk(first: u32) -> Box<Chunk> {
    let make = |number| Node {
        address: AtomicUsize::new(NONE),
        next: AtomicU32::new(0),
        context: Context::new(first + number as u32),
    };
    let nodes: Box<[Node]> = (0..CHUNK).map(make).collect();
    match nodes.try_into() {
        Ok(nodes) => nodes,
        Err(_) => unreachable!("as many as were asked for"),
    }
}

/// The lock, taken inside the gate: in a forked child it is free.
struct Locked {
    free: MutexGuard<'static, Vec<u32>>,
    _inside: gate::Inside,
}

fn lock() -> Locked {
    let inside = gate::enter();
    Locked { free: FREE.lock().unwrap_or_else(PoisonError::into_inner), _inside: inside }
}

#[inline]
fn node(number: u32) -> Option<&'static Node> {
    Some(&NODES.get(number as usize / CHUNK)?.get()?[number as usize % CHUNK])
}

/// Neighbours on the heap go to different buckets.
fn bucket(address: usize) -> &'static AtomicU32 {
    let hash = (address as u64 >> 4).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    &BUCKET[(hash >> (u64::BITS - BUCKETS.ilog2())) as usize]
}

/// The first node in the chain of an address that is as wanted.
#[inline]
fn search(address: usize, is_wanted: impl Fn(&Node) -> bool) -> Option<&'static Node> {
    loop {
        let moved = MOVED.load(Acquire);
        let mut at = bucket(address).load(Acquire);
        while let Some(node) = at.checked_sub(1).and_then(node) {
            if is_wanted(node) {
                return Some(node);
            }
            at = node.next.load(Acquire);
        }
        if MOVED.load(Acquire) == moved {
            return None;
        }
    }
}

/// The context of an SSL_CTX; `None` for one that is not ours, NULL included.
#[inline]
pub fn find(ctx: *mut SSL_CTX) -> Option<&'static Context> {
    let address = ctx as usize;
    if address <= RETIRED {
        return None;
    }
    search(address, |node| node.address.load(Acquire) == address).map(|node| &node.context)
}

/// What was the context of an SSL_CTX that was handed back.
pub fn retired(ctx: *mut SSL_CTX) -> Option<&'static Context> {
    let address = ctx as usize;
    if address == 0 {
        return None;
    }
    search(address, |node| node.context.before.load(Acquire) == address).map(|node| &node.context)
}

/// Whether there has been a context in this process: mostly not, where a preload reaches everything.
pub fn is_used() -> bool {
    USED.load(Relaxed)
}

/// A context that was used once, whether it is now or not.
pub fn by_number(number: u32) -> Option<&'static Context> {
    node(number).map(|node| &node.context)
}

/// All contexts in use.
pub fn all() -> impl Iterator<Item = &'static Context> {
    in_use(0, 1)
}

/// All contexts in use in one of the [`GROUPS`].
pub fn of_group(group: usize) -> impl Iterator<Item = &'static Context> {
    in_use(group as u32, GROUPS)
}

fn in_use(first: u32, step: usize) -> impl Iterator<Item = &'static Context> {
    let nodes = (first..MADE.load(Acquire)).step_by(step).filter_map(node);
    nodes.filter(|node| node.address.load(Acquire) > RETIRED).map(|node| &node.context)
}

impl Locked {
    /// Puts a node into the chain of its address.
    fn link(&self, node: &Node, address: usize) {
        node.next.store(bucket(address).load(Relaxed), Release);
        node.address.store(address, Release);
        bucket(address).store(node.context.number + 1, Release);
    }

    /// Takes the nodes out of the chain of an address that are to leave it.
    fn unlink(&mut self, address: usize, leaves: impl Fn(&Node) -> bool) {
        let mut place = bucket(address);
        while let Some(node) = place.load(Relaxed).checked_sub(1).and_then(node) {
            if leaves(node) {
                place.store(node.next.load(Relaxed), Release);
                node.address.store(NONE, Release);
                node.context.before.store(0, Release);
                MOVED.fetch_add(1, AcqRel);
                self.free.push(node.context.number);
            } else {
                place = &node.next;
            }
        }
    }

    /// One that nobody uses. `None` if there are as many as there can be.
    fn take(&mut self) -> Option<&'static Node> {
        if let Some(node) = self.free.pop().and_then(node) {
            return Some(node);
        }
        let number = MADE.load(Relaxed);
        let nodes = NODES.get(number as usize / CHUNK)?.get_or_init(|| chunk(number - number % CHUNK as u32));
        MADE.store(number + 1, Release);
        Some(&nodes[number as usize % CHUNK])
    }
}

/// A context for `ctx`, prepared by `prepare` before anybody finds it; `None` if that fails.
pub fn enter(ctx: *mut SSL_CTX, prepare: impl FnOnce(&'static Context) -> bool) -> Option<&'static Context> {
    USED.store(true, Relaxed);
    // One that ended unheard: its sentinel had been flushed past us, and nothing was done with it since.
    if let Some(context) = find(ctx) {
        context.forget();
    }
    let address = ctx as usize;
    let mut locked = lock();
    locked.unlink(address, |node| node.context.before.load(Relaxed) == address);
    let node = locked.take()?;
    drop(locked);
    let mut entering = Entering { node, address: NONE };
    if prepare(&node.context) {
        entering.address = address;
    }
    (entering.address != NONE).then_some(&node.context)
}

/// A node that nobody else uses. It gets its address or becomes free again.
struct Entering {
    node: &'static Node,
    address: usize,
}

impl Drop for Entering {
    fn drop(&mut self) {
        let mut locked = lock();
        match self.address {
            NONE => locked.free.push(self.node.context.number),
            address => locked.link(self.node, address),
        }
    }
}

/// Forgets `ctx`. Its context must not be used for it any more.
pub fn leave(ctx: *mut SSL_CTX) {
    let address = ctx as usize;
    lock().unlink(address, |node| node.address.load(Relaxed) == address);
}

/// The same for an SSL_CTX that lives on. Whether it was there: one caller only hears that.
pub fn retire(ctx: *mut SSL_CTX) -> bool {
    let address = ctx as usize;
    let node = search(address, |node| node.address.load(Acquire) == address);
    let Some(node) = node else { return false };
    let _locked = lock();
    let retires = node.address.compare_exchange(address, RETIRED, AcqRel, Relaxed).is_ok();
    if retires {
        node.context.before.store(address, Release);
    }
    retires
}
