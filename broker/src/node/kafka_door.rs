//! The Kafka listeners: bound first, opened last.
//!
//! Not here: what requests mean (`api`), and what connections may cost (`server`).

use super::{Bound, BoundListener, StartError, settings};
use crate::api::{Api, FetchSessionLimits, FetchSessions, Services};
use crate::cluster::Cluster;
use crate::config::{Config, ListenerConfig};
use crate::group::Coordinator;
use crate::partition::Registry;
use crate::server::{BindError, ConnectionLimits, Limits, Listener, Patience, Server};
use logd_storage::Disk;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, watch};

/// A fetch session is safe from others for this long after its last use, and its first, as in Kafka.
const FETCH_SESSION_EVICTION_AGE: Duration = Duration::from_secs(120);

pub(super) fn bind_kafka(
    wanted: &[ListenerConfig],
) -> Result<(Vec<Listener>, Vec<BoundListener>), StartError> {
    let mut listeners = Vec::with_capacity(wanted.len());
    let mut bound = Vec::with_capacity(wanted.len());
    for l in wanted {
        let listener = Listener::bind(&l.name, l.addr)?;
        let address = listener.address();
        // An advertised port 0 means the port that was bound.
        let own = (address.ip().to_string(), address.port());
        let advertised = l.advertise.clone().map_or(own, |(host, port)| {
            (host, if port == 0 { address.port() } else { port })
        });
        bound.push(BoundListener {
            name: l.name.clone(),
            address,
            advertised,
        });
        listeners.push(listener);
    }
    Ok((listeners, bound))
}

/// The parts of the broker that requests act on.
pub(super) struct Parts<'a> {
    pub cluster: &'a Arc<Cluster>,
    pub registry: &'a Arc<Registry>,
    pub disk: &'a Disk,
    pub groups: Arc<Coordinator>,
    pub bound: &'a Bound,
}

/// Everything requests act on.
pub(super) fn services(
    config: &Config,
    parts: Parts<'_>,
    stopping: watch::Receiver<bool>,
) -> Arc<Services> {
    let fetch_sessions = FetchSessions::new(FetchSessionLimits {
        sessions: config.limits.fetch_sessions,
        partitions: config.limits.fetch_session_partitions,
        eviction_age: FETCH_SESSION_EVICTION_AGE,
    });
    let processors = std::thread::available_parallelism().map_or(1, |n| n.get());
    Arc::new(Services {
        cluster: parts.cluster.clone(),
        partitions: parts.registry.clone(),
        disk: parts.disk.clone(),
        groups: parts.groups,
        fetch_sessions,
        repacking: Arc::new(Semaphore::new(processors)),
        settings: settings::of_requests(config, parts.cluster.node_id(), parts.bound),
        now_ms: super::now_ms,
        stopping,
    })
}

/// Lets clients in.
pub(super) fn serve(
    config: &Config,
    listeners: Vec<Listener>,
    services: Arc<Services>,
    limits: &Limits,
) -> Result<Server, BindError> {
    let l = &config.limits;
    let bounds = |listener: &ListenerConfig| ConnectionLimits {
        frame_bytes_max: listener.max_frame_bytes,
        in_flight_max: l.requests_in_flight,
        patience: Patience {
            idle: l.idle_timeout,
            handshake: l.handshake_timeout,
            stalled: l.stalled_timeout,
            frame_bytes_per_second: l.min_frame_bytes_per_second,
        },
    };
    let bounds = config.kafka.listeners.iter().map(bounds);
    let listeners = listeners.into_iter().zip(bounds).collect();
    Server::serve(listeners, &Arc::new(Api(services)), limits)
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
