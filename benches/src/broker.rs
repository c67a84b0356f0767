//! A broker under measurement: its address, its process, and the topics made on it. Not here: what is measured.

use anyhow::{Context, Result, bail};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use std::str::FromStr;
use std::time::Duration;

const ADMIN_TIMEOUT: Duration = Duration::from_secs(60);

/// One broker to measure.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub name: String,
    pub address: String,
    pub pid: u32,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text
            .split_once('=')
            .and_then(|(name, rest)| Some((name, rest.rsplit_once('/')?)));
        let Some((name, (address, pid))) = parts else {
            return Err("expected NAME=HOST:PORT/PID, for example logd=127.0.0.1:9092/4711".into());
        };
        let pid = pid
            .parse()
            .map_err(|e| format!("process id {pid:?}: {e}"))?;
        Ok(Self {
            name: name.into(),
            address: address.into(),
            pid,
        })
    }
}

impl Target {
    fn admin(&self) -> Result<AdminClient<DefaultClientContext>> {
        let client = ClientConfig::new()
            .set("bootstrap.servers", &self.address)
            .create();
        client.with_context(|| format!("an admin client for {}", self.name))
    }

    /// Creates a topic and waits until each partition takes records: Kafka announces partitions before they do.
    pub async fn create_topic(&self, topic: &str, partitions: i32) -> Result<()> {
        let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
        let options = AdminOptions::new().operation_timeout(Some(ADMIN_TIMEOUT));
        for answer in self.admin()?.create_topics([&new], &options).await? {
            if let Err((name, code)) = answer {
                bail!("{}: create topic {name}: {code}", self.name);
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        Ok(())
    }

    /// Deletes topics, so that a long comparison does not fill the disk.
    pub async fn delete_topics(&self, topics: &[&str]) -> Result<()> {
        let options = AdminOptions::new().operation_timeout(Some(ADMIN_TIMEOUT));
        self.admin()?.delete_topics(topics, &options).await?;
        Ok(())
    }

    /// User and system CPU time of the process so far.
    pub fn cpu(&self) -> Result<Duration> {
        let path = format!("/proc/{}/stat", self.pid);
        let stat =
            std::fs::read_to_string(&path).with_context(|| format!("{}: {path}", self.name))?;
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

    /// Anonymous resident memory now, in MB (10^6 bytes): what the process itself holds, without mapped files.
    pub fn anonymous_mb(&self) -> Result<f64> {
        let path = format!("/proc/{}/status", self.pid);
        let status =
            std::fs::read_to_string(&path).with_context(|| format!("{}: {path}", self.name))?;
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_names_a_broker_its_address_and_its_process() {
        let target: Target = "kafka=127.0.0.1:29092/77".parse().expect("valid");
        assert_eq!(
            (target.name.as_str(), target.address.as_str(), target.pid),
            ("kafka", "127.0.0.1:29092", 77)
        );
        for wrong in ["kafka", "kafka=127.0.0.1:1", "kafka=127.0.0.1:1/x"] {
            assert!(wrong.parse::<Target>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_process_has_cpu_time_and_memory() {
        let me = Target {
            name: "me".into(),
            address: String::new(),
            pid: std::process::id(),
        };
        me.cpu().expect("CPU time");
        assert!(me.anonymous_mb().expect("memory") > 0.0);
    }
}
