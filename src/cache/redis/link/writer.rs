//! What is written behind: the thread that does it, and the order in which a batch of jobs becomes commands.

use super::super::super::{Seconds, Service};
use super::super::generations::Bucket;
use super::super::keys::Keys;
use super::super::server::{set, Connection, How};
use super::super::vitals::Vital;
use super::{command, control, now, place, send, words, Head, Id, Job, Link, Place, State, LONGEST, PAUSES};
use redis::{Cmd, RedisResult, Value};
use std::collections::HashSet;
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::Duration;

/// Sessions that are written at once.
const BATCH: usize = 256;

/// What the writer does at once.
#[derive(Default)]
struct Batch {
    prepared: Vec<Service>,
    sessions: Vec<Session>,
    deleted: Vec<Id>,
    flushed: Vec<Service>,
    strangers: Vec<Service>,
}

struct Session {
    id: Id,
    number: u64,
    plain: Arc<Vec<u8>>,
    expiry: Seconds,
    how: How,
}

impl State {
    /// What of these jobs is still to be done.
    fn begin(&mut self, jobs: &[Job]) -> Batch {
        let mut batch = Batch::default();
        for job in jobs {
            match job {
                Job::Write { id, number } => {
                    if let Some(pending) = self.pending.get_mut(id).filter(|pending| pending.number == *number) {
                        pending.place = Place::OnItsWay;
                        batch.sessions.push(Session {
                            id: *id,
                            number: *number,
                            plain: pending.plain.clone(),
                            expiry: pending.expiry,
                            how: pending.how,
                        });
                    }
                }
                Job::Prepare(service) => {
                    batch.prepared.push(*service);
                    batch.strangers.push(*service);
                }
                Job::Delete(id) => batch.deleted.push(*id),
                Job::Flush(service) => batch.flushed.push(*service),
                Job::Strangers(service) => batch.strangers.push(*service),
            }
        }
        batch
    }
}

