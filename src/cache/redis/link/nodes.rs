//! The nodes of a Cluster, each with what concerns it alone: a node that is down, slow or full costs the sessions that lie
//! there and no others. One server, alone or as Sentinel names it, is one node.
//!
//! Which node a session lies on is told by the slot of its bucket. A thread of the link asks the Cluster for its slots: at
//! first, when a key turns out to have moved, and again and again while a node does not answer. What waited for a node
//! that has lost its slots goes on to the one that has them now.

use super::super::super::Service;
use super::super::generations::Bucket;
use super::super::keys::Name;
use super::super::server::{slot, Connection, Range};
use super::super::url::Host;
use super::super::vitals::Vitals;
use super::super::void::Void;
use super::breaker::{jitter, Breaker};
use super::{Id, Link, State, LOOK_AT_FILES};
use std::collections::{HashSet, VecDeque};
use std::sync::atomic::AtomicBool;
use std::sync::{Condvar, PoisonError};
use std::thread;
use std::time::Duration;

/// Nodes that a process gets to know; those that have gone are counted, too.
pub const MOST_NODES: usize = 256;
/// How long the slots are believed when nothing speaks against it, and the pause between two questions.
const SLOTS: [Duration; 2] = [Duration::from_secs(30), Duration::from_millis(200)];

/// A node, for good.
pub struct Node {
    pub number: usize,
    /// `None` is whom the URL names.
    pub host: Option<Host>,
    /// Something is to be written.
    pub to_write: Condvar,
    /// A connection is wanted, or the breaker has opened.
    pub to_connect: Condvar,
    /// There is a connection, or the breaker has opened.
    pub connected: Condvar,
    /// [`Breaker::is_open`], to be read without the lock.
    pub broken: AtomicBool,
    pub vitals: Vitals,
}

/// What changes of a node.
#[derive(Default)]
pub struct NodeState {
    /// Whether its threads are at work.
    pub runs: [bool; 2],
    pub idle: Vec<Connection>,
    /// Lookups that wait for a connection.
    pub wanted: usize,
    pub has_connected: bool,
    pub breaker: Breaker,
    /// The sessions to be written, by the number of their `Pending`.
    pub queue: VecDeque<(Id, u64)>,
    /// The void records to be written. They are not dropped.
    pub voids: VecDeque<(Id, Void)>,
    /// Services whose generations and foreign ids are to be asked for.
    pub asked: HashSet<Service>,
    /// Sessions and void records that the writer is at.
    pub writing: usize,
}

impl Node {
    pub fn new(number: usize, host: Option<Host>) -> Node {
        Node {
            number,
            host,
            to_write: Condvar::new(),
            to_connect: Condvar::new(),
            connected: Condvar::new(),
            broken: AtomicBool::new(false),
            vitals: Vitals::default(),
        }
    }
}

impl NodeState {
    /// How much is still to be written.
    pub fn waiting(&self) -> usize {
        self.queue.len() + self.voids.len() + self.writing
    }
}

impl Link {
    pub(super) fn node(&self, number: usize) -> &Node {
        // The first one is always there.
        self.nodes
            .get(number)
            .and_then(|node| node.get())
            .or_else(|| self.nodes[0].get())
            .unwrap_or_else(|| unreachable!())
    }

    /// For status and log lines.
    pub(super) fn label(&self, node: &Node) -> String {
        match &node.host {
            None => self.spec.to_string(),
            Some(host) => format!("redis+cluster://{host}/"),
        }
    }

    /// The bucket of a session: they spread a service over the nodes of a Cluster. One server needs one.
    pub(super) fn bucket(&self, service: Service, name: &Name) -> Bucket {
        (service, if self.server.is_cluster() { name.bucket } else { 0 })
    }

    pub(super) fn buckets(&self, service: Service) -> impl Iterator<Item = Bucket> {
        let last = if self.server.is_cluster() { u8::MAX } else { 0 };
        (0..=last).map(move |bucket| (service, bucket))
    }

    /// All buckets of a service that lie on a node.
    pub(super) fn buckets_of(&self, state: &State, service: Service, node: &Node) -> Vec<Bucket> {
        let is_there = |&bucket: &Bucket| self.node_of(state, bucket).is_some_and(|its| its.number == node.number);
        self.buckets(service).filter(is_there).collect()
    }

