//! A broker or cluster under measurement: its addresses, its processes, and the topics made on it. Not here: what
//! is measured, and how processes are hurt.

use anyhow::{Context, Result, bail};
use rdkafka::ClientConfig;
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use std::str::FromStr;
use std::time::Duration;

const ADMIN_TIMEOUT: Duration = Duration::from_secs(60);

/// One broker to measure, or the brokers of one cluster.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub name: String,
    /// Where clients begin, as librdkafka wants it: `HOST:PORT,HOST:PORT`.
    pub address: String,
    /// In the order of the addresses.
    pub pids: Vec<u32>,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text
            .split_once('=')
            .and_then(|(name, rest)| Some((name, rest.rsplit_once('/')?)));
        let Some((name, (address, pids))) = parts else {
            return Err(
                "expected NAME=HOST:PORT/PID, for example logd=127.0.0.1:9092/4711; a cluster's \
                        addresses and PIDs are separated by commas"
                    .into(),
            );
        };
        let pid = |text: &str| {
            text.parse()
                .map_err(|e| format!("process id {text:?}: {e}"))
        };
        let pids: Vec<u32> = pids.split(',').map(pid).collect::<Result<_, _>>()?;
        if pids.len() != address.split(',').count() {
            return Err(format!("{text}: one process id for each address is needed"));
        }
        Ok(Self {
            name: name.into(),
            address: address.into(),
            pids,
        })
    }
}

/// What a cluster says of a topic's partitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Placed {
    /// Address of the leader of each partition; none where there is no leader.
    pub leaders: Vec<Option<String>>,
    /// True if every replica of every partition is in sync.
    pub in_sync: bool,
}

impl Target {
    fn admin(&self) -> Result<AdminClient<DefaultClientContext>> {
        let client = ClientConfig::new()
            .set("bootstrap.servers", &self.address)
            .create();
        client.with_context(|| format!("an admin client for {}", self.name))
    }

    /// A client that asks again soon: librdkafka's default backoff would add up to ten seconds of its own.
    pub fn asker(&self) -> Result<BaseConsumer> {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.address)
            .set("group.id", "asker")
            .set("reconnect.backoff.ms", "5")
            .set("reconnect.backoff.max.ms", "10")
            .set("log_level", "0");
        config.create().context("a client")
    }

    /// Creates a topic; returns when the broker says that it is made.
    pub async fn make_topic(&self, topic: &str, partitions: i32, replicas: i32) -> Result<()> {
        let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(replicas));
        let options = AdminOptions::new()
            .operation_timeout(Some(ADMIN_TIMEOUT))
            .request_timeout(Some(ADMIN_TIMEOUT));
        for answer in self.admin()?.create_topics([&new], &options).await? {
            if let Err((name, code)) = answer {
                bail!("{}: create topic {name}: {code}", self.name);
            }
        }
        Ok(())
    }

    /// Sets a topic's configuration: what is not named goes back to its default.
    pub async fn configure(&self, topic: &str, settings: &[(String, String)]) -> Result<()> {
        let topic = ResourceSpecifier::Topic(topic);
        let entries = settings.iter().map(|(k, v)| (k.as_str(), v.as_str()));
        let config = AlterConfig::new(topic);
        let config = entries.fold(config, |config, (k, v)| config.set(k, v));
        let options = AdminOptions::new().request_timeout(Some(ADMIN_TIMEOUT));
        for answer in self.admin()?.alter_configs([&config], &options).await? {
            if let Err((_, code)) = answer {
                bail!("{}: configure a topic: {code}", self.name);
            }
        }
        Ok(())
    }

    /// Creates a topic and waits until each partition takes records: Kafka announces partitions before they do.
    pub async fn create_topic(&self, topic: &str, partitions: i32, replicas: i32) -> Result<()> {
        self.make_topic(topic, partitions, replicas).await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        Ok(())
    }

    /// Deletes topics, so that a long comparison does not fill the disk.
    pub async fn delete_topics(&self, topics: &[&str]) -> Result<()> {
        let options = AdminOptions::new().operation_timeout(Some(ADMIN_TIMEOUT));
        self.admin()?.delete_topics(topics, &options).await?;
        Ok(())
    }

    /// What the cluster says of a topic now.
    pub fn placed(&self, asker: &BaseConsumer, topic: &str) -> Result<Placed> {
        let metadata = asker.fetch_metadata(Some(topic), Duration::from_secs(1))?;
        let address = |id: i32| {
            let broker = metadata.brokers().iter().find(|b| b.id() == id)?;
            Some(format!("{}:{}", broker.host(), broker.port()))
        };
        let topics = metadata.topics();
        let topic = topics.first().context("the topic is not told of")?;
        if let Some(error) = topic.error() {
            bail!("{}: {error:?}", self.name);
        }
        let mut partitions: Vec<_> = topic.partitions().iter().collect();
        partitions.sort_by_key(|p| p.id());
        Ok(Placed {
            leaders: partitions.iter().map(|p| address(p.leader())).collect(),
            in_sync: partitions
                .iter()
                .all(|p| p.isr().len() == p.replicas().len()),
        })
    }

    /// The place among the processes of the broker at an address.
    pub fn process_at(&self, address: &str) -> Option<usize> {
        self.address.split(',').position(|a| a == address)
    }

    /// User and system CPU time of the processes so far, together.
    pub fn cpu(&self) -> Result<Duration> {
        self.pids.iter().map(|pid| cpu_of(*pid)).sum()
    }

    /// Anonymous resident memory now, in MB (10^6 bytes), of the processes together: what they hold themselves,
    /// without mapped files.
    pub fn anonymous_mb(&self) -> Result<f64> {
        self.pids.iter().map(|pid| anonymous_mb_of(*pid)).sum()
    }
}

fn cpu_of(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let stat = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    // Fields 14 and 15 (proc(5)), counted behind the command, which may hold spaces.
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or(&stat)
        .split_whitespace()
        .collect();
    let ticks = |n: usize| fields.get(n).and_then(|f| f.parse::<u64>().ok());
    let (Some(user), Some(system)) = (ticks(11), ticks(12)) else {
        bail!("{path}: not in the format of proc(5)")
    };
    // USER_HZ is 100 on every Linux architecture logd runs on.
    Ok(Duration::from_millis((user + system) * 10))
}

fn anonymous_mb_of(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    let kib = status.lines().find_map(|l| {
        l.strip_prefix("RssAnon:")?
            .trim()
            .strip_suffix(" kB")?
            .trim()
            .parse::<f64>()
            .ok()
    });
    Ok(kib.with_context(|| format!("{path}: no RssAnon"))? * 1024.0 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_names_brokers_their_addresses_and_their_processes() {
        let target: Target = "kafka=127.0.0.1:29092/77".parse().expect("valid");
        assert_eq!(
            (target.name.as_str(), target.address.as_str(), target.pids),
            ("kafka", "127.0.0.1:29092", vec![77])
        );
        let cluster: Target = "logd=a:1,b:2/7,8".parse().expect("valid");
        assert_eq!(cluster.process_at("b:2"), Some(1));
        assert_eq!(cluster.pids, [7, 8]);
        for wrong in [
            "kafka",
            "kafka=127.0.0.1:1",
            "kafka=127.0.0.1:1/x",
            "l=a:1,b:2/7",
        ] {
            assert!(wrong.parse::<Target>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_process_has_cpu_time_and_memory() {
        let me = Target {
            name: "me".into(),
            address: String::new(),
            pids: vec![std::process::id()],
        };
        me.cpu().expect("CPU time");
        assert!(me.anonymous_mb().expect("memory") > 0.0);
    }
}
