//! What this broker says to others on its broker-to-broker port: so far, who it is.
//!
//! Forming clusters comes over the same port; `Identify` is the one call whose meaning never changes.

use logd_proto::rpc::v1::broker_server::{Broker, BrokerServer};
use logd_proto::rpc::v1::{IdentifyRequest, IdentifyResponse, Identity};
use logd_proto::rpc::{PROTOCOL_VERSION, PROTOCOL_VERSION_MIN};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpListener;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// Features of this build, beyond the first ones.
const FEATURE_VERSION: u32 = 1;

/// No call of this port takes longer.
const CALL_DEADLINE: Duration = Duration::from_secs(5);

/// Messages on this port are small until replication comes.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// Who this broker is.
#[derive(Debug, Clone)]
pub struct Me {
    pub cluster_id: String,
    pub node_id: i32,
    pub disk_incarnation: u128,
}

struct Introduces(Me);

#[tonic::async_trait]
impl Broker for Introduces {
    async fn identify(
        &self,
        _request: Request<IdentifyRequest>,
    ) -> Result<Response<IdentifyResponse>, Status> {
        let me = &self.0;
        let broker = Identity {
            cluster_id: me.cluster_id.clone(),
            node_id: Some(me.node_id),
            disk_incarnation: me.disk_incarnation.to_be_bytes().to_vec().into(),
            protocol_version: PROTOCOL_VERSION,
            protocol_version_min: PROTOCOL_VERSION_MIN,
            feature_version: FEATURE_VERSION,
            seeds: Vec::new(),
        };
        Ok(Response::new(IdentifyResponse {
            broker: Some(broker),
        }))
    }
}

/// A bound socket that does not answer yet.
#[derive(Debug)]
pub struct RpcListener {
    socket: TcpListener,
    address: SocketAddr,
}

impl RpcListener {
    /// # Errors
    /// If the address is taken or not ours.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = TcpListener::bind(address).await?;
        let address = socket.local_addr()?;
        Ok(Self { socket, address })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `stop` resolves.
    ///
    /// # Errors
    /// If the transport fails as a whole.
    pub async fn serve(
        self,
        me: Me,
        stop: impl Future<Output = ()> + Send,
    ) -> Result<(), tonic::transport::Error> {
        let service =
            BrokerServer::new(Introduces(me)).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let server = Server::builder()
            .timeout(CALL_DEADLINE)
            .add_service(service);
        server
            .serve_with_incoming_shutdown(TcpIncoming::from(self.socket), stop)
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use logd_proto::rpc::v1::broker_client::BrokerClient;

    #[tokio::test]
    async fn a_broker_says_who_it_is() {
        let listener = RpcListener::bind("127.0.0.1:0".parse().unwrap())
            .await
            .unwrap();
        let address = listener.address();
        let me = Me {
            cluster_id: "c".into(),
            node_id: 1,
            disk_incarnation: 7,
        };
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let served = tokio::spawn(listener.serve(me, async { drop(stopped.await) }));
        let mut client = BrokerClient::connect(format!("http://{address}"))
            .await
            .unwrap();
        let answer = client
            .identify(IdentifyRequest { caller: None })
            .await
            .unwrap()
            .into_inner();
        let broker = answer.broker.unwrap();
        assert_eq!(
            (
                broker.cluster_id.as_str(),
                broker.node_id,
                broker.disk_incarnation.len()
            ),
            ("c", Some(1), 16)
        );
        drop((client, stop));
        served.await.unwrap().unwrap();
    }
}
