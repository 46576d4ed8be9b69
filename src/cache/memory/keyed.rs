//! The keyed hash by which ids find their places. Strangers choose the ids that are looked up, so it must not be
//! predictable: the keys are random, and no result of it ever leaves the process.
//!
//! It is NH, the universal hash of UMAC (RFC 4418), over the words of a key: two different keys collide with a
//! probability of 2^-64, whoever chose them. A last multiplication spreads the bits over the whole word, as tables
//! want them.

use once_cell::race::OnceBox;
use std::hash::{BuildHasher, RandomState};

pub struct Keyed(pub(super) [u64; 8]);

impl Keyed {
    /// The keys of this process.
    pub fn of_process() -> &'static Keyed {
        static KEYED: OnceBox<Keyed> = OnceBox::new();
        KEYED.get_or_init(|| {
            let random = RandomState::new();
            Box::new(Keyed(std::array::from_fn(|word| random.hash_one(word))))
        })
    }

    /// Of the words of a key.
    #[inline]
    pub fn hash(&self, words: &[u64; 5]) -> u64 {
        let k = &self.0;
        let [a, b, c, d, tail] = *words;
        let sum = product(a.wrapping_add(k[0]), b.wrapping_add(k[1]))
            .wrapping_add(product(c.wrapping_add(k[2]), d.wrapping_add(k[3])))
            .wrapping_add(product(tail.wrapping_add(k[4]), k[5]));
        let spread = product(sum as u64 ^ k[6], (sum >> 64) as u64 ^ k[7]);
        spread as u64 ^ (spread >> 64) as u64
    }
}

fn product(a: u64, b: u64) -> u128 {
    u128::from(a) * u128::from(b)
}
