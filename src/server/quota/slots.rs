//! Counted places: so many in all, and so many for one peer.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Places of one kind. Cheap to clone; clones share them.
#[derive(Debug, Clone)]
pub(in crate::server) struct Places {
    most: u32,
    most_per_peer: u32,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    all: u32,
    /// Peers without a place are not in here.
    by_peer: HashMap<IpAddr, u32>,
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::server) enum Full {
    /// The limit, in all.
    InAll(u32),
    /// The limit for one peer.
    ForPeer(u32),
}

/// A place, free again once this is dropped.
#[derive(Debug)]
pub(in crate::server) struct Place {
    peer: Option<IpAddr>,
    taken: Arc<Mutex<Taken>>,
}

impl Places {
    pub(in crate::server) fn new(most: u32, most_per_peer: u32) -> Self {
        Places { most, most_per_peer, taken: Arc::default() }
    }

    /// The places that are taken.
    pub(in crate::server) fn taken(&self) -> u32 {
        lock(&self.taken).all
    }

    /// A place for a peer; clients of a Unix socket have no address and count only in all.
    pub(in crate::server) fn take(&self, peer: Option<IpAddr>) -> Result<Place, Full> {
        let mut taken = lock(&self.taken);
        if taken.all >= self.most {
            return Err(Full::InAll(self.most));
        }
        if let Some(peer) = peer {
            let own = taken.by_peer.get(&peer).copied().unwrap_or(0);
            if own >= self.most_per_peer {
                return Err(Full::ForPeer(self.most_per_peer));
            }
            taken.by_peer.insert(peer, own + 1);
        }
        taken.all += 1;
        Ok(Place { peer, taken: Arc::clone(&self.taken) })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = lock(&self.taken);
        taken.all -= 1;
        let Some(peer) = self.peer else { return };
        if let Some(own) = taken.by_peer.get_mut(&peer) {
            *own -= 1;
            if *own == 0 {
                taken.by_peer.remove(&peer);
            }
        }
    }
}

fn lock(taken: &Mutex<Taken>) -> MutexGuard<'_, Taken> {
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_has_its_share_and_all_have_the_whole() {
        let places = Places::new(3, 2);
        let peer = |last| Some(IpAddr::from([10, 0, 0, last]));
        let one = places.take(peer(1)).expect("the first");
        let _two = places.take(peer(1)).expect("the second");
        assert_eq!(places.take(peer(1)).err(), Some(Full::ForPeer(2)));
        let _other = places.take(peer(2)).expect("another peer's");
        assert_eq!(places.take(None).err(), Some(Full::InAll(3)));
        drop(one);
        assert!(places.take(peer(1)).is_ok());
    }

    #[test]
    fn peers_that_have_left_are_forgotten() {
        let places = Places::new(10, 1);
        for last in 0..200 {
            drop(places.take(Some(IpAddr::from([10, 0, 0, last]))).expect("a place"));
        }
        assert!(lock(&places.taken).by_peer.is_empty());
    }
}
