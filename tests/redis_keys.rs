//! The fleet keys: what is sealed opens as what it was or not at all, names tell nothing and do not collide, ids vouch for
//! themselves, and a rotation disturbs nobody. The fixed values hold the formats: machines of different versions of
//! Reprise share a Redis.

use proptest::prelude::*;
use reprise::cache::redis::keys::{sealed_length, Keys, MOST_KEYS};
use reprise::cache::{Key, Service};
use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{chown, PermissionsExt};

fn config() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::default() }
}

/// A line for the key file; another one for each number.
fn line(number: u8) -> String {
    format!("{number:02x}").repeat(32) + "\n"
}

fn keys(numbers: &[u8]) -> Keys {
    Keys::parse(&numbers.iter().map(|number| line(*number)).collect::<String>()).unwrap()
}

fn key(version: i32, id: &[u8]) -> Key {
    Key::new(version, id).unwrap()
}

fn sealed(keys: &Keys, service: Service, key: &Key, plain: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    assert!(keys.seal(service, key, plain, &mut out));
    out
}

fn issued(keys: &Keys, service: Service) -> [u8; 32] {
    let mut id = [0; 32];
    assert!(keys.issue(service, &mut id));
    id
}

prop_compose! {
    fn any_key()(version in any::<i32>(), id in prop::collection::vec(any::<u8>(), 0..=32)) -> Key {
        key(version, &id)
    }
}

// ---- Sealing ----------------------------------------------------------------------------------------------------

proptest! {
    #![proptest_config(config())]

    #[test]
    fn what_is_sealed_opens(
        service in any::<Service>(), key in any_key(), plain in prop::collection::vec(any::<u8>(), 0..400),
    ) {
        let keys = keys(&[1]);
        let mut record = b"before".to_vec();
        prop_assert!(keys.seal(service, &key, &plain, &mut record));
        prop_assert_eq!(&record[..6], b"before", "appended");
        prop_assert_eq!(record.len(), 6 + sealed_length(plain.len()));
        prop_assert_eq!(keys.open(service, &key, &record[6..]), Some(plain));
    }

    #[test]
    fn another_session_does_not_open_it(service in any::<Service>(), key in any_key(), other in any_key(), bit in 0..128u32) {
        let keys = keys(&[1]);
        let record = sealed(&keys, service, &key, b"session");
        let mut words = service;
        words[bit as usize / 64] ^= 1 << (bit % 64);
        prop_assert_eq!(keys.open(words, &key, &record), None, "another service");
        let version = Key::new(key.version() ^ 1 << (bit % 32), key.id()).unwrap();
        prop_assert_eq!(keys.open(service, &version, &record), None, "another protocol version");
        prop_assert_eq!(keys.open(service, &other, &record).is_some(), other == key, "another session");
        let mut id = key.id().to_vec();
        if let Some(byte) = id.get_mut(bit as usize % 32) {
            *byte ^= 1;
            prop_assert_eq!(keys.open(service, &Key::new(key.version(), &id).unwrap(), &record), None, "another id");
        }
        // Ids that only differ in zero bytes at their end.
        let mut longer = key.id().to_vec();
        longer.push(0);
        if let Some(longer) = Key::new(key.version(), &longer) {
            prop_assert_eq!(keys.open(service, &longer, &record), None, "a longer id");
        }
    }

    #[test]
    fn no_bytes_make_open_panic(key in any_key(), bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let keys = keys(&[1, 2]);
        prop_assert_eq!(keys.open([0, 0], &key, &bytes), None);
        // With a head that is right.
        let mut record = sealed(&keys, [0, 0], &key, b"");
        record.truncate(29);
        record.extend(bytes);
        prop_assert_eq!(keys.open([0, 0], &key, &record), None);
    }
}

/// Each bit of format, hint, nonce, ciphertext and tag; each length.
#[test]
fn a_changed_record_is_refused() {
    let (keys, key) = (keys(&[1, 2]), key(0x304, &[7; 32]));
    let record = sealed(&keys, [1, 2], &key, b"the bytes of a session");
    for bit in 0..record.len() * 8 {
        let mut changed = record.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(keys.open([1, 2], &key, &changed), None, "bit {bit}");
    }
    (0..record.len()).for_each(|length| assert_eq!(keys.open([1, 2], &key, &record[..length]), None, "{length} bytes"));
    let mut longer = record.clone();
    longer.push(0);
    assert_eq!(keys.open([1, 2], &key, &longer), None);
    assert!(keys.open([1, 2], &key, &record).is_some());
}

