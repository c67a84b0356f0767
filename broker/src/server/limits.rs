//! What all connections share: how many there may be, and how many bytes of requests they may hold.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes are counted in these, because a semaphore counts in 32 bits.
const UNIT_BYTES: usize = 1024;

/// Frames up to this size are not counted: a connection holds at most one such buffer for each of its requests
/// in flight, and one to read into.
pub const FREE_BYTES: usize = 16 * 1024;

#[derive(Debug)]
struct Shared {
    places: Mutex<Places>,
    bytes: Arc<Semaphore>,
    bytes_max: AtomicUsize,
    /// One at a time changes how many bytes there are.
    resizing: tokio::sync::Mutex<()>,
    /// One connection at a time may finish its frame beyond the budget.
    finisher: Arc<Semaphore>,
}

/// How many connections there are, and may be.
#[derive(Debug)]
struct Places {
    max: usize,
    per_address_max: usize,
    taken: usize,
    per_address: HashMap<IpAddr, usize>,
}

/// What a frame holds of the budget, until its request is answered.
#[derive(Debug, Default)]
pub struct Held {
    permit: Option<OwnedSemaphorePermit>,
    bytes: usize,
    finisher: Option<OwnedSemaphorePermit>,
}

impl Held {
    fn add(&mut self, more: OwnedSemaphorePermit, bytes: usize) {
        self.bytes = bytes;
        match &mut self.permit {
            Some(permit) => permit.merge(more),
            None => self.permit = Some(more),
        }
    }
}

/// Cloned into every listener: the limits are the broker's, not one listener's.
#[derive(Debug, Clone)]
pub struct Limits(Arc<Shared>);

/// A place for one connection; given back when dropped.
#[derive(Debug)]
pub struct Place {
    limits: Limits,
    address: IpAddr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    #[error("the broker's limit of connections is reached")]
    Total,
    #[error("the limit of connections from one address is reached")]
    PerAddress,
}

impl Full {
    /// What metrics call it.
    pub fn label(self) -> &'static str {
        match self {
            Full::Total => "total",
            Full::PerAddress => "per_address",
        }
    }
}

impl Limits {
    /// `bytes` is what requests may hold while they arrive and are worked on.
    pub fn new(connections: usize, per_address: usize, bytes: usize) -> Self {
        let units = bytes.div_ceil(UNIT_BYTES).min(Semaphore::MAX_PERMITS);
        Self(Arc::new(Shared {
            places: Mutex::new(Places {
                max: connections,
                per_address_max: per_address,
                taken: 0,
                per_address: HashMap::new(),
            }),
            bytes: Arc::new(Semaphore::new(units)),
            bytes_max: AtomicUsize::new(units * UNIT_BYTES),
            resizing: tokio::sync::Mutex::default(),
            finisher: Arc::new(Semaphore::new(1)),
        }))
    }

    /// Takes a place for a connection from `address`.
    ///
    /// # Errors
    /// Which limit is reached.
    pub fn enter(&self, address: IpAddr) -> Result<Place, Full> {
        let mut places = self.0.places.lock();
        if places.taken >= places.max {
            return Err(Full::Total);
        }
        let here = places.per_address.get(&address).copied().unwrap_or(0);
        if here >= places.per_address_max {
            return Err(Full::PerAddress);
        }
        places.taken += 1;
        places.per_address.insert(address, here + 1);
        Ok(Place {
            limits: self.clone(),
            address,
        })
    }

    /// From the next connection on, other limits. Connections that there are stay.
    pub fn set_places(&self, connections: usize, per_address: usize) {
        let mut places = self.0.places.lock();
        (places.max, places.per_address_max) = (connections, per_address);
    }

    /// Gives requests more or fewer bytes. Fewer: as those that are at work give theirs back, before any more are
    /// taken; so it may take as long as they do.
    pub async fn set_bytes(&self, bytes: usize) {
        let _one = self.0.resizing.lock().await;
        let wanted = bytes.div_ceil(UNIT_BYTES).min(Semaphore::MAX_PERMITS);
        let mut units = self.bytes_max() / UNIT_BYTES;
        if wanted > units {
            self.0.bytes.add_permits(wanted - units);
            units = wanted;
            self.0
                .bytes_max
                .store(units * UNIT_BYTES, Ordering::Relaxed);
        }
        while wanted < units {
            let fewer = u32::try_from(units - wanted).unwrap_or(u32::MAX);
            // It is never closed.
            let Ok(permits) = self.0.bytes.acquire_many(fewer).await else {
                break;
            };
            permits.forget();
            units -= fewer as usize;
            self.0
                .bytes_max
                .store(units * UNIT_BYTES, Ordering::Relaxed);
        }
    }

