//! What an ELF file tells: for which machine it is, what it needs and exports, and what it holds inside.

use goblin::elf::dynamic::DT_NEEDED;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub struct Elf {
    bytes: Vec<u8>,
    pub machine: u16,
    pub is_64: bool,
    /// The loader that starts it; none in a static program or a library.
    pub interpreter: Option<String>,
    /// Names of the libraries it asks for itself, in its order.
    pub needed: Vec<String>,
    exports: Vec<String>,
    /// Names of functions it has but keeps to itself; empty if it was stripped.
    symbols: Vec<String>,
}

impl Elf {
    pub fn read(path: &Path) -> io::Result<Elf> {
        let bytes = std::fs::read(path)?;
        let elf = goblin::elf::Elf::parse(&bytes).map_err(|error| io::Error::other(error.to_string()))?;
        let needed = elf.dynamic.iter().flat_map(|dynamic| &dynamic.dyns).filter(|entry| entry.d_tag == DT_NEEDED);
        let named = |symbols: &goblin::elf::Symtab, names: &goblin::strtab::Strtab| -> Vec<String> {
            let defined = symbols.iter().filter(|symbol| !symbol.is_import() && symbol.is_function());
            defined.filter_map(|symbol| names.get_at(symbol.st_name).map(str::to_owned)).collect()
        };
        let elf = Elf {
            machine: elf.header.e_machine,
            is_64: elf.is_64,
            interpreter: elf.interpreter.map(str::to_owned),
            needed: needed.filter_map(|entry| elf.dynstrtab.get_at(entry.d_val as usize).map(str::to_owned)).collect(),
            exports: named(&elf.dynsyms, &elf.dynstrtab),
            symbols: named(&elf.syms, &elf.strtab),
            bytes: Vec::new(),
        };
        Ok(Elf { bytes, ..elf })
    }

    pub fn exports(&self, function: &str) -> bool {
        self.exports.iter().any(|name| name == function)
    }

    pub fn has_inside(&self, function: &str) -> bool {
        self.symbols.iter().any(|name| name == function)
    }

    pub fn contains(&self, text: &str) -> bool {
        self.bytes_contain(text.as_bytes())
    }

    pub fn bytes_contain(&self, text: &[u8]) -> bool {
        self.bytes.windows(text.len()).any(|window| window == text)
    }

    /// The version of an OpenSSL whose code is in this file, as in "OpenSSL 3.0.22 25 Aug 2026".
    pub fn openssl_inside(&self) -> Option<String> {
        const NAME: &[u8] = b"OpenSSL ";
        let mut from = 0;
        while let Some(at) = self.bytes.get(from..)?.windows(NAME.len()).position(|window| window == NAME) {
            let start = from + at;
            let text: Vec<u8> = self.bytes[start..].iter().take(40).copied().take_while(|byte| *byte >= b' ').collect();
            let text = String::from_utf8_lossy(&text).into_owned();
            let words: Vec<&str> = text.split(' ').collect();
            let is_version = |word: &str| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.');
            let is_date = words.get(4).is_some_and(|year| year.len() >= 4 && year.starts_with("20"));
            if words.get(1).is_some_and(|word| is_version(word)) && is_date {
                return Some(words[..5].join(" "));
            }
            from = start + NAME.len();
        }
        None
    }
}

/// What tells files for different processors apart, from the head of an ELF file: its class (32 or 64 bits), its byte
/// order and its machine.
pub fn architecture(path: &Path) -> io::Result<([u8; 2], [u8; 2])> {
    let mut head = [0; 20];
    File::open(path)?.read_exact(&mut head)?;
    Ok(([head[4], head[5]], [head[18], head[19]]))
}

/// A library as the loader finds it.
pub struct Library {
    pub name: String,
    pub path: PathBuf,
}

/// All libraries that come with `file`, or what the loader says is missing. The loader only lists them: nothing of the
/// program runs.
pub fn libraries(loader: &str, file: &Path) -> Result<Vec<Library>, String> {
    let mut command = Command::new(loader);
    command.arg("--list").arg(file).env_remove("LD_PRELOAD").stdin(Stdio::null());
    let output = command.output().map_err(|error| format!("{loader}: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr)
            .lines()
            .next()
            .unwrap_or("the loader refuses it")
            .to_owned());
    }
    let library = |line: &str| {
        let (name, rest) = line.trim().split_once(" => ")?;
        let path = rest.rsplit_once(" (").map_or(rest, |(path, _)| path);
        Some(Library { name: name.to_owned(), path: PathBuf::from(path) })
    };
    Ok(text.lines().filter_map(library).collect())
}
