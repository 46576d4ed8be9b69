//! The real SSL_CTX below: how it is made, told to leave caching to us, and asked for what only it can do.
//!
//! Where libssl's own calls go through the PLT (Debian's), they arrive at our exports, some with the context's lock
//! held. [`Inside`] says on which context this thread is inside the real library, so that the exports pass
//! those calls straight through.

use super::types::*;
use super::{table, table::with_method, Session};
use crate::cache::{Key, Session as _};
use libc::{c_char, c_int, c_long, c_void};
use std::cell::Cell;
use std::ptr::{null_mut, NonNull};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU8, AtomicUsize, Ordering::Relaxed};

/// A live SSL_CTX.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Ctx(NonNull<SSL_CTX>);

// SAFETY: an SSL_CTX is shared between threads by design.
unsafe impl Send for Ctx {}
// SAFETY: as above.
unsafe impl Sync for Ctx {}

/// In libssl's own cache nothing is looked up, stored or cleared. These bits are there whatever the program's mode is, so that
/// libssl never takes a context that is served for one with SSL_SESS_CACHE_OFF: from 4.1 on it issues no TLS 1.3 tickets
/// with that and SSL_OP_NO_TICKET.
const OWN_MODE: u32 = SSL_SESS_CACHE_NO_INTERNAL | SSL_SESS_CACHE_NO_AUTO_CLEAR;
const _: () = assert!(OWN_MODE != 0);

/// The three functions that libssl calls for a context that was taken over.
#[derive(Clone, Copy)]
pub struct Hooks {
    pub new: NewCallback,
    pub remove: RemoveCallback,
    pub get: GetCallback,
}

thread_local! {
    static INSIDE: Cell<*mut SSL_CTX> = const { Cell::new(null_mut()) };
    static CREATING: Cell<bool> = const { Cell::new(false) };
    /// The session that `claim` handed to libssl on this thread and that libssl will ask to remove next.
    static CLAIMED: Cell<Claim> = const { Cell::new(Claim { ctx: null_mut(), session: null_mut(), key: None }) };
}

/// By the addresses of both, which need not be alive any more.
#[derive(Clone, Copy)]
struct Claim {
    ctx: *mut SSL_CTX,
    session: *mut SSL_SESSION,
    key: Option<Key>,
}

/// How many threads are inside, and how many claims stand: mostly none, and then no thread need look for its own.
static ANY_INSIDE: AtomicUsize = AtomicUsize::new(0);
static ANY_CLAIMED: AtomicUsize = AtomicUsize::new(0);

/// Whether a cache of the loaded libssl holds as many sessions as its size says, or one less (SIZE1).
static SIZE_RULE: AtomicU8 = AtomicU8::new(UNKNOWN);
const UNKNOWN: u8 = 0;
const ALL: u8 = 1;
const ONE_LESS: u8 = 2;

/// Whether a full cache of libssl makes room for a session that it has counted already, and so holds one less than its
/// size: 3.0.8 does, 3.0.2 does not. Known from the first SSL_CTX that is taken over.
pub fn holds_one_less() -> bool {
    SIZE_RULE.load(Relaxed) == ONE_LESS
}

static KEEPS_TURNS: AtomicBool = AtomicBool::new(false);

/// Whether a session that is added again keeps its turn among those that expire in the same second, as in 3.5.7. In older
/// releases it leaves after them. Known from the first SSL_CTX that is taken over.
pub fn keeps_turns() -> bool {
    KEEPS_TURNS.load(Relaxed)
}

struct Inside(*mut SSL_CTX);

impl Inside {
    fn enter(ctx: Ctx) -> Inside {
        ANY_INSIDE.fetch_add(1, Relaxed);
        Inside(INSIDE.replace(ctx.as_ptr()))
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.set(self.0);
        ANY_INSIDE.fetch_sub(1, Relaxed);
    }
}

/// Whether this thread is in a call of ours down to the real library with this context.
pub fn is_inside(ctx: *mut SSL_CTX) -> bool {
    ANY_INSIDE.load(Relaxed) > 0 && INSIDE.get() == ctx
}

/// Ends also when a function of the program's, called by libssl, does not return.
struct Creating(bool);

impl Drop for Creating {
    fn drop(&mut self) {
        CREATING.set(self.0);
    }
}

