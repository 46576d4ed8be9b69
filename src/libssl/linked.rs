//! Whether somebody linked this library on purpose: the program, or one of its libraries, names it in DT_NEEDED. Otherwise it
//! was preloaded, and the program knows nothing of it.

use libc::{c_int, c_void, size_t};
use std::ffi::CStr;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

/// An entry of a dynamic section (ElfW(Dyn)).
#[repr(C)]
struct Entry {
    tag: usize,
    value: usize,
}

const END: usize = 0; // DT_NULL
const NEEDED: usize = 1; // DT_NEEDED
const STRINGS: usize = 5; // DT_STRTAB

/// Looked for once: what is loaded later cannot change how contexts of before were served.
pub fn is_linked() -> bool {
    const UNKNOWN: u8 = 2;
    static LINKED: AtomicU8 = AtomicU8::new(UNKNOWN);
    let mut linked = LINKED.load(Relaxed);
    if linked == UNKNOWN {
        // SAFETY: `needs_us` is called before this returns, and does not unwind.
        linked = unsafe { libc::dl_iterate_phdr(Some(needs_us), std::ptr::null_mut()) } as u8;
        LINKED.store(linked, Relaxed);
    }
    linked == 1
}

/// 1, which ends the search, if the object names this library.
unsafe extern "C" fn needs_us(info: *mut libc::dl_phdr_info, _: size_t, _: *mut c_void) -> c_int {
    // SAFETY: the loader passes an object that is mapped, whose dynamic section ends with DT_NULL and whose strings
    // end with zeros.
    unsafe {
        let info = &*info;
        let base = info.dlpi_addr as usize;
        let headers = std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into());
        let Some(dynamic) = headers.iter().find(|header| header.p_type == libc::PT_DYNAMIC) else { return 0 };
        let first = (base + dynamic.p_vaddr as usize) as *const Entry;
        let entries = (0..).map(|at| &*first.add(at)).take_while(|entry| entry.tag != END);
        let Some(strings) = entries.clone().find(|entry| entry.tag == STRINGS) else { return 0 };
        // The loader has made most of them addresses.
        let strings = if strings.value < base { base + strings.value } else { strings.value };
        let mut needed = entries.filter(|entry| entry.tag == NEEDED);
        c_int::from(needed.any(|entry| {
            let path = CStr::from_ptr((strings + entry.value) as *const libc::c_char).to_bytes();
            path.rsplit(|&byte| byte == b'/').next().is_some_and(|name| name.starts_with(b"libreprise.so"))
        }))
    }
}
