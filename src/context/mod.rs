//! One SSL_CTX: its mode, callbacks, semantics, counters and cache. What the manual says happens here.
//!
//! The rules are named as the manual pages' promises are numbered in `docs/conformance.md` (CB3, ADD2, ...). Where
//! `Semantics::Stock` differs, it does what libssl does.

mod caches;
pub mod counters;
pub mod registry;
mod spent;

use crate::cache::{self, Cache, Collision, Departure, Eviction, Inserted, Key, Place, Seconds, Session as _};
use crate::config::{self, IdContext, Internal, Reverify, Semantics, Tickets, Unclean};
use crate::libssl::{self, now, types::*};
use crate::libssl::{added_tag, kept_tag, Chain, Expected, Learned, Tag};
use crate::libssl::{Connection, Ctx, CtxCell, Hooks, Service, Session, SessionTable, Slot};
use crate::{cancel, gate, log, totals};
use caches::Caches;
use counters::{Count, Counters, GROUPS};
use once_cell::race::OnceBox;
use smallvec::SmallVec;
use spent::Spent;
use std::cell::{Cell, RefCell};
use std::ffi::{c_int, c_long, c_void};
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, AtomicU8, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

/// What most calls read lies here, side by side with that of other contexts (see [`registry`]). The rest is in [`Rest`].
#[repr(C)]
pub struct Context {
    /// By which the registry has it, see there.
    number: u32,
    /// All bits as the program gave them (MODE1).
    mode: AtomicU32,
    ctx: CtxCell,
    /// The limit as the program gave it (SIZE1).
    size: AtomicU64,
    /// The address of the sentinel in libssl's own cache.
    sentinel: AtomicUsize,
    semantics: AtomicU8,
    tickets: AtomicU8,
    unclean: AtomicU8,
    internal: AtomicU8,
    reverify: AtomicU8,
    /// Which callbacks the program has that may change a connection after the lookup: bits of `LATE_`.
    late: AtomicU8,
    /// Whether the program gave a size.
    sized: AtomicBool,
    /// The program makes session ids itself.
    has_generator: AtomicBool,
    /// The cache issues the ids of new sessions, and may refuse others.
    vouching: AtomicBool,
    /// A connection was a client's.
    has_clients: AtomicBool,
    /// SSL_CTX_free has begun.
    ending: AtomicBool,
    /// Nothing is stored any more.
    closed: AtomicBool,
    /// 0 for no limit.
    max_age: AtomicU32,
    pub new_callback: Slot<NewCallback>,
    pub remove_callback: Slot<RemoveCallback>,
    pub get_callback: Slot<GetCallback>,
    counters: Counters,
    caches: Caches,
    rest: OnceBox<Rest>,
    /// The registry's: the address of the SSL_CTX that was handed back, as long as no other is known to have it.
    before: AtomicUsize,
}

/// What few calls need of a context.
#[derive(Default)]
struct Rest {
    /// The identity that was last made the session id context (REPRISE_ID_CONTEXT), 0 for none.
    id_context: AtomicU64,
    /// Whether the SSL_CTX is known to be there, for who does not keep it alive. Read inside the gate.
    alive: parking_lot::RwLock<bool>,
    /// Whose sessions are this context's in a cache that others use, too.
    service: Service,
    /// How its connections turn out.
    learned: Learned,
    /// Tickets accepted for early data that an external cache might bring back.
    spent: Spent,
    /// One thread at a time clears expired sessions; nobody waits for it.
    sweep: parking_lot::Mutex<Sweep>,
    /// What SSL_CTX_sessions last returned, which the program may still read, and when that was (see `Cache::changes`).
    table: Mutex<Picture>,
    /// By how much libssl's counters of `UNLIKE` were wrong when the SSL_CTX was handed back.
    corrections: [AtomicI64; UNLIKE.len()],
}

#[derive(Default)]
struct Picture {
    sessions: Option<SessionTable>,
    taken: Option<u64>,
}

/// What libssl counts otherwise while the cache is ours: each hit is one of a callback to it.
const UNLIKE: [u32; 3] = [SSL_CTRL_SESS_CB_HIT, SSL_CTRL_SESS_MISSES, SSL_CTRL_SESS_CACHE_FULL];

/// A servername callback, and a cert_cb.
const LATE_NAME: u8 = 1;
pub const LATE_CERTIFICATE: u8 = 2;

/// Which side of a connection a session was negotiated on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Role {
    Server,
    Client,
}

/// How far clearing expired sessions has come.
#[derive(Default)]
struct Sweep {
    /// Connections since there is something to clear.
    waited: usize,
    /// How many each connection clears now.
    share: usize,
}

thread_local! {
    /// The id that the cache last issued on this thread, until it is asked about or stored.
    static ISSUED: Cell<[u8; cache::LONGEST]> = const { Cell::new([0; cache::LONGEST]) };
}

/// Whether the cache has issued `id` on this thread and nothing has happened to it since. Says so once.
fn is_just_issued(id: &[u8]) -> bool {
    let issued = id == ISSUED.get() && id != [0; cache::LONGEST];
    if issued {
        ISSUED.set([0; cache::LONGEST]);
    }
    issued
}

/// A cache in use. One that is shared waits in system calls, and nobody may be told of anything then: what leaves it is
/// collected first.
struct InUse<'a> {
    cache: &'a (dyn Cache<Session> + 'static),
    _off: Option<cancel::Off>,
}

impl Deref for InUse<'_> {
    type Target = dyn Cache<Session> + 'static;
    fn deref(&self) -> &Self::Target {
        self.cache
    }
}

impl Context {
    fn new(number: u32) -> Context {
        Context {
            number,
            mode: AtomicU32::new(0),
            ctx: CtxCell::empty(),
            size: AtomicU64::new(0),
            sentinel: AtomicUsize::new(0),
            semantics: AtomicU8::new(0),
            tickets: AtomicU8::new(0),
            unclean: AtomicU8::new(0),
            internal: AtomicU8::new(0),
            reverify: AtomicU8::new(0),
            late: AtomicU8::new(0),
            sized: AtomicBool::new(false),
            has_generator: AtomicBool::new(false),
            vouching: AtomicBool::new(false),
            has_clients: AtomicBool::new(false),
            ending: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            max_age: AtomicU32::new(0),
            new_callback: Slot::<NewCallback>::empty(),
            remove_callback: Slot::<RemoveCallback>::empty(),
            get_callback: Slot::<GetCallback>::empty(),
            counters: Counters::default(),
            caches: Caches::new(number),
            rest: OnceBox::new(),
            before: AtomicUsize::new(0),
        }
    }

    #[inline]
    fn rest(&self) -> &Rest {
        self.rest.get_or_init(Box::default)
    }

