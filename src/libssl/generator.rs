//! Session id generators of the program (SSL_CTX_set_generate_session_id(3)).
//!
//! After a generator has run, libssl looks for the new id in the internal cache and fails the handshake when it is
//! taken. A libssl built -Bsymbolic looks into its own, empty one. So each generator is installed inside a function of
//! ours, which looks into the right one. Libssl passes such a function no argument of its own: there are a few
//! of them, one for each generator a program has. A program with more gets the others installed as they are.

use super::types::*;
use libc::{c_int, c_uchar, c_uint, c_void};
use once_cell::race::OnceBox;
use std::ptr::null_mut;
use std::sync::atomic::{
    AtomicPtr,
    Ordering::{AcqRel, Acquire},
};

const WRAPPERS: usize = 8;
static GENERATORS: [AtomicPtr<c_void>; WRAPPERS] = [const { AtomicPtr::new(null_mut()) }; WRAPPERS];

/// Says whether the id is taken: SSL_has_matching_session_id(3) as we export it.
pub type IsTaken = unsafe extern "C-unwind" fn(*const SSL, *const c_uchar, c_uint) -> c_int;
static IS_TAKEN: OnceBox<IsTaken> = OnceBox::new();

/// What to install for the program's `generator`.
pub fn wrap(generator: Generator, is_taken: IsTaken) -> Generator {
    IS_TAKEN.get_or_init(|| Box::new(is_taken));
    let function = generator? as *mut c_void;
    let place =
        GENERATORS.iter().position(|place| match place.compare_exchange(null_mut(), function, AcqRel, Acquire) {
            Ok(_) => true,
            Err(theirs) => theirs == function,
        });
    const FUNCTIONS: [unsafe extern "C-unwind" fn(*mut SSL, *mut c_uchar, *mut c_uint) -> c_int; WRAPPERS] = [
        generate::<0>,
        generate::<1>,
        generate::<2>,
        generate::<3>,
        generate::<4>,
        generate::<5>,
        generate::<6>,
        generate::<7>,
    ];
    place.map(|place| FUNCTIONS[place]).or(generator)
}

unsafe extern "C-unwind" fn generate<const N: usize>(ssl: *mut SSL, id: *mut c_uchar, length: *mut c_uint) -> c_int {
    // SAFETY: the place holds a generator once a function of ours is installed for it, and libssl passes
    // arguments as GEN_SESSION_CB documents them. What the generator wrote is as long as it says, or libssl objects.
    unsafe {
        let generator = std::mem::transmute::<*mut c_void, Generator>(GENERATORS[N].load(Acquire));
        let room = *length;
        match generator {
            Some(generator) if generator(ssl, id, length) != 0 => {
                let taken = *length <= room && IS_TAKEN.get().is_some_and(|is_taken| is_taken(ssl, id, *length) != 0);
                c_int::from(!taken)
            }
            _ => 0,
        }
    }
}
