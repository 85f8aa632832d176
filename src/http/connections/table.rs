//! Open connections, and which of them is closed when another needs its place.
//!
//! ```text
//!   Idle      no valid key yet, no running request     closed first, the oldest before the others
//!   Asking    no valid key yet, a running request      closed second
//!   Waiting   a valid key, no running request          closed third
//!   Working   a running request with a valid key       never closed for another connection
//! ```
//!
//! A pure structure: it decides, and returns what ends a connection (`H`). The accept loop does the
//! rest.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

/// The peer of a connection, as far as the kernel knows. Each peer has its own limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Peer {
    /// TCP from this host. Users and the reverse proxy share the address, so the limit per address
    /// does not apply.
    Loopback,
    /// An IPv4 address, or the /64 network of an IPv6 address, which one subscriber owns.
    Address(IpAddr),
    /// A user on the unix socket (`SO_PEERCRED`).
    User(u32),
}

impl Peer {
    pub fn of(address: IpAddr) -> Self {
        let address = address.to_canonical();
        match address {
            _ if address.is_loopback() => Self::Loopback,
            IpAddr::V4(_) => Self::Address(address),
            IpAddr::V6(v6) => Self::Address(IpAddr::V6((v6.to_bits() & !u128::from(u64::MAX)).into())),
        }
    }
}

/// The cost of closing a connection, lowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Idle,
    Asking,
    Waiting,
    Working,
}

/// Why a connection gets no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// All places are taken by connections with running requests.
    All,
    /// The same for the places of this peer.
    Peer,
}

type Place = (Rank, u64, u64);

#[derive(Debug)]
struct Entry<H> {
    peer: Peer,
    known: bool,
    busy: bool,
    /// When its rank last changed, as a counter.
    since: u64,
    end: Option<H>,
}

impl<H> Entry<H> {
    fn place(&self, id: u64) -> Place {
        let rank = match (self.known, self.busy) {
            (false, false) => Rank::Idle,
            (false, true) => Rank::Asking,
            (true, false) => Rank::Waiting,
            (true, true) => Rank::Working,
        };
        (rank, self.since, id)
    }
}

/// All connections of the sockets that share one limit.
#[derive(Debug)]
pub struct Table<H> {
    max: usize,
    per_peer: usize,
    clock: u64,
    entries: HashMap<u64, Entry<H>>,
    order: BTreeSet<Place>,
    peers: HashMap<Peer, BTreeSet<Place>>,
}