#[test]
fn the_same_is_never_sealed_alike_and_shows_nothing() {
    let (keys, key, plain) = (keys(&[1]), key(0x303, &[0xa5; 32]), b"SECRET OF A SESSION");
    let (one, other) = (sealed(&keys, [1, 2], &key, plain), sealed(&keys, [1, 2], &key, plain));
    assert_ne!(one[5..29], other[5..29], "nonces");
    assert_ne!(one[29..], other[29..]);
    assert!(!one.windows(6).any(|part| part == b"SECRET" || part == [0xa5; 6]));
}

/// What the formats are, worked out by other programs than this one.
#[test]
fn the_formats_stay() {
    let (keys, service) = (keys(&[0x11]), [0x0706050403020100, 0x0f0e0d0c0b0a0908]);
    let id: Vec<u8> = (0..32).collect();
    let key = key(0x304, &id);
    assert_eq!(&*keys.service_name(service), "bbaa65cb5706b80e4737ee12c033d952");
    let fleet = Keys::parse(&format!("fleet {}{}", line(0x22), line(0x11))).unwrap();
    assert_eq!(&*fleet.service_name(service), "7d07f35eb13aa26f7fd01839bc0225e9");
    let name = keys.name(service, &key);
    assert_eq!((name.bucket, &*name.text), (192, "08dca54df2ca71662ff9ab40fa09d39a"));
    assert!(keys.vouches(service, &hex("6465666768696a6b6c6d6e6f70717273d51d73e62184b0c9dd4ae28b7b1722a9")));
    let record =
        hex("027985108dc8c9cacbcccdcecfd0d1d2d3d4d5d6d7d8d9dadbdcdddedfe83b5b1a89171b1f8989950cde9f8e7e705072\
         5d190e5d27c92372c8659ede636a17d1a92155a6384bc86c6ff94ee014880e66fa933a951b975423266d7cb37f421f64\
         383998c3b159edb798a4aa0d6ac5e76000c77c4ee967dd9deea724a8698fd1376199bc05f31961381eb90efcd222254f\
         50ed8ac71c185066c9aaad21269b7dc5435e91cd51855c1d92aabcf41f");
    assert_eq!(keys.open(service, &key, &record).as_deref(), Some(&b"a session"[..]));
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

// ---- Names ------------------------------------------------------------------------------------------------------

proptest! {
    #![proptest_config(config())]

    #[test]
    fn names_are_those_of_one_session(one in any_key(), other in any_key(), service in any::<Service>(), bit in 0..128u32) {
        let keys = keys(&[1]);
        prop_assert_eq!(keys.name(service, &one) == keys.name(service, &other), one == other);
        let mut words = service;
        words[bit as usize / 64] ^= 1 << (bit % 64);
        prop_assert_ne!(keys.name(service, &one).text, keys.name(words, &one).text);
        prop_assert_ne!(keys.service_name(service), keys.service_name(words));
        let version = Key::new(one.version() ^ 1 << (bit % 32), one.id()).unwrap();
        prop_assert_ne!(keys.name(service, &one).text, keys.name(service, &version).text);
    }
}

#[test]
fn names_do_not_collide_and_fill_all_buckets_alike() {
    let keys = keys(&[1]);
    let mut seen = HashSet::new();
    let mut buckets = [0; 256];
    for number in 0..100_000u32 {
        let name = keys.name([1, 2], &key(0x303, &number.to_le_bytes()));
        assert!(
            name.text.len() == 32 && name.text.bytes().all(|digit| b"0123456789abcdef".contains(&digit)),
            "{name:?}"
        );
        assert!(seen.insert(name.text));
        buckets[usize::from(name.bucket)] += 1;
    }
    // 390 are expected, with a standard deviation of 20.
    assert!(buckets.iter().all(|count| (270..510).contains(count)), "{buckets:?}");
}

#[test]
fn names_depend_on_the_key() {
    let key = key(0x303, &[3; 32]);
    assert_ne!(keys(&[1]).name([1, 2], &key), keys(&[2]).name([1, 2], &key));
}

// ---- Ids that vouch for themselves ------------------------------------------------------------------------------

proptest! {
    #![proptest_config(config())]

    #[test]
    fn only_issued_ids_of_the_service_are_vouched_for(service in any::<Service>(), bit in 0..256usize, other in any::<[u8; 32]>()) {
        let fleet = keys(&[1, 2]);
        let id = issued(&fleet, service);
        prop_assert!(fleet.vouches(service, &id));
        prop_assert!(!keys(&[3]).vouches(service, &id), "another fleet");
        let mut words = service;
        words[bit % 2] ^= 1 << (bit % 64);
        prop_assert!(!fleet.vouches(words, &id), "another service");
        let mut changed = id;
        changed[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(!fleet.vouches(service, &changed), "another id");
        prop_assert!(!fleet.vouches(service, &other), "a made-up id");
        (0..32).for_each(|length| assert!(!fleet.vouches(service, &id[..length]), "{length} bytes"));
        prop_assert!(!fleet.vouches(service, &[&id[..], &[0]].concat()));
    }
}

#[test]
fn issued_ids_are_random() {
    let keys = keys(&[1]);
    let ids: HashSet<[u8; 32]> = (0..10_000).map(|_| issued(&keys, [1, 2])).collect();
    assert_eq!(ids.len(), 10_000);
    // Every bit of the random half is as often 0 as 1: 5000 times, with a standard deviation of 50.
    for bit in 0..128 {
        let ones = ids.iter().filter(|id| id[bit / 8] >> (bit % 8) & 1 == 1).count();
        assert!((4650..5350).contains(&ones), "bit {bit}: {ones}");
    }
}

// ---- Rotation ---------------------------------------------------------------------------------------------------

/// The key file of a machine, step by step. No two machines are more than one step apart.
const STAGES: [&[u8]; 4] = [&[1], &[1, 2], &[2, 1], &[2]];

/// A session that a machine made: with an id it issued, or one from the program's own generator.
fn session(writer: &Keys, own: bool) -> Key {
    key(0x304, &if own { [9; 32] } else { issued(writer, [1, 2]) })
}

fn finds_and_opens(reader: &Keys, writer: &Keys, key: &Key) -> bool {
    let name = writer.name([1, 2], key);
    reader.names([1, 2], key).any(|known| known == name)
        && reader.open([1, 2], key, &sealed(writer, [1, 2], key, b"session")).as_deref() == Some(b"session")
}

/// Also what a machine wrote before a step that others have long taken, until the key that is removed has been out of use
/// for the longest session timeout.
#[test]
fn in_a_rotation_every_machine_finds_and_opens_what_the_others_wrote() {
    let stages = STAGES.map(keys);
    for (writer, reader) in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 1), (2, 2), (2, 3), (3, 2), (3, 3)] {
        let (writer, reader) = (&stages[writer], &stages[reader]);
        for own in [true, false] {
            let key = session(writer, own);
            assert!(finds_and_opens(reader, writer, &key), "{writer:?} to {reader:?}, own: {own}");
            assert_eq!(reader.vouches([1, 2], key.id()), !own);
            let names: Vec<_> = reader.names([1, 2], &key).collect();
            assert_eq!(names[0], reader.name([1, 2], &key), "where it would write itself is first");
            // An issued id has one name: a lookup costs one question, and taking it is taking it from all.
            assert!(own || names.len() == 1 && names[0] == writer.name([1, 2], &key), "{writer:?} to {reader:?}");
        }
    }
}

