//! What the environment says, read once and as early as can be: nginx clears it for its workers. And cache URLs, which a
//! program may also pass to `reprise_ctx_set_cache`.
//!
//! | variable | value |
//! |---|---|
//! | `REPRISE_CACHE` | `memory:` (default), `shm:NAME?size=64M&keep=on` or `redis://HOST/0?key=FILE`, see [`crate::cache::redis::url`] |
//! | `REPRISE_SEMANTICS` | `documented` or `stock`; the default is [`Semantics::default_for`] |
//! | `REPRISE_TICKETS` | `as-is` (default) or `stateful` |
//! | `REPRISE_INTERNAL` | `as-is` (default) or `always` |
//! | `REPRISE_UNCLEAN` | `drop` (default) or `keep` |
//! | `REPRISE_REVERIFY` | `shared` (default), `on` or `off` |
//! | `REPRISE_MAX_AGE` | seconds; without it there is no limit |
//! | `REPRISE_ID_CONTEXT` | `as-is` (default) or `auto` |
//! | `REPRISE_LOG` | `error` (default) or `off` |
//! | `REPRISE_STATUS` | `on` (default) or `off`: whether `reprise status` sees the program, see [`crate::board`] |
//! | `REPRISE_STATS` | a file that the processes of a program count into, see [`crate::totals`] |

use crate::cache::redis::url::without_password;
use crate::cache::shm::{Spec, LARGEST_SIZE, SMALLEST_SIZE};
use crate::cache::Place;
use once_cell::race::OnceBox;
use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

/// An enumeration whose values have names for people and numbers for C.
macro_rules! choices {
    ($(#[$text:meta])* $name:ident { $($(#[$about:meta])* $choice:ident = $number:literal $word:literal,)* }) => {
        $(#[$text])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub enum $name { $($(#[$about])* $choice = $number,)* }

        impl $name {
            const ALL: &'static [($name, &'static str)] = &[$(($name::$choice, $word)),*];

            /// By the number that C has for it.
            pub fn from_number(number: i32) -> Option<$name> {
                Self::ALL.iter().map(|&(choice, _)| choice).find(|&choice| choice as i32 == number)
            }

            pub fn from_word(word: &str) -> Option<$name> {
                Self::ALL.iter().find(|(_, name)| *name == word).map(|&(choice, _)| choice)
            }

            pub fn word(self) -> &'static str {
                Self::ALL.iter().find(|(choice, _)| *choice == self).map_or("", |(_, name)| name)
            }

            fn words() -> String {
                Self::ALL.iter().map(|(_, name)| *name).collect::<Vec<_>>().join(" or ")
            }
        }
    };
}

choices! {
    /// Whose word counts where the manual and libssl differ.
    Semantics {
        #[default]
        Documented = 0 "documented",
        Stock = 1 "stock",
    }
}

impl Semantics {
    /// Who links the library wants what the manual promises. A program that it is preloaded into was written against what
    /// libssl does, and is to be kept as it is.
    pub fn default_for(is_linked: bool) -> Semantics {
        if is_linked {
            Semantics::Documented
        } else {
            Semantics::Stock
        }
    }
}

choices! {
    /// What tickets a server issues.
    Tickets {
        /// What the program asks libssl for.
        #[default]
        AsIs = 0 "as-is",
        /// Only such as name a session in the cache (SSL_OP_NO_TICKET).
        Stateful = 1 "stateful",
    }
}

choices! {
    /// Whether servers use the internal cache.
    Internal {
        /// As the program's SSL_CTX_set_session_cache_mode says.
        #[default]
        AsIs = 0 "as-is",
        /// Even if that switches it off.
        Always = 1 "always",
    }
}

choices! {
    /// What becomes of a server's session whose connection ends without close_notify.
    Unclean {
        /// It leaves the cache, as TLS 1.0 required and libssl does.
        #[default]
        Drop = 0 "drop",
        /// It stays. A fatal alert still costs it.
        Keep = 1 "keep",
    }
}

