//! What is told when a setting changes, where it is not asked for each time.
//!
//! Promise: once a setting is the broker's, everything that acts on it acts on it; no part keeps a copy from the start.
//! Not here: what settings there are, and who sets them (`settings`, `cluster`).

use crate::api::{FetchSessionLimits, Services};
use crate::cluster::Cluster;
use crate::config::{Config, ListenerConfig};
use crate::logging;
use crate::partition::CompactionSettings;
use crate::raft::Throttle;
use crate::server::{ConnectionLimits, Limits, Patience};
use crate::settings::Keeper;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// A fetch session is safe from others for this long after its last use, and its first, as in Kafka.
const FETCH_SESSION_EVICTION_AGE: Duration = Duration::from_secs(120);

/// Everything that is told.
pub(super) struct Dials {
    throttle: Throttle,
    limits: Limits,
    services: Arc<Services>,
    in_flight_bytes: watch::Sender<usize>,
    compaction: watch::Sender<CompactionSettings>,
    retention_every: watch::Sender<Duration>,
    scrub_bytes_per_second: watch::Sender<u64>,
    /// One per listener, in the order of the settings.
    connections: Vec<watch::Sender<ConnectionLimits>>,
    log_level: watch::Sender<String>,
}

impl Dials {
    pub fn new(
        config: &Config,
        throttle: Throttle,
        limits: Limits,
        services: Arc<Services>,
    ) -> Self {
        let listeners = config.kafka.listeners.iter();
        let connections = listeners.map(|l| watch::channel(connection_limits(config, l)).0);
        Self {
            throttle,
            limits,
            services,
            in_flight_bytes: watch::channel(config.limits.in_flight_bytes).0,
            compaction: watch::channel(compaction(config, rand::random())).0,
            retention_every: watch::channel(config.storage.retention_check_interval).0,
            scrub_bytes_per_second: watch::channel(config.storage.scrub_bytes_per_second).0,
            connections: connections.collect(),
            log_level: watch::channel(config.log_level.clone()).0,
        }
    }

    pub fn compaction(&self) -> watch::Receiver<CompactionSettings> {
        self.compaction.subscribe()
    }

    pub fn retention_every(&self) -> watch::Receiver<Duration> {
        self.retention_every.subscribe()
    }

    pub fn scrub_bytes_per_second(&self) -> watch::Receiver<u64> {
        self.scrub_bytes_per_second.subscribe()
    }

    pub fn connections(&self) -> impl Iterator<Item = watch::Receiver<ConnectionLimits>> {
        self.connections.iter().map(watch::Sender::subscribe)
    }

    /// Gives requests more or fewer bytes, whenever that changes: fewer may be long in coming.
    pub fn keep_bytes(&self) -> impl Future<Output = ()> + Send + use<> {
        let (limits, mut bytes) = (self.limits.clone(), self.in_flight_bytes.subscribe());
        async move {
            while bytes.changed().await.is_ok() {
                let wanted = *bytes.borrow_and_update();
                // What changes meanwhile does not wait for it.
                tokio::select! {
                    () = limits.set_bytes(wanted) => {}
                    Ok(()) = bytes.changed() => bytes.mark_changed(),
                }
            }
        }
    }

    fn turn(&self, config: &Config) {
        let (l, s) = (&config.limits, &config.storage);
        self.throttle.set(config.rpc_learner_bytes_per_second);
        self.limits
            .set_places(l.max_connections, l.max_connections_per_address);
        self.services
            .fetch_sessions
            .set_limits(fetch_session_limits(config));
        set(&self.in_flight_bytes, l.in_flight_bytes);
        set(&self.retention_every, s.retention_check_interval);
        let hash_seeds = self.compaction.borrow().hash_seeds;
        set(&self.compaction, compaction(config, hash_seeds));
        set(&self.scrub_bytes_per_second, s.scrub_bytes_per_second);
        for (dial, listener) in self.connections.iter().zip(&config.kafka.listeners) {
            set(dial, connection_limits(config, listener));
        }
        if set(&self.log_level, config.log_level.clone()) {
            logging::change(&config.log_level);
        }
    }

    /// Goes by what the cluster says of settings, until the metadata group is gone. Whoever waits for a setting to be
    /// this broker's finds the dials turned.
    pub async fn follow(self, cluster: Arc<Cluster>, keeper: Keeper) {
        let mut view = cluster.watch();
        loop {
            let state = view.borrow_and_update().clone();
            keeper.hear(cluster.node_id(), &state.settings, |now| {
                self.turn(&now.config);
            });
            if view.changed().await.is_err() {
                return;
            }
        }
    }
}

/// Tells nobody of what is as it was; false if it is.
fn set<T: PartialEq>(dial: &watch::Sender<T>, value: T) -> bool {
    dial.send_if_modified(|now| {
        let other = *now != value;
        *now = value;
        other
    })
}

fn connection_limits(config: &Config, listener: &ListenerConfig) -> ConnectionLimits {
    let l = &config.limits;
    ConnectionLimits {
        frame_bytes_max: listener.max_frame_bytes,
        in_flight_max: l.requests_in_flight,
        patience: Patience {
            idle: l.idle_timeout,
            handshake: l.handshake_timeout,
            stalled: l.stalled_timeout,
            frame_bytes_per_second: l.min_frame_bytes_per_second,
        },
    }
}

/// How this broker compacts; nobody who chooses keys may know the seeds.
fn compaction(config: &Config, hash_seeds: [u64; 2]) -> CompactionSettings {
    let s = &config.storage;
    CompactionSettings {
        every: s.compaction_check_interval,
        map_bytes: s.compaction_map_bytes,
        bytes_per_second: s.compaction_bytes_per_second,
        hash_seeds,
    }
}

pub(super) fn fetch_session_limits(config: &Config) -> FetchSessionLimits {
    FetchSessionLimits {
        sessions: config.limits.fetch_sessions,
        partitions: config.limits.fetch_session_partitions,
        eviction_age: FETCH_SESSION_EVICTION_AGE,
    }
}

/// What all connections share.
pub(super) fn limits(config: &Config) -> Limits {
    let l = &config.limits;
    Limits::new(
        l.max_connections,
        l.max_connections_per_address,
        l.in_flight_bytes,
    )
}