/// Whether this thread is making an SSL_CTX: Debian's SSL_CTX_new calls SSL_CTX_new_ex through the PLT.
pub fn is_creating() -> bool {
    CREATING.get()
}

/// How a program asks for an SSL_CTX. The pointers are only passed on.
#[derive(Clone, Copy)]
pub enum Make {
    /// SSL_CTX_new
    Plain(*const SSL_METHOD),
    /// SSL_CTX_new_ex
    In(*mut OSSL_LIB_CTX, *const c_char, *const SSL_METHOD),
}

/// A new SSL_CTX, not taken over, and whether it can be: it is of the libssl that is served. NULL if libssl fails, or has
/// no SSL_CTX_new_ex.
pub fn create(make: Make) -> (bool, *mut SSL_CTX) {
    let _creating = Creating(CREATING.replace(true));
    let (Make::Plain(method) | Make::In(_, _, method)) = make;
    // SAFETY: the arguments are as the caller of our export passed them, or libssl's own.
    with_method(method, |table| unsafe {
        match (make, table.SSL_CTX_new_ex) {
            (Make::Plain(method), _) => (table.SSL_CTX_new)(method),
            (Make::In(libctx, propq, method), Some(new_ex)) => new_ex(libctx, propq, method),
            (Make::In(..), None) => null_mut(),
        }
    })
}

/// The SSL_CTX of a context that may serve several, one after another.
pub struct CtxCell(AtomicPtr<SSL_CTX>);

impl CtxCell {
    pub const fn empty() -> CtxCell {
        CtxCell(AtomicPtr::new(null_mut()))
    }

    pub fn set(&self, ctx: Ctx) {
        self.0.store(ctx.as_ptr(), Relaxed);
    }

    pub fn get(&self) -> Option<Ctx> {
        NonNull::new(self.0.load(Relaxed)).map(Ctx)
    }
}

impl Ctx {
    /// # Safety
    /// `ctx` is an SSL_CTX that stays alive while the result is used.
    pub unsafe fn new(ctx: *mut SSL_CTX) -> Option<Ctx> {
        NonNull::new(ctx).map(Ctx)
    }

    pub fn as_ptr(self) -> *mut SSL_CTX {
        self.0.as_ptr()
    }

    fn control(self, command: u32, number: c_long) -> c_long {
        // SAFETY: the context is alive; these commands set or read a number and call nothing.
        unsafe { (table().SSL_CTX_ctrl)(self.as_ptr(), command as c_int, number, null_mut()) }
    }

    /// Switches the context's own cache off, installs our hooks, and puts the sentinel into it: the one session that
    /// libssl keeps, never expires, and is handed to the remove hook when the context ends, before anything that a
    /// callback of the program may need is gone. Returns the sentinel's address; `None` if there is no memory for it.
    pub fn take_over(self, hooks: Hooks) -> Option<usize> {
        self.learn_rules();
        self.control(SSL_CTRL_SET_SESS_CACHE_SIZE, 0);
        let sentinel = self.put_sentinel()?;
        let _inside = Inside::enter(self);
        // SAFETY: the context is alive, and the hooks live as long as the process.
        unsafe {
            (table().SSL_CTX_sess_set_new_cb)(self.as_ptr(), hooks.new);
            (table().SSL_CTX_sess_set_remove_cb)(self.as_ptr(), hooks.remove);
            (table().SSL_CTX_sess_set_get_cb)(self.as_ptr(), hooks.get);
        }
        Some(sentinel)
    }

    /// A sentinel for libssl's own cache. Its address; `None` if there is no memory for it.
    pub fn put_sentinel(self) -> Option<usize> {
        const CENTURY: i64 = 100 * 365 * 24 * 3600; // in nanoseconds it still fits 64 bits, as 4.0 counts them
        let sentinel = sentinel()?;
        sentinel.set_timeout(CENTURY);
        let _inside = Inside::enter(self);
        // SAFETY: both are alive, and adding takes a reference of its own.
        let added = unsafe { (table().SSL_CTX_add_session)(self.as_ptr(), sentinel.as_ptr()) } == 1;
        added.then_some(sentinel.as_ptr() as usize)
    }