choices! {
    /// Whether a client's certificate is verified again when its session is resumed.
    Reverify {
        /// Where the session comes from a cache that others use.
        #[default]
        Shared = 0 "shared",
        /// Also from the memory of this process.
        On = 1 "on",
        /// As libssl has it: never.
        Off = 2 "off",
    }
}

choices! {
    /// The session id context of servers that ask for client certificates and set none.
    IdContext {
        /// As the program has it: they fail, or never resume.
        #[default]
        AsIs = 0 "as-is",
        /// The identity of the service.
        Auto = 1 "auto",
    }
}

choices! {
    /// Whether `reprise status` sees this program.
    Status {
        #[default]
        On = 0 "on",
        Off = 1 "off",
    }
}

choices! {
    Log {
        #[default]
        Error = 0 "error",
        Off = 1 "off",
    }
}

impl FromStr for Place {
    type Err = String;

    /// The error is a sentence that names what is wrong with the URL.
    fn from_str(url: &str) -> Result<Place, String> {
        if url.starts_with("redis") {
            return Ok(Place::Redis(Box::new(url.parse()?)));
        }
        let (place, query) = url.split_once('?').unwrap_or((url, ""));
        let parameters = query.split('&').filter(|parameter| !parameter.is_empty());
        let parameters = parameters.map(|parameter| parameter.split_once('=').unwrap_or((parameter, "")));
        match place.split_once(':') {
            Some(("memory", "")) => match parameters.into_iter().next() {
                None => Ok(Place::Memory),
                Some((name, _)) => Err(format!("memory: has no parameter {name:?}")),
            },
            Some(("shm", name)) => {
                let mut spec = Spec::new(name).map_err(|error| error.to_string())?;
                for (name, value) in parameters {
                    match name {
                        "size" => spec.size = size(value)?,
                        "keep" => {
                            spec.keep = match value {
                                "on" => true,
                                "off" => false,
                                _ => return Err(format!("keep={value:?} is unknown (use on or off)")),
                            }
                        }
                        "service" => spec.service = label(value)?,
                        _ => return Err(format!("shm: has no parameter {name:?} (it has size, keep and service)")),
                    }
                }
                Ok(Place::Shm(spec))
            }
            _ => Err("it is no cache URL (use memory:, shm:NAME?size=64M or redis://HOST/0?key=FILE)".into()),
        }
    }
}

/// Bytes, written as 67108864, 65536K, 64M or 1G.
fn size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
        Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let bytes = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    let bytes = bytes.ok_or(format!("size={text:?} is no size (write it as 64M or 1G)"))?;
    if (SMALLEST_SIZE..=LARGEST_SIZE).contains(&bytes) {
        return Ok(bytes.next_multiple_of(4096));
    }
    Err(format!("size={text:?} is out of range (use {}M to {}G)", SMALLEST_SIZE >> 20, LARGEST_SIZE >> 30))
}

/// The longest maximum age: ten years.
pub const LONGEST_AGE: u32 = 10 * 366 * 24 * 3600;

fn max_age(text: &str) -> Option<u32> {
    text.parse().ok().filter(|age| (1..=LONGEST_AGE).contains(age))
}

/// Of `service=`: 1 to 64 of `A-Za-z0-9._-`.
pub fn label(text: &str) -> Result<String, String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if (1..=64).contains(&text.len()) && text.bytes().all(allowed) {
        return Ok(text.into());
    }
    Err("service is no label (use 1 to 64 letters, digits, '.', '_' or '-')".into())
}

#[derive(Debug, PartialEq, Default)]
pub struct Config {
    /// `None` for the default.
    pub semantics: Option<Semantics>,
    pub tickets: Tickets,
    pub internal: Internal,
    pub unclean: Unclean,
    pub reverify: Reverify,
    /// The most seconds that a session is resumed after its full handshake, 0 for no limit.
    pub max_age: u32,
    pub id_context: IdContext,
    pub cache: Place,
    pub log: Log,
    pub stats: Option<PathBuf>,
    pub status: Status,
    /// What is wrong with the environment, to be said when a context is first taken over.
    pub complaints: Vec<String>,
}

