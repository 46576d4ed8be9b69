//! Any environment: what is known counts, the rest is complained of in one line, and the defaults hold.
//!
//! The input is the values of REPRISE_SEMANTICS, REPRISE_LOG and REPRISE_STATS, each ended by a zero byte, which no
//! value has inside. Variables that are missing at its end are unset.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reprise::config::{Config, Semantics};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

const NAMES: [&str; 3] = ["REPRISE_SEMANTICS", "REPRISE_LOG", "REPRISE_STATS"];

fuzz_target!(|input: &[u8]| {
    let mut values = input.split(|&byte| byte == 0).map(OsStr::from_bytes);
    let values = [values.next(), values.next(), values.next()];
    let config = Config::from(|name| {
        let number = NAMES.iter().position(|&known| known == name).expect("a variable of ours");
        values[number].map(OsStr::to_owned)
    });
    let [semantics, log, stats] = values.map(|value| value.map_or(&b""[..], OsStr::as_bytes));

    let stock = semantics == b"stock";
    assert_eq!(config.semantics, if stock { Semantics::Stock } else { Semantics::Documented });
    assert_eq!(config.logs, log != b"off");
    assert_eq!(config.stats.as_ref().map_or(&b""[..], |path| path.as_os_str().as_bytes()), stats);
    assert_eq!(config.stats.is_some(), !stats.is_empty());

    let unknown = [!matches!(semantics, b"" | b"documented" | b"stock"), !matches!(log, b"" | b"error" | b"off")];
    match (unknown.iter().position(|&unknown| unknown), &config.complaint) {
        (None, complaint) => assert_eq!(*complaint, None),
        (Some(first), Some(complaint)) => {
            assert!(complaint.starts_with(NAMES[first]), "{complaint}");
            assert!(!complaint.contains(char::is_control), "one line: {complaint:?}");
        }
        (Some(first), None) => panic!("{} is unknown, and nothing was said", NAMES[first]),
    }
});
