//! A heap by expiry that can also give up a member from its middle: each member is told its place when it moves.
//!
//! Four children a node: half the levels of a binary heap, and siblings share cache lines. Sessions mostly come with
//! rising expiry times and then stay at the bottom, where adding and removing cost one comparison.

use super::super::Seconds;
use super::few::{make_room, Few};

const CHILDREN: usize = 4;

/// The order in which sessions leave: soonest expiry first, among equals the one that came first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Turn {
    pub expiry: Seconds,
    pub came: u64,
}

impl Turn {
    /// Where only the order of arrival counts.
    pub fn of_arrival(came: u64) -> Turn {
        Turn { expiry: 0, came }
    }
}

#[derive(Clone, Copy, Debug)]
struct Node {
    turn: Turn,
    slot: u32,
}

#[derive(Default)]
pub struct Heap {
    nodes: Few<Node>,
}

impl Heap {
    pub fn first(&self) -> Option<(Turn, u32)> {
        self.nodes.first().map(|node| (node.turn, node.slot))
    }

    pub fn turn(&self, place: u32) -> Turn {
        self.nodes[place as usize].turn
    }

    /// Makes room for one more, so that `push` cannot fail. Whether there is memory for it.
    pub fn make_room(&mut self) -> bool {
        make_room(&mut self.nodes)
    }

    /// The same for as many as `count` altogether.
    pub fn make_room_for(&mut self, count: usize) -> bool {
        self.nodes.try_reserve(count.saturating_sub(self.nodes.len())).is_ok()
    }

    /// `moved(slot, place)` is told every place that changed.
    pub fn push(&mut self, turn: Turn, slot: u32, moved: impl FnMut(u32, u32)) {
        self.nodes.push(Node { turn, slot });
        self.up(self.nodes.len() - 1, moved);
    }

    pub fn remove(&mut self, place: u32, moved: impl FnMut(u32, u32)) {
        let place = place as usize;
        self.nodes.swap_remove(place);
        if place < self.nodes.len() {
            self.settle(place, moved);
        }
    }

    pub fn set(&mut self, place: u32, turn: Turn, moved: impl FnMut(u32, u32)) {
        self.nodes[place as usize].turn = turn;
        self.settle(place as usize, moved);
    }

    fn settle(&mut self, place: usize, moved: impl FnMut(u32, u32)) {
        if place > 0 && self.nodes[place].turn < self.nodes[(place - 1) / CHILDREN].turn {
            self.up(place, moved);
        } else {
            self.down(place, moved);
        }
    }

    fn up(&mut self, mut place: usize, mut moved: impl FnMut(u32, u32)) {
        let node = self.nodes[place];
        while place > 0 {
            let parent = (place - 1) / CHILDREN;
            if self.nodes[parent].turn <= node.turn {
                break;
            }
            self.put(place, self.nodes[parent], &mut moved);
            place = parent;
        }
        self.put(place, node, &mut moved);
    }

    fn down(&mut self, mut place: usize, mut moved: impl FnMut(u32, u32)) {
        let node = self.nodes[place];
        loop {
            let first = place * CHILDREN + 1;
            let children = first..(first + CHILDREN).min(self.nodes.len());
            match children.min_by_key(|&child| self.nodes[child].turn) {
                Some(child) if self.nodes[child].turn < node.turn => {
                    self.put(place, self.nodes[child], &mut moved);
                    place = child;
                }
                _ => break,
            }
        }
        self.put(place, node, &mut moved);
    }

    fn put(&mut self, place: usize, node: Node, moved: &mut impl FnMut(u32, u32)) {
        self.nodes[place] = node;
        moved(node.slot, place as u32);
    }
}