    /// Finds out [`holds_one_less`] and [`keeps_turns`], once for each process, by sessions in the cache of a new context.
    /// Patch releases differ in that, and distributions patch them again, so that no version number tells.
    fn learn_rules(self) {
        if SIZE_RULE.load(Relaxed) != UNKNOWN {
            return;
        }
        let keys = [1, 2, 3].map(|byte| Key::new(0, &[byte; 32]));
        let [Some(first), Some(second), Some(third)] = keys.map(|key| Session::placeholder(&key?)) else { return };
        let time = super::session::now();
        for session in [&first, &second, &third] {
            session.set_time(time);
        }
        let _inside = Inside::enter(self);
        // SAFETY: all are alive, adding takes a reference of its own, and the context has no callback yet.
        let add = |session: &Session| unsafe { (table().SSL_CTX_add_session)(self.as_ptr(), session.as_ptr()) };
        // SAFETY: as above.
        let remove =
            |session: &Session| unsafe { (table().SSL_CTX_remove_session)(self.as_ptr(), session.as_ptr()) } == 1;
        self.control(SSL_CTRL_SET_SESS_CACHE_SIZE, 2);
        add(&first);
        add(&second);
        let rule = if self.control(SSL_CTRL_SESS_NUMBER, 0) < 2 { ONE_LESS } else { ALL };
        remove(&first);
        remove(&second);
        self.control(SSL_CTRL_SET_SESS_CACHE_SIZE, 3);
        add(&first);
        add(&second);
        add(&first);
        // The third one pushes out whose turn it is.
        self.control(SSL_CTRL_SET_SESS_CACHE_SIZE, if rule == ALL { 2 } else { 3 });
        add(&third);
        let [first_stays, second_stays, _] = [&first, &second, &third].map(remove);
        KEEPS_TURNS.store(second_stays && !first_stays, Relaxed);
        SIZE_RULE.store(rule, Relaxed);
    }

    /// Who makes the ids of this context's servers, `None` for libssl itself.
    pub fn set_generator(self, generator: Generator) {
        // SAFETY: the context is alive.
        unsafe { (table().SSL_CTX_set_generate_session_id)(self.as_ptr(), generator) };
    }

    /// Tells libssl for which sides to call the hooks; it never looks into or stores in a cache of its own.
    pub fn set_mode(self, mode: u32) {
        self.control(SSL_CTRL_SET_SESS_CACHE_MODE, c_long::from(mode & SSL_SESS_CACHE_BOTH | OWN_MODE));
    }

    /// A counter that libssl keeps itself: SSL_CTRL_SESS_CONNECT and its like.
    pub fn counter(self, command: u32) -> c_long {
        self.own(command)
    }

    pub fn options(self) -> u64 {
        // SAFETY: the context is alive.
        unsafe { (table().SSL_CTX_get_options)(self.as_ptr()) }
    }

    /// SSL_OP_NO_TICKET, by the program itself.
    pub fn has_no_tickets(self) -> bool {
        self.options() & u64::from(OP_NO_TICKET) != 0
    }

    /// Whether servers ask for client certificates (SSL_VERIFY_PEER).
    pub fn asks_for_certificates(self) -> bool {
        // SAFETY: the context is alive.
        unsafe { (table().SSL_CTX_get_verify_mode)(self.as_ptr()) & 1 != 0 }
    }

    /// SSL_CTX_set_session_id_context(3), not by the program.
    pub fn set_id_context(self, identity: [u64; 2]) {
        let id: [u8; 16] = (u128::from(identity[1]) << 64 | u128::from(identity[0])).to_le_bytes();
        // SAFETY: the context is alive, and libssl copies the bytes.
        unsafe { (table().SSL_CTX_set_session_id_context)(self.as_ptr(), id.as_ptr(), id.len() as libc::c_uint) };
    }

    /// Lets libssl accept early data with `session` once: it does when removing the session from its own cache
    /// succeeds, so something with that session's key is put there. It asks next, on this thread.
    pub fn claim(self, session: &Session) {
        let Some(token) = Session::labelled_placeholder(&session.key()) else { return };
        let _inside = Inside::enter(self);
        // SAFETY: both are alive, and adding takes a reference of its own.
        unsafe { (table().SSL_CTX_add_session)(self.as_ptr(), token.as_ptr()) };
        let claim = Claim { ctx: self.as_ptr(), session: session.as_ptr(), key: Some(session.key()) };
        if CLAIMED.replace(claim).ctx.is_null() {
            ANY_CLAIMED.fetch_add(1, Relaxed);
        }
    }