impl Config {
    /// `variable` tells the value of an environment variable.
    pub fn from(variable: impl Fn(&str) -> Option<OsString>) -> Config {
        let text =
            |name| variable(name).filter(|value| !value.is_empty()).map(|value| value.to_string_lossy().into_owned());
        let mut config = Config::default();
        let complaints = &mut config.complaints;
        macro_rules! choose {
            ($variable:literal, $kind:ident) => {
                text($variable).map_or($kind::default(), |word| {
                    $kind::from_word(&word).unwrap_or_else(|| {
                        let (words, default) = ($kind::words(), $kind::default().word());
                        complaints.push(format!("{}={word:?} is unknown (use {words}): {default} is used", $variable));
                        $kind::default()
                    })
                })
            };
        }
        config.semantics = text("REPRISE_SEMANTICS").and_then(|word| {
            let known = Semantics::from_word(&word);
            if known.is_none() {
                let words = Semantics::words();
                complaints.push(format!("REPRISE_SEMANTICS={word:?} is unknown (use {words}): the default is used"));
            }
            known
        });
        config.tickets = choose!("REPRISE_TICKETS", Tickets);
        config.internal = choose!("REPRISE_INTERNAL", Internal);
        config.unclean = choose!("REPRISE_UNCLEAN", Unclean);
        config.reverify = choose!("REPRISE_REVERIFY", Reverify);
        config.id_context = choose!("REPRISE_ID_CONTEXT", IdContext);
        config.max_age = text("REPRISE_MAX_AGE").map_or(0, |text| {
            max_age(&text).unwrap_or_else(|| {
                complaints.push(format!(
                    "REPRISE_MAX_AGE={text:?} is no number of seconds from 1 to {LONGEST_AGE}: there is no limit"
                ));
                0
            })
        });
        config.status = choose!("REPRISE_STATUS", Status);
        config.log = choose!("REPRISE_LOG", Log);
        config.cache = text("REPRISE_CACHE").map_or(Place::Memory, |url| {
            url.parse().unwrap_or_else(|error| {
                let url = without_password(&url);
                complaints.push(format!("REPRISE_CACHE={url:?}: {error}: each process caches for itself"));
                Place::Memory
            })
        });
        config.stats = variable("REPRISE_STATS").filter(|path| !path.is_empty()).map(PathBuf::from);
        config
    }
}

/// What is not the default.
static CONFIG: OnceBox<Config> = OnceBox::new();
static DEFAULT: Config = Config {
    semantics: None,
    tickets: Tickets::AsIs,
    internal: Internal::AsIs,
    unclean: Unclean::Drop,
    reverify: Reverify::Shared,
    max_age: 0,
    id_context: IdContext::AsIs,
    cache: Place::Memory,
    log: Log::Error,
    stats: None,
    status: Status::On,
    complaints: Vec::new(),
};

/// Reads the environment. Where it is not to be trusted (a set-user-ID program, which a preload for the whole system
/// reaches), nothing in it counts.
pub fn load(trusted: bool) {
    let config = Config::from(|name| trusted.then(|| std::env::var_os(name)).flatten());
    let config = Config { status: if trusted { config.status } else { Status::Off }, ..config };
    // Nothing is set in most programs that a preload reaches: they are not to pay for a first allocation.
    if config != DEFAULT {
        let _ = CONFIG.set(Box::new(config));
    }
}