    /// Bytes that requests hold now.
    pub fn bytes_held(&self) -> usize {
        let free = self.0.bytes.available_permits() * UNIT_BYTES;
        // Both change, and not at the same moment.
        self.bytes_max().saturating_sub(free)
    }

    /// Bytes that requests may hold.
    pub fn bytes_max(&self) -> usize {
        self.0.bytes_max.load(Ordering::Relaxed)
    }

    /// Lets `held` be of so many bytes if there is room at once.
    pub fn try_hold(&self, held: &mut Held, bytes: usize) -> bool {
        if bytes <= held.bytes || held.finisher.is_some() {
            return true;
        }
        let Ok(units) = u32::try_from((bytes - held.bytes).div_ceil(UNIT_BYTES)) else {
            return false;
        };
        let Ok(more) = self.0.bytes.clone().try_acquire_many_owned(units) else {
            return false;
        };
        held.add(more, bytes);
        true
    }

    /// Waits until `held` may be of so many bytes. Frames that are half here hold what all of them wait for:
    /// one of those goes on beyond the budget, so that it ends, and gives back what it holds.
    pub async fn hold(&self, held: &mut Held, bytes: usize) {
        if bytes <= held.bytes || held.finisher.is_some() {
            return;
        }
        let Ok(units) = u32::try_from((bytes - held.bytes).div_ceil(UNIT_BYTES)) else {
            return;
        };
        let half_here = held.permit.is_some();
        tokio::select! {
            biased;
            Ok(more) = self.0.bytes.clone().acquire_many_owned(units) => {
                held.add(more, bytes);
            }
            Ok(finisher) = self.0.finisher.clone().acquire_owned(), if half_here => {
                held.finisher = Some(finisher);
            }
            // Neither is ever closed.
            else => {}
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = self.limits.0.places.lock();
        places.taken -= 1;
        if let Some(count) = places.per_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                places.per_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    #[test]
    fn places_are_limited_per_address_and_come_back() {
        let limits = Limits::new(10, 2, 1024);
        let (a, _b) = (limits.enter(HERE).unwrap(), limits.enter(HERE).unwrap());
        assert_eq!(limits.enter(HERE).unwrap_err(), Full::PerAddress);
        drop(a);
        assert!(limits.enter(HERE).is_ok());
    }

    #[test]
    fn places_are_limited_in_total() {
        let limits = Limits::new(1, 10, 1024);
        let _a = limits.enter(HERE).unwrap();
        assert_eq!(
            limits
                .enter(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)))
                .unwrap_err(),
            Full::Total
        );
    }

    #[test]
    fn limits_of_connections_change_for_those_that_come() {
        let limits = Limits::new(1, 1, 1024);
        let _a = limits.enter(HERE).unwrap();
        limits.set_places(2, 2);
        let b = limits.enter(HERE).unwrap();
        limits.set_places(1, 2);
        drop(b);
        assert_eq!(limits.enter(HERE).unwrap_err(), Full::Total);
    }

    #[tokio::test]
    async fn more_bytes_are_there_at_once_and_fewer_when_they_are_given_back() {
        let limits = Limits::new(1, 1, 4096);
        let mut held = Held::default();
        assert!(limits.try_hold(&mut held, 4096));
        limits.set_bytes(8192).await;
        assert_eq!((limits.bytes_max(), limits.bytes_held()), (8192, 4096));
        let fewer = tokio::spawn({
            let limits = limits.clone();
            async move { limits.set_bytes(2048).await }
        });
        tokio::task::yield_now().await;
        assert!(!fewer.is_finished(), "what is held is not taken away");
        drop(held);
        fewer.await.unwrap();
        assert_eq!((limits.bytes_max(), limits.bytes_held()), (2048, 0));
        assert!(limits.try_hold(&mut Held::default(), 2048));
        assert!(!limits.try_hold(&mut Held::default(), 4096));
    }

    #[tokio::test]
    async fn bytes_held_are_given_back() {
        let limits = Limits::new(1, 1, 4096);
        let (mut held, mut waiting) = (Held::default(), Held::default());
        assert!(limits.try_hold(&mut held, 4096));
        assert_eq!(limits.bytes_held(), 4096);
        assert!(!limits.try_hold(&mut waiting, 1), "no room is left");
        let wait = limits.hold(&mut waiting, 1);
        let waited = tokio::time::timeout(std::time::Duration::from_millis(20), wait).await;
        assert!(waited.is_err(), "no room is left");
        drop(held);
        assert_eq!(limits.bytes_held(), 0);
        limits.hold(&mut waiting, 1).await;
        assert_eq!(waiting.bytes, 1);
    }
}