    /// Takes over a new SSL_CTX: from now on the hooks and the exports find its context. Where there is no memory for
    /// that, the SSL_CTX stays as libssl made it. Where its cache issues the ids, `generate` is what asks it for one.
    #[inline(never)] // what it needs of the stack is not needed by calls that only come by
    pub fn take_over(ctx: Ctx, hooks: Hooks, generate: Generator) {
        let _off = cancel::off();
        log::take_panics();
        let config = config::get();
        for complaint in config.complaints.iter().chain(totals::complaint()) {
            log::once(format_args!("{complaint}"));
        }
        let taken = registry::enter(ctx.as_ptr(), |context| {
            let Some(sentinel) = ctx.take_over(hooks) else { return false };
            context.ctx.set(ctx);
            context.sentinel.store(sentinel, Relaxed);
            context.ending.store(false, Relaxed);
            context.closed.store(false, Relaxed);
            context.size.store(SSL_SESSION_CACHE_MAX_SIZE_DEFAULT.into(), Relaxed);
            context.new_callback.set(None);
            context.remove_callback.set(None);
            context.get_callback.set(None);
            let semantics = config.semantics.unwrap_or_else(|| Semantics::default_for(libssl::is_linked()));
            context.counters.begin(semantics as u32, context.number as usize % GROUPS);
            context.rest().service.reset();
            context.rest().learned.forget();
            context.sized.store(false, Relaxed);
            context.has_clients.store(false, Relaxed);
            context.late.store(0, Relaxed);
            // Nobody waits for a thread that still sweeps: at worst, expired sessions are cleared sooner.
            if let Some(mut sweep) = context.rest().sweep.try_lock() {
                *sweep = Sweep::default();
            }
            context.set_tickets(config.tickets);
            context.set_unclean(config.unclean);
            context.internal.store(config.internal as u8, Relaxed);
            if let Err(error) = context.caches.choose(&config.cache) {
                log::once(format_args!("REPRISE_CACHE: {error}: each process caches for itself"));
                let _ = context.caches.choose(&Place::Memory);
            }
            context.reverify.store(config.reverify as u8, Relaxed);
            context.max_age.store(config.max_age, Relaxed);
            context.rest().id_context.store(0, Relaxed);
            context.judge_by(&config.cache);
            context.counters.set_cache(&context.caches.label());
            context.has_generator.store(false, Relaxed);
            context.vouching.store(false, Relaxed);
            context.choose_ids(generate);
            context.set_semantics(semantics);
            context.set_mode(SSL_SESS_CACHE_SERVER);
            context.set_alive(true);
            true
        });
        if taken.is_some() {
            totals::context_taken_over();
        }
    }

    /// A program that found libssl's functions by itself may have replaced our hooks: then libssl would cache half of what
    /// it should and we the other half. Such a context goes back to libssl, whole. Whether it did. `hits` that libssl is
    /// about to count as its callback's are counted already.
    #[inline]
    pub fn lost(&self, hooks: Hooks, hits: c_long) -> bool {
        if self.sentinel.load(Relaxed) == 0 && !self.is_ending() {
            self.put_sentinel();
        }
        match self.ctx() {
            Some(ctx) if !ctx.has(hooks) && !self.is_ending() => {
                self.hand_back(ctx, hooks, hits);
                true
            }
            _ => false,
        }
    }

    #[cold]
    fn put_sentinel(&self) {
        if let Some(sentinel) = self.ctx().and_then(Ctx::put_sentinel) {
            self.sentinel.store(sentinel, Relaxed);
        }
    }

    #[cold]
    fn hand_back(&self, ctx: Ctx, hooks: Hooks, hits: c_long) {
        let corrections = UNLIKE.map(|command| self.statistic(command) - ctx.counter(command));
        if registry::retire(ctx.as_ptr()) {
            self.set_alive(false); // nobody is going to hear of its end
            for ((to, command), correction) in self.rest().corrections.iter().zip(UNLIKE).zip(corrections) {
                let counted = if command == SSL_CTRL_SESS_CB_HIT { hits } else { 0 };
                to.store(correction - counted, Relaxed);
            }
            self.closed.store(true, Relaxed);
            if self.vouching.swap(false, Relaxed) {
                ctx.set_generator(None);
            }
            let program = Hooks {
                new: self.new_callback.get(),
                remove: self.remove_callback.get(),
                get: self.get_callback.get(),
            };
            let mut sessions = Vec::new();
            self.caches.memory().clear(&mut |session| sessions.push(session));
            self.counters.end();
            let told = self.effective(self.mode());
            ctx.hand_back(hooks, program, told, self.mode(), self.size() as c_long, sessions);
            log::once(format_args!("callbacks of an SSL_CTX were set past Reprise: libssl caches its sessions again"));
        }
    }

