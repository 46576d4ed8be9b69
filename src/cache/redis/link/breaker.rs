//! The breaker: when a server is not asked any more, and when it is again.
//!
//! What counts is the time that handshakes waited in vain. Each lookup that was not answered adds the time it waited, each
//! that was takes a little off, and so does time itself: a late answer now and then is no reason. Once the sum exceeds
//! [`PATIENCE`] deadlines, or as many requests in a row failed, the breaker opens, and nobody asks for a while. Then a
//! thread of the link tries: the server has to answer several times in a row, each time within the deadline of a lookup. A
//! server that is merely slow is as good as one that is down. The pauses between tries grow, and go on growing if the
//! breaker opens again soon after it was closed.

use std::time::{Duration, Instant};

/// So many deadlines waited in vain, or failures in a row, open the breaker.
const PATIENCE: u32 = 3;
/// What an answered lookup takes off the time that was waited in vain. With more than one late answer in 200, at a deadline
/// of 20 ms, the breaker opens: about then a full handshake for each is cheaper.
const AMENDS: Duration = Duration::from_micros(100);
/// What part of the time may be waited in vain: one in so many.
const TOLERATED: u32 = 20;
/// The pauses before a try, at first and at the most.
const PAUSES: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(2)];
/// A breaker that was closed for so long has recovered.
const RECOVERED: Duration = Duration::from_secs(10);

#[derive(Default)]
pub struct Breaker {
    failures: u32,
    in_vain: Duration,
    /// When that was last reckoned.
    reckoned: Option<Instant>,
    open: bool,
    pause: Duration,
    closed: Option<Instant>,
}

impl Breaker {
    pub fn is_open(&self) -> bool {
        self.open
    }

    pub fn answered(&mut self) {
        self.failures = 0;
        self.in_vain = self.in_vain.saturating_sub(AMENDS);
    }

    /// A request failed after `waited`. Whether the breaker has opened for that.
    pub fn failed(&mut self, waited: Duration, deadline: Duration) -> bool {
        if self.open {
            return false;
        }
        self.failures += 1;
        let passed = self.reckoned.replace(Instant::now()).map_or(Duration::ZERO, |reckoned| reckoned.elapsed());
        self.in_vain = self.in_vain.saturating_sub(passed / TOLERATED) + waited;
        self.open = self.failures >= PATIENCE || self.in_vain >= deadline * PATIENCE;
        if self.open {
            let relapsed = self.closed.is_some_and(|closed| closed.elapsed() < RECOVERED);
            self.pause = if relapsed { (self.pause * 2).clamp(PAUSES[0], PAUSES[1]) } else { PAUSES[0] };
        }
        self.open
    }

    /// How long to wait before the next try: at random, so that not all processes of a fleet try at once.
    pub fn pause(&self) -> Duration {
        jitter(self.pause)
    }

    /// A try failed.
    pub fn stays_open(&mut self) {
        self.pause = (self.pause * 2).clamp(PAUSES[0], PAUSES[1]);
    }

    /// The server answers in time again.
    pub fn close(&mut self) {
        (self.failures, self.in_vain, self.open) = (0, Duration::ZERO, false);
        self.closed = Some(Instant::now());
    }
}

/// Between half of it and one and a half.
pub fn jitter(time: Duration) -> Duration {
    time / 2 + time.mul_f64(f64::from(getrandom::u32().unwrap_or(u32::MAX / 2)) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_millis(20);

    /// Answers `late` of `all`, over and over; after how many requests it opens.
    fn opens_after(late: usize, all: usize, most: usize) -> Option<usize> {
        let mut breaker = Breaker::default();
        (0..most).find(|at| {
            let is_late = at % all < late;
            if !is_late {
                breaker.answered();
            }
            is_late && breaker.failed(DEADLINE, DEADLINE)
        })
    }

    #[test]
    fn it_opens_by_the_time_that_was_waited_in_vain() {
        assert_eq!(opens_after(1, 1, 10), Some(2));
        assert!(opens_after(1, 10, 100).is_some_and(|after| after < 40), "one in ten is late");
        assert_eq!(opens_after(1, 1000, 1_000_000), None, "one in a thousand costs less than it saves");
    }

    #[test]
    fn its_pauses_grow_also_when_it_opens_again_soon() {
        let mut breaker = Breaker::default();
        let mut pauses = Vec::new();
        for _ in 0..8 {
            while !breaker.failed(DEADLINE, DEADLINE) {}
            pauses.push(breaker.pause);
            breaker.close();
        }
        assert!(pauses.windows(2).all(|two| two[1] == (two[0] * 2).min(PAUSES[1])), "{pauses:?}");
        for _ in 0..100 {
            let pause = jitter(PAUSES[1]);
            assert!((PAUSES[1] / 2..=PAUSES[1] * 3 / 2).contains(&pause));
        }
    }
}
