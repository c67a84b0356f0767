//! `logd healthcheck`: asks the broker that has the same settings whether it is ready, for images that have
//! nothing else to ask with.
//!
//! Promise: an answer within `PATIENCE`, from the same `/readyz` that everybody else asks.
//! Not here: what ready means (see `admin`).

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Answers come from memory; whoever runs the check gives up a little later.
const PATIENCE: Duration = Duration::from_secs(3);

/// More than the head and the one line.
const ANSWER_BYTES_MAX: usize = 4096;

/// What the broker said of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Ready,
    /// Such as `recovering 3/9 partitions`, or why it could not be asked.
    NotReady(String),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Ready => f.write_str("ready"),
            Verdict::NotReady(why) => write!(f, "not ready: {why}"),
        }
    }
}

/// Asks the broker whose admin address is `admin`.
pub fn ask(admin: SocketAddr) -> Verdict {
    let address = reachable(admin);
    match get_readyz(address) {
        Ok(answer) => read(&answer).unwrap_or_else(|| {
            Verdict::NotReady(format!(
                "{address} does not answer as a broker's admin port"
            ))
        }),
        Err(error) => Verdict::NotReady(format!("{address} does not answer: {error}")),
    }
}

/// Who listens everywhere is reached on loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

fn get_readyz(address: SocketAddr) -> io::Result<String> {
    let deadline = Instant::now() + PATIENCE;
    // A timeout of nothing would be none.
    let left = || {
        let left = deadline.saturating_duration_since(Instant::now());
        left.max(Duration::from_millis(1))
    };
    let mut socket = TcpStream::connect_timeout(&address, left())?;
    socket.set_write_timeout(Some(left()))?;
    let request = format!("GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes())?;
    let mut answer = vec![0; ANSWER_BYTES_MAX];
    let mut filled = 0;
    loop {
        socket.set_read_timeout(Some(left()))?;
        let read = socket.read(&mut answer[filled..])?;
        filled += read;
        // Also when the room is full.
        if read == 0 {
            answer.truncate(filled);
            return Ok(String::from_utf8_lossy(&answer).into_owned());
        }
    }
}

/// `None` if it is not HTTP.
fn read(answer: &str) -> Option<Verdict> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.1 ")?.split(' ').next()?;
    Some(match status {
        "200" => Verdict::Ready,
        _ => Verdict::NotReady(body.lines().next().unwrap_or_default().trim().to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// Answers one connection.
    fn serve(answer: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let _ = socket.read(&mut [0; 1024]);
            socket.write_all(answer.as_bytes()).unwrap();
        });
        address
    }

    #[test]
    fn ready_is_what_the_broker_says() {
        let ready = serve("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nready\n");
        assert_eq!(ask(ready), Verdict::Ready);
        let not = serve("HTTP/1.1 503 Service Unavailable\r\n\r\nrecovering 3/9 partitions\n");
        assert_eq!(ask(not).to_string(), "not ready: recovering 3/9 partitions");
        let other = serve("SSH-2.0-OpenSSH\r\n");
        assert!(
            ask(other)
                .to_string()
                .contains("does not answer as a broker")
        );
    }

    #[test]
    fn nobody_there_is_not_ready() {
        let nobody = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        assert!(ask(nobody).to_string().contains("does not answer"));
    }

    #[test]
    fn who_listens_everywhere_is_asked_here() {
        let reached = |text: &str| reachable(text.parse().unwrap()).to_string();
        assert_eq!(reached("0.0.0.0:9644"), "127.0.0.1:9644");
        assert_eq!(reached("[::]:9644"), "[::1]:9644");
        assert_eq!(reached("10.0.0.1:9644"), "10.0.0.1:9644");
    }
}
