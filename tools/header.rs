//! The last step in making include/reprise.h, a part of build.rs: what cbindgen wrote becomes a header for who writes C.
//!
//! The comments come from the Rust sources, where they are written for who changes Reprise. C programmers do not need the
//! `# Safety` sections, which say what every C function asks of its pointers; and they do not know the numbers of the
//! rules, so that the manual pages that the rules come from are named instead. All comments are `/* */`, since
//! `-std=gnu90 -Wpedantic` refuses the other kind.

const WIDTH: usize = 120;

/// Where the rules of a letter come from.
const PAGES: [(&str, &str); 10] = [
    ("CB", "SSL_CTX_sess_set_get_cb(3)"),
    ("ADD", "SSL_CTX_add_session(3)"),
    ("GET", "SSL_get_session(3)"),
    ("MODE", "SSL_CTX_set_session_cache_mode(3)"),
    ("FLUSH", "SSL_CTX_flush_sessions(3)"),
    ("SIZE", "SSL_CTX_sess_set_cache_size(3)"),
    ("STAT", "SSL_CTX_sess_number(3)"),
    ("ID", "SSL_CTX_set_generate_session_id(3)"),
    ("REPLAY", "SSL_read_early_data(3)"),
    ("ABI", "SSL_CTX_ctrl(3)"),
];

/// Ends what cbindgen.toml begins before the declarations.
const END_OF_DECLARATIONS: &str = "#if defined(__GNUC__)\n#pragma GCC diagnostic pop\n#endif\n\n";

/// `text` is what cbindgen wrote with comments of the kind `//`, `version` is MAJOR.MINOR.PATCH.
pub fn finish(text: &str, version: &str) -> String {
    let mut header = String::new();
    let mut comment = Vec::new();
    for line in text.lines() {
        let code = line.trim_start();
        if let Some(words) = code.strip_prefix("//") {
            comment.push(words.strip_prefix(' ').unwrap_or(words));
            continue;
        }
        if code.starts_with("#endif") && code.contains("REPRISE_H") {
            header += END_OF_DECLARATIONS;
        }
        let indent = &line[..line.len() - code.len()];
        header += &rewritten(&std::mem::take(&mut comment), indent);
        // `#endif // __cplusplus`
        match line.split_once("//") {
            Some((code, words)) => header += &format!("{code}/* {} */\n", words.trim()),
            None => header += &format!("{line}\n"),
        }
        if line == "#define REPRISE_H" {
            header += &macros(version);
        }
    }
    header
}

/// The macros by which a program tells at compile time which version this header is of.
fn macros(version: &str) -> String {
    let mut numbers = version.split(['.', '-', '+']);
    let mut macros = String::from("\n/* The version of this header; reprise_version() tells that of the library. */\n");
    for part in ["MAJOR", "MINOR", "PATCH"] {
        let number = numbers.next().expect("a version has three numbers");
        macros += &format!("#define REPRISE_VERSION_{part} {number}\n");
    }
    macros
}

/// The comment of one item as C has it.
fn rewritten(comment: &[&str], indent: &str) -> String {
    let kept = without_sections(comment);
    let mut paragraphs: Vec<String> = Vec::new();
    for paragraph in kept.split(|line| line.is_empty()).filter(|lines| !lines.is_empty()) {
        paragraphs.push(paragraph.join(" "));
    }
    let mut pages = Vec::new();
    for paragraph in &mut paragraphs {
        *paragraph = without_rules(paragraph, &mut pages);
    }
    let Some(last) = paragraphs.last_mut() else { return String::new() };
    pages.retain(|page| !last.contains(page));
    if let Some((page, others)) = pages.split_last() {
        let separator = if others.is_empty() { "" } else { " and " };
        last.push_str(&format!(" See {}{separator}{page}.", others.join(", ")));
    }
    let mut lines = Vec::new();
    for (number, paragraph) in paragraphs.iter().enumerate() {
        if number > 0 {
            lines.push(String::new());
        }
        lines.extend(wrapped(paragraph, WIDTH - indent.len() - " * ".len()));
    }
    if let [line] = &lines[..] {
        if indent.len() + line.len() + "/*  */".len() <= WIDTH {
            return format!("{indent}/* {line} */\n");
        }
    }
    let mut text = format!("{indent}/*\n");
    for line in lines {
        text += format!("{indent} * {line}").trim_end();
        text.push('\n');
    }
    text + indent + " */\n"
}

/// What stands before the first heading: `# Safety` is the only one that these comments have.
fn without_sections<'a>(comment: &[&'a str]) -> Vec<&'a str> {
    comment.iter().take_while(|line| !line.starts_with("# ")).copied().collect()
}

/// Takes `(ADD1, CB2 to CB4)` out of a text; the pages that these rules come from are added to `pages`.
fn without_rules(text: &str, pages: &mut Vec<&'static str>) -> String {
    let mut kept = String::new();
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once(" (") {
        kept += before;
        match behind.split_once(')') {
            Some((inside, after))
                if inside.split([',', ' ']).all(|word| is_filler(word) || page_of(word).is_some()) =>
            {
                for page in inside.split([',', ' ']).filter_map(page_of) {
                    if !pages.contains(&page) {
                        pages.push(page);
                    }
                }
                rest = after;
            }
            _ => {
                kept += " (";
                rest = behind;
            }
        }
    }
    kept + rest
}

fn is_filler(word: &str) -> bool {
    ["", "to", "and"].contains(&word)
}

/// Of `ADD1` that of the rules ADD.
fn page_of(word: &str) -> Option<&'static str> {
    let letters = word.trim_end_matches(|c: char| c.is_ascii_digit());
    let page = PAGES.iter().find(|(rules, _)| *rules == letters && letters.len() < word.len());
    page.map(|&(_, page)| page)
}

fn wrapped(paragraph: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in paragraph.split_whitespace() {
        let line = lines.last_mut().expect("there is a first line");
        if line.is_empty() {
            line.push_str(word);
        } else if line.len() + 1 + word.len() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}
