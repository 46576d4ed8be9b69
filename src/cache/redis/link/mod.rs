//! The link of a process to Redis: what it waits for, and no longer than it may; what it writes behind; and when it does
//! not ask at all.
//!
//! - A lookup has a deadline, connecting included. After [`FAILURES`] in a row that failed, the breaker opens: nobody asks
//!   until a thread of the link has had an answer again.
//! - What is stored is `pending`, where this process finds it at once, until the writer has it in Redis.
//! - What was removed or used up here is remembered until it has expired: nobody who can write to Redis brings it back.
//! - Threads and connections belong to one process. A forked child begins without any; what was pending is its parent's to
//!   write. (`hold` sees to it that nothing is half done at a fork.)

mod writer;

use super::super::{Key, Seconds, Service};
use super::generations::Generations;
use super::keys::{Keys, Name};
use super::server::{remaining, words, Connection, Found, How, Server};
use super::strangers::Strangers;
use super::url::Spec;
use super::vitals::{Vital, Vitals};
use crate::log;
use crate::thread::Waiting;
use redis::{Cmd, RedisResult, Value};
use std::collections::{HashMap, VecDeque};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// So many failed requests in a row open the breaker.
const FAILURES: u32 = 3;
/// How long a thread of the link waits before it tries again, at first and at the most.
const PAUSES: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(2)];
/// Removed sessions that are remembered.
const REMEMBERED: usize = 1 << 16;
/// How often the key file is looked at.
const LOOK_AT_KEYS: Duration = Duration::from_secs(2);
/// Connections that wait for the next lookup.
const IDLE: usize = 64;
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
    /// Something is to be written.
    to_write: Condvar,
    /// A connection is wanted, or the breaker has opened.
    to_mend: Condvar,
    /// Something was written, or there is a connection.
    done: Condvar,
    /// [`State::broken`], to be read without the lock.
    broken: AtomicBool,
    vitals: Vitals,
}

/// The locks of a link; dropping it lets them go.
pub struct Held {
    _keys: Option<MutexGuard<'static, (Arc<Keys>, Stamp)>>,
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

/// What tells whether a file was changed.
type Stamp = (u64, i64, i64);

#[derive(Default)]
struct State {
    process: u32,
    /// Whether the threads are at work.
    runs: [bool; 2],
    idle: Vec<Connection>,
    /// Lookups that wait for a connection.
    wanted: usize,
    failures: u32,
    broken: bool,
    pending: HashMap<Id, Pending>,
    queue: VecDeque<Job>,
    /// Jobs that the writer is at.
    writing: usize,
    numbers: u64,
    gone: HashMap<Id, Seconds>,
    gone_order: VecDeque<Id>,
    generations: Generations,
    strangers: Strangers,
}

struct Pending {
    plain: Arc<Vec<u8>>,
    expiry: Seconds,
    how: How,
    /// The last job for it.
    number: u64,
    place: Place,
}

/// Where a session is that is not known to be in Redis.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Here,
    /// The writer has it in its hands.
    OnItsWay,
    /// It may have arrived, or not.
    InDoubt,
}

enum Job {
    /// The generations of a service will be needed soon.
    Prepare(Service),
    Write {
        id: Id,
        number: u64,
    },
    Delete(Id),
    Flush(Service),
    /// Whether there are ids that nobody issued.
    Strangers(Service),
}

/// What became of a lookup.
pub enum Answer {
    Session(Vec<u8>),
    Nothing,
}

/// What Redis said of a session.
enum Told {
    Session {
        plain: Vec<u8>,
        expiry: Seconds,
    },
    Nothing,
    /// It did not say anything.
    Unknown,
}

