//! The link of a process to Redis: what it waits for, and no longer than it may; what it writes behind; and when it does
//! not ask at all.
//!
//! - A lookup has a deadline, one clock from its beginning to its end.
//! - Each node of a Cluster has a breaker, which says when nobody asks it, a queue, threads and metrics of its own
//!   (`link::nodes`). One server is one node.
//! - What is stored is `pending`, where this process finds it at once, until the writer has it in Redis.
//! - What was removed or used up leaves a void record in Redis, and a tombstone here: nobody who can write to Redis brings
//!   it back to this process, and no write that is repeated brings it back to any.
//! - Threads and connections belong to one process. A forked child begins without any; what was pending is its parent's to
//!   write. (`hold` sees to it that nothing is half done at a fork.)

mod breaker;
mod nodes;
mod tombstones;
mod writer;

use super::super::{Key, Seconds, Service, LONGEST as LONGEST_ID};
use super::files::{stamp, Stamp};
use super::foreign::ForeignIds;
use super::generations::{Bucket, Generations, Told as Generation};
use super::keys::{Keys, Name};
use super::server::{has_moved, refuses_to_store, words, Connection, Files, Found, How, Life, Server};
use super::url::Spec;
use super::vitals::{Vital, Vitals};
use super::void::Void;
use super::wire::{late, remaining};
use crate::log;
use crate::thread::Waiting;
use breaker::jitter;
use nodes::{Node, NodeState, MOST_NODES};
use once_cell::race::OnceBox;
use redis::{Cmd, RedisError, RedisResult};
use std::collections::{HashMap, HashSet, VecDeque};
use std::num::NonZeroU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tombstones::Tombstones;

/// How long a thread of the link waits before it tries again, at first and at the most.
const PAUSES: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(2)];
/// How often the server has to answer in time before the breaker closes.
const TRIES: u32 = 3;
/// How often the key file and certificates are looked at.
const LOOK_AT_FILES: Duration = Duration::from_secs(2);
/// Connections that wait for the next lookup.
const IDLE: usize = 64;
/// Issued ids that are remembered until their session is stored.
const ISSUED: usize = 4096;
/// How long a fork waits for those who have a lock.
const HOLDING: Duration = Duration::from_secs(2);
/// How long a process that ends waits for what is still to be written.
const PARTING: Duration = Duration::from_millis(200);

type Id = (Service, Key);

pub struct Link {
    spec: Spec,
    server: Server,
    keys: Mutex<(Arc<Keys>, Stamp)>,
    state: Mutex<State>,
    /// The first one is the server of the URL. In a Cluster it is nobody: it has what waits until the nodes are known.
    nodes: [OnceBox<Node>; MOST_NODES],
    /// Something was written, to any node.
    written: Condvar,
}

/// The locks of a link; dropping it lets them go.
pub struct Held {
    _keys: Option<MutexGuard<'static, (Arc<Keys>, Stamp)>>,
    _files: Option<MutexGuard<'static, Files>>,
    _state: Option<MutexGuard<'static, State>>,
}

fn lock<T>(mutex: &'static Mutex<T>, waiting: &mut Waiting) -> Option<MutexGuard<'static, T>> {
    loop {
        match mutex.try_lock() {
            Ok(locked) => return Some(locked),
            Err(TryLockError::Poisoned(error)) => return Some(error.into_inner()),
            Err(TryLockError::WouldBlock) if waiting.goes_on() => {}
            Err(TryLockError::WouldBlock) => return None,
        }
    }
}

#[derive(Default)]
struct State {
    process: u32,
    nodes: Vec<NodeState>,
    /// Of a Cluster: which node has which slots.
    routes: Vec<([u16; 2], usize)>,
    /// Somebody met a key that has moved, or a node that does not answer.
    is_misled: bool,
    pending: HashMap<Id, Pending>,
    numbers: u64,
    issued: Issued,
    tombstones: Tombstones,
    generations: Generations,
    foreign: ForeignIds,
}

struct Pending {
    plain: Arc<Vec<u8>>,
    expiry: Seconds,
    how: How,
    /// The last one that was stored for the id.
    number: u64,
    place: Place,
    /// The generation of its bucket when it was stored: if another one turns up, it was flushed. `None` where Redis had
    /// not told it yet.
    generation: Option<u64>,
    /// The void record that it may take the place of.
    over: Option<Void>,
    /// The life of the server when it was first sent.
    life: Option<Life>,
    since: Instant,
}

/// Where a session is that is not known to be in Redis.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Here only: its id was issued here, and it was not sent.
    Here,
    /// The writer has it in its hands.
    OnItsWay,
    /// It may be in Redis, or not.
    InDoubt,
}

