//! The operator's door: the administration service that every broker has on its broker-to-broker port.
//!
//! Promise: the first broker that answers is asked, and one that hangs holds nobody up; every question ends
//! within its deadline; a failure says what was asked, whom, and what to do.
//! Invariant: an order is sent once. A broker that was lost is replaced before the next question only.
//!
//! Not here: what is asked, which each command decides.

use std::error::Error;
use std::future::Future;
use std::time::Duration;

use clap::Args;
use logd_proto::rpc::admin as api;
use logd_proto::rpc::admin::admin_client::AdminClient;
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};

use crate::args;
use crate::context::Context;
use crate::failure::{Exit, Failure};

/// A list of all partitions of a large cluster.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// While something is watched, a broker that does not answer is soon replaced by another.
const WATCHED_WITHIN: Duration = Duration::from_secs(10);

/// Whom to ask.
#[derive(Debug, Args)]
pub struct Rpc {
    /// Brokers to ask, by their broker-to-broker addresses; the first that answers is enough
    #[arg(
        long,
        value_name = "HOST:PORT,..",
        env = "LOGCTL_RPC",
        global = true,
        value_delimiter = ',',
        value_parser = args::rpc,
        default_value = "127.0.0.1:9645"
    )]
    rpc: Vec<String>,
}

type Client = AdminClient<Channel>;

/// A way to ask the service. It connects when it is first used.
#[derive(Debug)]
pub struct Operator {
    addresses: Vec<String>,
    timeout: Duration,
    connected: Option<(String, Client)>,
}

/// Why a question has no answer.
#[derive(Debug)]
pub struct Refused {
    /// What the service said; absent if nobody answered.
    pub code: Option<Code>,
    failure: Failure,
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Failure {
        refused.failure
    }
}

impl Operator {
    pub fn new(context: &Context, rpc: Rpc) -> Operator {
        Operator {
            addresses: rpc.rpc,
            timeout: context.timeout(),
            connected: None,
        }
    }

    /// From here on many questions are asked within one time, and none may use it up.
    pub fn watching(&mut self) {
        self.timeout = self.timeout.min(WATCHED_WITHIN);
    }

    /// Others who may be asked if those that the user named are gone.
    pub fn learn(&mut self, brokers: &[api::Broker]) {
        for broker in brokers {
            if !self.addresses.contains(&broker.rpc_address) {
                self.addresses.push(broker.rpc_address.clone());
            }
        }
    }

    /// Asks once. `what` begins the sentence that says why it failed.
    pub async fn ask<T, F>(
        &mut self,
        what: &str,
        call: impl FnOnce(Client) -> F,
    ) -> Result<T, Refused>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let (at, client) = match self.connected.take() {
            Some(connected) => connected,
            None => self.connect().await.map_err(nobody)?,
        };
        match tokio::time::timeout(self.timeout, call(client.clone())).await {
            Ok(Ok(answer)) => {
                self.connected = Some((at, client));
                Ok(answer.into_inner())
            }
            Ok(Err(status)) => {
                let lost = status.source().is_some();
                let refused = refused(what, &at, &status, lost);
                self.connected = (!lost).then_some((at, client));
                Err(refused)
            }
            Err(_) => Err(late(what, &at, self.timeout)),
        }
    }

    pub async fn cluster(&mut self) -> Result<api::DescribeClusterResponse, Refused> {
        self.ask("the cluster", |mut client| async move {
            client
                .describe_cluster(api::DescribeClusterRequest {})
                .await
        })
        .await
    }

    pub async fn health(&mut self) -> Result<api::HealthResponse, Refused> {
        self.ask("health", |mut client| async move {
            client.health(api::HealthRequest {}).await
        })
        .await
    }

    /// All of a topic, or of all topics.
    pub async fn partitions(
        &mut self,
        topic: Option<&str>,
    ) -> Result<api::ListPartitionsResponse, Refused> {
        let topic = topic.unwrap_or_default().to_owned();
        self.ask("partitions", |mut client| async move {
            let led_here = false;
            let wanted = api::ListPartitionsRequest { topic, led_here };
            client.list_partitions(wanted).await
        })
        .await
    }

    /// The first that answers; why none does, if none does.
    async fn connect(&self) -> Result<(String, Client), Vec<String>> {
        let mut knocking = JoinSet::new();
        for address in &self.addresses {
            knocking.spawn(knock(address.clone(), self.timeout));
        }
        let mut silent = Vec::new();
        while let Some(knocked) = knocking.join_next().await {
            match knocked {
                Ok(Ok(connected)) => return Ok(connected),
                Ok(Err(why)) => silent.push(why),
                Err(error) => silent.push(error.to_string()),
            }
        }
        Err(silent)
    }
}