impl Link {
    /// The thread that writes behind.
    pub(super) fn write(&'static self, process: u32) {
        let mut connection = None;
        let mut pause = PAUSES[0];
        loop {
            let mut state = self.state();
            while state.queue.is_empty() || state.broken {
                state = self.to_write.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.process != process {
                return;
            }
            let count = state.queue.len().min(BATCH);
            let jobs: Vec<Job> = state.queue.drain(..count).collect();
            let batch = state.begin(&jobs);
            state.writing = count;
            drop(state);

            let written = connection.take().map_or_else(|| self.server.connect(self.spec.connect), Ok).and_then(
                |mut connection| {
                    connection.set_timeout(self.spec.connect)?;
                    self.write_batch(&mut connection, &batch).map(|()| connection)
                },
            );
            let mut state = self.state();
            state.writing = 0;
            for Session { id, number, .. } in &batch.sessions {
                match state.pending.get_mut(id) {
                    Some(pending) if pending.number == *number && written.is_ok() => _ = state.pending.remove(id),
                    // Not written, as far as is known, or stored anew meanwhile.
                    Some(pending) => pending.place = Place::InDoubt,
                    None => {}
                }
            }
            match written {
                Ok(open) => {
                    connection = Some(open);
                    pause = PAUSES[0];
                    self.vitals.add(Vital::Written, batch.sessions.len() as u64);
                    self.vitals.set(Vital::Queue, state.queue.len() as u64);
                    self.done.notify_all();
                }
                Err(error) => {
                    // They are tried again, and those that came in the meantime wait.
                    jobs.into_iter().rev().for_each(|job| state.queue.push_front(job));
                    while state.queue.len() > self.spec.queue && self.drop_oldest(&mut state) {}
                    self.vitals.set(Vital::Queue, state.queue.len() as u64);
                    self.done.notify_all();
                    drop(state);
                    self.failed(&words(&error));
                    thread::sleep(pause);
                    pause = (pause * 2).min(PAUSES[1]);
                }
            }
        }
    }

    fn write_batch(&self, connection: &mut Connection, batch: &Batch) -> RedisResult<()> {
        let keys = self.keys();
        for &service in &batch.prepared {
            self.learn_all(connection, &keys, service)?;
        }
        batch.strangers.iter().try_for_each(|&service| self.tell_of_strangers(connection, &keys, service))?;
        // What was stored again since is still to come.
        let deleted = batch.deleted.iter().flat_map(|id| {
            let service = keys.service_name(id.0);
            let places: Vec<_> = keys.names(id.0, &id.1).map(|name| place(&self.spec, &service, &name)).collect();
            places.into_iter().map(|place| command("DEL", place))
        });
        send(connection, deleted.collect())?;
        batch.flushed.iter().try_for_each(|service| self.raise_generations(connection, *service))?;
        self.write_sessions(connection, &keys, &batch.sessions)
    }

    /// Asks until when there may be ids that nobody issued, and says so where more is known here.
    fn tell_of_strangers(&self, connection: &mut Connection, keys: &Keys, service: Service) -> RedisResult<()> {
        let place = format!("{}{{{}}}:strangers", self.spec.prefix, &*keys.service_name(service));
        let told = send(connection, vec![command("GET", place.clone())])?.pop().unwrap_or(Value::Nil);
        let now = now();
        // Whatever somebody wrote there that is no number.
        let told = redis::from_redis_value(told).unwrap_or_default();
        let Some(until) = self.state().strangers.learn(service, told, now) else { return Ok(()) };
        let mut tell = command("SET", place);
        tell.arg(until).arg("EX").arg((until - now).max(1));
        send(connection, vec![tell]).map(drop)
    }

    /// Writes them with the generations that are known, and those again whose generation was another one.
    fn write_sessions(&self, connection: &mut Connection, keys: &Keys, sessions: &[Session]) -> RedisResult<()> {
        const ROUNDS: usize = 4;
        let bucket = |session: &Session| (session.id.0, keys.name(session.id.0, &session.id.1).bucket);
        let mut rest: Vec<(&Session, Bucket)> = sessions.iter().map(|session| (session, bucket(session))).collect();
        self.leave_out_the_dead(connection, keys, &mut rest)?;
        for _ in 0..ROUNDS {
            let mut asked: Vec<Bucket> = Vec::new();
            let mut written = Vec::new();
            let mut unknown: Vec<Service> = Vec::new();
            let state = self.state();
            // What was flushed in the meantime is not to have the generation of after.
            rest.retain(|(session, _)| {
                state.pending.get(&session.id).is_some_and(|pending| pending.number == session.number)
            });
            for &(session, bucket) in &rest {
                match state.generations.known(bucket) {
                    Some((generation, stale)) => {
                        if stale && !asked.contains(&bucket) {
                            asked.push(bucket);
                        }
                        written.push((session, bucket, generation));
                    }
                    None if !unknown.contains(&bucket.0) => unknown.push(bucket.0),
                    None => {}
                }
            }
            drop(state);
            if !unknown.is_empty() {
                unknown.iter().try_for_each(|&service| self.learn_all(connection, keys, service))?;
                continue;
            }
            let mut commands: Vec<Cmd> = asked.iter().map(|&bucket| self.ask_generation(keys, bucket)).collect();
            let now = now();
            commands.extend(written.iter().filter_map(|&(session, _, generation)| {
                let place =
                    place(&self.spec, &keys.service_name(session.id.0), &keys.name(session.id.0, &session.id.1));
                match self.sealed(keys, session, generation, now) {
                    Some((record, time)) => Some(set(&place, &record, time, session.how)),
                    // It has expired, and what was written when it had not is not to be found any more.
                    None => (session.how != How::IfAbsent).then(|| command("DEL", place)),
                }
            }));
            let told = send(connection, commands)?;
            let again = self.learn(connection, keys, asked.into_iter().zip(told))?;
            rest = written.iter().filter(|(_, bucket, _)| again.contains(bucket)).map(|&(s, b, _)| (s, b)).collect();
            if rest.is_empty() {
                break;
            }
        }
        Ok(())
    }

    /// Of those that are to be written where they are there, only what is alive: a record that was flushed is there, too,
    /// and would come back with a new generation.
    fn leave_out_the_dead(
        &self,
        connection: &mut Connection,
        keys: &Keys,
        sessions: &mut Vec<(&Session, Bucket)>,
    ) -> RedisResult<()> {
        let renewed = |session: &Session| session.how == How::IfPresent;
        let asked = sessions.iter().filter(|(session, _)| renewed(session)).flat_map(|(session, bucket)| {
            let name = keys.name(session.id.0, &session.id.1);
            let record = command("GET", place(&self.spec, &keys.service_name(session.id.0), &name));
            [record, self.ask_generation(keys, *bucket)]
        });
        let mut told = send(connection, asked.collect())?.into_iter();
        let now = now();
        sessions.retain(|(session, bucket)| {
            if !renewed(session) {
                return true;
            }
            let mut next = || told.next().unwrap_or(Value::Nil);
            let (record, generation) = (redis::from_redis_value(next()), redis::from_redis_value(next()));
            let record: Option<Vec<u8>> = record.unwrap_or_default();
            record.is_some_and(|record| {
                let generation = generation.unwrap_or_default();
                self.judge(keys, session.id, bucket.1, generation, &record, now).is_some()
            })
        });
        Ok(())
    }

    /// What is to be written, and for how long; `None` for one that has expired.
    fn sealed(&self, keys: &Keys, session: &Session, generation: u64, now: Seconds) -> Option<(Vec<u8>, Duration)> {
        let (service, key) = (session.id.0, &session.id.1);
        let seconds = session.expiry.saturating_add(1).saturating_sub(now);
        let time = u64::try_from(seconds).ok().filter(|&seconds| seconds > 0)?;
        let mut content = Vec::with_capacity(Head::SIZE + session.plain.len());
        Head { generation, expiry: session.expiry }.write(&mut content);
        content.extend_from_slice(&session.plain);
        let mut record = Vec::new();
        let sealed = keys.seal(service, key, &content, &mut record);
        sealed.then_some((record, Duration::from_secs(time.min(LONGEST))))
    }

    fn ask_generation(&self, keys: &Keys, bucket: Bucket) -> Cmd {
        command("GET", control(&self.spec, &keys.service_name(bucket.0), bucket.1))
    }

    /// All generations of a service, so that no session waits for its own.
    fn learn_all(&self, connection: &mut Connection, keys: &Keys, service: Service) -> RedisResult<()> {
        let buckets: Vec<Bucket> = (0..=u8::MAX).map(|bucket| (service, bucket)).collect();
        let told = send(connection, buckets.iter().map(|&bucket| self.ask_generation(keys, bucket)).collect())?;
        self.learn(connection, keys, buckets.into_iter().zip(told)).map(drop)
    }

    /// What Redis told of generations. Begins those that are missing, with the time, so that they are never those of
    /// before, and restores those that fell back. Returns the buckets that have another one than was known.
    fn learn(
        &self,
        connection: &mut Connection,
        keys: &Keys,
        told: impl Iterator<Item = (Bucket, Value)>,
    ) -> RedisResult<HashSet<Bucket>> {
        let mut changed = HashSet::new();
        let mut repairs = Vec::new();
        for (bucket, told) in told {
            let told: Option<u64> = redis::from_redis_value(told)?;
            let mut state = self.state();
            let highest = state.generations.highest(bucket);
            if told != Some(highest) {
                changed.insert(bucket);
            }
            if told.is_some_and(|generation| state.generations.learn(bucket, generation)) {
                continue;
            }
            let mut repair = redis::cmd("SET");
            let generation = if told.is_none() { now().unsigned_abs() * 1000 } else { 0 };
            repair.arg(control(&self.spec, &keys.service_name(bucket.0), bucket.1)).arg(generation.max(highest));
            if told.is_none() {
                repair.arg("NX");
            }
            repairs.push((bucket, repair));
        }
        if !repairs.is_empty() {
            let (buckets, repairs): (Vec<Bucket>, Vec<Cmd>) = repairs.into_iter().unzip();
            send(connection, repairs)?;
            let told = send(connection, buckets.iter().map(|&bucket| self.ask_generation(keys, bucket)).collect())?;
            for (bucket, told) in buckets.into_iter().zip(told) {
                if let Some(generation) = redis::from_redis_value(told)? {
                    self.state().generations.learn(bucket, generation);
                }
            }
        }
        Ok(changed)
    }
}