    /// The context that libssl caches in for this connection; `None` if that is not ours.
    pub fn of(connection: &Connection) -> Option<&'static Context> {
        let (first, second) = connection.contexts();
        registry::find(first).or_else(|| registry::find(second))
    }

    fn ctx(&self) -> Option<Ctx> {
        self.ctx.get()
    }

    pub fn semantics(&self) -> Semantics {
        Semantics::from_number(self.semantics.load(Relaxed).into()).unwrap_or(Semantics::Documented)
    }

    #[inline]
    fn is_documented(&self) -> bool {
        self.semantics.load(Relaxed) == Semantics::Documented as u8
    }

    pub fn set_semantics(&self, semantics: Semantics) {
        self.semantics.store(semantics as u8, Relaxed);
        self.counters.set_semantics(semantics as u32);
        self.set_limit();
    }

    /// The policy of REPRISE_TICKETS for this context.
    pub fn set_tickets(&self, tickets: Tickets) {
        self.tickets.store(tickets as u8, Relaxed);
        if tickets == Tickets::Stateful {
            libssl::unclean::watch(); // see `keeps_unclean`
        }
    }

    pub fn has_stateful_tickets(&self) -> bool {
        self.tickets.load(Relaxed) == Tickets::Stateful as u8
    }

    /// REPRISE_TICKETS, for a connection that was just made. It is a server's unless its program says otherwise.
    pub fn made(&self, connection: &Connection) {
        if self.has_stateful_tickets() && self.finds_sessions() && connection.is_server() {
            connection.make_tickets_stateful();
        }
    }

    /// Whether a server's session can be found by its id in the internal cache. Where a program caches nothing, its tickets are
    /// all it has; and where its callbacks are the cache, nobody has told them of ids that tickets name (those of Node.js
    /// answer from JavaScript).
    fn finds_sessions(&self) -> bool {
        self.has_mode(SSL_SESS_CACHE_SERVER) && !self.has_mode(SSL_SESS_CACHE_NO_INTERNAL)
    }

    /// The connection turned out to be a client's.
    pub fn turned_out_client(&self, connection: &Connection) {
        self.note_clients();
        if let Some(ctx) = self.ctx().filter(|_| self.has_stateful_tickets()) {
            connection.leave_tickets(ctx);
        }
    }

    /// The policy of REPRISE_UNCLEAN for this context.
    pub fn set_unclean(&self, unclean: Unclean) {
        self.unclean.store(unclean as u8, Relaxed);
        if unclean == Unclean::Keep {
            libssl::unclean::watch();
        }
    }

    /// A session whose ticket we made stateful stays, too: an unclean end would not have cost the ticket that it replaces.
    fn keeps_unclean(&self) -> bool {
        self.unclean.load(Relaxed) == Unclean::Keep as u8
            || self.has_stateful_tickets()
                && self.finds_sessions()
                && self.ctx().is_some_and(|ctx| !ctx.has_no_tickets())
    }

    /// From now on the sessions are at `place`; those in this process's memory move there. The error is a sentence for a
    /// person, and then nothing has changed.
    pub fn set_cache(&self, place: &Place, generate: Generator) -> Result<(), String> {
        let mut moving = Vec::new();
        let before = self.caches.current();
        {
            let _off = cancel::off();
            self.caches.choose(place)?;
            self.judge_by(place);
            self.counters.set_cache(&self.caches.label());
        }
        self.choose_ids(generate);
        self.set_limit();
        if !before.is_shared() && !std::ptr::addr_eq(before, self.caches.current()) {
            before.clear(&mut |session| moving.push(session));
        }
        for session in moving {
            totals::sessions(-1);
            let role = self.role_of(&session);
            self.store(session, Collision::Replace, role);
        }
        Ok(())
    }

    /// What decides who shares in the cache at `place`, if that is the one in use.
    fn judge_by(&self, place: &Place) {
        self.rest().service.set_label(place.label());
        self.rest().service.follow_store(!self.reverifies());
    }

    /// Whether client certificates are verified again when their sessions are resumed (REPRISE_REVERIFY).
    fn reverifies(&self) -> bool {
        match Reverify::from_number(self.reverify.load(Relaxed).into()) {
            Some(Reverify::On) => true,
            Some(Reverify::Off) => false,
            _ => self.caches.current().is_shared(),
        }
    }

    /// What `session` carries in a shared cache, which came of a handshake of `connection`.
    fn tag(&self, connection: &Connection, session: &Session) -> Tag {
        let Some(ctx) = self.ctx() else { return [0; 2] };
        let current = self.current(connection);
        let switched = current.and_then(|current| Some(current.rest().service.identity(current.ctx()?)));
        let now = self.rest().service.deviation(connection, ctx, current.map(|current| &current.rest().service), true);
        let before = connection.told();
        if before == 0 {
            connection.note_told(now.number());
        }
        // Another handshake on the connection, a client certificate asked for after it, or a ticket: what the connection is told
        // now says nothing of how its client was judged. A handshake that brought no session has left no note of it.
        let is_told_anew = match before {
            0 => !connection.brings_sessions(),
            _ => before != now.number(),
        };
        let name = connection.name();
        if connection.is_resumed() {
            return match connection.found() {
                // Nobody here found it: the client has a key of its own and the server's (PSK), or a sealed ticket.
                [0, 0] => kept_tag(now.tag(&name, switched.unwrap_or_default()), self.rest().service.own()),
                _ if is_told_anew => kept_tag(now.tag(&name, switched.unwrap_or_default()), self.rest().service.own()),
                tag => tag,
            };
        }
        let tag = now.tag(&name, switched.unwrap_or_default());
        if before == 0 && !is_told_anew && self.late(current) != 0 {
            self.rest().learned.note(name, now, is_alive);
        }
        let stays = is_told_anew
            || now.has_store
            || switched.is_none()
            || connection.has_shared_secret()
            || session.has_peer() && self.judges_by_itself(connection, current);
        match stays {
            true => kept_tag(tag, self.rest().service.own()),
            false => tag,
        }
    }

    /// Whether a client's certificate is judged by a function of the program's, which may look at data that no other
    /// process has. The label of the cache's URL says that the program's functions are equal wherever they look equal.
    fn judges_by_itself(&self, connection: &Connection, current: Option<&Context>) -> bool {
        !self.rest().service.has_label()
            && (connection.calls_back() || current.is_none_or(|current| current.rest().service.has_cert_verify()))
    }

    /// The context that a connection has now; `None` for one that is not ours.
    fn current(&self, connection: &Connection) -> Option<&Context> {
        let current = connection.current();
        match self.ctx() {
            Some(ctx) if ctx.as_ptr() == current => Some(self),
            _ => registry::find(current).map(|context| context as &Context),
        }
    }

    /// Which callbacks may change a connection after the lookup. One whose context is not ours has all.
    fn late(&self, current: Option<&Context>) -> u8 {
        let of_current = current.map_or(LATE_NAME | LATE_CERTIFICATE, |current| current.late.load(Relaxed));
        self.late.load(Relaxed) | of_current
    }

    /// The program sets a callback that may change connections after the lookup.
    pub fn note_late(&self, callback: u8) {
        // Mostly it is known: what writes waits for all that is still being read.
        if self.late.load(Relaxed) & callback == 0 {
            self.late.fetch_or(callback, Relaxed);
        }
    }

    /// What a session must carry to be resumed by a connection whose client proposes it, and the context that it is going
    /// to be switched to. `None` if that cannot be told.
    fn expected_tag(&self, connection: &Connection, ctx: Ctx) -> Option<(Tag, Option<&'static Context>)> {
        let current = self.current(connection);
        // An address that its client must have is looked at when its certificate is verified again.
        let with_ip = !self.reverifies();
        let now =
            self.rest().service.deviation(connection, ctx, current.map(|current| &current.rest().service), with_ip);
        let name = connection.asked_name();
        let expected = match self.late(current) {
            0 => now,
            late => match self.rest().learned.expect(&name, now, connection.verify_mode(), is_alive) {
                Expected::Outcome(expected) => expected,
                // Who asks for no name is taken for one whom the servername callback does nothing for.
                Expected::Unknown if name.is_empty() && late == LATE_NAME => now,
                _ => return None,
            },
        };
        if expected.ctx == 0 {
            return Some((expected.tag(&name, [0; 2]), None));
        }
        let switched = registry::find(expected.ctx as *mut SSL_CTX)?;
        Some((expected.tag(&name, switched.known_identity(expected.ctx)?), Some(switched)))
    }

    /// The identity of the SSL_CTX at `address`, which nobody need keep alive. `None` if it is gone, or was changed since a
    /// connection was last switched to it.
    fn known_identity(&self, address: usize) -> Option<[u64; 2]> {
        let _inside = gate::enter();
        let alive = self.rest().alive.try_read()?;
        let ctx = self.ctx().filter(|ctx| *alive && ctx.as_ptr() as usize == address)?;
        // Without its sentinel, nobody would hear of its end.
        (self.sentinel.load(Relaxed) != 0).then(|| self.rest().service.known_identity(ctx))?
    }

    /// Waits until nobody looks at the SSL_CTX.
    fn set_alive(&self, alive: bool) {
        let _inside = gate::enter();
        *self.rest().alive.write() = alive;
    }

    /// A connection is switched to this context: it is as it is now.
    pub fn switched_to(&self) {
        if let Some(ctx) = self.ctx().filter(|_| self.caches.current().is_shared()) {
            self.rest().service.identity(ctx);
        }
    }

    /// The most seconds that a session is resumed after its full handshake, 0 for no limit.
    pub fn set_max_age(&self, seconds: u32) {
        self.max_age.store(seconds, Relaxed);
    }

    fn max_age(&self) -> Seconds {
        self.max_age.load(Relaxed).into()
    }

    /// Whether `session` is not to be resumed any more, however often it was renewed (LIFE1).
    fn is_too_old(&self, session: &Session) -> bool {
        let age = self.max_age();
        age > 0
            && (session.origin().unwrap_or(session.time()).saturating_add(age) < now() || session.outlived_its_peer())
    }

    /// REPRISE_ID_CONTEXT=auto, before a connection is made: a server that asks for client certificates needs a session id
    /// context, or libssl refuses its sessions.
    pub fn choose_id_context(&self) {
        if config::get().id_context != IdContext::Auto {
            return;
        }
        let Some(ctx) = self.ctx().filter(|ctx| ctx.asks_for_certificates()) else { return };
        if self.rest().service.has_id_context() {
            return;
        }
        let identity = self.rest().service.identity(ctx);
        if self.rest().id_context.swap(identity[0], Relaxed) != identity[0] {
            ctx.set_id_context(identity);
        }
    }

    /// Who makes the ids: the program, or the cache where it wants to, or else libssl.
    fn choose_ids(&self, generate: Generator) {
        let issues = self.caches.current().issues_ids() && !self.has_generator.load(Relaxed);
        if self.vouching.swap(issues, Relaxed) != issues {
            if let Some(ctx) = self.ctx() {
                ctx.set_generator(if issues { generate } else { None });
            }
        }
    }

    /// The program sets `generator` for the context, `None` for libssl's own: what to set instead.
    pub fn choose_generator(&self, generator: Generator, generate: Generator) -> Generator {
        self.has_generator.store(generator.is_some(), Relaxed);
        let issues = generator.is_none() && self.caches.current().issues_ids();
        self.vouching.store(issues, Relaxed);
        if issues {
            generate
        } else {
            generator
        }
    }

    /// An id for a new session, from the cache.
    pub fn issue(&self) -> Option<[u8; cache::LONGEST]> {
        let mut id = [0; cache::LONGEST];
        if !self.cache().issue(&mut id) {
            return None;
        }
        ISSUED.set(id);
        Some(id)
    }

    /// The internal cache of servers, for one call and what is done with its result. A shared one is told whose sessions are
    /// meant.
    fn cache(&self) -> InUse<'_> {
        let cache = self.caches.current();
        if !self.caches.is_shared() {
            return InUse { cache, _off: None };
        }
        // Working it out may call the program.
        let identity = self.ctx().map(|ctx| self.rest().service.identity(ctx));
        let off = cancel::off();
        if let Some(identity) = identity {
            cache.set_service(identity);
        }
        InUse { cache, _off: Some(off) }
    }

    /// Where the sessions of clients are, while those of servers are in a cache that others use: in this process. No library
    /// ever looks one up, and a server must never find one: whoever it came from chose all that is in it.
    fn clients(&self) -> Option<&(dyn Cache<Session> + 'static)> {
        self.caches.is_shared().then(|| self.caches.memory() as _)
    }

    /// The same, where there are any.
    fn any_clients(&self) -> Option<&(dyn Cache<Session> + 'static)> {
        self.clients().filter(|clients| !clients.is_empty())
    }

    /// Where sessions of a role are.
    fn cache_of(&self, role: Role) -> InUse<'_> {
        match (role, self.clients()) {
            (Role::Client, Some(cache)) => InUse { cache, _off: None },
            _ => self.cache(),
        }
    }

    fn note_clients(&self) {
        // Said again and again: a store each time would take the line from the other threads.
        if !self.has_clients.load(Relaxed) {
            self.has_clients.store(true, Relaxed);
        }
    }

    /// Whose a session is that the program brings. A session does not tell, so it is a server's only where it cannot be
    /// a client's.
    fn role_of(&self, session: &Session) -> Role {
        if !self.caches.is_shared() {
            return Role::Server; // all are in one cache
        }
        if session.has_ticket() || self.has_clients.load(Relaxed) {
            Role::Client
        } else {
            Role::Server
        }
    }

    /// SSL_CTX_set_session_id_context(3): sessions do not cross from one such context to another.
    pub fn set_id_context(&self, id_context: &[u8]) {
        self.rest().service.set_id_context(id_context);
    }

    /// SSL_CTX_set_tlsext_servername_callback(3), NULL for none: nor between those that treat server names in another way.
    pub fn set_servername_callback(&self, callback: Callback) {
        if callback.is_some() {
            self.note_late(LATE_NAME);
        }
        self.rest().service.set_servername_callback(callback.map_or(0, |callback| callback as usize));
    }

    /// A command of SSL_CTX_ctrl(3) has set which algorithms clients may sign with, and has left the bytes of `value`.
    pub fn set_algorithms(&self, command: c_int, value: &[u8]) {
        self.rest().service.set_algorithms(command, value);
    }

    /// SSL_CTX_set_cert_verify_callback(3): nor between those that verify in another way.
    pub fn set_cert_verify(&self, callback: CertVerifyCallback, argument: *mut c_void) {
        self.rest().service.set_cert_verify(callback, argument);
    }

    fn count(&self, count: Count) {
        self.counters.add(count);
    }

    pub fn counter(&self, count: Count) -> u64 {
        self.counters.get(count)
    }
}

