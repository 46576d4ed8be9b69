//! What the fleet keys cost, on one core: `cargo bench --bench keys`.

use reprise::cache::redis::keys::Keys;
use reprise::cache::Key;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Nanoseconds of one call.
fn time<T>(mut call: impl FnMut() -> T) -> f64 {
    let (began, mut count) = (Instant::now(), 0);
    while began.elapsed() < Duration::from_millis(500) {
        (0..256).for_each(|_| {
            black_box(call());
        });
        count += 256;
    }
    began.elapsed().as_nanos() as f64 / f64::from(count)
}

fn main() {
    let service = [1, 2];
    for count in [1, 2, 8] {
        let keys = Keys::parse(&(0..count).map(|_| Keys::generate() + "\n").collect::<String>()).unwrap();
        let mut id = [0; 32];
        assert!(keys.issue(service, &mut id));
        let (issued, other) = (Key::new(0x304, &id).unwrap(), Key::new(0x304, &[7; 32]).unwrap());
        let (plain, mut record) = ([7; 200], Vec::new());
        assert!(keys.seal(service, &issued, &plain, &mut record));
        let mut out = Vec::new();
        let figures = [
            ("vouches, issued", time(|| keys.vouches(service, black_box(issued.id())))),
            ("vouches, not issued", time(|| keys.vouches(service, black_box(other.id())))),
            ("name", time(|| keys.name(service, black_box(&issued)))),
            ("names, not issued", time(|| keys.names(service, black_box(&other)).collect::<Vec<_>>())),
            ("issue", time(|| assert!(keys.issue(service, black_box(&mut id))))),
            (
                "seal 200 bytes",
                time(|| {
                    out.clear();
                    assert!(keys.seal(service, &issued, black_box(&plain), &mut out));
                }),
            ),
            ("open 200 bytes", time(|| assert!(keys.open(service, &issued, black_box(&record)).is_some()))),
        ];
        for (what, nanoseconds) in figures {
            println!("{count} keys  {what:<20} {nanoseconds:>6.0} ns");
        }
    }
}