/// The order of the steps matters: who skips one loses sessions. (So the test above can fail.)
#[test]
fn a_skipped_step_or_a_removed_key_loses_sessions() {
    let stages = STAGES.map(keys);
    for (writer, reader) in [(2, 0), (0, 3), (1, 3), (3, 0), (3, 1)] {
        let key = session(&stages[writer], true);
        let found = finds_and_opens(&stages[reader], &stages[writer], &key);
        // B and A B: what B seals opens, since B is there.
        assert_eq!(found, (writer, reader) == (3, 1), "{writer} to {reader}");
    }
    assert!(!stages[3].vouches([1, 2], &issued(&stages[0], [1, 2])), "a removed key vouches for nothing");
}

/// Who has no key file cannot work out the name of a service, and a rotation does not change it.
#[test]
fn the_name_of_a_service_is_keyed_and_stays_in_a_rotation() {
    let fleet = |secret: u8, stage: &[u8]| {
        let keys: String = stage.iter().map(|number| line(*number)).collect();
        Keys::parse(&format!("# comment\nfleet {}{keys}", line(secret))).unwrap()
    };
    let names: HashSet<_> = STAGES.iter().map(|stage| fleet(7, stage).service_name([1, 2])).collect();
    assert_eq!(names.len(), 1);
    assert!(!names.contains(&keys(STAGES[0]).service_name([1, 2])) && fleet(7, STAGES[0]).hides_services());
    assert!(!names.contains(&fleet(8, STAGES[0]).service_name([1, 2])));
    let twice = Keys::parse(&format!("fleet {}fleet {}{}", line(7), line(8), line(1))).unwrap_err();
    assert!(twice.contains("line 2"), "{twice}");
    assert!(Keys::parse("fleet 12\n").unwrap_err().contains("line 1: it has 2 hex digits"));
}