/// SSL_CTX_set_session_cache_mode(3) and SSL_CTX_sess_set_cache_size(3)
impl Context {
    pub fn mode(&self) -> u32 {
        self.mode.load(Relaxed)
    }

    /// Returns the previous mode (MODE1). Libssl learns for which sides it is to call us.
    pub fn set_mode(&self, mode: u32) -> u32 {
        if let Some(ctx) = self.ctx() {
            ctx.set_mode(self.effective(mode));
        }
        let previous = self.mode.swap(mode, Relaxed);
        if self.effective(mode) != mode || self.effective(previous) != previous {
            self.set_limit();
        }
        previous
    }

    /// What counts of the program's `mode`: all of it, or, under REPRISE_INTERNAL=always, what is not against the
    /// internal cache of servers.
    fn effective(&self, mode: u32) -> u32 {
        if self.is_always() {
            (mode | SSL_SESS_CACHE_SERVER) & !SSL_SESS_CACHE_NO_INTERNAL
        } else {
            mode
        }
    }

    /// Whether REPRISE_INTERNAL=always overrules the program.
    fn is_always(&self) -> bool {
        self.internal.load(Relaxed) == Internal::Always as u8
    }

    fn has_mode(&self, bit: u32) -> bool {
        self.effective(self.mode()) & bit != 0
    }

    /// The policy of REPRISE_INTERNAL for this context.
    pub fn set_internal(&self, internal: Internal) {
        self.internal.store(internal as u8, Relaxed);
        self.set_mode(self.mode());
        self.set_limit();
    }

    pub fn size(&self) -> u64 {
        self.size.load(Relaxed)
    }

    /// Returns the previous size (SIZE1). A smaller one takes effect when the next session is added.
    pub fn set_size(&self, size: u64) -> u64 {
        let previous = self.size.swap(size, Relaxed);
        if !self.sized.swap(true, Relaxed) || previous != size {
            self.set_limit();
        }
        previous
    }

