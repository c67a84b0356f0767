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
        Self(Arc::new(Shared {
            connections: Arc::new(Semaphore::new(connections)),
            per_address_max: per_address,
            per_address: Mutex::default(),
            bytes: Arc::new(Semaphore::new(
                bytes.div_ceil(UNIT_BYTES).min(Semaphore::MAX_PERMITS),
            )),
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

    /// Waits until `bytes` more may be held.
    pub async fn hold(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let units = u32::try_from(bytes.div_ceil(UNIT_BYTES)).ok()?;
        self.0.bytes.clone().acquire_many_owned(units).await.ok()
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
        let held = limits.hold(4096).await;
        let waiting =
            tokio::time::timeout(std::time::Duration::from_millis(20), limits.hold(1)).await;
        assert!(waiting.is_err(), "no room is left");
        drop(held);
        assert!(limits.hold(1).await.is_some());
    }
}
