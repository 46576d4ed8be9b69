//! The internal cache does what a list would do, however it is used: see `model/mod.rs`.

mod model;

use model::{Op, Step};
use proptest::prelude::*;
use reprise::cache::Key;

fn config() -> ProptestConfig {
    let mut config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    if cfg!(miri) {
        config.cases = config.cases.min(6);
    }
    config
}

/// Up to `most` steps.
fn steps(most: usize) -> impl Strategy<Value = Vec<Step>> {
    let most = if cfg!(miri) { most / 8 } else { most };
    prop::collection::vec(any::<[u8; Step::BYTES]>().prop_map(Step::decode), 0..most)
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn the_cache_does_what_the_model_does(steps in steps(400)) {
        model::run(steps);
    }

    /// A small limit, so that nearly every insertion evicts.
    #[test]
    fn the_one_that_expires_soonest_is_evicted(limit in 1u8..20, steps in steps(200)) {
        model::run(first(Op::SetLimit(limit)).chain(steps));
    }

    /// Two keys: nearly every insertion collides.
    #[test]
    fn one_of_each_key_is_cached(steps in steps(200)) {
        let few = steps.into_iter().map(|Step { op, inside }| Step { op: with_two_keys(op), inside: with_two_keys(inside) });
        model::run(few);
    }

    /// Hundreds of sessions whose times change, then all but one of them must go at once, in their order.
    #[test]
    fn many_are_evicted_in_their_order(seeds in prop::collection::vec(any::<u16>(), 1..6), changes in steps(100)) {
        let fill = seeds.into_iter().map(|seed| Op::Fill { seed, count: if cfg!(miri) { 10 } else { 255 } });
        let change = changes.into_iter().filter(|Step { op, .. }| matches!(op, Op::SetExpiry { .. } | Op::TakeSame { .. }));
        let squeeze = [Op::SetLimit(1), Op::Insert { key: 1023, expiry: 0, keep: false }];
        model::run(fill.map(alone).chain(change).chain(squeeze.map(alone)));
    }

    #[test]
    fn a_key_is_its_version_and_id(version in any::<i32>(), id in prop::collection::vec(any::<u8>(), 0..=32)) {
        let key = Key::new(version, &id).unwrap();
        prop_assert_eq!(key.id(), &id[..]);
        prop_assert_eq!(key.version(), version);
        prop_assert_ne!(key, Key::new(version.wrapping_add(1), &id).unwrap());
        if let Some((_, shorter)) = id.split_last() {
            prop_assert_ne!(key, Key::new(version, shorter).unwrap());
        }
        if id.len() < 32 {
            prop_assert_ne!(key, Key::new(version, &[&id[..], &[0]].concat()).unwrap(), "a zero more");
        }
    }
}

fn alone(op: Op) -> Step {
    Step { op, inside: Op::Nothing }
}

fn first(op: Op) -> impl Iterator<Item = Step> {
    std::iter::once(alone(op))
}

fn with_two_keys(op: Op) -> Op {
    match op {
        Op::Insert { key, expiry, keep } => Op::Insert { key: key % 2, expiry, keep },
        Op::Get(key) => Op::Get(key % 2),
        Op::Take(key) => Op::Take(key % 2),
        Op::Contains(key) => Op::Contains(key % 2),
        Op::Fill { .. } => Op::Nothing,
        other => other,
    }
}

/// The cache remembers until when nothing expires; whatever comes or changes meanwhile must lower that.
#[test]
fn a_session_that_expires_sooner_than_all_others_is_noticed() {
    let long = Op::Insert { key: 1, expiry: 100, keep: false };
    let short = Op::Insert { key: 2, expiry: 2, keep: false };
    let shortened = Op::SetExpiry { object: 0, expiry: 2 };
    for sooner in [short, shortened] {
        model::run([long.clone(), Op::HasExpired, sooner, Op::HasExpired, Op::Clock(3), Op::HasExpired].map(alone));
    }
}

#[test]
fn an_id_of_more_than_32_bytes_is_no_key() {
    for length in [33, 64, 255, 256, 257, 288, 65_536] {
        assert_eq!(Key::new(0x303, &vec![1; length]), None, "{length}");
    }
}