/// Ids that this process has issued and not stored a session for, the newest ones.
#[derive(Default)]
struct Issued {
    ids: HashSet<[u8; LONGEST_ID]>,
    order: VecDeque<[u8; LONGEST_ID]>,
}

impl Issued {
    fn add(&mut self, id: [u8; LONGEST_ID]) {
        self.ids.insert(id);
        self.order.push_back(id);
        while self.order.len() > ISSUED {
            if let Some(oldest) = self.order.pop_front() {
                self.ids.remove(&oldest);
            }
        }
    }

    /// Whether no session with this id can be anywhere yet. From now on there may be one.
    fn take(&mut self, id: &[u8]) -> bool {
        self.ids.remove(id)
    }
}

/// What became of a lookup.
pub enum Answer {
    Session(Vec<u8>),
    /// The same, and its early data may have been accepted before.
    WithoutEarlyData(Vec<u8>),
    Nothing,
}

/// What Redis said of a session.
enum Told {
    Session {
        plain: Vec<u8>,
        expiry: Seconds,
        /// Whether the server's life is the one in which the session was written.
        is_of_this_life: bool,
    },
    Void(Void),
    Nothing,
    /// It was not asked.
    NotAsked,
    /// It was asked and did not say anything.
    Unknown,
}

/// Why there is no answer.
enum Silence {
    NotAsked,
    Failed,
}

impl Link {
    /// Reads keys and certificates; connects to nothing. The error is a sentence for a person.
    pub fn new(spec: &Spec) -> Result<Link, String> {
        let keys = Keys::read(&spec.key_file)?;
        let link = Link {
            server: Server::new(spec)?,
            keys: Mutex::new((Arc::new(keys), stamp(&spec.key_file))),
            spec: spec.clone(),
            state: Mutex::default(),
            nodes: [const { OnceBox::new() }; MOST_NODES],
            written: Condvar::new(),
        };
        let _ = link.nodes[0].set(Box::new(Node::new(0, None)));
        Ok(link)
    }

    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// The metrics of the link as a whole.
    pub fn vitals(&self) -> &Vitals {
        &self.node(0).vitals
    }

