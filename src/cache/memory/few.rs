//! Lists that are short in most caches.

use smallvec::SmallVec;

/// The first members lie in the list itself, so that a cache of few sessions is one piece of memory.
pub type Few<T> = SmallVec<[T; 4]>;

/// Makes room for one more member. Whether there is memory for it. A list grows by a quarter: the sessions of a context take
/// little more memory than they need, and moving them costs each of them the same however many there are.
#[inline]
pub fn make_room<T>(list: &mut Few<T>) -> bool {
    list.len() < list.capacity() || list.try_reserve_exact(list.len() / 4 + 4).is_ok()
}