    /// Another lookup on this thread: libssl is not going to ask for what was claimed before. It refused that session for
    /// another reason.
    pub fn withdraw_claim(self) {
        if ANY_CLAIMED.load(Relaxed) == 0 {
            return;
        }
        let claim = CLAIMED.replace(Claim { ctx: null_mut(), session: null_mut(), key: None });
        if claim.ctx.is_null() {
            return;
        }
        ANY_CLAIMED.fetch_sub(1, Relaxed);
        // Another context may have gone, and its own cache with it.
        if claim.ctx == self.as_ptr() {
            if let Some(token) = claim.key.and_then(|key| Session::placeholder(&key)) {
                self.remove_own(&token);
            }
        }
    }

    /// Whether libssl asks for the removal that `claim` waits for.
    pub fn is_claimed(self, session: &Session) -> bool {
        let is_claim = |claim: Claim| (claim.ctx, claim.session) == (self.as_ptr(), session.as_ptr());
        ANY_CLAIMED.load(Relaxed) > 0 && is_claim(CLAIMED.get())
    }

    /// The same, and uses the claim up.
    pub fn redeem(self, session: &Session) -> bool {
        let claimed = self.is_claimed(session);
        if claimed {
            CLAIMED.set(Claim { ctx: null_mut(), session: null_mut(), key: None });
            ANY_CLAIMED.fetch_sub(1, Relaxed);
        }
        claimed
    }

    /// Removes what `claim` put into libssl's own cache, which marks `session`.
    pub fn remove_own(self, session: &Session) {
        let _inside = Inside::enter(self);
        // SAFETY: both are alive.
        unsafe { (table().SSL_CTX_remove_session)(self.as_ptr(), session.as_ptr()) };
    }

    /// Whether the last reference to the context is gone and this thread is in SSL_CTX_free, which flushes every
    /// session through the PLT where libssl is not built -Bsymbolic.
    pub fn is_ending(self) -> bool {
        // SAFETY: the memory is there, as SSL_CTX_free uses it after this. A context without a reference is not one
        // that anybody else counts on; in a live one the new reference is given back.
        unsafe {
            if (table().SSL_CTX_up_ref)(self.as_ptr()) != 1 {
                return true;
            }
            (table().SSL_CTX_free)(self.as_ptr());
        }
        false
    }

    /// The end of a context that was taken over: libssl lets go of the sentinel.
    pub fn flush_own(self) {
        let _inside = Inside::enter(self);
        // SAFETY: the context is there until SSL_CTX_free, which called us, goes on.
        unsafe { (table().SSL_CTX_flush_sessions)(self.as_ptr(), 0) };
    }

    /// The callbacks that libssl has.
    fn installed(self) -> Hooks {
        // SAFETY: the context is alive.
        unsafe {
            Hooks {
                new: (table().SSL_CTX_sess_get_new_cb)(self.as_ptr()),
                remove: (table().SSL_CTX_sess_get_remove_cb)(self.as_ptr()),
                get: (table().SSL_CTX_sess_get_get_cb)(self.as_ptr()),
            }
        }
    }

    /// Whether all three hooks are still those that `take_over` installed, and libssl's own cache is switched off.
    pub fn has(self, hooks: Hooks) -> bool {
        self.installed().addresses() == hooks.addresses()
            && self.own(SSL_CTRL_GET_SESS_CACHE_MODE) as u32 & OWN_MODE == OWN_MODE
            && self.own(SSL_CTRL_GET_SESS_CACHE_SIZE) == 0
    }

    /// What libssl has for itself.
    fn own(self, command: u32) -> c_long {
        // SAFETY: the context is alive; these commands read a number and call nothing.
        unsafe { (table().SSL_CTX_ctrl)(self.as_ptr(), command as c_int, 0, null_mut()) }
    }

