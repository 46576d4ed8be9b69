//! Any bytes in the place of a sealed record: they do not open, and nothing panics. The input's first byte says how long
//! the id is, then come the id and the record; of a record that was sealed, a changed one does not open either.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reprise::cache::redis::keys::Keys;
use reprise::cache::Key;
use std::sync::LazyLock;

static KEYS: LazyLock<Keys> = LazyLock::new(|| Keys::parse(&format!("{}\n{}", "1".repeat(64), "2".repeat(64))).unwrap());

fuzz_target!(|input: &[u8]| {
    let Some((length, rest)) = input.split_first() else { return };
    let (id, bytes) = rest.split_at(rest.len().min(usize::from(*length) % 33));
    let key = Key::new(0x304, id).unwrap();
    assert_eq!(KEYS.open([1, 2], &key, bytes), None);
    assert!(!KEYS.vouches([1, 2], bytes));
    let mut sealed = Vec::new();
    assert!(KEYS.seal([1, 2], &key, bytes, &mut sealed));
    assert_eq!(KEYS.open([1, 2], &key, &sealed).as_deref(), Some(bytes));
    // The input says where it is changed, and how.
    let (at, how) = (usize::from(*length) * 7 % sealed.len(), rest.first().map_or(1, |byte| byte | 1));
    sealed[at] ^= how;
    assert_eq!(KEYS.open([1, 2], &key, &sealed), None);
});
