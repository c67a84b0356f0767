//! The Kafka listeners: bound first, opened last.
//!
//! Not here: what requests mean (`api`), and what connections may cost (`server`).

use super::dials::{self, Dials};
use super::{Bound, BoundListener, StartError};
use crate::api::{Api, FetchSessions, Identity, Repacking, Services};
use crate::cluster::Cluster;
use crate::config::{Config, ListenerConfig};
use crate::group::Coordinator;
use crate::partition::Registry;
use crate::server::{BindError, Limits, Listener, Server};
use crate::settings::{FIXED, Live};
use crate::topic_config::{Described, Kind, Layer, Source};
use logd_storage::Disk;
use std::sync::Arc;
use tokio::sync::watch;

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
    pub settings: Live,
    pub bound: &'a Bound,
}

/// Everything requests act on.
pub(super) fn services(
    config: &Config,
    parts: Parts<'_>,
    stopping: watch::Receiver<bool>,
) -> Arc<Services> {
    let fetch_sessions =
        FetchSessions::new(dials::fetch_session_limits(&parts.settings.now().config));
    let processors = std::thread::available_parallelism().map_or(1, |n| n.get());
    Arc::new(Services {
        cluster: parts.cluster.clone(),
        partitions: parts.registry.clone(),
        disk: parts.disk.clone(),
        groups: parts.groups,
        fetch_sessions,
        repacking: Repacking::new(processors),
        settings: parts.settings,
        identity: identity(config, parts.cluster.node_id(), parts.bound),
        now_ms: super::now_ms,
        stopping,
    })
}

/// What this broker says of itself that it was not told: who it is, and where it is bound.
fn identity(config: &Config, node_id: i32, bound: &Bound) -> Identity {
    let listed = |address: fn(&BoundListener) -> String| {
        let all = bound.kafka.iter();
        let each = all.map(|l| format!("{}://{}", l.name, address(l)));
        each.collect::<Vec<_>>().join(",")
    };
    let advertised = |l: &BoundListener| format!("{}:{}", l.advertised.0, l.advertised.1);
    let given = |name: &str, kind, value: String, meaning: &str| Described {
        name: name.to_owned(),
        kind,
        read_only: true,
        documentation: format!("{meaning} {FIXED}"),
        layers: vec![Layer {
            name: name.to_owned(),
            value,
            source: Source::Broker,
        }],
    };
    let number = "The broker's number, which the cluster gave it.";
    let described = [
        given("broker.id", Kind::Int, node_id.to_string(), number),
        given("node.id", Kind::Int, node_id.to_string(), number),
        given(
            "listeners",
            Kind::List,
            listed(|l| l.address.to_string()),
            "Where clients connect.",
        ),
        given(
            "advertised.listeners",
            Kind::List,
            listed(advertised),
            "What clients are told to connect to.",
        ),
    ];
    Identity {
        described: described.into(),
        log_dir: config.node.data_dir.display().to_string(),
    }
}

/// Lets clients in.
pub(super) fn serve(
    listeners: Vec<Listener>,
    dials: &Dials,
    services: Arc<Services>,
    limits: &Limits,
) -> Result<Server, BindError> {
    let listeners = listeners.into_iter().zip(dials.connections()).collect();
    Server::serve(listeners, &Arc::new(Api(services)), limits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Raw;

    #[test]
    fn a_broker_says_who_and_where_it_is() {
        let address = "127.0.0.1:9092".parse().unwrap();
        let bound = Bound {
            kafka: vec![BoundListener {
                name: "outside".into(),
                address,
                advertised: ("broker-1".into(), 19092),
            }],
            admin: address,
            rpc: address,
        };
        let config = Config::try_from(Raw::default()).unwrap();
        let all = identity(&config, 3, &bound).described;
        let of = |name: &str| all.iter().find(|d| d.name == name).unwrap().value();
        assert_eq!(of("broker.id"), "3");
        assert_eq!(of("advertised.listeners"), "outside://broker-1:19092");
    }
}
