//! Quotas: at most N slots in total, and M per peer.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The slots of one kind: of connections, or of streams. Cheap to clone; clones share them.
#[derive(Debug, Clone)]
pub struct Slots {
    total: u32,
    per_peer: u32,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    total: u32,
    /// Slots by peer; peers without any are left out.
    by_peer: HashMap<IpAddr, u32>,
}

/// Which limit is reached, and its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    Total(u32),
    Peer(u32),
}

/// A slot that is taken. Dropping it frees the slot.
#[derive(Debug)]
pub struct Slot {
    peer: Option<IpAddr>,
    taken: Arc<Mutex<Taken>>,
}

impl Slots {
    pub fn new(total: u32, per_peer: u32) -> Self {
        Slots { total, per_peer, taken: Arc::default() }
    }

    /// How many slots are taken.
    pub fn taken(&self) -> u32 {
        lock(&self.taken).total
    }

    /// Takes a slot for a peer. Clients of a Unix socket have no address: they count towards the total alone.
    ///
    /// # Errors
    /// The limit that is reached.
    pub fn take(&self, peer: Option<IpAddr>) -> Result<Slot, Full> {
        let mut taken = lock(&self.taken);
        if taken.total >= self.total {
            return Err(Full::Total(self.total));
        }
        if let Some(peer) = peer {
            let own = taken.by_peer.get(&peer).copied().unwrap_or(0);
            if own >= self.per_peer {
                return Err(Full::Peer(self.per_peer));
            }
            taken.by_peer.insert(peer, own + 1);
        }
        taken.total += 1;
        Ok(Slot { peer, taken: Arc::clone(&self.taken) })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = lock(&self.taken);
        taken.total -= 1;
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
    fn a_peer_is_bounded_and_so_is_the_total() {
        let slots = Slots::new(3, 2);
        let peer = |last| Some(IpAddr::from([10, 0, 0, last]));
        let one = slots.take(peer(1)).expect("the first");
        let _two = slots.take(peer(1)).expect("the second");
        assert_eq!(slots.take(peer(1)).err(), Some(Full::Peer(2)));
        let _other = slots.take(peer(2)).expect("another peer's");
        assert_eq!(slots.take(None).err(), Some(Full::Total(3)));
        drop(one);
        assert!(slots.take(peer(1)).is_ok());
    }

    #[test]
    fn peers_without_slots_are_forgotten() {
        let slots = Slots::new(10, 1);
        for last in 0..200 {
            drop(slots.take(Some(IpAddr::from([10, 0, 0, last]))).expect("a slot"));
        }
        assert!(lock(&slots.taken).by_peer.is_empty());
    }
}