    pub fn keys(&self) -> Arc<Keys> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// The state, with nothing of a parent process in it.
    fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let process = std::process::id();
        if state.process != process {
            // The connections are closed here and go on in the parent. What was removed stays removed.
            let tombstones = std::mem::take(&mut state.tombstones);
            let generations = std::mem::take(&mut state.generations);
            let foreign = std::mem::take(&mut state.foreign);
            let nodes = state.nodes.len().max(1);
            *state = State { process, tombstones, generations, foreign, ..State::default() };
            state.nodes.resize_with(nodes, NodeState::default);
            for node in self.nodes.iter().filter_map(OnceBox::get) {
                node.broken.store(false, Relaxed);
                node.vitals.begin(&self.label(node));
            }
        }
        state
    }

    /// The bytes of the service's sessions that are not written yet.
    pub fn pending(&self, service: Service) -> Vec<Arc<Vec<u8>>> {
        let state = self.state();
        let of_service = state.pending.iter().filter(|(id, pending)| id.0 == service && pending.how != How::Renew);
        of_service.map(|(_, pending)| pending.plain.clone()).collect()
    }

    /// Sessions of the service will come soon: connections are made, and generations asked for.
    pub fn prepare(&'static self, service: Service) {
        let mut state = self.state();
        self.ask_about(&mut state, service);
    }

    fn ask_about(&'static self, state: &mut State, service: Service) {
        for number in 0..state.nodes.len() {
            let node = self.node(number);
            self.start(state, node);
            if state.nodes[number].asked.insert(service) {
                node.to_write.notify_one();
            }
        }
    }

    /// Makes a new id that verifies itself.
    pub fn issue(&self, service: Service, id: &mut [u8; LONGEST_ID]) -> bool {
        let issued = self.keys().issue(service, id);
        if issued {
            self.state().issued.add(*id);
        }
        issued
    }

    /// Whether there was ever a request or a session to write in this process.
    pub fn is_used(&self) -> bool {
        self.state().nodes[0].runs[WRITER]
    }

    /// Nothing is half done until the result is dropped. A lock that this very thread has, because a signal handler forks, is
    /// not waited for without an end.
    pub fn hold(&'static self) -> Held {
        let mut waiting = Waiting::at_most(HOLDING);
        let state = lock(&self.state, &mut waiting);
        let keys = lock(&self.keys, &mut waiting);
        Held { _keys: keys, _files: lock(self.server.files(), &mut waiting), _state: state }
    }

    // --- what is asked ---------------------------------------------------------------------------------------------

    /// The session's bytes, from here or from Redis.
    pub fn get(&'static self, id: Id, now: Seconds) -> Answer {
        let until = Instant::now() + self.spec.deadline;
        let state = self.state();
        if let Some(pending) = state.pending.get(&id).filter(|pending| pending.how != How::Renew) {
            self.vitals().count(Vital::FoundPending);
            return Answer::Session(pending.plain.to_vec());
        }
        if state.tombstones.contains(&id) {
            return Answer::Nothing;
        }
        // As it is about to become in Redis, if it is there.
        let renewed = state.pending.get(&id).map(|pending| pending.plain.clone());
        drop(state);
        match self.ask(id, until, |connection, control, name| connection.get(control, name)) {
            Told::Session { plain, .. } => Answer::Session(renewed.map_or(plain, |renewed| renewed.to_vec())),
            // A program that adds the session again has to have seen that it was removed.
            Told::Void(void) => {
                self.state().tombstones.note(&id, void, now);
                Answer::Nothing
            }
            Told::Nothing | Told::NotAsked | Told::Unknown => Answer::Nothing,
        }
    }

    /// The same, and nobody else in the fleet has it. Where Redis cannot be asked, nobody gets it.
    pub fn take(&'static self, id: Id, now: Seconds) -> Answer {
        self.take_out(id, now, Connection::take, false)
    }

    /// The same for good: a session that is still on its way to Redis, from whatever process, does not arrive.
    pub fn remove(&'static self, id: Id, now: Seconds) -> Answer {
        self.take_out(id, now, Connection::remove, true)
    }

    fn take_out(
        &'static self,
        id: Id,
        now: Seconds,
        take: fn(&mut Connection, &str, &str, Void) -> RedisResult<Found>,
        for_good: bool,
    ) -> Answer {
        let until = Instant::now() + self.spec.deadline;
        let void = Void::new();
        let mut state = self.state();
        // Redis may have it in this very moment.
        while state.pending.get(&id).is_some_and(|pending| pending.place == Place::OnItsWay) {
            let Some(left) = remaining(until) else {
                state.pending.remove(&id);
                self.write_void(&mut state, id, void, now + A_DAY, now);
                return Answer::Nothing;
            };
            state = self.written.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        if state.tombstones.contains(&id) {
            state.pending.remove(&id);
            return Answer::Nothing;
        }
        let pending = state.pending.remove(&id);
        // As it is about to become in Redis, if it is there.
        let newest = pending.as_ref().map(|pending| (pending.plain.to_vec(), pending.expiry));
        let pending = pending.filter(|pending| pending.how != How::Renew);
        if let Some(pending) = pending.as_ref().filter(|pending| pending.place == Place::Here) {
            state.tombstones.insert(&id, void, pending.expiry, now);
            self.vitals().count(Vital::FoundPending);
            return Answer::Session(pending.plain.to_vec());
        }
        drop(state);
        // What may be on its way must not arrive any more.
        let take = if pending.is_some() { Connection::remove } else { take };
        let told = self.ask(id, until, |connection, control, name| take(connection, control, name, void));
        // The void record of this very removal, or the one that the session was stored over, tells of nobody else.
        let told = match (told, &pending) {
            (Told::Void(found), Some(pending)) if found == void || pending.over == Some(found) => Told::Nothing,
            (told, _) => told,
        };
        let mut state = self.state();
        let (plain, expiry, with_early_data) = match (told, pending) {
            (Told::Session { plain, expiry, is_of_this_life }, _) => {
                let (plain, expiry) = newest.unwrap_or((plain, expiry));
                (plain, expiry, is_of_this_life)
            }
            // It is here, and may have been used up in a life that was lost.
            (Told::Nothing, Some(pending)) => (pending.plain.to_vec(), pending.expiry, false),
            (Told::Nothing | Told::Void(_), _) => return Answer::Nothing,
            // The ticket is where it was, for whoever asks next.
            (Told::NotAsked, None) if !for_good => return Answer::Nothing,
            // It was here, and leaves for good whether Redis can be told now or later.
            (Told::NotAsked | Told::Unknown, Some(pending)) if for_good => {
                self.write_void(&mut state, id, void, now + A_DAY, now);
                return Answer::Session(pending.plain.to_vec());
            }
            (Told::NotAsked | Told::Unknown, _) => {
                self.write_void(&mut state, id, void, now + A_DAY, now);
                return Answer::Nothing;
            }
        };
        if self.keys().names(id.0, &id.1).nth(1).is_some() {
            // Machines that are at different stages of a rotation may have stored it under different names.
            self.enqueue_void(&mut state, id, void);
        }
        // Who has written it down can bring it back: two threads, and neither can have it twice.
        match (state.tombstones.insert(&id, void, expiry, now), with_early_data) {
            (true, true) => Answer::Session(plain),
            (true, false) => {
                self.vitals().count(Vital::WithoutEarlyData);
                Answer::WithoutEarlyData(plain)
            }
            (false, _) => Answer::Nothing,
        }
    }

    /// It is not resumed here any more, and by nobody once Redis has been told.
    fn write_void(&'static self, state: &mut State, id: Id, void: Void, until: Seconds, now: Seconds) {
        state.tombstones.insert(&id, void, until, now);
        self.enqueue_void(state, id, void);
    }

    fn ask(
        &'static self,
        id: Id,
        until: Instant,
        ask: impl Fn(&mut Connection, &str, &str) -> RedisResult<Found>,
    ) -> Told {
        let keys = self.keys();
        let service = keys.service_name(id.0);
        let mut told = Told::Nothing;
        for name in keys.names(id.0, &id.1) {
            let bucket = self.bucket(id.0, &name);
            let (control, place) =
                (control(&self.spec, &service, bucket.1), place(&self.spec, &service, bucket.1, &name));
            let mut state = self.state();
            let Some(node) = self.node_of(&state, bucket) else {
                self.start(&mut state, self.node(0));
                self.vitals().count(Vital::NoConnection);
                return Told::NotAsked;
            };
            drop(state);
            let found = match self.request(node, until, |connection| ask(connection, &control, &place)) {
                Ok(found) => found,
                Err(Silence::NotAsked) => return Told::NotAsked,
                Err(Silence::Failed) => return Told::Unknown,
            };
            let Some(value) = found.value else { continue };
            if let Some(void) = Void::of(&value) {
                told = Told::Void(void);
                continue;
            }
            return match self.judge(&keys, id, bucket, found.generation, &value) {
                Some((plain, head)) => Told::Session {
                    plain,
                    expiry: head.expiry,
                    is_of_this_life: head.life.is_some() && head.life == found.life,
                },
                None => Told::Nothing,
            };
        }
        told
    }

    /// Of a record from Redis what was once stored, if it is to be believed.
    fn judge(
        &self,
        keys: &Keys,
        id: Id,
        bucket: Bucket,
        generation: Generation,
        record: &[u8],
    ) -> Option<(Vec<u8>, Head)> {
        let Some(mut plain) = keys.open(id.0, &id.1, record) else {
            self.vitals().count(Vital::SealBroken);
            return None;
        };
        let head = Head::of(&plain)?;
        let Generation::Number(generation) = generation else {
            self.vitals().count(Vital::Outdated);
            return None;
        };
        if !self.state().generations.learn(bucket, generation) {
            self.vitals().count(Vital::SetBack);
            return None;
        }
        if head.generation != generation {
            self.vitals().count(Vital::Outdated);
            return None;
        }
        plain.drain(..Head::SIZE);
        Some((plain, head))
    }

    /// Asks a node for one answer.
    fn request<T>(
        &'static self,
        node: &'static Node,
        until: Instant,
        ask: impl Fn(&mut Connection) -> RedisResult<T>,
    ) -> Result<T, Silence> {
        if node.broken.load(Relaxed) {
            node.vitals.count(Vital::NotAsked);
            return Err(Silence::NotAsked);
        }
        let began = Instant::now();
        let mut failed: Option<RedisError> = None;
        loop {
            let Some(mut connection) = self.connection(node, until) else {
                let Some(error) = failed else {
                    node.vitals.count(Vital::NoConnection);
                    return Err(Silence::NotAsked);
                };
                self.failed(node, &error, began.elapsed());
                return Err(Silence::Failed);
            };
            connection.set_end(until);
            match ask(&mut connection) {
                Ok(answer) => {
                    self.answered(node, connection, began.elapsed());
                    return Ok(answer);
                }
                Err(error) if has_moved(&error) => {
                    self.answered(node, connection, began.elapsed());
                    self.is_misled(&mut self.state());
                    return Err(Silence::Failed);
                }
                // What it holds can be asked for all the same.
                Err(error) if refuses_to_store(&error) => {
                    self.answered(node, connection, began.elapsed());
                    return Err(Silence::Failed);
                }
                // One that waited may have been closed in the meantime.
                Err(error) if failed.is_none() && !error.is_timeout() && remaining(until).is_some() => {
                    failed = Some(error);
                }
                Err(error) => {
                    self.failed(node, &error, began.elapsed());
                    return Err(Silence::Failed);
                }
            }
        }
    }

    /// A connection of the caller's own. A thread of the link makes them: that may take longer than a lookup may, and more of
    /// the stack than the caller has. It is waited for within the deadline.
    fn connection(&'static self, node: &'static Node, until: Instant) -> Option<Connection> {
        let mut state = self.state();
        self.start(&mut state, node);
        if let Some(connection) = state.of(node).idle.pop() {
            return Some(connection);
        }
        state.of(node).wanted += 1;
        node.to_connect.notify_one();
        let began = Instant::now();
        let found = loop {
            if let Some(connection) = state.of(node).idle.pop() {
                break Some(connection);
            }
            let Some(left) = remaining(until).filter(|_| !state.of(node).breaker.is_open()) else { break None };
            state = node.connected.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        };
        let its = state.of(node);
        its.wanted = its.wanted.saturating_sub(1);
        let is_late = found.is_none() && !its.breaker.is_open();
        drop(state);
        if is_late {
            self.failed(node, &late(), began.elapsed());
        }
        found
    }

    fn answered(&self, node: &Node, connection: Connection, waited: Duration) {
        node.vitals.waited(waited);
        self.state().of(node).breaker.answered();
        self.give_back(node, connection);
    }

    /// The next lookup has it; one that waits for a connection is woken.
    fn give_back(&self, node: &Node, connection: Connection) {
        let mut state = self.state();
        let its = state.of(node);
        if its.idle.len() < IDLE {
            its.idle.push(connection);
        }
        if its.wanted > 0 {
            node.connected.notify_one();
        }
    }

    /// A request failed, for which a handshake waited so long.
    fn failed(&'static self, node: &Node, error: &RedisError, waited: Duration) {
        node.vitals.count(Vital::Failed);
        if error.is_timeout() {
            node.vitals.count(Vital::TimedOut);
        }
        if waited > Duration::ZERO {
            node.vitals.waited(waited);
        }
        let mut state = self.state();
        if !state.of(node).breaker.failed(waited, self.spec.deadline) {
            return;
        }
        node.broken.store(true, Relaxed);
        node.vitals.set(Vital::IsBroken, 1);
        node.vitals.count(Vital::Broken);
        let connections = std::mem::take(&mut state.of(node).idle);
        self.is_misled(&mut state);
        node.to_connect.notify_one();
        node.connected.notify_all();
        drop(state);
        drop(connections);
        log::once(format_args!(
            "{}: {}: until it answers again, only sessions of this process are found",
            self.label(node),
            words(error)
        ));
    }

    // --- what is written -------------------------------------------------------------------------------------------

    /// Stores the session's bytes: found here at once, in Redis soon. `false` if it is not taken on.
    pub fn put(&'static self, id: Id, plain: Vec<u8>, expiry: Seconds, how: How) -> bool {
        let bucket = self.bucket(id.0, &self.keys().name(id.0, &id.1));
        let mut state = self.state();
        let is_new = state.issued.take(id.1.id());
        // What was removed is not renewed. What the program adds again replaces the void record, and no later one.
        let over = match how {
            How::Renew => None,
            _ => state.tombstones.remove(&id),
        };
        state.numbers += 1;
        let number = state.numbers;
        let before = state.pending.get(&id);
        let place = match before {
            Some(pending) => pending.place,
            None if is_new => Place::Here,
            None => Place::InDoubt,
        };
        // What is not in Redis yet is not to wait for being there.
        let how =
            before.filter(|pending| how == How::Renew && pending.how != How::Renew).map_or(how, |pending| pending.how);
        let over = over.or(before.and_then(|pending| pending.over));
        let life = before.and_then(|pending| pending.life);
        let generation = state.generations.known(bucket);
        let pending = Pending {
            plain: Arc::new(plain),
            expiry,
            how,
            number,
            place,
            generation,
            over,
            life,
            since: Instant::now(),
        };
        let node = self.node_or_nobody(&state, bucket);
        self.start(&mut state, node);
        if state.of(node).queue.len() >= self.spec.queue && !self.drop_oldest(&mut state, node) {
            return false;
        }
        state.pending.insert(id, pending);
        state.of(node).queue.push_back((id, number));
        state.show_waiting(node);
        node.to_write.notify_one();
        true
    }

    /// It is still to be written, before all others.
    fn enqueue_again(&'static self, state: &mut State, id: Id, number: u64) {
        let bucket = self.bucket(id.0, &self.keys().name(id.0, &id.1));
        let node = self.node_or_nobody(state, bucket);
        self.start(state, node);
        state.of(node).queue.push_front((id, number));
        node.to_write.notify_one();
    }

    fn enqueue_void(&'static self, state: &mut State, id: Id, void: Void) {
        let bucket = self.bucket(id.0, &self.keys().name(id.0, &id.1));
        let node = self.node_or_nobody(state, bucket);
        self.start(state, node);
        state.of(node).voids.push_back((id, void));
        state.show_waiting(node);
        node.to_write.notify_one();
    }

    /// A session with a foreign id will come, which no process is to refuse until it has expired.
    pub fn announce_foreign_ids(&'static self, service: Service, expiry: Seconds) {
        let mut state = self.state();
        if state.foreign.announce(service, expiry, now()) {
            self.ask_about(&mut state, service);
        }
    }

    /// Whether there may be sessions with foreign ids.
    pub fn may_have_foreign_ids(&'static self, service: Service) -> bool {
        let mut state = self.state();
        let (there, asks) = state.foreign.may_exist(service, now());
        if asks {
            self.ask_about(&mut state, service);
        }
        there
    }

    /// Everything of the service is gone, in all processes that can be reached.
    pub fn flush(&'static self, service: Service) {
        let mut state = self.state();
        state.pending.retain(|id, _| id.0 != service);
        let buckets: Vec<Bucket> = self.buckets(service).collect();
        buckets.iter().for_each(|&bucket| state.generations.raise(bucket));
        drop(state);
        // In the caller's own time, since it is done rarely and must be over when it returns.
        let until = Instant::now() + self.spec.connect;
        let mut is_told = true;
        let nodes = self.nodes_in_use(&self.state());
        for node in nodes {
            let of_node = self.buckets_of(&self.state(), service, node);
            let keys = self.keys();
            let settle = |connection: &mut Connection| self.settle(connection, &keys, of_node.clone());
            is_told &= self.request_slowly(node, until, settle).is_some();
        }
        if !is_told {
            // The writer finds that Redis has lower generations than this process.
            self.ask_about(&mut self.state(), service);
        }
    }

    fn request_slowly<T>(
        &'static self,
        node: &'static Node,
        until: Instant,
        ask: impl Fn(&mut Connection) -> RedisResult<T>,
    ) -> Option<T> {
        let mut tries = 0..2;
        while !node.broken.load(Relaxed) && remaining(until).is_some() {
            let Some(mut connection) = self.connection(node, until) else {
                let waited = node.connected.wait_timeout(self.state(), Duration::from_millis(10));
                drop(waited.unwrap_or_else(PoisonError::into_inner));
                continue;
            };
            connection.set_end(until);
            tries.next()?;
            if let Ok(answer) = ask(&mut connection) {
                self.give_back(node, connection);
                return Some(answer);
            }
        }
        None
    }

    /// Of the sessions that wait, the one that its client is least likely to come for right now. `false` if there is none.
    fn drop_oldest(&self, state: &mut State, node: &Node) -> bool {
        let Some((id, number)) = state.of(node).queue.pop_front() else { return false };
        if state.drop_pending(&id, number) {
            node.vitals.count(Vital::Overflowed);
        }
        true
    }

    /// The process ends: what is on its way has a moment to arrive.
    pub fn leave(&'static self) {
        let until = Instant::now() + PARTING;
        let mut state = self.state();
        while state.nodes.iter().any(|node| node.runs[WRITER] && !node.breaker.is_open() && node.waiting() > 0) {
            let Some(left) = remaining(until) else { break };
            state = self.written.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let removals: usize = state.nodes.iter().map(|node| node.voids.len()).sum();
        drop(state);
        if removals > 0 {
            log::once(format_args!(
                "{}: it could not be told of {removals} removed sessions: other processes may still resume them",
                self.spec
            ));
        }
    }

    // --- the threads -----------------------------------------------------------------------------------------------

    fn start(&'static self, state: &mut State, node: &'static Node) {
        type Work = fn(&'static Link, &'static Node, u32);
        let mut work: [(&str, Work); 2] = [("reprise-writer", Link::write), ("reprise-redis", Link::connect)];
        if self.server.is_cluster() && node.number == 0 {
            // Nobody writes to it.
            state.of(node).runs[WRITER] = true;
            work[1].1 = Link::explore;
        }
        let process = state.process;
        for (runs, (name, work)) in state.of(node).runs.iter_mut().zip(work) {
            if !*runs {
                *runs = without_signals(|| {
                    thread::Builder::new()
                        .name(name.into())
                        .stack_size(512 << 10)
                        .spawn(move || work(self, node, process))
                })
                .is_ok();
            }
        }
    }

    /// The thread that makes connections to a node, tries whether it answers in time again, and reads keys anew.
    fn connect(&'static self, node: &'static Node, process: u32) {
        let mut pause = PAUSES[0];
        let mut looked = None;
        loop {
            if looked.is_none_or(|looked: Instant| looked.elapsed() >= LOOK_AT_FILES) {
                self.look_at_files();
                looked = Some(Instant::now());
            }
            let mut state = self.state();
            if state.process != process {
                return;
            }
            let its = state.of(node);
            let is_open = its.breaker.is_open();
            if its.has_connected && !is_open && its.wanted <= its.idle.len() {
                let waited = node.to_connect.wait_timeout(state, LOOK_AT_FILES);
                drop(waited.unwrap_or_else(PoisonError::into_inner));
                continue;
            }
            let hold_down = its.breaker.pause();
            drop(state);
            if is_open {
                thread::sleep(hold_down);
            }
            let made = self.server.connect(node.host.as_ref(), self.spec.connect);
            let made = made.and_then(|connection| self.tried(connection, is_open));
            let mut state = self.state();
            match made {
                Ok(connection) => {
                    pause = PAUSES[0];
                    let its = state.of(node);
                    its.has_connected = true;
                    its.idle.push(connection);
                    self.closes(&mut state, node);
                    drop(state);
                    node.connected.notify_all();
                    node.to_write.notify_one();
                }
                Err(error) => {
                    state.of(node).breaker.stays_open();
                    drop(state);
                    self.failed(node, &error, Duration::ZERO);
                    if !is_open {
                        thread::sleep(jitter(pause));
                        pause = (pause * 2).min(PAUSES[1]);
                    }
                }
            }
        }
    }

    /// It is asked again.
    fn closes(&self, state: &mut State, node: &Node) {
        if state.of(node).breaker.is_open() {
            state.of(node).breaker.close();
            node.broken.store(false, Relaxed);
            node.vitals.set(Vital::IsBroken, 0);
            node.vitals.count(Vital::Mended);
        }
    }

    /// The connection, if the server answers; after it was not asked for a while, it has to be quick again.
    fn tried(&self, mut connection: Connection, was_broken: bool) -> RedisResult<Connection> {
        let (tries, time) = if was_broken { (TRIES, self.spec.deadline) } else { (1, self.spec.connect) };
        for _ in 0..tries {
            connection.set_timeout(time);
            connection.ping()?;
        }
        Ok(connection)
    }

    /// Takes over the key file, and certificates, if they were changed. What cannot be read changes nothing.
    fn look_at_files(&self) {
        if let Err(error) = self.server.look_at_files() {
            log::once(format_args!("{}: {error}: the certificates of before stay in use", self.spec));
        }
        let stamp = stamp(&self.spec.key_file);
        let known = self.keys.lock().unwrap_or_else(PoisonError::into_inner).1;
        if stamp == known || stamp == Stamp::default() {
            return;
        }
        match Keys::read(&self.spec.key_file) {
            Ok(keys) => *self.keys.lock().unwrap_or_else(PoisonError::into_inner) = (Arc::new(keys), stamp),
            Err(error) => log::once(format_args!("{error}: the keys of before stay in use")),
        }
    }
}

const WRITER: usize = 0;
/// In seconds.
const A_DAY: Seconds = 24 * 3600;

impl State {
    /// Whether it was still pending.
    fn drop_pending(&mut self, id: &Id, number: u64) -> bool {
        let is_pending = self.pending.get(id).is_some_and(|pending| pending.number == number);
        if is_pending {
            self.pending.remove(id);
        }
        is_pending
    }

    /// What waits at a node, for `reprise status`.
    fn show_waiting(&self, node: &Node) {
        let its = &self.nodes[node.number];
        node.vitals.set(Vital::Queue, its.queue.len() as u64);
        node.vitals.set(Vital::ToRemove, its.voids.len() as u64);
        let oldest = its.queue.front().and_then(|(id, _)| self.pending.get(id));
        let since = oldest.map_or(0, |oldest| now().saturating_sub_unsigned(oldest.since.elapsed().as_secs()));
        node.vitals.set(Vital::OldestUnwritten, since.unsigned_abs());
    }

    fn of(&mut self, node: &Node) -> &mut NodeState {
        &mut self.nodes[node.number]
    }
}

/// What goes before the session's bytes, sealed with them.
struct Head {
    generation: u64,
    expiry: Seconds,
    life: Life,
}

impl Head {
    const SIZE: usize = 24;

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.generation.to_le_bytes());
        out.extend_from_slice(&self.expiry.to_le_bytes());
        out.extend_from_slice(&self.life.map_or(0, NonZeroU64::get).to_le_bytes());
    }

    fn of(plain: &[u8]) -> Option<Head> {
        let (generation, rest) = plain.split_first_chunk()?;
        let (expiry, rest) = rest.split_first_chunk()?;
        let (life, _) = rest.split_first_chunk()?;
        Some(Head {
            generation: u64::from_le_bytes(*generation),
            expiry: Seconds::from_le_bytes(*expiry),
            life: NonZeroU64::new(u64::from_le_bytes(*life)),
        })
    }
}

fn command(name: &str, key: String) -> Cmd {
    let mut command = redis::cmd(name);
    command.arg(key);
    command
}

/// What Redis calls the generation of a bucket. Braces: Cluster keeps it beside the sessions of the bucket.
fn control(spec: &Spec, service: &str, bucket: u8) -> String {
    format!("{}{{{service}-{bucket:02x}}}:generation", spec.prefix)
}

fn place(spec: &Spec, service: &str, bucket: u8, name: &Name) -> String {
    format!("{}{{{service}-{bucket:02x}}}:{}", spec.prefix, &*name.text)
}

pub fn now() -> Seconds {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs() as Seconds)
}

/// Starts a thread to which no signal of the program goes. Whether it runs.
fn without_signals<T>(start: impl FnOnce() -> std::io::Result<T>) -> std::io::Result<T> {
    use nix::sys::signal::{SigSet, SigmaskHow};
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    let started = start();
    let _ = before.thread_set_mask();
    started
}