    fn set_limit(&self) {
        // What a program says of a cache that it switches off (nginx: 1) is not meant for one that it has all the same.
        let is_meant = self.effective(self.mode()) == self.mode();
        let size = if is_meant { self.size() } else { SSL_SESSION_CACHE_MAX_SIZE_DEFAULT.into() };
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        // SIZE1, where stock counts the new session before it makes room for it.
        let counts_new = !self.is_documented() && libssl::context::holds_one_less();
        let limit = if counts_new && size > 1 { size - 1 } else { size };
        // What a shared cache holds is set with its size in bytes, unless the program asks for less.
        let unlimited = self.caches.current().is_shared() && !(self.sized.load(Relaxed) && is_meant);
        self.caches.current().set_limit(if unlimited { 0 } else { limit });
        if let Some(clients) = self.clients() {
            clients.set_limit(limit);
        }
        // SIZE2, stock before 3.0.
        let oldest_first = !self.is_documented() && !libssl::is_3_or_later();
        self.caches.current().set_eviction(if oldest_first { Eviction::Oldest } else { Eviction::Soonest });
        self.caches.memory().keep_turns(!self.is_documented() && libssl::context::keeps_turns());
    }
}

/// SSL_CTX_sess_number(3)
impl Context {
    pub fn number(&self) -> usize {
        self.cache().len() + self.clients().map_or(0, |clients| clients.len())
    }

    /// The value of one of SSL_CTRL_SESS_NUMBER to SSL_CTRL_SESS_CACHE_FULL (STAT1). What only libssl sees it counts.
    pub fn statistic(&self, command: u32) -> c_long {
        let libssl = |command| self.ctx().map_or(0, |ctx| ctx.counter(command));
        let own = |count| self.counter(count) as c_long;
        match command {
            SSL_CTRL_SESS_NUMBER => self.number() as c_long,
            SSL_CTRL_SESS_CB_HIT => own(Count::ExternalHits),
            // "In server mode", says the manual; libssl itself also counts a client's offer that was declined.
            SSL_CTRL_SESS_MISSES => {
                let declined = if self.is_documented() { 0 } else { libssl(command) };
                own(Count::Misses) + own(Count::Unusable) + declined
            }
            SSL_CTRL_SESS_CACHE_FULL => own(Count::Evicted),
            _ => libssl(command),
        }
    }

    /// Whether a command of SSL_CTX_ctrl(3) is not libssl's to answer in an SSL_CTX of ours: the mode, the size, and what
    /// libssl counts otherwise.
    pub fn answers(command: u32) -> bool {
        matches!(
            command,
            SSL_CTRL_SESS_NUMBER
                | SSL_CTRL_SESS_CB_HIT
                | SSL_CTRL_SESS_MISSES
                | SSL_CTRL_SESS_CACHE_FULL
                | SSL_CTRL_SET_SESS_CACHE_SIZE
                | SSL_CTRL_GET_SESS_CACHE_SIZE
                | SSL_CTRL_SET_SESS_CACHE_MODE
                | SSL_CTRL_GET_SESS_CACHE_MODE
        )
    }

    /// Whether libssl's own counter is wrong in an SSL_CTX that was handed back.
    pub fn corrects(command: u32) -> bool {
        UNLIKE.contains(&command)
    }

    /// What to add to the value of libssl's own counter, after the SSL_CTX was handed back.
    pub fn correction(&self, command: u32) -> c_long {
        let place = UNLIKE.iter().position(|&unlike| unlike == command);
        place.map_or(0, |place| self.rest().corrections[place].load(Relaxed))
    }
}

/// SSL_CTX_add_session(3), SSL_CTX_flush_sessions(3): what a program asks for
impl Context {
    /// Whether `session` is cached now and was not before (ADD1 to ADD4).
    pub fn add(&self, session: &Session) -> bool {
        self.counters.fetch();
        if self.is_documented() {
            if session.id().is_empty() {
                return false;
            }
        } else if self.has_mode(SSL_SESS_CACHE_UPDATE_TIME) {
            session.set_time(now());
        }
        let role = self.role_of(session);
        let session = match role {
            Role::Server if self.caches.is_shared() => self.tagged(session),
            _ => session.clone(),
        };
        // ADD3, stock: also the time of a session that is cached already was rewritten. (A cache in memory sees that.)
        let again = (!self.is_documented() && self.caches.is_shared()).then(|| session.clone());
        let inserted = self.store(session, Collision::Replace, role);
        if let (Inserted::Same, Some(session)) = (inserted, again) {
            self.cache_of(role).expiry_changed(&session);
        }
        matches!(inserted, Inserted::Added | Inserted::Replaced)
    }

    /// A session that the program adds to a cache that others use. It is for this SSL_CTX, unless its handshake tells more.
    fn tagged(&self, session: &Session) -> Session {
        let (key, own) = (session.key(), self.rest().service.own());
        if let Some(last) = Negotiated::last().filter(|last| last.by == own && last.key == key) {
            return session.with_chain(last.chain).with_tag(last.tag);
        }
        match self.cache().get(&key) {
            Some(cached) if cached.has_secret_of(session) => {
                session.with_chain(cached.chain().cloned()).with_tag(cached.tag())
            }
            _ => session.with_tag(added_tag(own)),
        }
    }

    /// Removes what has `session`'s id and marks `session` (ADD5, ADD6). Whether something was removed. `caller` is the
    /// address of the call: where libssl is not built -Bsymbolic, its own calls come here, too.
    pub fn remove(&self, session: &Session, caller: usize) -> bool {
        if session.id().is_empty() || self.spares() && libssl::unclean::is_in_libssl(caller) {
            return false;
        }
        self.counters.fetch();
        // Marking and taking out are one stay inside the gate where nothing of it waits.
        let inside = (!self.caches.is_shared()).then(gate::enter);
        match self.ctx() {
            Some(ctx) if ctx.is_claimed(session) => ctx.remove_own(session),
            _ => session.mark(),
        }
        let taken = self.take_out(session);
        drop(inside);
        self.notify(session);
        taken.is_some()
    }

    /// Whether libssl condemns a session now for an end that does not cost it (REPRISE_UNCLEAN).
    fn spares(&self) -> bool {
        self.keeps_unclean() && libssl::unclean::is_why()
    }

    /// Libssl has condemned and marked `session`.
    pub fn condemned(&self, session: &Session) {
        if !self.spares() {
            self.removed(session);
            return;
        }
        // The mark cannot be undone: where the object itself is cached, an equal one takes its place.
        // What is in a shared cache is no object that libssl could have marked.
        let cache = self.cache_of(Role::Client);
        if cache.get(&session.key()).is_some_and(|cached| cached.same(session)) {
            match session.unmarked_copy() {
                Some(copy) => {
                    cache.insert(copy, Collision::Replace, &mut |_, _| {});
                }
                None => {
                    drop(cache);
                    self.removed(session);
                }
            }
        }
    }

    /// After `session` was marked: it leaves, whether libssl or the program condemned it (CB5, CB6). Whether it was there.
    pub fn removed(&self, session: &Session) -> bool {
        let taken = self.take_out(session);
        self.notify(session);
        taken.is_some()
    }

    /// Takes out what has the id of `session`, which is marked. The result is what was there: a reference that is given back
    /// outside the gate. Where the lookup that found it has taken it already (REPLAY1), there is no reference left.
    fn take_out(&self, session: &Session) -> Option<Option<Session>> {
        if self.ctx().is_some_and(|ctx| ctx.redeem(session)) {
            return Some(None);
        }
        let of_client = self.any_clients().and_then(|clients| clients.take_like(session));
        let Some(cached) = of_client.or_else(|| self.cache().take_like(session)) else {
            self.count(Count::Condemned);
            return None;
        };
        self.count(Count::Removed);
        totals::sessions(-1);
        if self.is_documented() && !cached.same(session) {
            cached.mark();
        }
        Some(Some(cached))
    }

