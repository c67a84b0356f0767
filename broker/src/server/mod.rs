//! Sockets: frames in, requests to a [`crate::api::Handler`], responses out in the order of the requests.
//!
//! Promise: a length from a peer costs nothing before its bytes arrive; one connection's requests are
//! handed over in order and answered in order; a peer that neither sends nor reads is let go.
//! Not here: topics, and what a request means.

mod connection;
mod deadlines;
mod limits;
mod listener;
#[cfg(test)]
mod tests;
mod turns;

pub use connection::ConnectionLimits;
pub use deadlines::Patience;
pub use limits::Limits;
pub use listener::{BindError, Listener, Server};
