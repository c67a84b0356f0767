//! The composition root: start order, stop order; nothing else wires.
//!
//! Start: admin door, sockets, disk (recovery), metadata, partitions, groups, then requests. Stop is the
//! same backwards. Everything that can fail because of its surroundings fails before anything is served.

use crate::api::{Api, Services, Settings};
use crate::cluster::{BrokerSpec, Cluster, Reconciler, Topic};
use crate::partition::{Registry, Spec};
use crate::server::{ConnectionLimits, Limits, Listener, Server};
use logd_storage::{Disk, DiskOptions};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub fn now_ms() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.as_millis() as i64)
}

pub struct Node {
    server: Server,
    cluster: Arc<Cluster>,
    registry: Arc<Registry>,
    disk: Disk,
}

impl Node {
    pub async fn start(kafka: SocketAddr, data: PathBuf) -> anyhow::Result<Node> {
        let listener = Listener::bind("default", kafka)?;
        let address = listener.address();
        let disk =
            tokio::task::spawn_blocking(move || Disk::open(&data, DiskOptions::default(), &|_| {}))
                .await??;
        let registry = Arc::new(Registry::default());
        let (done, reconciled) = tokio::sync::watch::channel(0);
        let identity = disk.identity();
        let spec = BrokerSpec {
            replica: (identity.id as u64).max(1),
            start: identity.start,
            rack: None,
            rpc_addr: "127.0.0.1:9645".into(),
            listeners: BTreeMap::from([(
                "default".to_owned(),
                (address.ip().to_string(), address.port()),
            )]),
            default_partitions: 1,
            default_replication: 1,
        };
        let replica = spec.replica;
        let cluster = Cluster::start(&disk, spec, registry.clone(), reconciled).await?;
        let c2 = cluster.clone();
        let spec_of = move |topic: &Topic, index: i32| Spec {
            topic_id: topic.id,
            topic: topic.name.clone(),
            index,
            replica,
            node_id: c2.node_id(),
            founders: topic.founders(&c2.view(), index, "127.0.0.1:9645"),
            config: topic.config.clone(),
            producer_expiration_ms: 86_400_000,
            clock: Arc::new(now_ms),
        };
        let reconciler = Reconciler {
            cluster: cluster.clone(),
            registry: registry.clone(),
            disk: disk.clone(),
            spec: Arc::new(spec_of),
            done,
        };
        reconciler.round(&cluster.view()).await;
        tokio::spawn(reconciler.run());
        let metadata = cluster.clone();
        let offsets = crate::group::ReplicatedOffsets::new(
            registry.clone(),
            Box::new(move || {
                let topic = metadata
                    .view()
                    .topic(crate::group::OFFSETS_TOPIC)
                    .cloned()?;
                Some((topic.id, topic.partitions.len()))
            }),
        );
        let groups =
            crate::group::Coordinator::new(crate::group::Settings::default(), Arc::new(offsets));
        let services = Services {
            cluster: cluster.clone(),
            partitions: registry.clone(),
            groups: Arc::new(groups),
            settings: Settings {
                auto_create_topics: true,
                fetch_bytes_max: 55 << 20,
                offsets_topic_partitions: 50,
                offsets_topic_replication: 1,
            },
            now_ms,
        };
        let api = Arc::new(Api(Arc::new(services)));
        let bounds = ConnectionLimits {
            frame_bytes_max: 100 << 20,
            in_flight_max: 5,
            idle: Duration::from_secs(600),
            stalled: Duration::from_secs(30),
        };
        let server = Server::serve(
            vec![listener],
            &api,
            &Limits::new(10_000, 1_000, 128 << 20),
            bounds,
        );
        println!("kafka on {address}");
        Ok(Node {
            server,
            cluster,
            registry,
            disk,
        })
    }

    pub async fn stop(self) {
        self.server.drain(Duration::from_secs(10)).await;
        for p in self.registry.all() {
            p.close().await;
        }
        self.cluster.close().await;
        let _ = self.disk.close();
    }
}