    /// Removes every session that has expired at `time`, all for 0 (FLUSH1).
    pub fn flush(&self, time: Seconds) {
        let mut flushed = Vec::new();
        let mut flush = |cache: &dyn Cache<Session>| {
            let mut left = |session| flushed.push(session);
            if time == 0 {
                cache.clear(&mut left);
            } else {
                // No more than there are, while others add what has expired.
                cache.expire(time, cache.len(), &mut left);
            }
        };
        flush(&*self.cache());
        if let Some(clients) = self.any_clients() {
            flush(clients);
        }
        for session in flushed {
            self.departed(session, Count::Flushed);
        }
    }

    /// An LHASH of the sessions cached now, good until the next call or the end of the context. While nothing comes or
    /// leaves, it is the same one.
    pub fn table(&self) -> *mut c_void {
        let pointer = |sessions: &SessionTable| sessions.as_ptr();
        let changes = self.any_clients().map_or_else(|| self.caches.current().changes(), |_| None);
        if changes.is_some() {
            let _inside = gate::enter();
            let picture = self.rest().table.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(sessions) = picture.sessions.as_ref().filter(|_| picture.taken == changes) {
                return pointer(sessions);
            }
        }
        let mut sessions = self.cache().snapshot();
        sessions.extend(self.any_clients().into_iter().flat_map(|clients| clients.snapshot()));
        let sessions = SessionTable::new(sessions);
        let table = sessions.as_ref().map_or(std::ptr::null_mut(), pointer);
        drop(self.exchange_table(Picture { sessions, taken: changes }));
        table
    }

    fn exchange_table(&self, table: Picture) -> Picture {
        let _inside = gate::enter();
        std::mem::replace(&mut *self.rest().table.lock().unwrap_or_else(PoisonError::into_inner), table)
    }

    /// Whether an id is taken in the internal cache (ID1).
    pub fn has(&self, version: i32, id: &[u8]) -> bool {
        // Libssl asks of each new id, and of one that was just made up nobody need be asked.
        let is_new = || self.vouching.load(Relaxed) && is_just_issued(id);
        let is_cached =
            |key: &Key| self.any_clients().is_some_and(|clients| clients.contains(key)) || self.cache().contains(key);
        !is_new() && Key::new(version, id).is_some_and(|key| is_cached(&key))
    }

    /// Whether `session` is the sentinel, with which libssl says that the context ends.
    pub fn is_sentinel(&self, session: &Session) -> bool {
        session.as_ptr() as usize == self.sentinel.load(Relaxed)
    }

    /// Libssl lets go of the sentinel: the context ends. Or a program that found libssl's flush by itself has called it: then
    /// our sessions go, and libssl gets another sentinel when it can take one.
    pub fn sentinel_left(&self) {
        if self.ctx().is_some_and(|ctx| !ctx.is_ending()) {
            self.sentinel.store(0, Relaxed);
            self.flush(0);
        } else {
            self.end();
        }
    }

    /// The context ends: every session left goes, with remove_cb (CB5), while all that a callback may need is alive.
    pub fn end(&self) {
        if self.ending.swap(true, Relaxed) {
            return;
        }
        self.set_alive(false);
        // What is in memory. A shared cache goes on without this context.
        let own = self.caches.memory();
        let clear = || {
            let mut left = Vec::new();
            own.clear(&mut |session| left.push(session));
            for session in left {
                self.departed(session, Count::Flushed);
            }
        };
        // A callback may add sessions still, if it does not go on for ever.
        for _ in 0..16 {
            if !own.is_empty() {
                clear();
            }
        }
        self.closed.store(true, Relaxed);
        clear();
        drop(self.exchange_table(Picture::default()));
        self.rest().spent.clear();
        self.rest().service.end();
        self.counters.end();
        if let Some(ctx) = self.ctx() {
            registry::leave(ctx.as_ptr());
        }
    }

    /// Its SSL_CTX is gone, and another one has its address.
    pub fn forget(&self) {
        self.remove_callback.set(None);
        self.end();
    }

    pub fn is_ending(&self) -> bool {
        self.ending.load(Relaxed)
    }
}

/// Judges a session anew wherever it is cached: its time or timeout was changed (FLUSH2).
pub fn expiry_changed(session: &Session) {
    cache::memory::each_owner(session, |owner, hash| {
        if let Some(context) = registry::by_number(owner) {
            // Not through `cache`: the SSL_CTX may be ending in another thread.
            context.caches.memory().judge_anew(session, hash);
        }
    });
    if caches::any_elsewhere() {
        expiry_changed_elsewhere(session);
    }
}

#[cold]
fn expiry_changed_elsewhere(session: &Session) {
    let caches = registry::all().map(|context| context.caches.current());
    for cache in caches.filter(|cache| cache.is_shared() && !cache.is_empty()) {
        let _off = cancel::off();
        // An object that only has the id of a cached session is none of the cache's business. And what the cache keeps
        // beside the session stays.
        match cache.get(&session.key()) {
            Some(cached) if cached.has_secret_of(session) => {
                let kept = session.with_chain(cached.chain().cloned()).with_tag(cached.tag());
                cache.expiry_changed(&kept);
            }
            _ => {}
        }
    }
}

/// Whether there is an SSL_CTX of ours at `ctx`; 0 is the one that caches.
fn is_alive(ctx: usize) -> bool {
    ctx == 0 || registry::find(ctx as *mut SSL_CTX).is_some()
}

/// The session that was negotiated last on a thread. A program may add it itself, in its new_cb or after the handshake
/// (stunnel), and then knows only the object.
#[derive(Clone)]
struct Negotiated {
    /// What only its SSL_CTX has.
    by: [u8; 16],
    key: Key,
    tag: Tag,
    chain: Option<Chain>,
}

thread_local!(static NEGOTIATED: RefCell<Option<Negotiated>> = const { RefCell::new(None) });

impl Negotiated {
    /// That of this thread. `None` also where the thread is ending.
    fn last() -> Option<Negotiated> {
        NEGOTIATED.try_with(|last| last.borrow().clone()).ok()?
    }

    fn note(self) {
        let _ = NEGOTIATED.try_with(|last| last.replace(Some(self)));
    }
}

/// What is shared with other processes is told that this one has gone.
pub fn end_of_process() {
    cache::leave();
}

