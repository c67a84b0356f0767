//! Single calls to a broker of which only the address is known: introductions, joins, proposals.

use super::MESSAGE_BYTES_MAX;
use logd_proto::rpc::v1::broker_client::BrokerClient;
use logd_proto::rpc::v1::{
    IdentifyRequest, IdentifyResponse, JoinRequest, JoinResponse, ProposeRequest, ProposeResponse,
};
use std::future::Future;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

/// A peer on the same continent accepts a connection in this time, or is as good as away.
const CONNECT_DEADLINE: Duration = Duration::from_secs(1);

/// Windows that a full append fits into: the default would stop a stream after 64 KiB.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 32 << 20;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RpcError {
    #[error("`{0}` is no address: write HOST:PORT")]
    Address(String),
    #[error("{address} cannot be reached: {why}")]
    Unreachable { address: String, why: String },
    #[error("{address} refuses connections: nobody is there")]
    NobodyThere { address: String },
    #[error("{address} did not answer within {patience:?}")]
    TimedOut { address: String, patience: Duration },
    #[error("{address} answers {why}")]
    Refused { address: String, why: String },
}

pub(super) fn endpoint(address: &str) -> Result<Endpoint, RpcError> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|_| RpcError::Address(address.to_owned()))?;
    Ok(endpoint
        .connect_timeout(CONNECT_DEADLINE)
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES))
}

pub(super) fn windows(server: tonic::transport::Server) -> tonic::transport::Server {
    server
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
}

/// Why nobody answers at an address, from the reason under the reasons.
pub(super) fn unreachable(address: &str, error: &(dyn std::error::Error + 'static)) -> RpcError {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    let address = address.to_owned();
    let io = cause.downcast_ref::<std::io::Error>();
    if io.is_some_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused) {
        return RpcError::NobodyThere { address };
    }
    let why = cause.to_string();
    RpcError::Unreachable { address, why }
}

/// A connection for single calls.
#[derive(Debug, Clone)]
pub struct Client {
    address: String,
    broker: BrokerClient<Channel>,
}

impl Client {
    /// # Errors
    /// If nobody accepts at the address.
    pub async fn connect(address: &str) -> Result<Self, RpcError> {
        let channel = endpoint(address)?.connect().await;
        let channel = channel.map_err(|e| unreachable(address, &e))?;
        let broker = BrokerClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        Ok(Self {
            address: address.to_owned(),
            broker,
        })
    }

    async fn answer<T>(
        &self,
        patience: Duration,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, RpcError> {
        let address = self.address.clone();
        match tokio::time::timeout(patience, call).await {
            Err(_) => Err(RpcError::TimedOut { address, patience }),
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(RpcError::Refused {
                address,
                why: format!("{}: {}", status.code(), status.message()),
            }),
        }
    }

    /// # Errors
    /// No answer, or a refusal.
    pub async fn identify(
        &self,
        request: IdentifyRequest,
        patience: Duration,
    ) -> Result<IdentifyResponse, RpcError> {
        self.answer(patience, self.broker.clone().identify(request))
            .await
    }

    /// # Errors
    /// No answer, or a refusal.
    pub async fn join(
        &self,
        request: JoinRequest,
        patience: Duration,
    ) -> Result<JoinResponse, RpcError> {
        self.answer(patience, self.broker.clone().join(request))
            .await
    }

    /// # Errors
    /// No answer, or a refusal.
    pub async fn propose(
        &self,
        request: ProposeRequest,
        patience: Duration,
    ) -> Result<ProposeResponse, RpcError> {
        self.answer(patience, self.broker.clone().propose(request))
            .await
    }
}
