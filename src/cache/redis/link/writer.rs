//! What is written behind: the thread that does it, and what a batch becomes as commands.
//!
//! No write brings back what was removed, used up or flushed, however often it is repeated and however late it arrives:
//! a new session is written where nothing is (SET NX), one that takes the place of something takes the place of exactly
//! that (a script that compares), and each is sealed with the generation that its bucket had when it was stored. What a
//! server refuses for one key costs that session only.

use super::super::super::{Seconds, Service};
use super::super::generations::{self, now as micros, Bucket, Told};
use super::super::keys::Keys;
use super::super::server::{exchange, has_moved, is_of_the_key, refuses_to_store, set, void, Connection, How, Life};
use super::super::vitals::Vital;
use super::super::void::Void;
use super::super::wire::{remaining, Answers};
use super::nodes::{Node, NodeState};
use super::{command, control, jitter, now, place, words, Head, Id, Link, Place, State, PAUSES};
use crate::log;
use redis::{Cmd, RedisResult, Value};
use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Sessions, and void records, that are written at once.
const BATCH: usize = 256;
/// The least pause before the writer tries again.
const A_MOMENT: Duration = Duration::from_millis(20);
/// How long a session may wait: void records stand for longer.
const LONGEST_WAIT: Duration = Duration::from_secs(12 * 3600);

/// No session lives longer, in seconds.
const LONGEST: Seconds = 10 * 365 * 24 * 3600;
/// For so long Redis keeps a session that has expired, as a cache in memory does until it is cleared: who proposes it in
/// that time is counted among the timeouts.
const STAYS: Duration = Duration::from_secs(5);

/// What the writer does at once.
#[derive(Default)]
struct Batch {
    asked: Vec<Service>,
    voids: Vec<(Id, Void)>,
    sessions: Vec<Session>,
}

struct Session {
    id: Id,
    number: u64,
    plain: Arc<Vec<u8>>,
    expiry: Seconds,
    how: How,
    generation: Option<u64>,
    over: Option<Void>,
    /// The life of the server when it was first sent; `None` if it was not.
    life: Option<Life>,
    /// When it was stored, in microseconds since the epoch.
    stored: u64,
}

/// How far the writing of a session has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Written {
    /// It may be in Redis, or not.
    InDoubt,
    Yes,
    /// It is not to be in Redis any more: it was removed, used up or flushed meanwhile, or cannot be written.
    Overtaken,
}

impl State {
    /// What is to be written now; of a server that does not answer, void records only: it carries them out first when it
    /// goes on.
    fn begin(&mut self, node: &Node) -> Batch {
        let mut batch = Batch::default();
        let its = &mut self.nodes[node.number];
        let count = its.voids.len().min(BATCH);
        batch.voids.extend(its.voids.drain(..count));
        if its.breaker.is_open() {
            return batch;
        }
        batch.asked.extend(its.asked.drain());
        let count = its.queue.len().min(BATCH);
        for (id, number) in its.queue.drain(..count) {
            let Some(pending) = self.pending.get_mut(&id).filter(|pending| pending.number == number) else { continue };
            if pending.since.elapsed() > LONGEST_WAIT {
                self.pending.remove(&id);
                continue;
            }
            pending.place = Place::OnItsWay;
            batch.sessions.push(Session {
                id,
                number,
                plain: pending.plain.clone(),
                expiry: pending.expiry,
                how: pending.how,
                generation: pending.generation,
                over: pending.over,
                life: pending.life,
                stored: micros().saturating_sub(pending.since.elapsed().as_micros() as u64),
            });
        }
        batch
    }
}

impl NodeState {
    /// Whether the writer has something to do.
    fn has_work(&self) -> bool {
        let has_more = !self.queue.is_empty() || !self.asked.is_empty();
        !self.voids.is_empty() || has_more && !self.breaker.is_open()
    }
}