/// Between a program's callbacks and the cache
impl Context {
    fn store(&self, session: Session, collision: Collision, role: Role) -> Inserted {
        if self.closed.load(Relaxed) {
            return Inserted::Refused;
        }
        // One that comes from the program, which knows how its connection was told to be: it is for this SSL_CTX.
        let is_bare = role == Role::Server && session.tag() == [0; 2] && self.caches.is_shared();
        let session = if is_bare { session.with_tag(added_tag(self.rest().service.own())) } else { session };
        if self.vouching.load(Relaxed) {
            is_just_issued(session.id()); // from now on it is not: where libssl is built -Bsymbolic, it never asked
        }
        let mut left = SmallVec::<[(Session, Departure); 1]>::new();
        let inserted = self.cache_of(role).insert(session, collision, &mut |session, why| left.push((session, why)));
        match inserted {
            Inserted::Added | Inserted::Replaced => {
                self.count(Count::Stored);
                totals::sessions(1);
            }
            Inserted::Refused => self.count(Count::StoreErrors),
            Inserted::Same | Inserted::Kept => {}
        }
        for (session, why) in left {
            match why {
                Departure::Evicted => self.departed(session, Count::Evicted),
                Departure::Replaced => self.replaced(session),
            }
        }
        inserted
    }

    /// It is not marked: what replaces it is mostly a copy of it.
    fn replaced(&self, session: Session) {
        self.count(Count::Replaced);
        totals::sessions(-1);
        // CB5, stock: nobody is told.
        if self.is_documented() {
            self.notify(&session);
        }
    }

    /// What expired, was flushed or pushed out is not to be resumed by anybody who still has it.
    fn departed(&self, session: Session, why: Count) {
        self.count(why);
        totals::sessions(-1);
        session.mark();
        self.notify(&session);
    }

    /// remove_cb, with no lock held (CB11).
    fn notify(&self, session: &Session) {
        if let Some(ctx) = self.ctx() {
            self.remove_callback.call(ctx, session);
        }
    }

    /// A connection begins or asks for something. Expired sessions are cleared on their own, at the latest within 255
    /// connections (MODE5), a share of them on each. First they wait a little, so that a client that
    /// proposes one is told apart from one whose session was never there (STAT1, timeouts).
    pub fn connection(&self) {
        const GRACE: usize = 64;
        const SHARES: usize = 128;
        if self.has_mode(SSL_SESS_CACHE_NO_AUTO_CLEAR) {
            return;
        }
        let now = now();
        let clients = self.any_clients().filter(|clients| clients.has_expired(now));
        let cache = self.cache();
        if !cache.has_expired(now) && clients.is_none() {
            return;
        }
        let inside = gate::enter();
        let Some(mut sweep) = self.rest().sweep.try_lock() else { return };
        sweep.waited += 1;
        if sweep.waited <= GRACE {
            return;
        }
        sweep.share = sweep.share.max(self.number() / SHARES + 1);
        let most = sweep.share;
        let mut expired = SmallVec::<[Session; 16]>::new();
        let mut expire = |cache: &dyn Cache<Session>| cache.expire(now, most, &mut |session| expired.push(session));
        if expire(&*cache) + clients.map_or(0, &mut expire) < most {
            *sweep = Sweep::default();
        }
        drop(sweep);
        drop(inside);
        drop(cache);
        for session in expired {
            self.departed(session, Count::Expired);
        }
    }
}

/// What libssl asks for: the hooks
impl Context {
    /// A session was negotiated (CB2, MODE2 to MODE4, MODE7, MODE10). Whether the program keeps the reference that came
    /// with it.
    pub fn negotiated(&self, connection: &Connection, session: &Session) -> bool {
        self.connection();
        // CB2: a resumption with it would be refused.
        let inherits_mark = !session.is_resumable() && connection.is_resumed();
        if self.is_documented() && !session.is_resumable() && !inherits_mark {
            return false;
        }
        self.count(Count::Negotiated);
        // REPRISE_INTERNAL is for servers: nobody would ever look up what a client's program keeps elsewhere.
        let (role, mode) = match connection.is_server() {
            true => (Role::Server, self.effective(self.mode())),
            false => (Role::Client, self.mode()),
        };
        if role == Role::Client {
            self.note_clients();
        }
        if self.max_age() > 0 {
            session.note_origin(now());
        }
        let shares = role == Role::Server && self.caches.current().is_shared();
        let chain = (role == Role::Server && (shares || self.reverifies())).then(|| connection.chain()).flatten();
        let tag = if shares { self.tag(connection, session) } else { [0; 2] };
        let mut session = session.with_chain(chain).with_tag(tag);
        if inherits_mark {
            session = session.with_inherited_mark();
        }
        let session = &session;
        if mode & SSL_SESS_CACHE_NO_INTERNAL_STORE == 0 && self.is_looked_up_later(connection) {
            self.store(session.clone(), Collision::Replace, role);
        }
        if shares {
            let chain = session.chain().cloned();
            Negotiated { by: self.rest().service.own(), key: session.key(), tag, chain }.note();
        }
        let Some(keeps) = self.new_callback.call(connection, session) else { return false };
        // CB3. It is not marked and remove_cb is not called: programs that have just stored it as bytes return 0, and
        // would delete what they stored. Under REPRISE_INTERNAL=always servers keep it: nothing that the program says is
        // against their cache.
        let leaves = !keeps && self.is_documented() && !(role == Role::Server && self.is_always());
        if leaves && self.cache_of(role).take_same(session).is_some() {
            self.count(Count::Rejected);
            totals::sessions(-1);
        }
        keeps
    }

    /// MODE10: a TLS 1.3 server's ticket mostly holds the whole session, which is then looked up nowhere.
    fn is_looked_up_later(&self, connection: &Connection) -> bool {
        !connection.is_tls13()
            || !connection.is_server()
            || self.remove_callback.is_set()
            || self.ctx().is_some_and(|ctx| connection.has_stateful_tickets(ctx) || connection.has_anti_replay(ctx))
    }

    /// A client proposed `id` (CB7, MODE4, MODE6).
    pub fn lookup(&self, connection: &Connection, id: &[u8]) -> Option<Session> {
        let ctx = self.ctx()?;
        let key = Key::new(connection.version(), id)?;
        let once = connection.has_anti_replay(ctx);
        ctx.withdraw_claim();
        let found = self.find(ctx, connection, &key, once);
        if self.caches.current().is_shared() {
            connection.note_found(found.as_ref());
        }
        found
    }

    fn find(&self, ctx: Ctx, connection: &Connection, key: &Key, once: bool) -> Option<Session> {
        if !self.has_mode(SSL_SESS_CACHE_NO_INTERNAL_LOOKUP) {
            if self.vouching.load(Relaxed) && self.cache().refuses(key.id()) {
                self.count(Count::Misses);
                return self.lookup_external(ctx, connection, key, once);
            }
            if let Some(session) = self.lookup_internal(ctx, connection, key, once) {
                return Some(session);
            }
        }
        self.lookup_external(ctx, connection, key, once)
    }