    /// Undoes `take_over`: libssl caches again, as the program told us or libssl behind our back, and has `sessions`.
    /// `told` is the mode that `set_mode` was last given, `mode` the program's.
    pub fn hand_back(self, hooks: Hooks, program: Hooks, told: u32, mode: u32, size: c_long, sessions: Vec<Session>) {
        let now = self.installed();
        let (ours, own) = (hooks.addresses(), now.addresses());
        let own_mode = self.own(SSL_CTRL_GET_SESS_CACHE_MODE);
        let untouched_mode = own_mode == c_long::from(told & SSL_SESS_CACHE_BOTH | OWN_MODE);
        let untouched_size = self.own(SSL_CTRL_GET_SESS_CACHE_SIZE) == 0;
        let _inside = Inside::enter(self);
        // SAFETY: the context and the sessions are alive; the callbacks are the program's.
        unsafe {
            (table().SSL_CTX_sess_set_remove_cb)(self.as_ptr(), None);
            if let Some(sentinel) = sentinel() {
                (table().SSL_CTX_remove_session)(self.as_ptr(), sentinel.as_ptr());
            }
            (table().SSL_CTX_sess_set_remove_cb)(
                self.as_ptr(),
                if own.1 == ours.1 { program.remove } else { now.remove },
            );
            (table().SSL_CTX_sess_set_new_cb)(self.as_ptr(), if own.0 == ours.0 { program.new } else { now.new });
            (table().SSL_CTX_sess_set_get_cb)(self.as_ptr(), if own.2 == ours.2 { program.get } else { now.get });
            if untouched_size {
                self.control(SSL_CTRL_SET_SESS_CACHE_SIZE, size);
            }
            self.control(SSL_CTRL_SET_SESS_CACHE_MODE, c_long::from(OWN_MODE)); // UPDATE_TIME would make them younger
            for session in sessions {
                (table().SSL_CTX_add_session)(self.as_ptr(), session.as_ptr());
            }
            self.control(SSL_CTRL_SET_SESS_CACHE_MODE, if untouched_mode { mode.into() } else { own_mode });
        }
    }
}

/// What a sentinel is found by.
fn sentinel() -> Option<Session> {
    Session::placeholder(&Key::new(0, b"reprise: end of the SSL_CTX")?)
}

impl Hooks {
    fn addresses(self) -> (usize, usize, usize) {
        (
            self.new.map_or(0, |new| new as usize),
            self.remove.map_or(0, |remove| remove as usize),
            self.get.map_or(0, |get| get as usize),
        )
    }
}

/// Where in an SSL's ex_data [`switch`] keeps the context that the SSL was made with: a place of our own, that libssl gave
/// out in the default library context. Negative until a first SSL_set_SSL_CTX.
static PLACE: AtomicI32 = AtomicI32::new(-1);
/// The same where there is none: each library context counts its places by itself, so that a place of our own may be the
/// program's where OSSL_LIB_CTX_set0_default has changed the counter. This one is beyond what programs ask for, and costs a
/// connection that changes over 2 kB.
const FAR_PLACE: c_int = 255;
/// Where [`Connection`](super::Connection) keeps what it has been told and the tag of the session that it resumes, while its
/// cache is one that others use. As far, for the same reason.
pub const RESUMED: [c_int; 2] = [253, 254];
pub const TOLD: c_int = 252;
const SSL_CLASS: c_int = 0; // CRYPTO_EX_INDEX_SSL

/// Until a first SSL_set_SSL_CTX, no connection need be asked.
static EVER_SWITCHED: AtomicBool = AtomicBool::new(false);
/// Whether a thread had another default library context when it made something.
static OTHER_DEFAULT: AtomicBool = AtomicBool::new(false);

/// Something is being made in the default library context of this thread.
pub fn note_default() {
    let table = table();
    if let (Some(global), Some(set)) = (table.OSSL_LIB_CTX_get0_global_default, table.OSSL_LIB_CTX_set0_default) {
        // SAFETY: NULL changes nothing, and asks only.
        if unsafe { set(null_mut()) != global() } && !OTHER_DEFAULT.load(Relaxed) {
            OTHER_DEFAULT.store(true, Relaxed);
        }
    }
}

/// Whether places of ex_data may mean something else in another thread.
pub fn has_other_default() -> bool {
    OTHER_DEFAULT.load(Relaxed)
}

/// SSL_dup copies what is at places that were given out. The copy is made with the context that is current.
unsafe extern "C" fn dup_nothing(
    _to: *mut c_void,
    _from: *const c_void,
    data: *mut *mut c_void,
    _place: c_int,
    _number: c_long,
    _argument: *mut c_void,
) -> c_int {
    // SAFETY: libssl passes the address of its copy.
    unsafe { *data = null_mut() };
    1
}

