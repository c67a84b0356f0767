//! The broker-to-broker port.

use super::call::windows;
use super::server::Service;
use super::{MESSAGE_BYTES_MAX, Served};
use logd_proto::rpc::v1::broker_server::BrokerServer;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use tokio::net::TcpListener;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

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

    /// Answers until `stop` resolves. `others`: services of other rooms at the same port.
    ///
    /// # Errors
    /// If the transport fails as a whole.
    pub async fn serve(
        self,
        served: Served,
        others: Routes,
        stop: impl Future<Output = ()> + Send,
    ) -> Result<(), tonic::transport::Error> {
        let service = BrokerServer::new(Service::new(served))
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let server = windows(Server::builder()).add_routes(others.add_service(service));
        let incoming = TcpIncoming::from(self.socket).with_nodelay(Some(true));
        // A graceful end would wait for streams that never end by themselves.
        tokio::select! {
            served = server.serve_with_incoming(incoming) => served,
            () = stop => Ok(()),
        }
    }
}
