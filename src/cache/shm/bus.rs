//! A file that is cut short while it is mapped: whoever touches what is missing gets SIGBUS, which would end the program.
//! Here the mapping is replaced by empty memory instead, and the process goes on without the cache.

use super::area;
use libc::{c_int, c_void, siginfo_t};
use std::mem::MaybeUninit;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Acquire, Ordering::Release};

/// What was to be done before: the handler's address, and its flags.
static BEFORE: [AtomicUsize; 2] = [const { AtomicUsize::new(libc::SIG_DFL) }; 2];

/// Sees to it from now on. A handler that the program sets later takes its place.
///
/// Two threads may do it at once, and a child may be forked in the middle of it: so nobody waits for anybody here.
pub fn handle() {
    static HANDLED: AtomicBool = AtomicBool::new(false);
    if HANDLED.load(Acquire) {
        return;
    }
    // SAFETY: structs of integers and a handler that lives as long as the process, since the library is never unloaded.
    unsafe {
        let mut before = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
        let known = libc::sigaction(libc::SIGBUS, std::ptr::null(), &mut before) == 0;
        if known && before.sa_sigaction != on_bus as *const () as usize {
            BEFORE[0].store(before.sa_sigaction, Release);
            BEFORE[1].store(before.sa_flags as usize, Release);
            let mut ours = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
            ours.sa_sigaction = on_bus as *const () as usize;
            ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
            ours.sa_mask = before.sa_mask;
            libc::sigaction(libc::SIGBUS, &ours, null_mut());
        }
    }
    HANDLED.store(true, Release);
}

unsafe extern "C" fn on_bus(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // Sent by kill(2) it has no address.
    const FROM_KERNEL: c_int = 0;
    // SAFETY: the kernel passes a siginfo_t, which has an address where the code says that it is a fault.
    let (is_fault, address) = unsafe { ((*info).si_code > FROM_KERNEL, (*info).si_addr() as usize) };
    if is_fault {
        if let Some(area) = area::at(address) {
            // SAFETY: this thread's own.
            let errno = unsafe { *libc::__errno_location() };
            let done = area.lose();
            // SAFETY: as above.
            unsafe { *libc::__errno_location() = errno };
            if done {
                return;
            }
        }
    }
    let (handler, flags) = (BEFORE[0].load(Acquire), BEFORE[1].load(Acquire) as c_int);
    match handler {
        libc::SIG_IGN if !is_fault => {}
        libc::SIG_DFL | libc::SIG_IGN => {
            // A fault comes again when this returns, and then ends the process.
            // SAFETY: plain numbers.
            unsafe {
                libc::signal(signal, libc::SIG_DFL);
                if !is_fault {
                    libc::raise(signal);
                }
            }
        }
        // SAFETY: it was the handler for this signal, of the kind that its flags say.
        _ if flags & libc::SA_SIGINFO != 0 => unsafe {
            std::mem::transmute::<usize, extern "C" fn(c_int, *mut siginfo_t, *mut c_void)>(handler)(
                signal, info, context,
            )
        },
        // SAFETY: as above.
        _ => unsafe { std::mem::transmute::<usize, extern "C" fn(c_int)>(handler)(signal) },
    }
}
