//! **Reprise** takes over OpenSSL's session cache: it exports the session-cache API of libssl, answers it with a cache
//! of its own, and leaves TLS to the real libssl.
//!
//! | room | what is done there |
//! |---|---|
//! | `abi` | the exported C functions, a file for each manual page |
//! | [`gate`] | what fork() waits for |
//! | `hooks` | the three functions that libssl calls |
//! | `context` | one SSL_CTX: what the manual says happens here |
//! | [`cache`] | the internal cache, generic over its sessions |
//! | `libssl` | the library below: its functions and objects as Rust |
//! | [`board`] | the counters of every process, for `reprise status` |
//! | [`config`] | the environment |
//! | `cancel` | system calls that pthread_cancel leaves alone |
//! | `thread` | which thread this is, and how it waits for others |
//! | `unwind` | where panics end and nothing else does |
//! | [`totals`] | the counts of a whole program, for who watches from outside |
//! | `log` | one line on stderr, when it must be |
#![deny(unsafe_op_in_unsafe_fn)]

mod abi;
pub mod board;
pub mod cache;
mod cancel;
pub mod config;
mod context;
pub mod gate;
mod hooks;
mod libssl;
mod log;
mod thread;
pub mod totals;
mod unwind;