    /// Where the keys of a bucket are, as far as is known.
    pub(super) fn node_of(&self, state: &State, bucket: Bucket) -> Option<&Node> {
        if !self.server.is_cluster() {
            return Some(self.node(0));
        }
        let service = self.keys().service_name(bucket.0);
        self.node_of_tag(state, &format!("{}-{:02x}", &*service, bucket.1))
    }

    /// Where the keys with this text in braces are.
    pub(super) fn node_of_tag(&self, state: &State, tag: &str) -> Option<&Node> {
        if !self.server.is_cluster() {
            return Some(self.node(0));
        }
        let slot = slot(tag);
        let route = state.routes.iter().find(|(slots, _)| (slots[0]..=slots[1]).contains(&slot));
        route.map(|&(_, number)| self.node(number))
    }

    /// The same, or the first node, where what is to be written waits until its node is known.
    pub(super) fn node_or_nobody(&self, state: &State, bucket: Bucket) -> &Node {
        self.node_of(state, bucket).unwrap_or_else(|| self.node(0))
    }

    /// All nodes that have keys, as far as is known.
    pub(super) fn nodes_in_use(&self, state: &State) -> Vec<&Node> {
        if !self.server.is_cluster() {
            return vec![self.node(0)];
        }
        let mut numbers: Vec<_> = state.routes.iter().map(|&(_, number)| number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers.into_iter().map(|number| self.node(number)).collect()
    }

    /// A key has moved, or a node does not answer: another one may have its keys by now.
    pub(super) fn is_misled(&self, state: &mut State) {
        if self.server.is_cluster() {
            state.is_misled = true;
            self.node(0).to_connect.notify_all();
        }
    }

    /// The thread that asks a Cluster which node has which slots.
    pub(super) fn explore(&'static self, _: &'static Node, process: u32) {
        loop {
            self.look_at_files();
            let known: Vec<Host> =
                self.nodes_in_use(&self.state()).iter().filter_map(|node| node.host.clone()).collect();
            match self.server.topology(&known, self.spec.connect) {
                Ok(ranges) => {
                    self.take_over(ranges);
                    self.closes(&mut self.state(), self.node(0));
                }
                Err(error) => self.failed(self.node(0), &error, Duration::ZERO),
            }
            let mut state = self.state();
            state.is_misled = false;
            let mut waited = Duration::ZERO;
            loop {
                if state.process != process {
                    return;
                }
                let is_well = !state.routes.is_empty()
                    && state.routes.iter().all(|&(_, number)| !state.nodes[number].breaker.is_open());
                if state.is_misled || !is_well || waited >= SLOTS[0] {
                    break;
                }
                let pause = self.node(0).to_connect.wait_timeout(state, LOOK_AT_FILES);
                state = pause.unwrap_or_else(PoisonError::into_inner).0;
                waited += LOOK_AT_FILES;
            }
            drop(state);
            thread::sleep(jitter(SLOTS[1]));
        }
    }

    /// The Cluster has these nodes now.
    fn take_over(&'static self, ranges: Vec<Range>) {
        let mut state = self.state();
        let mut routes = Vec::new();
        for range in ranges {
            let known = (1..state.nodes.len()).find(|&number| self.node(number).host.as_ref() == Some(&range.node));
            let number = match known {
                Some(number) => number,
                None => {
                    let number = state.nodes.len();
                    let Some(place) = self.nodes.get(number) else { continue };
                    let node = Node::new(number, Some(range.node.clone()));
                    node.vitals.begin(&self.label(&node));
                    let _ = place.set(Box::new(node));
                    state.nodes.push(NodeState::default());
                    number
                }
            };
            routes.push((range.slots, number));
        }
        if routes == state.routes {
            return;
        }
        state.routes = routes;
        // What waits goes to the nodes that have the slots now.
        let mut asked = HashSet::new();
        let (mut sessions, mut voids) = (Vec::new(), Vec::new());
        for node in &mut state.nodes {
            sessions.extend(node.queue.drain(..));
            voids.extend(node.voids.drain(..));
            asked.extend(node.asked.iter().copied());
        }
        voids.into_iter().for_each(|(id, void)| self.enqueue_void(&mut state, id, void));
        sessions.into_iter().rev().for_each(|(id, number)| self.enqueue_again(&mut state, id, number));
        asked.into_iter().for_each(|service| self.ask_about(&mut state, service));
    }
}
