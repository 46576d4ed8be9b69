//! What the built library promises the linker: exactly the symbols of src/abi/symbols.txt, its soname, and no libssl
//! of its own (it uses the one that the program has).

mod common;

use std::collections::BTreeSet;
use std::process::Command;

use common::{libreprise, program, repository, succeed};

#[test]
fn exports_are_the_committed_list() {
    let listing = succeed(Command::new(program("nm", "binutils")).args(["-D", "--defined-only"]).arg(libreprise()));
    let built: BTreeSet<_> = listing.lines().filter_map(|line| line.split_whitespace().nth(2)).collect();
    let committed = std::fs::read_to_string(repository("src/abi/symbols.txt")).unwrap();
    let lines: Vec<_> = committed.lines().collect();
    assert!(lines.is_sorted(), "symbols.txt is not sorted");
    let promised: BTreeSet<_> = lines.iter().copied().collect();
    assert_eq!(promised.len(), lines.len(), "symbols.txt names a symbol twice");
    let missing: Vec<_> = promised.difference(&built).collect();
    let extra: Vec<_> = built.difference(&promised).collect();
    assert!(missing.is_empty() && extra.is_empty(), "not exported: {missing:?}\nnot in the list: {extra:?}");
    assert!(built.contains("SSL_CTX_add_session"), "{built:?}");
}

#[test]
fn soname_and_needed() {
    let dynamic = succeed(Command::new(program("readelf", "binutils")).args(["-d", "-W"]).arg(libreprise()));
    let named = |tag: &str| -> Vec<String> {
        dynamic
            .lines()
            .filter(|line| line.contains(tag))
            .filter_map(|line| Some(line.split_once('[')?.1.split_once(']')?.0.to_owned()))
            .collect()
    };
    assert_eq!(named("(SONAME)"), ["libreprise.so.0"], "{dynamic}");
    let needed = named("(NEEDED)");
    assert!(needed.iter().any(|name| name.starts_with("libc.so")), "{needed:?}");
    assert!(!needed.iter().any(|name| name.contains("ssl") || name.contains("crypto")), "{needed:?}");
}