/// Contents that differ in length by less than a block look alike.
#[test]
fn lengths_are_hidden_within_a_block() {
    let (keys, key) = (keys(&[1]), key(0x304, &[7; 32]));
    let lengths: HashSet<_> =
        (125..=252).map(|length| sealed(&keys, [1, 2], &key, &vec![b'x'; length]).len()).collect();
    assert_eq!(lengths.len(), 1);
}

#[test]
fn a_service_has_one_name_whatever_the_keys() {
    let names: HashSet<_> = STAGES.iter().map(|stage| keys(stage).service_name([1, 2])).collect();
    assert_eq!(names.len(), 1);
}

// ---- The file ---------------------------------------------------------------------------------------------------

#[test]
fn lines_comments_and_what_is_wrong_with_them() {
    let digits = "0123456789abcdefABCDEF0123456789".repeat(2);
    let id = issued(&Keys::parse(&digits).unwrap(), [1, 2]);
    for text in [format!("# c\n\n  {digits}  \r\n"), format!("{digits}# c"), digits.to_lowercase()] {
        assert!(Keys::parse(&text).unwrap().vouches([1, 2], &id), "{text}");
    }
    for (text, says) in [
        (String::new(), "no key"),
        ("# only\n\n".into(), "no key"),
        (format!("{digits}\n\n{digits}0"), "line 3: it has 65 hex digits"),
        (format!("{digits}\n{}", &digits[1..]), "line 2: it has 63 hex digits"),
        (format!("{}g", &digits[1..]), "line 1: character 64 is no hex digit"),
        (digits.replace('9', "é"), "line 1: character 10 is no hex digit"),
        (format!("{digits}\n#\n{}", digits.to_lowercase()), "line 3 has the key of line 1 again"),
        ((0..=MOST_KEYS).map(|number| line(number as u8)).collect(), "more than 64 keys"),
    ] {
        let error = Keys::parse(&text).unwrap_err();
        assert!(error.contains(says) && !error.contains("0123"), "{error}");
    }
    let most: String = (0..MOST_KEYS).map(|number| line(number as u8)).collect();
    assert_eq!(format!("{:?}", Keys::parse(&most).unwrap()), "64 keys");
}

#[test]
fn generated_lines_are_keys_and_differ() {
    let lines: HashSet<String> = (0..100).map(|_| Keys::generate()).collect();
    assert_eq!(lines.len(), 100);
    assert!(lines.iter().all(|line| Keys::parse(line).is_ok()));
}

#[test]
fn a_file_that_others_can_get_at_is_refused() {
    let folder = std::env::temp_dir().join(format!("reprise-keys-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let file = folder.join("key");
    let refused = |says: &str| {
        let error = Keys::read(&file).unwrap_err();
        assert!(error.contains(says) && error.contains(file.to_str().unwrap()) && !error.contains("1111"), "{error}");
    };
    refused("No such file");
    fs::write(&file, line(0x11)).unwrap();
    for mode in 0..0o1000 {
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        match mode & 0o037 {
            0 if mode & 0o400 != 0 => assert!(Keys::read(&file).is_ok(), "{mode:o}"),
            0 => {} // root reads it
            _ if mode & 0o400 != 0 => refused("chmod it to 0600 or 0640"),
            _ => assert!(Keys::read(&file).is_err()),
        }
    }
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&file, line(0x11) + &line(0x11)).unwrap();
    refused("line 2 has the key of line 1 again");
    fs::write(&file, [0xff; 64]).unwrap();
    refused("no text");
    fs::write(&file, "#".repeat(70_000)).unwrap();
    refused("too long");
    // SAFETY: geteuid has no preconditions.
    if unsafe { libc::geteuid() } == 0 {
        chown(&file, Some(12345), None).unwrap();
        refused("belongs to another user");
    }
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    refused("no regular file");
    fs::remove_dir(&file).unwrap();
    let made = std::process::Command::new("mkfifo").arg(&file).status().unwrap();
    assert!(made.success());
    refused("no regular file");
    fs::remove_dir_all(&folder).unwrap();
}
