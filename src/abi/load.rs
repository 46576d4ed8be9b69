//! When the library is loaded: what cannot wait. libssl is not looked for yet, it may come later; but one that was here
//! before is noted.

use crate::{board, cancel, config, context, gate, libssl, log, thread, totals};

/// Reads the environment, which some programs clear, and opens what it names, which may be out of reach later.
#[cfg_attr(miri, allow(dead_code))]
extern "C" fn load() {
    super::border((), || {
        let _off = cancel::off();
        log::load();
        // SAFETY: getauxval has no preconditions.
        config::load(unsafe { libc::getauxval(libc::AT_SECURE) } == 0);
        totals::open();
        libssl::look_ahead();
        thread::watch_ends(gate::thread_ends);
        // SAFETY: the functions live as long as the process, since the library is never unloaded.
        unsafe { libc::pthread_atfork(Some(prepare), Some(parent), Some(child)) };
        Some(())
    })
}

#[cfg(not(miri))] // which runs the cache alone, and knows neither getauxval nor pthread_atfork
#[used]
#[link_section = ".init_array"]
static LOAD: extern "C" fn() = load;

/// The process ends in good order. (Many do not; nothing depends on it.)
#[cfg_attr(miri, allow(dead_code))]
extern "C" fn unload() {
    super::border((), || {
        let _off = cancel::off();
        context::end_of_process();
        board::leave();
        Some(())
    })
}

#[cfg(not(miri))]
#[used]
#[link_section = ".fini_array"]
static UNLOAD: extern "C" fn() = unload;

unsafe extern "C" fn prepare() {
    super::border((), || {
        context::fork::prepare();
        Some(())
    })
}

unsafe extern "C" fn parent() {
    super::border((), || {
        context::fork::resume();
        Some(())
    })
}

unsafe extern "C" fn child() {
    super::border((), || {
        context::fork::child();
        context::fork::resume();
        Some(())
    })
}
