//! The admin door: health for probes, metrics for Prometheus, a status for people.
//!
//! Promise: it opens before recovery starts and answers from memory, so a probe never waits for a disk.
//! `/livez` is about this process, `/readyz` about this node; neither asks the cluster.
//! Not here: anything that changes something.

mod health;

pub use health::{Health, Phase};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use tokio::net::TcpListener;

/// A bound admin socket.
#[derive(Debug)]
pub struct AdminListener {
    socket: TcpListener,
    address: SocketAddr,
}

impl AdminListener {
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
    /// If accepting fails for good.
    pub async fn serve(
        self,
        health: Health,
        stop: impl Future<Output = ()> + Send + 'static,
    ) -> io::Result<()> {
        axum::serve(self.socket, router(health))
            .with_graceful_shutdown(stop)
            .await
    }
}

fn router(health: Health) -> Router {
    Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/startupz", get(started))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/v1/status", get(status))
        .fallback(unknown)
        .with_state(health)
}

fn probe(good: bool, health: &Health) -> Response {
    let code = if good {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (code, format!("{}\n", health.phase())).into_response()
}

async fn started(State(health): State<Health>) -> Response {
    probe(
        matches!(health.phase(), Phase::Ready | Phase::Draining),
        &health,
    )
}

async fn ready(State(health): State<Health>) -> Response {
    probe(health.phase() == Phase::Ready, &health)
}

async fn metrics(State(health): State<Health>) -> Response {
    crate::metrics::set_ready(health.phase() == Phase::Ready);
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4")],
        crate::metrics::render(),
    )
        .into_response()
}

async fn status(State(health): State<Health>) -> Response {
    let phase = health.phase();
    let body = serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"),
        "phase": phase.name(),
        "detail": phase.to_string(),
        "uptime_seconds": health.uptime().as_secs(),
    });
    (
        [(header::CONTENT_TYPE, "application/json")],
        body.to_string(),
    )
        .into_response()
}

async fn unknown(uri: Uri) -> Response {
    let body = serde_json::json!({ "error": format!("there is no {}", uri.path()), "paths": ["/livez", "/readyz", "/startupz", "/metrics", "/v1/status"] });
    (
        StatusCode::NOT_FOUND,
        [(header::CONTENT_TYPE, "application/json")],
        body.to_string(),
    )
        .into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    async fn ask(address: SocketAddr, path: &str) -> String {
        let mut socket = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn probes_follow_the_phase_and_the_door_is_open_from_the_start() {
        let listener = AdminListener::bind("127.0.0.1:0".parse().unwrap())
            .await
            .unwrap();
        let (address, health) = (listener.address(), Health::default());
        tokio::spawn(listener.serve(health.clone(), std::future::pending()));
        health.set(Phase::Recovering {
            done: 37,
            total: 412,
            bytes: 1 << 20,
        });
        let answer = ask(address, "/readyz").await;
        assert!(
            answer.starts_with("HTTP/1.1 503") && answer.contains("recovering 37/412 partitions"),
            "{answer}"
        );
        assert!(ask(address, "/livez").await.starts_with("HTTP/1.1 200"));
        health.set(Phase::Ready);
        assert!(ask(address, "/readyz").await.starts_with("HTTP/1.1 200"));
        assert!(ask(address, "/metrics").await.contains("logd_build_info"));
        health.set(Phase::Draining);
        assert!(ask(address, "/readyz").await.starts_with("HTTP/1.1 503"));
        assert!(ask(address, "/startupz").await.starts_with("HTTP/1.1 200"));
        assert!(
            ask(address, "/nothing")
                .await
                .contains("there is no /nothing")
        );
    }
}
