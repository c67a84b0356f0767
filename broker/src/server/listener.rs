//! Listening sockets, and the tasks behind what they accept.

use super::connection::{Connection, ConnectionLimits};
use super::limits::Limits;
use crate::api::Handler;
use crate::metrics;
use parking_lot::Mutex;
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{error, info, warn};

/// Connections the kernel keeps for us while we are busy accepting.
const BACKLOG: i32 = 1024;

#[derive(Debug, thiserror::Error)]
#[error("listener {name} cannot bind {address}: {source}")]
pub struct BindError {
    pub name: String,
    pub address: SocketAddr,
    pub source: io::Error,
}

/// A bound socket that does not listen yet: whoever connects is refused, and tries another broker.
#[derive(Debug)]
pub struct Listener {
    name: Arc<str>,
    socket: Socket,
    address: SocketAddr,
}

impl Listener {
    /// Takes the address. A broker that is not ready must not let clients in to wait: they would wait for
    /// it where others could serve them.
    ///
    /// # Errors
    /// If the address is taken or not ours.
    pub fn bind(name: &str, address: SocketAddr) -> Result<Self, BindError> {
        let bound = || -> io::Result<(Socket, SocketAddr)> {
            let socket = Socket::new(
                Domain::for_address(address),
                Type::STREAM,
                Some(Protocol::TCP),
            )?;
            socket.set_reuse_address(true)?;
            socket.set_nonblocking(true)?;
            socket.bind(&address.into())?;
            let address = socket.local_addr()?.as_socket();
            let address = address.ok_or_else(|| io::Error::other("no internet address"))?;
            Ok((socket, address))
        };
        let (socket, address) = bound().map_err(|source| BindError {
            name: name.to_owned(),
            address,
            source,
        })?;
        Ok(Self {
            name: name.into(),
            socket,
            address,
        })
    }

    fn listen(self) -> Result<Listening, BindError> {
        let listening = self
            .socket
            .listen(BACKLOG)
            .and_then(|()| TcpListener::from_std(self.socket.into()));
        match listening {
            Ok(socket) => Ok(Listening {
                name: self.name,
                socket,
            }),
            Err(source) => Err(BindError {
                name: self.name.to_string(),
                address: self.address,
                source,
            }),
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it really listens, also when port 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

struct Listening {
    name: Arc<str>,
    socket: TcpListener,
}

/// Accepts on its listeners until it is stopped.
#[derive(Debug)]
pub struct Server {
    stop: watch::Sender<bool>,
    accepting: JoinSet<()>,
}

impl Server {
    /// Listens and serves.
    ///
    /// # Errors
    /// If somebody else has come to listen on an address since it was bound.
    pub fn serve<H: Handler>(
        listeners: Vec<(Listener, watch::Receiver<ConnectionLimits>)>,
        handler: &Arc<H>,
        limits: &Limits,
    ) -> Result<Self, BindError> {
        let stop = watch::channel(false).0;
        let mut accepting = JoinSet::new();
        for (listener, bounds) in listeners {
            accepting.spawn(accept(
                listener.listen()?,
                handler.clone(),
                limits.clone(),
                bounds,
                stop.subscribe(),
            ));
        }
        Ok(Self { stop, accepting })
    }

    /// Takes no more requests, finishes those in flight, and closes; gives up at the deadline.
    pub async fn drain(mut self, deadline: Duration) {
        self.stop.send_replace(true);
        let finished = async { while self.accepting.join_next().await.is_some() {} };
        if tokio::time::timeout(deadline, finished).await.is_err() {
            warn!("some connections did not finish in time and were cut");
        }
    }
}

async fn accept<H: Handler>(
    listener: Listening,
    handler: Arc<H>,
    limits: Limits,
    bounds: watch::Receiver<ConnectionLimits>,
    mut stopping: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
                    _ = stopping.changed() => break,
                    Some(ended) = connections.join_next(), if !connections.is_empty() => if let Err(error) = ended {
                        error!(%error, "a connection's task panicked; the connection is gone, the broker goes on");
                    },
                    accepted = listener.socket.accept() => match accepted {
                        Ok((socket, peer)) => match limits.enter(peer.ip()) {
                            Ok(place) => {
                                // Answers are written whole; waiting for more to send only delays them.
                                if let Err(error) = socket.set_nodelay(true) {
                                    warn!(%peer, %error, "TCP_NODELAY refused");
                                }
                                let connection = Connection {
                                    socket,
                                    peer,
                                    listener: listener.name.clone(),
                                    handler: handler.clone(),
                                    limits: limits.clone(),
                                    bounds: bounds.clone(),
                                    stopping: stopping.clone(),
                                };
                                let open = metrics::connection_opened();
                                connections.spawn(async move {
                                    connection.serve().await;
                                    drop((place, open));
                                });
                            }
                            Err(full) => {
         metrics::connection_refused(full.label());
         strangers().note(peer, &listener.name, &full.to_string());
        }
                        },
                        Err(error) => {
                            // Out of descriptors, most likely: accepting again at once would only spin.
                            warn!(listener = %listener.name, %error, "accepting failed");
                            tokio::time::sleep(Duration::from_millis(100)).await;
                        }
                    },
                }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Says that somebody was turned away, at most once a second: a scanner must not fill the log.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    last: Mutex<Option<(Instant, u64)>>,
}

pub(super) fn strangers() -> &'static Strangers {
    static STRANGERS: OnceLock<Strangers> = OnceLock::new();
    STRANGERS.get_or_init(Strangers::default)
}

impl Strangers {
    pub fn note(&self, peer: SocketAddr, listener: &str, reason: &str) {
        let mut last = self.last.lock();
        let unsaid = match &mut *last {
            Some((at, unsaid)) if at.elapsed() < Duration::from_secs(1) => {
                *unsaid += 1;
                return;
            }
            Some((_, unsaid)) => *unsaid,
            None => 0,
        };
        *last = Some((Instant::now(), 0));
        drop(last);
        info!(%peer, listener, reason, others_unsaid = unsaid, "connection closed by the broker");
    }
}
