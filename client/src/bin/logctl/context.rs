//! What every command starts from: who to ask, how long to wait, where to print.

use std::time::Duration;

use logd_client::{Client, RetryPolicy};
use tracing::level_filters::LevelFilter;

use crate::cli::Global;
use crate::failure::Failure;
use crate::output::Out;

/// Somebody watches: ten seconds without an answer are long.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Records may queue behind many others before they are stored.
const STORE_TIMEOUT: Duration = Duration::from_secs(120);

#[derive(Debug)]
pub struct Context {
    pub brokers: Vec<String>,
    pub out: Out,
    timeout: Option<Duration>,
}

impl Context {
    /// Also starts the log, which goes to stderr.
    pub fn new(global: Global) -> Context {
        let level = match (global.quiet, global.verbose) {
            (true, _) => LevelFilter::ERROR,
            (false, 0) => LevelFilter::WARN,
            (false, 1) => LevelFilter::DEBUG,
            (false, _) => LevelFilter::TRACE,
        };
        tracing_subscriber::fmt()
            .with_max_level(level)
            .with_writer(std::io::stderr)
            .init();
        Context {
            brokers: global.brokers,
            out: Out {
                format: global.output,
                quiet: global.quiet,
            },
            timeout: global.timeout,
        }
    }

    /// How long a question may take, with everything that is tried again.
    pub fn timeout(&self) -> Duration {
        self.timeout_or(TIMEOUT)
    }

    /// For what usually takes longer, or less.
    pub fn timeout_or(&self, usual: Duration) -> Duration {
        self.timeout.unwrap_or(usual)
    }

    /// How long a record may wait to be stored.
    pub fn store_policy(&self) -> RetryPolicy {
        RetryPolicy::until(self.timeout_or(STORE_TIMEOUT))
    }

    /// Only commands that talk to a broker do.
    pub async fn connect(&self) -> Result<Client, Failure> {
        let timeout = self.timeout();
        let client = Client::builder(self.brokers.iter().cloned())
            .client_id("logctl")
            .connect_timeout(timeout)
            .request_timeout(timeout)
            .retry(RetryPolicy::until(timeout));
        Ok(client.connect().await?)
    }
}
