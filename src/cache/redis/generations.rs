//! The generations of the buckets, as this process knows them.
//!
//! Each bucket of a service has a number in Redis, and each record the one that its bucket had when it was sealed: where they
//! differ, the record was flushed. Who seals need not ask first: what is known is mostly right, and an answer that
//! comes with the record's own says when it was not.

use super::super::Service;
use std::collections::HashMap;
use std::time::{Duration, Instant};

pub type Bucket = (Service, u8);

/// For so long nobody asks again.
const FRESH: Duration = Duration::from_secs(1);

#[derive(Default)]
pub struct Generations(HashMap<Bucket, Known>);

struct Known {
    /// The highest that was seen.
    generation: u64,
    confirmed: Instant,
}

impl Generations {
    /// Redis told so. `false` if that cannot be: it was higher before, so somebody set it back, or a master that had not
    /// told its replicas was lost.
    pub fn learn(&mut self, bucket: Bucket, generation: u64) -> bool {
        let confirmed = Instant::now();
        let known = self.0.entry(bucket).or_insert(Known { generation, confirmed });
        if known.generation > generation {
            return false;
        }
        *known = Known { generation, confirmed };
        true
    }

    /// What it is, and whether to have that confirmed; `None` if it was never heard of.
    pub fn known(&self, bucket: Bucket) -> Option<(u64, bool)> {
        self.0.get(&bucket).map(|known| (known.generation, known.confirmed.elapsed() > FRESH))
    }

    pub fn highest(&self, bucket: Bucket) -> u64 {
        self.0.get(&bucket).map_or(0, |known| known.generation)
    }

    /// What is there now is flushed, as far as this process is concerned, whether Redis can be told or not.
    pub fn raise(&mut self, service: Service) {
        self.0.iter_mut().filter(|(bucket, _)| bucket.0 == service).for_each(|(_, known)| known.generation += 1);
    }
}