impl Link {
    /// The thread that writes behind.
    pub(super) fn write(&'static self, node: &'static Node, process: u32) {
        let mut connection = None;
        let mut pause = PAUSES[0];
        loop {
            let mut state = self.state();
            while !state.of(node).has_work() {
                state = node.to_write.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.process != process {
                return;
            }
            drop(state);
            let connected =
                connection.take().map_or_else(|| self.server.connect(node.host.as_ref(), self.spec.connect), Ok);
            let written = connected.and_then(|mut open: Connection| {
                open.set_timeout(self.spec.connect);
                self.write_batch(node, &mut open).map(|()| open)
            });
            match written {
                Ok(open) => {
                    connection = Some(open);
                    pause = PAUSES[0];
                }
                Err(error) => {
                    if has_moved(&error) {
                        self.is_misled(&mut self.state());
                    } else if error.kind() == redis::ErrorKind::Io {
                        self.failed(node, &error, Duration::ZERO);
                    } else {
                        // It answers: what it holds can be asked for. One that was the master is not asked any more.
                        node.vitals.count(Vital::StoreRefused);
                        if error.kind() == redis::ErrorKind::Server(redis::ServerErrorKind::ReadOnly) {
                            let idle = std::mem::take(&mut self.state().of(node).idle);
                            drop(idle);
                        }
                        log::once(format_args!("{}: it does not store sessions: {}", self.label(node), words(&error)));
                    }
                    let until = Instant::now() + jitter(pause);
                    pause = (pause * 2).min(PAUSES[1]);
                    let mut state = self.state();
                    // What was removed must not be found when the server is back: the writer tries it all the time.
                    while let Some(left) = remaining(until).filter(|_| state.of(node).voids.is_empty()) {
                        let waited = node.to_write.wait_timeout(state, left);
                        state = waited.unwrap_or_else(PoisonError::into_inner).0;
                    }
                    drop(state);
                    thread::sleep(A_MOMENT);
                }
            }
        }
    }

    /// Does what there is to do, as far as it goes. What is not done is queued again.
    fn write_batch(&'static self, node: &'static Node, connection: &mut Connection) -> RedisResult<()> {
        let mut state = self.state();
        let batch = state.begin(node);
        state.of(node).writing = batch.voids.len() + batch.sessions.len();
        drop(state);
        let keys = self.keys();
        let mut written = vec![Written::InDoubt; batch.sessions.len()];

        let voided = self.write_voids(connection, &keys, &batch.voids);
        let is_voided = voided.is_ok();
        let asked = voided.and_then(|()| self.ask_services(node, connection, &keys, &batch.asked));
        let is_asked = asked.is_ok();
        let done = asked.and_then(|()| self.write_sessions(connection, &keys, &batch.sessions, &mut written));

        let mut state = self.state();
        state.of(node).writing = 0;
        if !is_voided {
            batch.voids.into_iter().rev().for_each(|void| state.of(node).voids.push_front(void));
        }
        if !is_asked {
            state.of(node).asked.extend(batch.asked);
        }
        for (Session { id, number, .. }, written) in batch.sessions.into_iter().zip(written).rev() {
            let Some(pending) = state.pending.get_mut(&id) else { continue };
            if pending.number != number {
                // Stored anew meanwhile.
                pending.place = Place::InDoubt;
            } else if written == Written::InDoubt {
                pending.place = Place::InDoubt;
                self.enqueue_again(&mut state, id, number);
            } else {
                state.pending.remove(&id);
                node.vitals.count(if written == Written::Yes { Vital::Written } else { Vital::Overtaken });
            }
        }
        while state.of(node).queue.len() > self.spec.queue && self.drop_oldest(&mut state, node) {}
        state.show_waiting(node);
        self.written.notify_all();
        done
    }

    fn write_voids(&self, connection: &mut Connection, keys: &Keys, voids: &[(Id, Void)]) -> RedisResult<()> {
        let mut commands = Vec::new();
        let mut places = Vec::new();
        for (id, record) in voids {
            let service = keys.service_name(id.0);
            for name in keys.names(id.0, &id.1) {
                let place = place(&self.spec, &service, self.bucket(id.0, &name).1, &name);
                commands.extend(void(&place, *record));
                places.push(place);
            }
        }
        let written = all_of(connection.pipeline(commands)?);
        // A full server has no room for a void record. What is there has to go at once, and the record follows.
        if written.as_ref().is_err_and(refuses_to_store) {
            all_of(connection.pipeline(places.into_iter().map(|place| command("DEL", place)).collect())?)?;
        }
        written.map(drop)
    }

    fn ask_services(
        &self,
        node: &Node,
        connection: &mut Connection,
        keys: &Keys,
        services: &[Service],
    ) -> RedisResult<()> {
        for &service in services {
            let state = self.state();
            let its = self.buckets_of(&state, service, node);
            let tells =
                self.node_of_tag(&state, &keys.service_name(service)).is_some_and(|it| it.number == node.number);
            drop(state);
            self.settle(connection, keys, its)?;
            if tells {
                self.ask_foreign_ids(connection, keys, service)?;
            }
        }
        Ok(())
    }

    /// Asks until when there may be foreign ids, and says so where more is known here.
    fn ask_foreign_ids(&self, connection: &mut Connection, keys: &Keys, service: Service) -> RedisResult<()> {
        let place = format!("{}{{{}}}:foreign", self.spec.prefix, &*keys.service_name(service));
        let told = all_of(connection.pipeline(vec![command("GET", place.clone())])?)?.pop().unwrap_or(Value::Nil);
        let now = now();
        // Whatever somebody wrote there that is no number.
        let told = redis::from_redis_value(told).unwrap_or_default();
        let Some(until) = self.state().foreign.learn(service, told, now) else { return Ok(()) };
        let mut tell = command("SET", place);
        tell.arg(until).arg("EX").arg((until - now).max(1));
        all_of(connection.pipeline(vec![tell])?).map(drop)
    }

    /// Asks for these generations. Begins those that are missing or nonsense, and raises those that are lower than is known.
    pub(super) fn settle(&self, connection: &mut Connection, keys: &Keys, buckets: Vec<Bucket>) -> RedisResult<()> {
        const ROUNDS: usize = 4;
        let mut left = buckets;
        for _ in 0..ROUNDS {
            let asked = left.iter().map(|&bucket| generations::get(&self.control(keys, bucket)));
            let told = connection.pipeline(asked.collect())?;
            let mut wrong = Vec::new();
            let mut state = self.state();
            for (bucket, told) in left.into_iter().zip(told) {
                match generation(told)? {
                    Told::Number(number) if state.generations.learn(bucket, number) => {}
                    told => wrong.push((bucket, told, state.generations.wanted(bucket, told))),
                }
            }
            drop(state);
            if wrong.is_empty() {
                return Ok(());
            }
            let set =
                wrong.iter().map(|&(bucket, told, wanted)| generations::set(&self.control(keys, bucket), told, wanted));
            all_of(connection.pipeline(set.collect())?)?;
            left = wrong.into_iter().map(|(bucket, ..)| bucket).collect();
        }
        // Somebody sets them back all the time.
        Ok(())
    }

    /// Writes them, and says in `written` how far each has come. The error is the first for which one has to be tried again.
    fn write_sessions(
        &self,
        connection: &mut Connection,
        keys: &Keys,
        sessions: &[Session],
        written: &mut [Written],
    ) -> RedisResult<()> {
        let bucket = |session: &Session| self.bucket(session.id.0, &keys.name(session.id.0, &session.id.1));
        let mut stale: Vec<Bucket> = Vec::new();
        let state = self.state();
        for session in sessions {
            let bucket = bucket(session);
            if state.generations.is_stale(bucket) && !stale.contains(&bucket) {
                stale.push(bucket);
            }
        }
        drop(state);
        if !stale.is_empty() {
            connection.ask_life()?;
            self.settle(connection, keys, stale)?;
        }
        let life = connection.known_life()?;
        let now = now();
        let mut records: HashMap<usize, Record> = HashMap::new();
        let mut steps: Vec<(usize, Step, Cmd)> = Vec::new();
        for (at, session) in sessions.iter().enumerate() {
            let bucket = bucket(session);
            let name = keys.name(session.id.0, &session.id.1);
            let place = place(&self.spec, &keys.service_name(session.id.0), bucket.1, &name);
            let mut state = self.state();
            // It was removed here meanwhile, or another one with its id is to be written.
            let pending = state.pending.get_mut(&session.id).filter(|pending| pending.number == session.number);
            let is_wanted = pending.map(|pending| pending.life = pending.life.or(Some(life))).is_some();
            let generation = state.generations.known(bucket);
            drop(state);
            let Some(generation) = generation.filter(|_| is_wanted) else { continue };
            if session.was_stored_before(generation) {
                written[at] = Written::Overtaken;
                continue;
            }
            let Some((bytes, time)) = self.sealed(keys, session, (generation, session.life.unwrap_or(life)), now)
            else {
                written[at] = Written::Overtaken;
                continue;
            };
            steps.push(match (session.how, session.over) {
                (How::Renew, _) => (at, Step::Look, command("GET", place.clone())),
                (_, Some(void)) => (at, Step::Exchange, exchange(&place, &void.bytes(), &bytes, time)),
                (_, None) => (at, Step::Set, set(&place, &bytes, time)),
            });
            records.insert(at, Record { place, bytes, time, bucket, generation });
        }
        let mut refused = None;
        // A record is set; where something is, that is looked at; and replaced.
        while !steps.is_empty() {
            let (whats, commands): (Vec<_>, Vec<_>) =
                steps.into_iter().map(|(at, step, cmd)| ((at, step), cmd)).unzip();
            let answers = connection.pipeline(commands)?;
            steps = Vec::new();
            for ((at, step), answer) in whats.into_iter().zip(answers) {
                match self.after(keys, (&sessions[at], records.get(&at)), step, answer, now) {
                    Ok(After::Is(how_far)) => written[at] = how_far,
                    Ok(After::Next(step, command)) => steps.push((at, step, command)),
                    Err(error) => refused = refused.or(Some(error)),
                }
            }
        }
        refused.map_or(Ok(()), Err)
    }

    /// What the answer to a step of a session means. The error is one that concerns other sessions as well.
    fn after(
        &self,
        keys: &Keys,
        (session, record): (&Session, Option<&Record>),
        step: Step,
        answer: RedisResult<Value>,
        now: Seconds,
    ) -> RedisResult<After> {
        let answer = match answer {
            Ok(answer) => answer,
            // What lies there is of another type.
            Err(error) if is_of_the_key(&error) => return Ok(After::Is(Written::Overtaken)),
            Err(error) if step == Step::Exchange && error.code() == Some("NOPERM") => {
                let spec = &self.spec;
                log::once(format_args!(
                    "{spec}: without EVAL, sessions are neither renewed nor added again: {}",
                    words(&error)
                ));
                return Ok(After::Is(Written::Overtaken));
            }
            Err(error) => return Err(error),
        };
        let Some(record) = record else { return Ok(After::Is(Written::Overtaken)) };
        let place = &record.place;
        let overtaken = Ok(After::Is(Written::Overtaken));
        match (step, answer) {
            (Step::Set, Value::Nil) => Ok(After::Next(Step::Look, command("GET", record.place.clone()))),
            (Step::Look, Value::BulkString(old)) if Void::of(&old).is_none() => {
                let told = Told::Number(record.generation);
                let there = self.judge(keys, session.id, record.bucket, told, &old);
                let record = match (there, session.how) {
                    (Some((plain, _)), _) if plain == *session.plain => return Ok(After::Is(Written::Yes)),
                    (Some((_, head)), How::Keep) if head.expiry >= now => return overtaken,
                    // A record that was flushed, or is none, is not renewed.
                    (None, How::Renew) => return overtaken,
                    // The new record is of the life of the old one.
                    (Some((_, head)), How::Renew) => self.sealed(keys, session, (record.generation, head.life), now),
                    _ => Some((record.bytes.clone(), record.time)),
                };
                let Some((bytes, time)) = record else { return overtaken };
                Ok(After::Next(Step::Exchange, exchange(place, &old, &bytes, time)))
            }
            (Step::Look, _) | (_, Value::Nil) => overtaken,
            _ => Ok(After::Is(Written::Yes)),
        }
    }

    /// What is to be written, and for how long; `None` where there is no memory or no random number for it.
    fn sealed(
        &self,
        keys: &Keys,
        session: &Session,
        (generation, life): (u64, Life),
        now: Seconds,
    ) -> Option<(Vec<u8>, Duration)> {
        let (service, key) = (session.id.0, &session.id.1);
        let left = session.expiry.saturating_add(1).saturating_sub(now).clamp(0, LONGEST);
        let mut content = Vec::with_capacity(Head::SIZE + session.plain.len());
        Head { generation, expiry: session.expiry, life }.write(&mut content);
        content.extend_from_slice(&session.plain);
        let mut record = Vec::new();
        let is_sealed = keys.seal(service, key, &content, &mut record);
        is_sealed.then_some((record, Duration::from_secs(left as u64) + STAYS))
    }

    fn control(&self, keys: &Keys, bucket: Bucket) -> String {
        control(&self.spec, &keys.service_name(bucket.0), bucket.1)
    }
}

impl Session {
    /// Whether it was stored before the flush that made this generation. One that was stored before this process had heard
    /// of any is judged by the time, which a flush makes the generation of.
    fn was_stored_before(&self, generation: u64) -> bool {
        self.generation.map_or(self.stored < generation, |its| its != generation)
    }
}

struct Record {
    place: String,
    bytes: Vec<u8>,
    time: Duration,
    bucket: Bucket,
    generation: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Set,
    Look,
    Exchange,
}

enum After {
    Is(Written),
    Next(Step, Cmd),
}

/// The answers, if no command was refused.
fn all_of(answers: Answers) -> RedisResult<Vec<Value>> {
    answers.into_iter().collect()
}

fn generation(told: RedisResult<Value>) -> RedisResult<Told> {
    match told {
        Ok(told) => Ok(Told::of(&told)),
        Err(error) if is_of_the_key(&error) => Ok(Told::Nonsense),
        Err(error) => Err(error),
    }
}
