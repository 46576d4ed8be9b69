//! The order in which the records of a service expire: a treap whose links lie in the records. Its shape follows from
//! the keyed hashes, so it stays flat whatever comes in whatever order, and nothing but links has to be written.

use super::store::{record, row, Broken, Found, Place, Record, Store};
use super::writer::Writer;

/// A path in a tree of more records than fit into a cache is far shorter.
const LONGEST_PATH: usize = 256;

fn left(at: usize) -> Place {
    Place::high(at + record::SIDES)
}

fn right(at: usize) -> Place {
    Place::low(at + record::SIDES)
}

fn root(row: usize) -> Place {
    Place::low(row + row::ROOT)
}

/// Puts `new`, whose own links are still to be written, into the tree.
pub fn insert(writer: &mut Writer, row: usize, new: &Record) -> Found<()> {
    let mut place = root(row);
    let mut steps = 0..LONGEST_PATH;
    let mut rest = loop {
        steps.next().ok_or(Broken)?;
        let at = writer.store.follow(place)?;
        if at == 0 {
            break 0;
        }
        let here = writer.store.record(at)?;
        if here.hash <= new.hash {
            break at;
        }
        place = if new.order() < here.order() { left(at) } else { right(at) };
    };
    writer.link(place, new.at)?;
    // What was below that place is split into what comes before and what comes after.
    let (mut before, mut after) = (left(new.at), right(new.at));
    while rest != 0 {
        steps.next().ok_or(Broken)?;
        let here = writer.store.record(rest)?;
        if here.order() < new.order() {
            writer.link(before, rest)?;
            before = right(rest);
            rest = writer.store.follow(before)?;
        } else {
            writer.link(after, rest)?;
            after = left(rest);
            rest = writer.store.follow(after)?;
        }
    }
    writer.link(before, 0)?;
    writer.link(after, 0)
}

/// The link to a record that is in the tree.
pub fn place_of(store: &Store, row: usize, record: &Record) -> Found<Place> {
    let mut place = root(row);
    for _ in 0..LONGEST_PATH {
        let at = store.follow(place)?;
        if at == record.at {
            return Ok(place);
        }
        // Without a node there is no record either: the tree has lost it.
        let here = if at == 0 { return Err(Broken) } else { store.record(at)? };
        place = if record.order() < here.order() { left(at) } else { right(at) };
    }
    Err(Broken)
}

pub fn remove(writer: &mut Writer, row: usize, record: &Record) -> Found<()> {
    let mut place = place_of(&writer.store, row, record)?;
    let (mut before, mut after) = (writer.store.follow(left(record.at))?, writer.store.follow(right(record.at))?);
    for _ in 0..LONGEST_PATH {
        if before == 0 || after == 0 {
            return writer.link(place, before | after);
        }
        if writer.store.record(before)?.hash > writer.store.record(after)?.hash {
            writer.link(place, before)?;
            place = right(before);
            before = writer.store.follow(place)?;
        } else {
            writer.link(place, after)?;
            place = left(after);
            after = writer.store.follow(place)?;
        }
    }
    Err(Broken)
}

/// The one that expires soonest, among equals the one that came first.
pub fn first(writer: &Writer, row: usize) -> Found<Option<Record>> {
    let mut found = None;
    let mut place = root(row);
    for _ in 0..LONGEST_PATH {
        match writer.store.follow(place)? {
            0 => return found.map(|at| writer.store.record(at)).transpose(),
            at => {
                found = Some(at);
                place = left(at);
            }
        }
    }
    Err(Broken)
}

/// The one after `order`, whether or not a record of that order is there.
pub fn after(writer: &Writer, row: usize, order: (u64, u64)) -> Found<Option<Record>> {
    let mut found = None;
    let mut place = root(row);
    for _ in 0..LONGEST_PATH {
        let at = writer.store.follow(place)?;
        if at == 0 {
            return Ok(found);
        }
        let here = writer.store.record(at)?;
        if here.order() > order {
            found = Some(here);
            place = left(at);
        } else {
            place = right(at);
        }
    }
    Err(Broken)
}

/// The records of a service in order, each with its place checked. For tests: it takes as long as there are records.
pub fn check(writer: &Writer, row: usize, most: usize) -> Found<Vec<Record>> {
    let mut records = Vec::new();
    let mut path: Vec<Record> = Vec::new();
    let mut at = writer.store.follow(root(row))?;
    while at != 0 || !path.is_empty() {
        if at != 0 {
            let here = writer.store.record(at)?;
            if path.len() > LONGEST_PATH || path.last().is_some_and(|above| above.hash < here.hash) {
                return Err(Broken);
            }
            path.push(here);
            at = writer.store.follow(left(at))?;
        } else if let Some(here) = path.pop() {
            if records.len() == most || records.last().is_some_and(|last: &Record| last.order() >= here.order()) {
                return Err(Broken);
            }
            at = writer.store.follow(right(here.at))?;
            records.push(here);
            // Above it on the path is not always its parent any more: compare from here on.
            if at != 0 && writer.store.record(at)?.hash > here.hash {
                return Err(Broken);
            }
        }
    }
    Ok(records)
}