pub fn get() -> &'static Config {
    CONFIG.get().unwrap_or(&DEFAULT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(pairs: &'static [(&str, &str)]) -> Config {
        Config::from(|name| pairs.iter().find(|pair| pair.0 == name).map(|pair| pair.1.into()))
    }

    #[test]
    fn nothing_set_and_empty_are_the_defaults() {
        assert_eq!(DEFAULT, Config::default());
        assert_eq!(config(&[]), Config::default());
        assert_eq!(
            config(&[
                ("REPRISE_SEMANTICS", ""),
                ("REPRISE_TICKETS", ""),
                ("REPRISE_INTERNAL", ""),
                ("REPRISE_UNCLEAN", ""),
                ("REPRISE_REVERIFY", ""),
                ("REPRISE_MAX_AGE", ""),
                ("REPRISE_ID_CONTEXT", ""),
                ("REPRISE_CACHE", ""),
                ("REPRISE_STATUS", ""),
                ("REPRISE_LOG", ""),
                ("REPRISE_STATS", "")
            ]),
            Config::default()
        );
    }

    #[test]
    fn what_is_set_counts() {
        let config = config(&[
            ("REPRISE_SEMANTICS", "stock"),
            ("REPRISE_TICKETS", "stateful"),
            ("REPRISE_INTERNAL", "always"),
            ("REPRISE_UNCLEAN", "keep"),
            ("REPRISE_REVERIFY", "off"),
            ("REPRISE_MAX_AGE", "3600"),
            ("REPRISE_ID_CONTEXT", "auto"),
            ("REPRISE_CACHE", "shm:web?size=32M&keep=off"),
            ("REPRISE_STATUS", "off"),
            ("REPRISE_LOG", "off"),
            ("REPRISE_STATS", "/tmp/x"),
        ]);
        let web = Spec { size: 32 << 20, keep: false, ..Spec::new("web").unwrap() };
        assert_eq!(
            config,
            Config {
                semantics: Some(Semantics::Stock),
                tickets: Tickets::Stateful,
                internal: Internal::Always,
                unclean: Unclean::Keep,
                reverify: Reverify::Off,
                max_age: 3600,
                id_context: IdContext::Auto,
                cache: Place::Shm(web),
                status: Status::Off,
                log: Log::Off,
                stats: Some("/tmp/x".into()),
                complaints: vec![]
            }
        );
    }

    #[test]
    fn each_unknown_value_is_named_and_the_default_used() {
        let config = config(&[("REPRISE_SEMANTICS", "Stock"), ("REPRISE_LOG", "no"), ("REPRISE_CACHE", "shm:a/b")]);
        assert_eq!((config.semantics, config.cache), (None, Place::Memory));
        assert_eq!(
            config.complaints[..2],
            [
                r#"REPRISE_SEMANTICS="Stock" is unknown (use documented or stock): the default is used"#,
                r#"REPRISE_LOG="no" is unknown (use error or off): error is used"#
            ]
        );
        assert!(config.complaints[2].starts_with(r#"REPRISE_CACHE="shm:a/b": "#), "{:?}", config.complaints[2]);
    }

    #[test]
    fn cache_urls() {
        let shm = |url: &str| match url.parse() {
            Ok(Place::Shm(spec)) => (spec.size, spec.keep),
            other => panic!("{url}: {other:?}"),
        };
        assert_eq!("memory:".parse(), Ok(Place::Memory));
        assert_eq!(shm("shm:web"), (48 << 20, true));
        assert_eq!(shm("shm:web?size=1G"), (1 << 30, true));
        assert_eq!(shm("shm:/srv/cache?keep=off&size=2097152"), (2 << 20, false));
        for (url, says) in [
            ("", "no cache URL"),
            ("web", "no cache URL"),
            ("shm", "no cache URL"),
            ("Redis://host", "no cache URL"),
            ("redis:", "no URL of a Redis"),
            ("redis://host", "key is missing"),
            ("memory:x", "no cache URL"),
            ("memory:?size=1M", "no parameter \"size\""),
            ("shm:", "name"),
            ("shm:..", "name"),
            ("shm:web?size=", "size=\"\" is no size"),
            ("shm:web?size=12Q", "size=\"12Q\" is no size"),
            ("shm:web?size=-1", "size=\"-1\" is no size"),
            ("shm:web?size=1K", "size=\"1K\" is out of range"),
            ("shm:web?size=99999999G", "out of range"),
            ("shm:web?size=99999999999999999999", "is no size"),
            ("shm:web?keep=maybe", "keep=\"maybe\" is unknown"),
            ("shm:web?service=a/b", "service is no label"),
            ("shm:web?ttl=3", "no parameter \"ttl\""),
        ] {
            let error = url.parse::<Place>().expect_err(url);
            assert!(error.contains(says), "{url}: {error}");
        }
    }
}
