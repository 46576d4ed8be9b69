//! Void records: what stands in a session's place after it was removed or used up, until the session would have expired.
//!
//! A session is only ever written where nothing stands, so a write that is repeated, or arrives late, brings nothing back
//! that was removed since. A program may add a session again that it, or another process, had removed. Such a write
//! names the void record that was seen before, and replaces that one only: each void record is another one than all others.

/// What a void record begins with. A sealed record begins with its format, which is another byte.
const MARK: &[u8] = b"void ";
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Void(u64);

impl Void {
    /// Of the record, in bytes; a sealed one is longer.
    pub const SIZE: usize = MARK.len() + 16;

    /// Another one than all before. Without random numbers, the address and the clock have to do.
    pub fn new() -> Void {
        use std::hash::{BuildHasher, RandomState};
        let number = getrandom::u64().unwrap_or_else(|_| RandomState::new().hash_one(std::time::Instant::now()));
        Void(number)
    }

    pub fn bytes(self) -> [u8; Void::SIZE] {
        let mut bytes = [0; Void::SIZE];
        let (mark, digits) = bytes.split_at_mut(MARK.len());
        mark.copy_from_slice(MARK);
        for (at, digit) in digits.iter_mut().enumerate() {
            *digit = b"0123456789abcdef"[(self.0 >> (60 - 4 * at) & 15) as usize];
        }
        bytes
    }

    /// The void record that this value is, if it is one.
    pub fn of(value: &[u8]) -> Option<Void> {
        let digits = value.strip_prefix(MARK).filter(|_| value.len() == Void::SIZE)?;
        let void = Void(u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        (void.bytes() == value).then_some(void)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn void_records_are_told_from_others() {
        let (one, other) = (Void::new(), Void::new());
        assert_ne!(one, other);
        assert_eq!(Void::of(&one.bytes()), Some(one));
        for value in [&b"void"[..], b"", b"void 0123456789ABCDEF", b"void +123456789abcdef", &[1; 80]] {
            assert_eq!(Void::of(value), None);
        }
    }
}