/// Where to note the context of an SSL that is switched.
#[cold]
fn find_place() -> c_int {
    // SAFETY: the function lives as long as the process. (Where no place was ever given out, SSL_dup fails for an SSL that has
    // ex_data.)
    let place = unsafe {
        let dup = dup_nothing as unsafe extern "C" fn(_, _, _, _, _, _) -> _;
        (table().CRYPTO_get_ex_new_index)(SSL_CLASS, 0, null_mut(), null_mut(), dup as *mut c_void, null_mut())
    };
    let place = if OTHER_DEFAULT.load(Relaxed) || place < 0 { FAR_PLACE } else { place };
    // Two that are given out at once are both ours, and so the later one may stay unused.
    let _ = PLACE.compare_exchange(-1, place, Relaxed, Relaxed);
    EVER_SWITCHED.store(true, Relaxed);
    PLACE.load(Relaxed)
}

/// SSL_dup fails for an SSL that has ex_data where no place was ever given out.
static EVER_NOTED: AtomicBool = AtomicBool::new(false);

/// Keeps a number with a connection, at a place of ours.
///
/// # Safety
/// `ssl` is alive.
pub unsafe fn note(ssl: *mut SSL, place: c_int, number: usize) {
    // SAFETY: by the caller's promise. The number is not followed by anybody.
    unsafe {
        if !EVER_NOTED.swap(true, Relaxed) {
            (table().CRYPTO_get_ex_new_index)(SSL_CLASS, 0, null_mut(), null_mut(), null_mut(), null_mut());
        }
        (table().SSL_set_ex_data)(ssl, place, number as *mut libc::c_void);
    }
}

/// What `note` has kept there, or 0.
///
/// # Safety
/// `ssl` is alive.
pub unsafe fn noted(ssl: *const SSL, place: c_int) -> usize {
    // SAFETY: by the caller's promise.
    match EVER_NOTED.load(Relaxed) {
        // SAFETY: by the caller's promise.
        true => unsafe { (table().SSL_get_ex_data)(ssl, place) as usize },
        false => 0,
    }
}

/// SSL_set_SSL_CTX, noting the context that `ssl` was made with: libssl goes on caching there.
///
/// # Safety
/// As SSL_set_SSL_CTX: `ssl` is alive, `ctx` is alive or NULL.
pub unsafe fn switch(ssl: *mut SSL, ctx: *mut SSL_CTX) -> *mut SSL_CTX {
    note_default();
    // SAFETY: by the caller's promise. The value noted is an address that is compared, never followed by us.
    unsafe {
        let current = (table().SSL_get_SSL_CTX)(ssl);
        if current != ctx && made_with(ssl).is_null() {
            let place = PLACE.load(Relaxed);
            let place = if place < 0 { find_place() } else { place };
            let place = if OTHER_DEFAULT.load(Relaxed) { FAR_PLACE } else { place };
            (table().SSL_set_ex_data)(ssl, place, current.cast());
        }
        (table().SSL_set_SSL_CTX)(ssl, ctx)
    }
}

/// What was noted of an SSL, NULL if nothing was.
///
/// # Safety
/// `ssl` is alive.
unsafe fn made_with(ssl: *const SSL) -> *mut SSL_CTX {
    if !EVER_SWITCHED.load(Relaxed) {
        return null_mut();
    }
    // SAFETY: by the caller's promise.
    unsafe {
        if OTHER_DEFAULT.load(Relaxed) {
            let far = (table().SSL_get_ex_data)(ssl, FAR_PLACE);
            if !far.is_null() {
                return far.cast();
            }
        }
        (table().SSL_get_ex_data)(ssl, PLACE.load(Relaxed)).cast()
    }
}

/// The contexts in which libssl may cache for `ssl`, the likelier first: the one it was made with, if a switch was
/// noted, and the current one.
///
/// # Safety
/// `ssl` is alive.
pub unsafe fn of_connection(ssl: *const SSL) -> (*mut SSL_CTX, *mut SSL_CTX) {
    // SAFETY: by the caller's promise.
    unsafe {
        let current = (table().SSL_get_SSL_CTX)(ssl);
        match made_with(ssl) {
            made_with if made_with.is_null() => (current, null_mut()),
            made_with => (made_with, current),
        }
    }
}
