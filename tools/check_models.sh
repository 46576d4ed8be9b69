#!/bin/sh
# The cache under the model checker loom, under Miri, and fuzzed for a moment. Miri and the fuzzers need a nightly Rust
# (rustup toolchain install nightly --component miri,rust-src) and cargo-fuzz (cargo install cargo-fuzz).
set -eu
cd "$(dirname "$0")/.."

RUSTFLAGS='--cfg loom' CARGO_TARGET_DIR=target/loom cargo test --release --locked --lib loom

# Its contexts live as long as the process, so what they hold is not lost.
PROPTEST_CASES=2 MIRIFLAGS='-Zmiri-disable-isolation -Zmiri-ignore-leaks' CARGO_TARGET_DIR=target/miri \
    cargo +nightly miri test --locked --test cache_model --test cache_threads

command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz
cargo +nightly fuzz run cache -- -max_total_time=20 -len_control=0 -max_len=2048
cargo +nightly fuzz run config -- -max_total_time=10
cargo +nightly fuzz run sealed -- -max_total_time=10
