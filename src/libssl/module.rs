//! What a function is called in every process that runs the same program: the build id of its module and its place in
//! it. Addresses differ from process to process, and build ids tell one build from another.

use libc::{c_int, c_void, dl_phdr_info, size_t, PT_LOAD, PT_NOTE};

/// The longest build id that is read; linkers make 8 to 32 bytes.
const LONGEST_ID: usize = 64;
const NT_GNU_BUILD_ID: u32 = 3;

/// A function of a module that has a build id.
#[derive(Debug, PartialEq, Eq)]
pub struct Function {
    pub build_id: Vec<u8>,
    /// From where the module is loaded.
    pub offset: usize,
}

struct Search {
    address: usize,
    found: Option<Function>,
}

/// `None` for an address outside every module (code made at run time), and in a module without a build id.
pub fn function(address: usize) -> Option<Function> {
    let mut search = Search { address, found: None };
    // SAFETY: `one` gets the address of `search` and is called before this returns.
    unsafe { libc::dl_iterate_phdr(Some(one), (&raw mut search).cast()) };
    search.found
}

/// Does not unwind: it compares and copies, and a failed allocation ends the process.
unsafe extern "C" fn one(info: *mut dl_phdr_info, _: size_t, search: *mut c_void) -> c_int {
    const GO_ON: c_int = 0;
    const STOP: c_int = 1;
    // SAFETY: the loader passes a module with `dlpi_phnum` headers, and `search` is what `function` passed.
    let (base, headers, search) = unsafe {
        let (info, search) = (&*info, &mut *search.cast::<Search>());
        let headers = std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into());
        (info.dlpi_addr as usize, headers, search)
    };
    let within = |header: &libc::Elf64_Phdr| {
        let start = base.wrapping_add(header.p_vaddr as usize);
        header.p_type == PT_LOAD && (start..start.wrapping_add(header.p_memsz as usize)).contains(&search.address)
    };
    if !headers.iter().any(within) {
        return GO_ON;
    }
    let notes = headers.iter().filter(|header| header.p_type == PT_NOTE).map(|header| {
        let start = base.wrapping_add(header.p_vaddr as usize) as *const u8;
        // SAFETY: the loader has mapped the notes of a module with the module.
        unsafe { std::slice::from_raw_parts(start, header.p_filesz as usize) }
    });
    search.found = notes
        .into_iter()
        .find_map(build_id)
        .map(|build_id| Function { build_id: build_id.to_vec(), offset: search.address.wrapping_sub(base) });
    STOP
}

/// Of a segment of notes: each has the lengths of its name and content, its type, and both padded to 4 bytes.
fn build_id(mut notes: &[u8]) -> Option<&[u8]> {
    loop {
        let (head, rest) = notes.split_first_chunk::<12>()?;
        let field = |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (name_length, length) = (field(0) as usize, field(4) as usize);
        let content = rest.get(name_length.checked_next_multiple_of(4)?..)?;
        if field(8) == NT_GNU_BUILD_ID && rest.starts_with(b"GNU\0") && (1..=LONGEST_ID).contains(&length) {
            return content.get(..length);
        }
        notes = content.get(length.checked_next_multiple_of(4)?..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_searched_and_damaged_ones_end_it() {
        let note = |kind: u32, content: &[u8]| {
            let mut note = Vec::new();
            [4, content.len() as u32, kind].iter().for_each(|word| note.extend_from_slice(&word.to_ne_bytes()));
            note.extend_from_slice(b"GNU\0");
            note.extend_from_slice(content);
            note.resize(note.len().next_multiple_of(4), 0);
            note
        };
        let both = [note(5, b"other"), note(3, b"an id of its own")].concat();
        assert_eq!(build_id(&both), Some(&b"an id of its own"[..]));
        for end in 0..both.len() {
            assert_eq!(build_id(&both[..end]), None, "{end}");
        }
        assert_eq!(build_id(&note(3, &[1; LONGEST_ID + 1])), None);
    }

    #[test]
    fn libc_functions_have_a_name_and_the_heap_has_none() {
        let open = function(libc::open as *const () as usize);
        let close = function(libc::close as *const () as usize);
        if let (Some(open), Some(close)) = (open, close) {
            assert_eq!(open.build_id, close.build_id);
            assert_ne!(open.offset, close.offset);
        }
        let heap = Box::new(1);
        assert_eq!(function(&raw const *heap as usize), None);
    }
}