impl<H> Table<H> {
    /// At most `max` connections, and at most `per_peer` of one peer other than loopback.
    pub fn new(max: usize, per_peer: usize) -> Self {
        Self { max, per_peer, clock: 0, entries: HashMap::new(), order: BTreeSet::new(), peers: HashMap::new() }
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Takes a place. Returns its id, and what ends the connection that was closed for it.
    pub fn admit(&mut self, peer: Peer) -> Result<(u64, Option<H>), Full> {
        let of_peer = self.peers.get(&peer);
        let closed = if peer != Peer::Loopback && of_peer.is_some_and(|all| all.len() >= self.per_peer) {
            Some(of_peer.and_then(first).ok_or(Full::Peer)?)
        } else if self.entries.len() >= self.max {
            Some(first(&self.order).ok_or(Full::All)?)
        } else {
            None
        };
        let closed = closed.and_then(|id| self.take(id));
        self.clock += 1;
        let id = self.clock;
        let entry = Entry { peer, known: false, busy: false, since: id, end: None };
        self.put(id, entry);
        Ok((id, closed))
    }

    /// Sets what ends a connection; returns it if the connection has already lost its place.
    pub fn attach(&mut self, id: u64, end: H) -> Option<H> {
        match self.entries.get_mut(&id) {
            Some(entry) => {
                entry.end = Some(end);
                None
            }
            None => Some(end),
        }
    }

    /// Its peer has shown a valid key, or is an administrator of this host.
    pub fn known(&mut self, id: u64) {
        self.change(id, |entry| entry.known = true);
    }

    /// Whether a request on it is running.
    pub fn busy(&mut self, id: u64, busy: bool) {
        self.change(id, |entry| entry.busy = busy);
    }

    pub fn remove(&mut self, id: u64) {
        self.take(id);
    }

    /// What ends the least important connection, when the process needs its descriptor for
    /// something else.
    pub fn relieve(&mut self) -> Option<H> {
        let id = first(&self.order)?;
        self.take(id)
    }

    fn change(&mut self, id: u64, change: impl FnOnce(&mut Entry<H>)) {
        let Some(entry) = self.entries.get(&id) else { return };
        let (peer, before) = (entry.peer, entry.place(id));
        self.clock += 1;
        let now = self.clock;
        let Some(entry) = self.entries.get_mut(&id) else { return };
        change(entry);
        entry.since = now;
        let after = entry.place(id);
        self.order.remove(&before);
        self.order.insert(after);
        if let Some(all) = self.peers.get_mut(&peer) {
            all.remove(&before);
            all.insert(after);
        }
    }

    fn put(&mut self, id: u64, entry: Entry<H>) {
        let place = entry.place(id);
        self.order.insert(place);
        self.peers.entry(entry.peer).or_default().insert(place);
        self.entries.insert(id, entry);
    }

    fn take(&mut self, id: u64) -> Option<H> {
        let entry = self.entries.remove(&id)?;
        let place = entry.place(id);
        self.order.remove(&place);
        if let Some(all) = self.peers.get_mut(&entry.peer) {
            all.remove(&place);
            if all.is_empty() {
                self.peers.remove(&entry.peer);
            }
        }
        entry.end
    }
}

/// The first to be closed, unless all are working.
fn first(order: &BTreeSet<Place>) -> Option<u64> {
    order.first().filter(|(rank, ..)| *rank < Rank::Working).map(|(_, _, id)| *id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u8) -> Peer {
        Peer::of(IpAddr::from([192, 0, 2, n]))
    }

    /// Admits one, named by a letter.
    fn open(table: &mut Table<char>, peer: Peer, name: char) -> Result<(u64, Option<char>), Full> {
        let (id, closed) = table.admit(peer)?;
        assert_eq!(table.attach(id, name), None);
        Ok((id, closed))
    }

    #[test]
    fn the_one_that_is_least_missed_goes_first() {
        let mut table = Table::new(4, 4);
        let ids: Vec<u64> = "abcd".chars().map(|c| open(&mut table, Peer::Loopback, c).unwrap().0).collect();
        table.known(ids[0]);
        table.busy(ids[0], true);
        table.known(ids[1]);
        table.busy(ids[2], true);
        // d has sent nothing, c has no key, b is between two requests, a has a running request.
        for (name, gone) in [('e', 'd'), ('f', 'e'), ('g', 'f')] {
            let (id, closed) = open(&mut table, Peer::Loopback, name).unwrap();
            assert_eq!(closed, Some(gone));
            assert_eq!(table.len(), 4);
            if name == 'g' {
                table.known(id);
                table.busy(id, true);
            }
        }
        let closed: Vec<_> = "hi"
            .chars()
            .map(|name| {
                let (id, closed) = open(&mut table, Peer::Loopback, name).unwrap();
                table.known(id);
                table.busy(id, true);
                closed.unwrap()
            })
            .collect();
        assert_eq!(closed, ['c', 'b']);
        assert_eq!(open(&mut table, Peer::Loopback, 'j').unwrap_err(), Full::All);
        assert_eq!(table.relieve(), None, "a request that is being answered is not closed for another");
        table.busy(ids[0], false);
        assert_eq!(open(&mut table, Peer::Loopback, 'k').unwrap().1, Some('a'));
    }

    #[test]
    fn one_address_has_its_own_bound_and_loopback_has_none() {
        let mut table = Table::new(100, 2);
        for name in ['a', 'b'] {
            open(&mut table, address(1), name).unwrap();
        }
        let (id, closed) = open(&mut table, address(1), 'c').unwrap();
        assert_eq!(closed, Some('a'), "its own oldest, not another address's");
        open(&mut table, address(2), 'd').unwrap();
        for id in [id - 1, id] {
            table.known(id);
            table.busy(id, true);
        }
        assert_eq!(open(&mut table, address(1), 'e').unwrap_err(), Full::Peer);
        assert!((0..50).all(|_| open(&mut table, Peer::Loopback, 'l').unwrap().1.is_none()));
        table.remove(id);
        table.remove(id);
        assert_eq!(open(&mut table, address(1), 'f').unwrap().1, None);
    }

    #[test]
    fn who_counts_as_one_peer() {
        let of = |text: &str| Peer::of(text.parse().unwrap());
        assert_eq!(of("127.0.0.5"), Peer::Loopback);
        assert_eq!(of("::1"), Peer::Loopback);
        assert_eq!(of("::ffff:127.0.0.1"), Peer::Loopback);
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }

    #[test]
    fn one_that_was_closed_before_it_could_be_attached_is_told() {
        let mut table = Table::new(1, 1);
        let (id, _) = table.admit(Peer::Loopback).unwrap();
        table.admit(Peer::Loopback).unwrap();
        assert_eq!(table.attach(id, 'a'), Some('a'));
        table.busy(id, true);
        table.known(id);
        assert_eq!(table.len(), 1);
    }
}