impl Link {
    /// Reads keys and certificates; connects to nothing. The error is a sentence for a person.
    pub fn new(spec: &Spec) -> Result<Link, String> {
        let keys = Keys::read(&spec.key_file)?;
        Ok(Link {
            server: Server::new(spec)?,
            keys: Mutex::new((Arc::new(keys), stamp(spec))),
            spec: spec.clone(),
            state: Mutex::default(),
            to_write: Condvar::new(),
            to_mend: Condvar::new(),
            done: Condvar::new(),
            broken: AtomicBool::new(false),
            vitals: Vitals::default(),
        })
    }

    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    pub fn vitals(&self) -> &Vitals {
        &self.vitals
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
            let gone = (std::mem::take(&mut state.gone), std::mem::take(&mut state.gone_order));
            let generations = std::mem::take(&mut state.generations);
            let strangers = std::mem::take(&mut state.strangers);
            *state = State { process, gone: gone.0, gone_order: gone.1, generations, strangers, ..State::default() };
            self.broken.store(false, Relaxed);
            self.vitals.begin(&self.spec.to_string());
        }
        state
    }

    /// The bytes of the service's sessions that are not written yet.
    pub fn pending(&self, service: Service) -> Vec<Arc<Vec<u8>>> {
        let state = self.state();
        let of_service = state.pending.iter().filter(|(id, pending)| id.0 == service && pending.how != How::IfPresent);
        of_service.map(|(_, pending)| pending.plain.clone()).collect()
    }

    /// Sessions of the service will come soon: connections are made, and generations asked for.
    pub fn prepare(&'static self, service: Service) {
        self.enqueue(Job::Prepare(service));
    }

    /// Whether there was ever a request or a session to write in this process.
    pub fn is_used(&self) -> bool {
        self.state().runs[WRITER]
    }

    /// Nothing is half done until the result is dropped. A lock that this very thread has, because a signal handler forks, is
    /// not waited for without an end.
    pub fn hold(&'static self) -> Held {
        let mut waiting = Waiting::at_most(HOLDING);
        Held { _keys: lock(&self.keys, &mut waiting), _state: lock(&self.state, &mut waiting) }
    }

    // --- what is asked ---------------------------------------------------------------------------------------------

    /// The session's bytes, from here or from Redis.
    pub fn get(&'static self, id: Id, now: Seconds) -> Answer {
        let state = self.state();
        if let Some(pending) = state.pending.get(&id).filter(|pending| pending.how != How::IfPresent) {
            self.vitals.count(Vital::FoundPending);
            return Answer::Session(pending.plain.to_vec());
        }
        if state.gone.contains_key(&id) {
            return Answer::Nothing;
        }
        // As it is about to become in Redis, if it is there.
        let renewed = state.pending.get(&id).map(|pending| pending.plain.clone());
        drop(state);
        match self.ask(id, now, 1, |connection, control, name| connection.get(control, name)) {
            Told::Session { plain, .. } => Answer::Session(renewed.map_or(plain, |renewed| renewed.to_vec())),
            Told::Nothing | Told::Unknown => Answer::Nothing,
        }
    }

    /// The same, and nobody else in the fleet has it. Where Redis cannot be asked, nobody gets it: it is deleted as soon
    /// as it can.
    pub fn take(&'static self, id: Id, now: Seconds) -> Answer {
        let until = Instant::now() + self.spec.deadline;
        let mut state = self.state();
        loop {
            match state.pending.get(&id) {
                // Redis may have it in this very moment.
                Some(pending) if pending.place == Place::OnItsWay => {
                    let Some(left) = remaining(until) else {
                        // It is deleted after it has arrived.
                        state.pending.remove(&id);
                        state.forget(id, now + A_DAY);
                        self.push(&mut state, Job::Delete(id));
                        return Answer::Nothing;
                    };
                    let waited = self.done.wait_timeout(state, left);
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
                Some(pending)
                    if pending.how == How::Always && pending.place == Place::Here && !state.gone.contains_key(&id) =>
                {
                    let (plain, expiry) = (pending.plain.to_vec(), pending.expiry);
                    state.pending.remove(&id);
                    state.forget(id, expiry);
                    self.vitals.count(Vital::FoundPending);
                    return Answer::Session(plain);
                }
                _ => break,
            }
        }
        state.pending.remove(&id);
        if state.gone.contains_key(&id) {
            return Answer::Nothing;
        }
        drop(state);
        match self.ask(id, now, 2, |connection, control, name| connection.take(control, name)) {
            Told::Session { plain, expiry } => {
                let keys = self.keys();
                if keys.names(id.0, &id.1).nth(1).is_some() {
                    // Machines that are at different stages of a rotation may have stored it under different names.
                    self.enqueue(Job::Delete(id));
                }
                // Who has written it down can bring it back: two threads, and neither can have it twice.
                let mut state = self.state();
                let first = !state.gone.contains_key(&id);
                state.forget(id, expiry);
                match first {
                    true => Answer::Session(plain),
                    false => Answer::Nothing,
                }
            }
            Told::Nothing => Answer::Nothing,
            Told::Unknown => {
                self.state().forget(id, now + A_DAY);
                self.enqueue(Job::Delete(id));
                Answer::Nothing
            }
        }
    }

    fn ask(
        &'static self,
        id: Id,
        now: Seconds,
        answers: u32,
        ask: impl Fn(&mut Connection, &str, &str) -> RedisResult<Found>,
    ) -> Told {
        let keys = self.keys();
        let service = keys.service_name(id.0);
        for name in keys.names(id.0, &id.1) {
            let (control, place) = (control(&self.spec, &service, name.bucket), place(&self.spec, &service, &name));
            let Some(found) = self.request(answers, |connection| ask(connection, &control, &place)) else {
                return Told::Unknown;
            };
            let Some(record) = found.record else { continue };
            return match self.judge(&keys, id, name.bucket, found.generation, &record, now) {
                Some((plain, expiry)) => Told::Session { plain, expiry },
                None => Told::Nothing,
            };
        }
        Told::Nothing
    }

    /// Of a record from Redis what was once stored, if it is to be believed.
    fn judge(
        &self,
        keys: &Keys,
        id: Id,
        bucket: u8,
        generation: Option<u64>,
        record: &[u8],
        now: Seconds,
    ) -> Option<(Vec<u8>, Seconds)> {
        let Some(mut plain) = keys.open(id.0, &id.1, record) else {
            self.vitals.count(Vital::SealBroken);
            return None;
        };
        let head = Head::of(&plain)?;
        let generation = generation?;
        let mut state = self.state();
        if !state.generations.learn((id.0, bucket), generation) {
            self.vitals.count(Vital::SetBack);
            return None;
        }
        drop(state);
        if head.generation != generation || head.expiry < now {
            self.vitals.count(Vital::Outdated);
            return None;
        }
        plain.drain(..Head::SIZE);
        Some((plain, head.expiry))
    }

    /// Asks Redis for so many answers within the deadline; `None` if they did not come.
    fn request<T>(&'static self, answers: u32, ask: impl Fn(&mut Connection) -> RedisResult<T>) -> Option<T> {
        if self.broken.load(Relaxed) {
            self.vitals.count(Vital::NotAsked);
            return None;
        }
        let began = Instant::now();
        let until = began + self.spec.deadline;
        // One that waited may have been closed in the meantime.
        for fresh in [false, true] {
            let (mut connection, waited) = match self.connection(until, fresh) {
                Ok(found) => found,
                Err(why) => {
                    self.failed(&why);
                    return None;
                }
            };
            let asked = match remaining(until) {
                None => Err((redis::ErrorKind::Io, "the deadline passed").into()),
                // Each of the answers may take as long.
                Some(left) => connection.set_timeout(left / answers).and_then(|()| ask(&mut connection)),
            };
            match asked {
                Ok(answer) => {
                    self.vitals.round_trip(began.elapsed());
                    self.answered(connection);
                    return Some(answer);
                }
                Err(error) if waited && !fresh && !error.is_timeout() && remaining(until).is_some() => continue,
                Err(error) => {
                    self.failed(&words(&error));
                    return None;
                }
            }
        }
        None
    }

    /// A connection of the caller's own, and whether it has waited for somebody.
    fn connection(&'static self, until: Instant, fresh: bool) -> Result<(Connection, bool), String> {
        let late = || "no connection within the deadline".to_string();
        let mut state = self.state();
        self.start(&mut state);
        if !fresh {
            if let Some(connection) = state.idle.pop() {
                return Ok((connection, true));
            }
        }
        if self.server.is_near() {
            drop(state);
            let time = remaining(until).ok_or_else(late)?;
            return self.connect_beside(time).map(|new| (new, false));
        }
        // Others take longer than a lookup may, and are made by a thread of the link.
        state.wanted += 1;
        self.to_mend.notify_one();
        loop {
            if let Some(connection) = state.idle.pop() {
                state.wanted = state.wanted.saturating_sub(1);
                return Ok((connection, true));
            }
            let Some(left) = remaining(until) else {
                state.wanted = state.wanted.saturating_sub(1);
                return Err(late());
            };
            state = self.done.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// A new connection, made by a thread that is there for that alone: it takes more stack than the caller may have.
    fn connect_beside(&self, time: Duration) -> Result<Connection, String> {
        thread::scope(|scope| {
            let connect = || self.server.connect(time).map_err(|error| words(&error));
            let maker = thread::Builder::new().stack_size(512 << 10);
            let maker = match without_signals(|| maker.spawn_scoped(scope, connect)) {
                Ok(maker) => maker,
                Err(error) => return Err(error.to_string()),
            };
            maker.join().unwrap_or_else(|_| Err("no connection could be made".into()))
        })
    }

    fn answered(&self, connection: Connection) {
        let mut state = self.state();
        state.failures = 0;
        if state.idle.len() < IDLE {
            state.idle.push(connection);
            if state.wanted > 0 {
                self.done.notify_all();
            }
        }
    }

    fn failed(&self, why: &str) {
        self.vitals.count(Vital::Failed);
        let mut state = self.state();
        state.failures += 1;
        if state.failures < FAILURES || state.broken {
            return;
        }
        state.broken = true;
        self.broken.store(true, Relaxed);
        self.vitals.set(Vital::IsBroken, 1);
        self.vitals.count(Vital::Broken);
        let connections = std::mem::take(&mut state.idle);
        self.to_mend.notify_one();
        drop(state);
        drop(connections);
        log::once(format_args!(
            "{}: {why}: until it answers again, only sessions of this process are found",
            self.spec
        ));
    }

    // --- what is written -------------------------------------------------------------------------------------------

    /// Stores the session's bytes: found here at once, in Redis soon. `false` if it is not taken on.
    pub fn put(&'static self, id: Id, plain: Vec<u8>, expiry: Seconds, how: How) -> bool {
        let mut state = self.state();
        if how != How::IfPresent {
            state.gone.remove(&id);
        }
        state.numbers += 1;
        let number = state.numbers;
        let place = state.pending.get(&id).map_or(Place::Here, |pending| pending.place);
        // What is not in Redis yet is not to wait for being there.
        let how = match state.pending.get(&id) {
            Some(pending) if how == How::IfPresent && pending.how != How::IfPresent => pending.how,
            _ => how,
        };
        state.pending.insert(id, Pending { plain: Arc::new(plain), expiry, how, number, place });
        let taken_on = self.push(&mut state, Job::Write { id, number });
        if !taken_on {
            state.drop_pending(&id, number);
        }
        taken_on
    }

    /// A session with an id that nobody issued will come, which no process is to refuse until it has expired.
    pub fn expect_stranger(&'static self, service: Service, expiry: Seconds) {
        let mut state = self.state();
        if state.strangers.come(service, expiry, now()) {
            self.push(&mut state, Job::Strangers(service));
        }
    }

    /// Whether there may be sessions with ids that nobody issued.
    pub fn has_strangers(&'static self, service: Service) -> bool {
        let mut state = self.state();
        let (there, asks) = state.strangers.are_there(service, now());
        if asks {
            self.push(&mut state, Job::Strangers(service));
        }
        there
    }

    /// Everything of the service is gone, in all processes that can be reached.
    pub fn flush(&'static self, service: Service) {
        let mut state = self.state();
        state.pending.retain(|id, _| id.0 != service);
        state.generations.raise(service);
        drop(state);
        if self.request_slowly(|connection| self.raise_generations(connection, service)).is_none() {
            self.enqueue(Job::Flush(service));
        }
    }

    /// In the caller's own time, since it is done rarely and must be over when it returns.
    fn request_slowly<T>(&'static self, ask: impl Fn(&mut Connection) -> RedisResult<T>) -> Option<T> {
        if self.broken.load(Relaxed) {
            return None;
        }
        let until = Instant::now() + self.spec.connect;
        let (mut connection, _) = self.connection(until, false).ok()?;
        connection.set_timeout(remaining(until)?).ok()?;
        let answer = ask(&mut connection).ok()?;
        self.answered(connection);
        Some(answer)
    }

    fn raise_generations(&self, connection: &mut Connection, service: Service) -> RedisResult<()> {
        let name = self.keys().service_name(service);
        let raise = (0..=u8::MAX).map(|bucket| command("INCR", control(&self.spec, &name, bucket)));
        let answers = send(connection, raise.collect())?;
        let mut state = self.state();
        for (bucket, answer) in (0..=u8::MAX).zip(answers) {
            let generation: u64 = redis::from_redis_value(answer)?;
            state.generations.learn((service, bucket), generation);
        }
        Ok(())
    }

    fn enqueue(&'static self, job: Job) {
        let mut state = self.state();
        self.push(&mut state, job);
    }

    /// `false` if too much is waiting that must not be dropped.
    fn push(&'static self, state: &mut State, job: Job) -> bool {
        self.start(state);
        if state.queue.len() >= self.spec.queue && !self.drop_oldest(state) {
            return false;
        }
        state.queue.push_back(job);
        self.vitals.set(Vital::Queue, state.queue.len() as u64);
        self.to_write.notify_one();
        true
    }

    /// Of the sessions that wait, the one that its client is least likely to come for right now. `false` if there is none.
    fn drop_oldest(&self, state: &mut State) -> bool {
        let oldest = state.queue.iter().position(|job| matches!(job, Job::Write { .. }));
        let Some(Job::Write { id, number }) = oldest.and_then(|oldest| state.queue.remove(oldest)) else {
            return false;
        };
        state.drop_pending(&id, number);
        self.vitals.count(Vital::Overflowed);
        true
    }

    /// The process ends: what is on its way has a moment to arrive.
    pub fn leave(&'static self) {
        let until = Instant::now() + PARTING;
        let mut state = self.state();
        while state.runs[WRITER] && !state.broken && state.queue.len() + state.writing > 0 {
            let Some(left) = remaining(until) else { return };
            state = self.done.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    // --- the threads -----------------------------------------------------------------------------------------------

    fn start(&'static self, state: &mut State) {
        type Work = fn(&'static Link, u32);
        let work: [(&str, Work); 2] = [("reprise-writer", Link::write), ("reprise-redis", Link::mend)];
        for (runs, (name, work)) in state.runs.iter_mut().zip(work) {
            if !*runs {
                let process = state.process;
                *runs = without_signals(|| {
                    thread::Builder::new().name(name.into()).stack_size(512 << 10).spawn(move || work(self, process))
                })
                .is_ok();
            }
        }
    }

    /// The thread that makes connections, asks whether Redis is back, and reads keys anew.
    fn mend(&'static self, process: u32) {
        let mut pause = PAUSES[0];
        // The first lookup finds a connection.
        let mut begins = true;
        let mut looked = Instant::now();
        loop {
            if looked.elapsed() >= LOOK_AT_KEYS {
                self.look_at_keys();
                looked = Instant::now();
            }
            let mut state = self.state();
            if state.process != process {
                return;
            }
            if !begins && !state.broken && state.wanted <= state.idle.len() {
                let waited = self.to_mend.wait_timeout(state, LOOK_AT_KEYS);
                drop(waited.unwrap_or_else(PoisonError::into_inner));
                continue;
            }
            let was_broken = state.broken;
            drop(state);
            let made = self.server.connect(self.spec.connect).and_then(|mut connection| {
                connection.set_timeout(self.spec.connect)?;
                connection.ping().map(|()| connection)
            });
            state = self.state();
            match made {
                Ok(connection) => {
                    pause = PAUSES[0];
                    begins = false;
                    state.failures = 0;
                    state.broken = false;
                    self.broken.store(false, Relaxed);
                    self.vitals.set(Vital::IsBroken, 0);
                    if was_broken {
                        self.vitals.count(Vital::Mended);
                    }
                    state.idle.push(connection);
                    drop(state);
                    self.done.notify_all();
                    self.to_write.notify_one();
                }
                Err(error) => {
                    drop(state);
                    self.failed(&words(&error));
                    thread::sleep(pause);
                    pause = (pause * 2).min(PAUSES[1]);
                }
            }
        }
    }

    /// Takes over the key file if it was changed. One that cannot be read changes nothing.
    fn look_at_keys(&self) {
        let stamp = stamp(&self.spec);
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
/// In seconds; sessions rarely live longer.
const A_DAY: Seconds = 24 * 3600;
/// No session lives longer, in seconds.
const LONGEST: u64 = 10 * 365 * 24 * 3600;

impl State {
    fn drop_pending(&mut self, id: &Id, number: u64) {
        if self.pending.get(id).is_some_and(|pending| pending.number == number) {
            self.pending.remove(id);
        }
    }

    /// It was removed or used up here.
    fn forget(&mut self, id: Id, expiry: Seconds) {
        if self.gone.insert(id, expiry).is_none() {
            self.gone_order.push_back(id);
        }
        let now = now();
        while let Some(&oldest) = self.gone_order.front() {
            let expired = self.gone.get(&oldest).is_none_or(|&expiry| expiry < now);
            if !expired && self.gone_order.len() <= REMEMBERED {
                break;
            }
            self.gone_order.pop_front();
            self.gone.remove(&oldest);
        }
    }
}

/// What goes before the session's bytes, sealed with them.
struct Head {
    generation: u64,
    expiry: Seconds,
}

impl Head {
    const SIZE: usize = 16;

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.generation.to_le_bytes());
        out.extend_from_slice(&self.expiry.to_le_bytes());
    }

    fn of(plain: &[u8]) -> Option<Head> {
        let (generation, rest) = plain.split_first_chunk()?;
        let (expiry, _) = rest.split_first_chunk()?;
        Some(Head { generation: u64::from_le_bytes(*generation), expiry: Seconds::from_le_bytes(*expiry) })
    }
}

fn command(name: &str, key: String) -> Cmd {
    let mut command = redis::cmd(name);
    command.arg(key);
    command
}

/// All of them at once. An answer that is an error is one.
fn send(connection: &mut Connection, commands: Vec<Cmd>) -> RedisResult<Vec<Value>> {
    if commands.is_empty() {
        return Ok(Vec::new());
    }
    connection.pipeline(commands)?.into_iter().map(Value::extract_error).collect()
}

/// What Redis calls the generation of a bucket. Braces: Cluster keeps it beside the sessions of the bucket.
fn control(spec: &Spec, service: &str, bucket: u8) -> String {
    format!("{}{{{service}-{bucket:02x}}}:generation", spec.prefix)
}

fn place(spec: &Spec, service: &str, name: &Name) -> String {
    format!("{}{{{service}-{:02x}}}:{}", spec.prefix, name.bucket, &*name.text)
}

fn stamp(spec: &Spec) -> Stamp {
    fs::metadata(&spec.key_file).map_or(Stamp::default(), |found| (found.ino(), found.mtime(), found.mtime_nsec()))
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
