//! Panics end at the C border; everything else that unwinds passes through.
//!
//! A program's callback may throw a C++ exception, and pthread_cancel unwinds the whole thread. Both come from below us
//! (the callback) and go on above us (libssl, the program). `std::panic::catch_unwind` aborts the process when it meets
//! either, since it catches everything and knows panics only. [`catch`] has a frame of its own instead, `reprise_try`,
//! whose personality routine asks the unwinder to stop there for our own panics and for nothing else. A panic that was
//! caught is raised once more inside `catch_unwind`, which frees it and keeps std's count of panics right.
//!
//! All code between a callback and the program must be fit to be unwound: functions that may be are `extern "C-unwind"`,
//! and what has to be put right again is put right in `Drop`.

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod frame {
    use std::ffi::{c_int, c_void};
    use std::mem::ManuallyDrop;
    use std::panic::{catch_unwind, AssertUnwindSafe};

    extern "C" {
        fn _Unwind_SetGR(frame: *mut c_void, register: c_int, value: usize);
        fn _Unwind_SetIP(frame: *mut c_void, address: usize);
    }

    extern "C-unwind" {
        fn _Unwind_RaiseException(exception: *mut c_void) -> c_int;
        /// Calls `body(data)` and returns NULL, or the panic that came out of it.
        fn reprise_try(body: unsafe extern "C-unwind" fn(*mut c_void), data: *mut c_void) -> *mut c_void;
        /// Where a panic comes out.
        fn reprise_try_panicked();
    }

    #[cfg(target_arch = "x86_64")]
    std::arch::global_asm!(
        ".pushsection .text.reprise_try,\"ax\",@progbits",
        ".globl reprise_try",
        ".globl reprise_try_panicked",
        ".hidden reprise_try",
        ".hidden reprise_try_panicked",
        ".type reprise_try,@function",
        ".p2align 4",
        "reprise_try:",
        ".cfi_startproc",
        ".cfi_personality 0x1b, {personality}", // DW_EH_PE_pcrel | DW_EH_PE_sdata4
        "sub rsp, 8",
        ".cfi_adjust_cfa_offset 8",
        "mov rax, rdi",
        "mov rdi, rsi",
        "call rax",
        "xor eax, eax",
        "reprise_try_panicked:", // with the panic in rax
        "add rsp, 8",
        ".cfi_adjust_cfa_offset -8",
        "ret",
        ".cfi_endproc",
        ".size reprise_try, .-reprise_try",
        ".popsection",
        personality = sym personality,
    );

    #[cfg(target_arch = "aarch64")]
    std::arch::global_asm!(
        ".pushsection .text.reprise_try,\"ax\",@progbits",
        ".globl reprise_try",
        ".globl reprise_try_panicked",
        ".hidden reprise_try",
        ".hidden reprise_try_panicked",
        ".type reprise_try,@function",
        ".p2align 4",
        "reprise_try:",
        ".cfi_startproc",
        ".cfi_personality 0x1b, {personality}",
        "stp x29, x30, [sp, #-16]!",
        ".cfi_def_cfa_offset 16",
        ".cfi_offset x29, -16",
        ".cfi_offset x30, -8",
        "mov x29, sp",
        "mov x2, x0",
        "mov x0, x1",
        "blr x2",
        "mov x0, #0",
        "reprise_try_panicked:", // with the panic in x0
        "ldp x29, x30, [sp], #16",
        ".cfi_restore x29",
        ".cfi_restore x30",
        ".cfi_def_cfa_offset 0",
        "ret",
        ".cfi_endproc",
        ".size reprise_try, .-reprise_try",
        ".popsection",
        personality = sym personality,
    );

    /// Asked by the unwinder about the frame of `reprise_try`: what to do with an exception that comes out of it.
    unsafe extern "C" fn personality(
        _version: c_int,
        actions: c_int,
        class: u64,
        exception: *mut c_void,
        frame: *mut c_void,
    ) -> c_int {
        const SEARCHING: c_int = 1; // _UA_SEARCH_PHASE
        const FORCED: c_int = 8; // _UA_FORCE_UNWIND: pthread_cancel, pthread_exit
        const HANDLER_FOUND: c_int = 6; // _URC_HANDLER_FOUND
        const INSTALL_CONTEXT: c_int = 7; // _URC_INSTALL_CONTEXT
        const GO_ON: c_int = 8; // _URC_CONTINUE_UNWIND
        const RUST: u64 = u64::from_ne_bytes(*b"MOZ\0RUST");
        const RESULT: c_int = 0; // rax, x0

        // Another library's Rust panics in a std of its own, and then nobody panics in ours.
        if class != RUST || actions & FORCED != 0 || !std::thread::panicking() {
            return GO_ON;
        }
        if actions & SEARCHING != 0 {
            return HANDLER_FOUND;
        }
        // SAFETY: the unwinder passes the frame of `reprise_try`, which goes on at that label with that register.
        unsafe {
            _Unwind_SetGR(frame, RESULT, exception as usize);
            _Unwind_SetIP(frame, reprise_try_panicked as *const () as usize);
        }
        INSTALL_CONTEXT
    }

    struct Call<F, T> {
        body: ManuallyDrop<F>,
        result: Option<T>,
    }

    unsafe extern "C-unwind" fn call<F: FnOnce() -> T, T>(data: *mut c_void) {
        // SAFETY: `catch` passes its own, once.
        unsafe {
            let call = &mut *data.cast::<Call<F, T>>();
            call.result = Some(ManuallyDrop::take(&mut call.body)());
        }
    }

    #[inline]
    pub fn catch<F: FnOnce() -> T, T>(body: F) -> Option<T> {
        let mut todo = Call { body: ManuallyDrop::new(body), result: None };
        // SAFETY: `call` is made for this type, and is done when `reprise_try` returns.
        let panic = unsafe { reprise_try(call::<F, T>, (&raw mut todo).cast()) };
        if !panic.is_null() {
            free(panic);
            return None;
        }
        todo.result
    }

    #[cold]
    fn free(panic: *mut c_void) {
        // SAFETY: the panic was caught, belongs to nobody else, and is raised once.
        drop(catch_unwind(AssertUnwindSafe(|| unsafe { _Unwind_RaiseException(panic) })));
    }
}

/// What `body` returns, `None` if it panics.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub use frame::catch;

/// The same where nobody has written the frame yet: exceptions of others end the process here.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub fn catch<T>(body: impl FnOnce() -> T) -> Option<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).ok()
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::catch;
    use std::cell::Cell;

    struct Drops<'a>(&'a Cell<u32>);
    impl Drop for Drops<'_> {
        fn drop(&mut self) {
            self.0.set(self.0.get() + 1);
        }
    }

    #[test]
    fn a_panic_ends_here_and_leaves_nothing_behind() {
        let dropped = Cell::new(0);
        for round in 1..=1000 {
            let drops = Drops(&dropped);
            let caught = catch(|| {
                let _drops = drops;
                if round > 0 {
                    panic!("number {round}");
                }
            });
            assert_eq!((caught, dropped.get(), std::thread::panicking()), (None, round, false));
        }
        assert_eq!(catch(|| 7), Some(7));
        // One inside the other, and one while another is being dropped.
        assert_eq!(catch(|| catch(|| -> u8 { panic!("inner") }).unwrap_or(3)), Some(3));
        struct Catches;
        impl Drop for Catches {
            fn drop(&mut self) {
                assert_eq!(catch(|| 5), Some(5));
            }
        }
        assert_eq!(
            catch(|| {
                let _catches = Catches;
                panic!("outer")
            }),
            None::<()>
        );
    }
}
