//! What was removed or used up in this process: it is not resumed here again, whoever brings its record back, for as long as
//! it could have lived, or a day. Each costs some 60 bytes until then.

use super::super::super::Seconds;
use super::super::void::Void;
use super::Id;
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};

/// How many entries one call clears at the most.
const SHARE: usize = 64;

#[derive(Default)]
pub struct Tombstones {
    /// By a keyed hash: nobody outside makes two ids that have the same one.
    hasher: RandomState,
    entries: HashMap<u64, Tombstone>,
    by_expiry: BTreeMap<Seconds, Vec<u64>>,
}

struct Tombstone {
    until: Seconds,
    void: Void,
    /// It was removed here. Else Redis told of it, and another process may have added it again since.
    is_own: bool,
}

/// How long it is remembered that Redis has a void record, in seconds: until a program that has just asked adds the session.
const SEEN: Seconds = 60;

impl Tombstones {
    fn hash(&self, id: &Id) -> u64 {
        self.hasher.hash_one(id)
    }

    /// Whether it was removed here.
    pub fn contains(&self, id: &Id) -> bool {
        self.entries.get(&self.hash(id)).is_some_and(|entry| entry.is_own)
    }

    /// It was removed here. `false` if it had been before.
    pub fn insert(&mut self, id: &Id, void: Void, until: Seconds, now: Seconds) -> bool {
        let was_there = self.contains(id);
        self.put(id, Tombstone { until: until.min(now + super::A_DAY), void, is_own: true }, now);
        !was_there
    }

    /// Redis has this void record.
    pub fn note(&mut self, id: &Id, void: Void, now: Seconds) {
        if !self.contains(id) {
            self.put(id, Tombstone { until: now + SEEN, void, is_own: false }, now);
        }
    }

    fn put(&mut self, id: &Id, entry: Tombstone, now: Seconds) {
        self.clear(now);
        let hash = self.hash(id);
        self.by_expiry.entry(entry.until).or_default().push(hash);
        self.entries.insert(hash, entry);
    }

    /// It is stored again, in the place of this void record.
    pub fn remove(&mut self, id: &Id) -> Option<Void> {
        self.entries.remove(&self.hash(id)).map(|entry| entry.void)
    }

    fn clear(&mut self, now: Seconds) {
        for _ in 0..SHARE {
            let Some(mut first) = self.by_expiry.first_entry().filter(|first| *first.key() < now) else { return };
            let until = *first.key();
            match first.get_mut().pop() {
                // One that was removed again since has a later time.
                Some(hash) if self.entries.get(&hash).is_some_and(|entry| entry.until <= until) => {
                    self.entries.remove(&hash);
                }
                Some(_) => {}
                None => _ = first.remove(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::super::Key;
    use super::*;

    #[test]
    fn they_last_as_long_as_the_session_would() {
        let id = |number: u8| ([1, 2], Key::new(0x303, &[number; 32]).unwrap());
        let mut tombstones = Tombstones::default();
        for number in 0..200 {
            assert!(tombstones.insert(&id(number), Void::new(), 100 + Seconds::from(number % 2) * 100, 50));
        }
        assert!(!tombstones.insert(&id(0), Void::new(), 300, 50));
        (0..10).for_each(|_| tombstones.clear(150));
        let left: Vec<_> = (0..200).filter(|&number| tombstones.contains(&id(number))).collect();
        assert!(left.len() == 101 && left.iter().all(|number| number % 2 == 1 || *number == 0), "{left:?}");
        let seen = Void::new();
        tombstones.note(&id(2), seen, 150);
        assert!(!tombstones.contains(&id(2)) && tombstones.remove(&id(2)) == Some(seen));
        assert!(tombstones.remove(&id(0)).is_some() && !tombstones.contains(&id(0)));
    }
}
