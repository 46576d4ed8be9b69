//! Any environment: what is known counts, each thing that is not is complained of in one line, and the defaults hold.
//!
//! The input is the values of our variables, each ended by a zero byte, which no value has inside. Variables that are
//! missing at its end are unset.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reprise::cache::Place;
use reprise::config::{Config, Internal, Log, Semantics, Status, Tickets, Unclean};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// Each with the words it knows, in the order in which they are read; the first one is the default.
const WORDS: [(&str, [&[u8]; 2]); 6] = [
    ("REPRISE_SEMANTICS", [b"documented", b"stock"]),
    ("REPRISE_TICKETS", [b"as-is", b"stateful"]),
    ("REPRISE_INTERNAL", [b"as-is", b"always"]),
    ("REPRISE_UNCLEAN", [b"drop", b"keep"]),
    ("REPRISE_STATUS", [b"on", b"off"]),
    ("REPRISE_LOG", [b"error", b"off"]),
];

fuzz_target!(|input: &[u8]| {
    let values: Vec<&[u8]> = input.split(|&byte| byte == 0).collect();
    let value = |number: usize| values.get(number).copied().unwrap_or_default();
    let config = Config::from(|name| {
        let number = WORDS.iter().position(|(known, _)| *known == name).unwrap_or_else(|| match name {
            "REPRISE_CACHE" => WORDS.len(),
            "REPRISE_STATS" => WORDS.len() + 1,
            _ => panic!("{name} is no variable of ours"),
        });
        values.get(number).map(|value| OsStr::from_bytes(value).to_owned())
    });

    let is_second = |number: usize| value(number) == WORDS[number].1[1];
    assert_eq!(config.semantics == Semantics::Stock, is_second(0));
    assert_eq!(config.tickets == Tickets::Stateful, is_second(1));
    assert_eq!(config.internal == Internal::Always, is_second(2));
    assert_eq!(config.unclean == Unclean::Keep, is_second(3));
    assert_eq!(config.status == Status::Off, is_second(4));
    assert_eq!(config.log == Log::Off, is_second(5));
    let stats = config.stats.as_ref().map(|path| path.as_os_str().as_bytes());
    assert_eq!(stats.unwrap_or_default(), value(7));

    let cache = String::from_utf8_lossy(value(6)).into_owned();
    let place = cache.parse::<Place>();
    let unknown = WORDS.iter().enumerate().filter(|(number, (_, words))| {
        let value = value(*number);
        !value.is_empty() && !words.contains(&value)
    });
    let mut blamed: Vec<&str> = unknown.map(|(_, (name, _))| *name).collect();
    if !cache.is_empty() && place.is_err() {
        blamed.push("REPRISE_CACHE");
    }
    assert_eq!(config.cache, place.unwrap_or_default());
    assert_eq!(config.complaints.len(), blamed.len(), "{:?}", config.complaints);
    for (complaint, name) in config.complaints.iter().zip(blamed) {
        assert!(complaint.starts_with(name), "{complaint}");
        assert!(!complaint.contains(char::is_control), "one line: {complaint:?}");
    }
});