/// A hanging broker's kernel still accepts connections, so a question is asked too.
async fn knock(address: String, timeout: Duration) -> Result<(String, Client), String> {
    let opening = async {
        let endpoint = Endpoint::from_shared(format!("http://{address}"));
        let endpoint = endpoint.map_err(|error| root(&error))?;
        let channel = endpoint.connect().await.map_err(|error| root(&error))?;
        let client = AdminClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
        let asked = api::DescribeBrokerRequest {};
        let answer = client.clone().describe_broker(asked).await;
        answer.map_err(|status| said(&status))?;
        Ok::<_, String>(client)
    };
    match tokio::time::timeout(timeout, opening).await {
        Ok(Ok(client)) => Ok((address, client)),
        Ok(Err(why)) => Err(format!("{address}: {why}")),
        Err(_) => Err(format!("{address}: no answer within {timeout:?}")),
    }
}

/// Transport errors say "transport error"; what they come from says more.
fn root(error: &dyn Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

fn said(status: &Status) -> String {
    match status.source() {
        Some(source) => root(source),
        None if status.message().is_empty() => status.code().description().to_owned(),
        None => status.message().to_owned(),
    }
}

fn nobody(silent: Vec<String>) -> Refused {
    let message = format!("no broker answers operators: {}", silent.join("; "));
    let hint = "is a broker up? --rpc or LOGCTL_RPC says where its broker-to-broker port is, which is not Kafka's";
    Refused {
        code: None,
        failure: Failure::new(Exit::Unreachable, message).hint(hint),
    }
}

fn late(what: &str, at: &str, timeout: Duration) -> Refused {
    let message = format!("{what}: {at} has not answered within {timeout:?}");
    let hint = "--timeout waits longer; an order may have been carried out all the same";
    Refused {
        code: None,
        failure: Failure::new(Exit::Unreachable, message).hint(hint),
    }
}

fn refused(what: &str, at: &str, status: &Status, lost: bool) -> Refused {
    let message = format!("{what}: {} (said by {at})", said(status));
    let failure = match status.code() {
        _ if lost => {
            let message = format!("{what}: {at}: {}", said(status));
            let hint = "the connection was lost; an order may have been carried out all the same";
            Failure::new(Exit::Unreachable, message).hint(hint)
        }
        Code::NotFound => Failure::not_found(message)
            .hint("`logctl partition list` and `logctl node list` show what there is"),
        Code::DeadlineExceeded => {
            Failure::new(Exit::Unreachable, message).hint("--timeout waits longer")
        }
        Code::Unavailable => Failure::new(Exit::Failed, message)
            .hint("it may pass; `logctl cluster health` says what ails the cluster"),
        Code::Unimplemented if status.message().is_empty() => Failure::new(Exit::Failed, message)
            .hint("the broker does not know this: it may be older than this logctl"),
        _ => Failure::new(Exit::Failed, message),
    };
    Refused {
        code: (!lost).then_some(status.code()),
        failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(refused: Refused) -> (Exit, String, Option<String>) {
        match Failure::from(refused) {
            Failure::Told {
                exit,
                message,
                hint,
                ..
            } => (exit, message, hint),
            Failure::ClosedPipe => panic!("it is told"),
        }
    }

    #[test]
    fn a_refusal_says_what_who_and_what_to_do() {
        let status = Status::not_found("there is no broker 9");
        let (exit, message, hint) = told(refused("drain of node 9", "a:1", &status, false));
        assert_eq!(exit, Exit::NotFound);
        assert_eq!(
            message,
            "drain of node 9: there is no broker 9 (said by a:1)"
        );
        assert!(hint.unwrap().contains("logctl node list"));
        let status = Status::failed_precondition("no room");
        let (exit, _, hint) = told(refused("x", "a:1", &status, false));
        assert_eq!((exit, hint), (Exit::Failed, None));
    }

    #[test]
    fn a_lost_connection_is_not_a_refusal() {
        let status = Status::unavailable("gone");
        let lost = refused("x", "a:1", &status, true);
        assert_eq!(lost.code, None);
        assert_eq!(told(lost).0, Exit::Unreachable);
        assert_eq!(told(refused("x", "a:1", &status, false)).0, Exit::Failed);
    }

    #[tokio::test]
    async fn everyone_who_was_asked_in_vain_is_named() {
        let mut operator = Operator {
            addresses: vec!["127.0.0.1:1".to_owned(), "127.0.0.1:2".to_owned()],
            timeout: WATCHED_WITHIN,
            connected: None,
        };
        let (exit, message, _) = told(operator.health().await.unwrap_err());
        assert_eq!(exit, Exit::Unreachable);
        for address in ["127.0.0.1:1: ", "127.0.0.1:2: "] {
            assert!(message.contains(address), "{message}");
        }
        assert!(message.contains("refused"), "{message}");
    }
}
