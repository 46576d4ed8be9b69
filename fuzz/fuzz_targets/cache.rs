//! Any sequence of calls: the internal cache does what the model of `tests/model/mod.rs` does.
#![no_main]

#[path = "../../tests/model/mod.rs"]
mod model;

use libfuzzer_sys::fuzz_target;
use model::Step;

fuzz_target!(|steps: &[u8]| model::run(
    steps.chunks_exact(Step::BYTES).map(|step| Step::decode(step.try_into().unwrap()))
));