    fn lookup_internal(&self, ctx: Ctx, connection: &Connection, key: &Key, once: bool) -> Option<Session> {
        let found = if once { self.cache().redeem(key) } else { self.cache().get(key).map(|session| (session, true)) };
        let Some((session, with_early_data)) = found else {
            self.count(Count::Misses);
            return None;
        };
        if once {
            if !with_early_data {
                session.refuse_early_data();
            }
            // What is not resumed now has left all the same, and the program hears of it (CB5).
            if self.is_too_old(&session) {
                self.count(Count::Misses);
                self.departed(session, Count::Expired);
                return None;
            }
            // Libssl would refuse a marked one before it asks for the removal that `claim` waits for.
            if !session.is_usable() || !self.still_accepts(connection, &session) {
                self.count(Count::Unusable);
                self.departed(session, Count::Removed);
                return None;
            }
            // The external cache may have it too, and may have been asked for it in the meantime.
            if self.is_documented() && self.get_callback.is_set() && !self.rest().spent.spend(key, &session, now()) {
                self.count(Count::Replays);
                self.departed(session, Count::Removed);
                return None;
            }
            self.count(Count::Taken);
            totals::sessions(-1);
            self.count(Count::Hits);
            ctx.claim(&session);
            return Some(session);
        }
        if self.is_too_old(&session) {
            self.count(Count::Misses);
            let taken = self.cache().take(key);
            if let Some(session) = taken {
                self.departed(session, Count::Expired);
            }
            return None;
        }
        // A session removed and added again is still marked. Libssl would refuse it, or break off the handshake.
        if !session.is_usable() || !self.still_accepts(connection, &session) {
            self.count(Count::Unusable);
            return None;
        }
        self.count(Count::Hits);
        if self.is_documented() {
            self.renew(&session);
        }
        Some(session)
    }

    /// Whether the client of a session would be accepted now (ISO3).
    fn still_accepts(&self, connection: &Connection, session: &Session) -> bool {
        let (shares, reverifies) = (self.caches.current().is_shared(), self.reverifies());
        if !shares && !reverifies {
            return true;
        }
        let mut store = None;
        if shares {
            let expected = self.ctx().and_then(|ctx| self.expected_tag(connection, ctx));
            if !self.admits(session.tag(), expected.map(|(tag, _)| tag)) {
                return false;
            }
            let switched = expected.and_then(|(_, switched)| switched).filter(|_| reverifies);
            store = switched.and_then(|context| context.rest().service.store());
        }
        !reverifies || connection.would_accept(session, store.as_ref())
    }

    /// Whether a session with `tag` is for a connection that expects `expected`.
    fn admits(&self, tag: Tag, expected: Option<Tag>) -> bool {
        expected == Some(tag)
            || expected.is_some_and(|expected| kept_tag(expected, self.rest().service.own()) == tag)
            || added_tag(self.rest().service.own()) == tag
    }

    fn lookup_external(&self, ctx: Ctx, connection: &Connection, key: &Key, once: bool) -> Option<Session> {
        if !self.get_callback.is_set() {
            return None;
        }
        let Some(session) = self.get_callback.call(connection, key.id()) else {
            self.count(Count::ExternalMisses);
            return None;
        };
        // CB10, and what makes libssl crash in any semantics. Dropping the reference settles it as CB8 says.
        let as_promised = || session.has_master_key() && session.is_resumable() && session.key() == *key;
        let usable = session.has_cipher() && (!self.is_documented() || as_promised()) && !self.is_too_old(&session);
        if !usable {
            self.count(Count::ExternalRefused);
            return None;
        }
        // CB10, stock: libssl itself sees the mark, and neither counts nor caches the session.
        if !session.is_resumable() {
            self.count(Count::ExternalRefused);
            return Some(session);
        }
        let stores = !self.has_mode(SSL_SESS_CACHE_NO_INTERNAL_STORE);
        if once {
            // REPLAY1. Stock accepts a ticket as often as the program brings it, or never.
            if self.is_documented() && !self.rest().spent.spend(key, &session, now()) {
                self.count(Count::Replays);
                return None;
            }
            if (self.is_documented() || stores) && session.is_resumable() {
                self.count(Count::Taken);
                // Stock puts it into the cache, for which another may have to leave, and takes it out again.
                let passes = !self.is_documented() && !self.caches.is_shared();
                if passes {
                    self.store(session.clone(), Collision::Replace, Role::Server);
                }
                // A cache that was not asked before may have it as well. One in Redis is asked once in a handshake.
                let asks = passes || self.has_mode(SSL_SESS_CACHE_NO_INTERNAL_LOOKUP);
                let cached = if asks { self.cache().take(key) } else { None };
                match cached {
                    Some(_) => totals::sessions(-1),
                    None => self.counters.taken_outside(),
                }
                ctx.claim(&session);
            }
        } else if self.is_documented() {
            self.renew(&session);
            if stores && session.expiry() >= now() {
                // One that is there already stays: replacing it would have remove_cb delete what is in use (CB9).
                self.store(session.clone(), Collision::KeepUnlessExpired(now()), Role::Server);
            }
        } else if stores {
            // MODE8, stock: renewed before anybody looks whether it has expired.
            if self.has_mode(SSL_SESS_CACHE_UPDATE_TIME) {
                session.set_time(now());
            }
            self.store(session.clone(), Collision::Replace, Role::Server);
        }
        self.count(Count::ExternalHits);
        Some(session)
    }

    /// MODE8: a session that is used lives longer, unless it had expired. Not one for early data: its age is checked
    /// against the time it was issued.
    fn renew(&self, session: &Session) {
        let now = now();
        // Without a note of when it began, its time is all there is to judge its age by.
        let keeps_time = self.max_age() > 0 && session.origin().is_none();
        if self.has_mode(SSL_SESS_CACHE_UPDATE_TIME)
            && session.expiry() >= now
            && !session.allows_early_data()
            && !keeps_time
        {
            session.set_time(now);
            self.cache().expiry_changed(session);
        }
    }
}

/// Around fork(): nothing may be half-done in the child. What it costs does not depend on how many contexts there are, but on
/// how many have counted anything since the last fork.
pub mod fork {
    use super::{counters, registry};
    use crate::cache::{self, Held};
    use crate::{board, gate, libssl};
    use std::cell::RefCell;
    use std::mem::ManuallyDrop;

    // What has a destructor would be registered with the thread, which waits for the lock of dlopen: for a library whose
    // constructor may be waiting for the gate.
    thread_local!(static STOPPED: RefCell<ManuallyDrop<Option<Held>>> = const { RefCell::new(ManuallyDrop::new(None)) });

    /// Before: waits until nothing is being changed, and keeps it so. Nothing is allocated, and nothing waited for without an
    /// end: a signal handler may have called fork() at any moment.
    pub fn prepare() {
        STOPPED.with(|_| ()); // Memory of the thread's own may be allocated when it is first used.
        gate::close();
        if !registry::is_used() {
            return;
        }
        for group in (0..counters::GROUPS).filter(|&group| counters::take_changed(group)) {
            for context in registry::of_group(group) {
                let clients = || context.clients().map_or(0, |clients| clients.len());
                context.counters.before_fork(|| context.caches.current().inherited() + clients());
            }
        }
        // A signal handler that interrupts this function may come here, too.
        if gate::is_closed_once() {
            STOPPED.with(|place| **place.borrow_mut() = Some(cache::hold()));
        }
        board::before_fork();
    }

    /// In the child, before it resumes.
    pub fn child() {
        gate::forked();
        if !registry::is_used() {
            return;
        }
        board::forked();
        cache::forked();
        counters::forked();
        libssl::forked();
    }

    /// After, in the parent and in the child.
    pub fn resume() {
        if gate::is_closed_once() {
            drop(STOPPED.with(|place| place.borrow_mut().take()));
        }
        gate::open();
    }
}
