//! What all connections share: how many there may be, and how many bytes of requests they may hold.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes are counted in these, because a semaphore counts in 32 bits.
const UNIT_BYTES: usize = 1024;

/// Frames up to this size are not counted: a connection always holds one small buffer anyway.
pub const FREE_BYTES: usize = 16 * 1024;

#[derive(Debug)]
struct Shared {
    connections: Arc<Semaphore>,
    per_address_max: usize,
    per_address: Mutex<HashMap<IpAddr, usize>>,
    bytes: Arc<Semaphore>,
    bytes_max: usize,
    /// One connection at a time may finish its frame beyond the budget.
    finisher: Arc<Semaphore>,
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
    _permit: OwnedSemaphorePermit,
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
            connections: Arc::new(Semaphore::new(connections)),
            per_address_max: per_address,
            per_address: Mutex::default(),
            bytes: Arc::new(Semaphore::new(units)),
            bytes_max: units * UNIT_BYTES,
            finisher: Arc::new(Semaphore::new(1)),
        }))
    }

    /// Takes a place for a connection from `address`.
    ///
    /// # Errors
    /// Which limit is reached.
    pub fn enter(&self, address: IpAddr) -> Result<Place, Full> {
        let permit = self
            .0
            .connections
            .clone()
            .try_acquire_owned()
            .map_err(|_| Full::Total)?;
        let mut by_address = self.0.per_address.lock();
        let count = by_address.entry(address).or_insert(0);
        if *count >= self.0.per_address_max {
            return Err(Full::PerAddress);
        }
        *count += 1;
        Ok(Place {
            limits: self.clone(),
            address,
            _permit: permit,
        })
    }

    /// Bytes that requests hold now.
    pub fn bytes_held(&self) -> usize {
        self.0.bytes_max - self.0.bytes.available_permits() * UNIT_BYTES
    }

    /// Bytes that requests may hold.
    pub fn bytes_max(&self) -> usize {
        self.0.bytes_max
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
        let mut by_address = self.limits.0.per_address.lock();
        if let Some(count) = by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                by_address.remove(&self.address);
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
