//! Asks a broker whether it is ready: one GET on its admin port.
//!
//! Promise: an answer, or none, within [`PATIENCE`]; a broker that is paused accepts and says nothing.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::layout::local;

/// The page is a line from memory: who needs longer is not well.
const PATIENCE: Duration = Duration::from_secs(1);

/// More than the head and the one line.
const ANSWER_BYTES_MAX: u64 = 4096;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    Ready,
    /// What it says instead, such as `recovering 3/9 partitions`.
    NotYet(String),
    Silent,
}

pub async fn readiness(admin_port: u16) -> Readiness {
    match timeout(PATIENCE, get(&local(admin_port), "/readyz")).await {
        Ok(Ok(answer)) => read(&answer).unwrap_or(Readiness::Silent),
        Ok(Err(_)) | Err(_) => Readiness::Silent,
    }
}

async fn get(address: &str, path: &str) -> io::Result<String> {
    let mut socket = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    let mut socket = socket.take(ANSWER_BYTES_MAX);
    socket.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// `None` if it is not HTTP.
fn read(answer: &str) -> Option<Readiness> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.1 ")?.split(' ').next()?;
    Some(match status {
        "200" => Readiness::Ready,
        _ => Readiness::NotYet(body.lines().next().unwrap_or_default().trim().to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_told_from_how_far_it_is_and_from_noise() {
        let ready = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nready\n";
        assert_eq!(read(ready), Some(Readiness::Ready));
        let not_yet = "HTTP/1.1 503 Service Unavailable\r\na: b\r\n\r\nrecovering 3/9 partitions\n";
        let said = "recovering 3/9 partitions".to_owned();
        assert_eq!(read(not_yet), Some(Readiness::NotYet(said)));
        assert_eq!(read("SSH-2.0-OpenSSH\r\n\r\n"), None);
        assert_eq!(read(""), None);
    }
}
