//! What the environment says, read once and as early as can be: nginx clears it for its workers.
//!
//! | variable | value |
//! |---|---|
//! | `REPRISE_SEMANTICS` | `documented` (default) or `stock` |
//! | `REPRISE_LOG` | `error` (default) or `off` |
//! | `REPRISE_STATUS` | `on` (default) or `off`: whether `reprise status` sees the program, see [`crate::board`] |
//! | `REPRISE_STATS` | a file that the processes of a program count into, see [`crate::totals`] |

use once_cell::race::OnceBox;
use std::ffi::OsString;
use std::path::PathBuf;

/// Whose word counts where the manual and libssl differ.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Semantics {
    Documented = 0,
    Stock = 1,
}

impl Semantics {
    /// REPRISE_SEMANTICS_DOCUMENTED, REPRISE_SEMANTICS_STOCK
    pub fn from_number(number: i32) -> Option<Semantics> {
        [Semantics::Documented, Semantics::Stock].into_iter().find(|&semantics| semantics as i32 == number)
    }
}

#[derive(Debug, PartialEq)]
pub struct Config {
    pub semantics: Semantics,
    pub logs: bool,
    pub stats: Option<PathBuf>,
    /// Whether `reprise status` sees this program.
    pub status: bool,
    /// What is wrong with the environment, to be said when a context is first taken over.
    pub complaint: Option<String>,
}

impl Config {
    /// `variable` tells the value of an environment variable.
    pub fn from(variable: impl Fn(&str) -> Option<OsString>) -> Config {
        let text =
            |name| variable(name).filter(|value| !value.is_empty()).map(|value| value.to_string_lossy().into_owned());
        let mut complaint = None;
        let semantics = match text("REPRISE_SEMANTICS").as_deref() {
            None | Some("documented") => Semantics::Documented,
            Some("stock") => Semantics::Stock,
            Some(other) => {
                complaint = Some(format!(
                    "REPRISE_SEMANTICS={other:?} is unknown (use documented or stock): documented is used"
                ));
                Semantics::Documented
            }
        };
        let logs = match text("REPRISE_LOG").as_deref() {
            None | Some("error") => true,
            Some("off") => false,
            Some(other) => {
                complaint =
                    complaint.or(Some(format!("REPRISE_LOG={other:?} is unknown (use error or off): error is used")));
                true
            }
        };
        let status = match text("REPRISE_STATUS").as_deref() {
            None | Some("on") => true,
            Some("off") => false,
            Some(other) => {
                complaint =
                    complaint.or(Some(format!("REPRISE_STATUS={other:?} is unknown (use on or off): on is used")));
                true
            }
        };
        let stats = variable("REPRISE_STATS").filter(|path| !path.is_empty()).map(PathBuf::from);
        Config { semantics, logs, stats, status, complaint }
    }
}

static CONFIG: OnceBox<Config> = OnceBox::new();

/// Reads the environment. Where it is not to be trusted (a set-user-ID program, which a preload for the whole system
/// reaches), nothing in it counts.
pub fn load(trusted: bool) {
    CONFIG.get_or_init(|| {
        let config = Config::from(|name| trusted.then(|| std::env::var_os(name)).flatten());
        Box::new(Config { status: config.status && trusted, ..config })
    });
}

pub fn get() -> &'static Config {
    CONFIG.get_or_init(|| Box::new(Config::from(|_| None)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(pairs: &'static [(&str, &str)]) -> Config {
        Config::from(|name| pairs.iter().find(|pair| pair.0 == name).map(|pair| pair.1.into()))
    }

    #[test]
    fn nothing_set_and_empty_are_the_defaults() {
        let default =
            Config { semantics: Semantics::Documented, logs: true, stats: None, status: true, complaint: None };
        assert_eq!(config(&[]), default);
        assert_eq!(config(&[("REPRISE_SEMANTICS", ""), ("REPRISE_LOG", ""), ("REPRISE_STATS", "")]), default);
    }

    #[test]
    fn what_is_set_counts() {
        let config = config(&[("REPRISE_SEMANTICS", "stock"), ("REPRISE_LOG", "off"), ("REPRISE_STATS", "/tmp/x")]);
        assert_eq!(
            config,
            Config {
                semantics: Semantics::Stock,
                logs: false,
                stats: Some("/tmp/x".into()),
                status: true,
                complaint: None
            }
        );
    }

    #[test]
    fn an_unknown_value_is_named_and_the_default_used() {
        let config = config(&[("REPRISE_SEMANTICS", "Stock")]);
        assert_eq!(config.semantics, Semantics::Documented);
        assert_eq!(
            config.complaint.unwrap(),
            r#"REPRISE_SEMANTICS="Stock" is unknown (use documented or stock): documented is used"#
        );
    }
}
