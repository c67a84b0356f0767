//! `logctl group describe`.
//!
//! Promise: lag is never negative, and absent where a group has never committed: zero would say "has
//! read everything".

use std::collections::{BTreeMap, BTreeSet};

use clap::Args;
use logd_client::error::{ConsumeError, MetadataError};
use logd_client::{Admin, GroupDescription, OffsetAt};
use serde::Serialize;

use super::some;
use crate::context::Context;
use crate::failure::{Exit, Failure, Tally};
use crate::lookup;
use crate::output::{Format, Shown, Table, joined, or_dash};

#[derive(Debug, Args)]
pub struct Options {
    /// Which ones
    #[arg(required = true, value_name = "GROUP")]
    groups: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Described {
    group: String,
    state: String,
    protocol_type: Option<String>,
    protocol: Option<String>,
    coordinator: String,
    /// Over all partitions with a commit.
    lag: i64,
    members: Vec<Member>,
    partitions: Vec<Partition>,
}

#[derive(Debug, Serialize)]
struct Member {
    member: String,
    client_id: String,
    host: String,
    assigned: Vec<Assigned>,
}

#[derive(Debug, Serialize)]
struct Assigned {
    topic: String,
    partition: i32,
}

#[derive(Debug, Serialize)]
struct Partition {
    topic: String,
    partition: i32,
    committed_offset: Option<i64>,
    end_offset: Option<i64>,
    lag: Option<i64>,
    member: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(transparent)]
struct AllDescribed(Vec<Described>);

impl Shown for AllDescribed {
    fn table(&self) -> String {
        let sections = self.0.iter().map(Described::sections);
        sections.collect::<Vec<_>>().join("\n")
    }
}

impl Described {
    /// The group, its members, its partitions; a section nobody is in is left out.
    fn sections(&self) -> String {
        let headers = [
            "GROUP",
            "STATE",
            "PROTOCOL",
            "COORDINATOR",
            ">MEMBERS",
            ">LAG",
        ];
        let mut group = Table::new(&headers);
        group.row([
            self.group.clone(),
            self.state.clone(),
            or_dash(self.protocol.as_ref()),
            self.coordinator.clone(),
            self.members.len().to_string(),
            self.lag.to_string(),
        ]);
        let mut members = Table::new(&["MEMBER", "CLIENT", "HOST", "PARTITIONS"]);
        for member in &self.members {
            members.row([
                member.member.clone(),
                member.client_id.clone(),
                member.host.clone(),
                member.partitions(),
            ]);
        }
        let headers = [
            "TOPIC",
            ">PARTITION",
            ">COMMITTED",
            ">END",
            ">LAG",
            "MEMBER",
        ];
        let mut partitions = Table::new(&headers);
        for partition in &self.partitions {
            partitions.row([
                partition.topic.clone(),
                partition.partition.to_string(),
                or_dash(partition.committed_offset),
                or_dash(partition.end_offset),
                or_dash(partition.lag),
                or_dash(partition.member.as_ref()),
            ]);
        }
        let tables = [group, members, partitions].into_iter();
        let filled = tables.filter(|table| !table.is_empty());
        filled.map(Table::render).collect::<Vec<_>>().join("\n")
    }
}

impl Member {
    /// `orders:0,1 payments:4`.
    fn partitions(&self) -> String {
        let mut by_topic: BTreeMap<&str, Vec<i32>> = BTreeMap::new();
        for assigned in &self.assigned {
            let of_topic = by_topic.entry(&assigned.topic).or_default();
            of_topic.push(assigned.partition);
        }
        let texts = by_topic.into_iter().map(|(topic, mut partitions)| {
            partitions.sort_unstable();
            format!("{topic}:{}", joined(&partitions))
        });
        texts.collect::<Vec<_>>().join(" ")
    }
}

pub(super) async fn run(context: &Context, options: Options) -> Result<Exit, Failure> {
    let admin = context.connect().await?.admin();
    let mut tally = Tally::default();
    let mut all = Vec::new();
    for id in &options.groups {
        match describe_one(&admin, id).await {
            Ok(described) => {
                tally.done();
                all.push(described);
            }
            Err(failure) => tally.failed(context.out.fail(&failure)),
        }
    }
    if context.out.format == Format::Json || !all.is_empty() {
        context.out.show(&AllDescribed(all))?;
    }
    Ok(tally.exit())
}

async fn describe_one(admin: &Admin, id: &str) -> Result<Described, Failure> {
    let group = admin.describe_group(id).await?;
    let committed = admin.group_offsets(id).await?;
    if group.state == "Dead" && group.members.is_empty() && committed.is_empty() {
        return Err(unknown(admin, id).await);
    }
    let committed: BTreeMap<(String, i32), i64> = committed
        .into_iter()
        .map(|at| ((at.topic, at.partition), at.offset))
        .collect();
    let wanted: BTreeSet<(String, i32)> = group
        .members
        .iter()
        .flat_map(|member| member.assigned.iter().cloned())
        .chain(committed.keys().cloned())
        .collect();
    let ends = ends(admin, &wanted).await?;
    Ok(described(group, &committed, &wanted, &ends))
}

/// The group nobody has heard of.
async fn unknown(admin: &Admin, id: &str) -> Failure {
    let groups = admin.list_groups().await.unwrap_or_default();
    let failure = Failure::not_found(format!("group {id:?} does not exist"));
    match lookup::nearest(id, groups.iter().map(|group| group.id.as_str())) {
        Some(meant) => failure.hint(format!("did you mean {meant:?}?")),
        None => failure.hint("`logctl group list` shows what there is"),
    }
}

/// Where partitions end. Topics may have been deleted since they were committed, and have none.
async fn ends(
    admin: &Admin,
    wanted: &BTreeSet<(String, i32)>,
) -> Result<BTreeMap<(String, i32), i64>, Failure> {
    let topics = admin.list_topics().await?;
    let there: BTreeSet<(&str, i32)> = topics
        .iter()
        .flat_map(|topic| {
            let led = topic.partitions.iter().filter(|p| p.leader.is_some());
            led.map(|p| (topic.name.as_str(), p.index))
        })
        .collect();
    let wanted = wanted.iter();
    let wanted = wanted.filter(|(topic, partition)| there.contains(&(topic.as_str(), *partition)));
    let wanted: Vec<(String, i32)> = wanted.cloned().collect();
    let found = match admin.offsets(&wanted, OffsetAt::End).await {
        // Deleted between the two questions.
        Err(ConsumeError::Metadata(MetadataError::UnknownTopic { .. })) => Vec::new(),
        result => result?,
    };
    let found = found.into_iter();
    Ok(found
        .filter_map(|found| Some(((found.topic, found.partition), found.offset?)))
        .collect())
}

/// Puts together what was found out. Pure.
fn described(
    group: GroupDescription,
    committed: &BTreeMap<(String, i32), i64>,
    wanted: &BTreeSet<(String, i32)>,
    ends: &BTreeMap<(String, i32), i64>,
) -> Described {
    let owner = |key: &(String, i32)| {
        let mut members = group.members.iter();
        let owner = members.find(|member| member.assigned.contains(key));
        owner.map(|member| member.id.clone())
    };
    let partitions = wanted.iter().map(|key| {
        let (committed, end) = (committed.get(key).copied(), ends.get(key).copied());
        Partition {
            topic: key.0.clone(),
            partition: key.1,
            committed_offset: committed,
            end_offset: end,
            // The end was asked for later than the commit, but from another broker perhaps.
            lag: committed
                .zip(end)
                .map(|(committed, end)| (end - committed).max(0)),
            member: owner(key),
        }
    });
    let partitions: Vec<Partition> = partitions.collect();
    let members = group.members.iter().map(|member| Member {
        member: member.id.clone(),
        client_id: member.client_id.clone(),
        host: member.host.clone(),
        assigned: member
            .assigned
            .iter()
            .map(|(topic, partition)| Assigned {
                topic: topic.clone(),
                partition: *partition,
            })
            .collect(),
    });
    Described {
        lag: partitions.iter().filter_map(|at| at.lag).sum(),
        members: members.collect(),
        partitions,
        group: group.id,
        state: group.state,
        protocol_type: some(group.protocol_type),
        protocol: some(group.protocol),
        coordinator: group.coordinator,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::json;
    use logd_client::GroupMember;

    fn at(topic: &str, partition: i32) -> (String, i32) {
        (topic.to_owned(), partition)
    }

    /// Two partitions assigned, one of them never committed; one committed of a topic since deleted.
    fn readers() -> Described {
        let group = GroupDescription {
            id: "readers".into(),
            state: "Stable".into(),
            protocol_type: "consumer".into(),
            protocol: "range".into(),
            coordinator: "127.0.0.1:9092".into(),
            members: vec![GroupMember {
                id: "logctl-1".into(),
                client_id: "logctl".into(),
                host: "/127.0.0.1".into(),
                assigned: vec![at("orders", 1), at("orders", 0)],
            }],
        };
        let committed = BTreeMap::from([(at("orders", 0), 40), (at("gone", 0), 7)]);
        let wanted = BTreeSet::from([at("orders", 0), at("orders", 1), at("gone", 0)]);
        let ends = BTreeMap::from([(at("orders", 0), 42), (at("orders", 1), 5)]);
        described(group, &committed, &wanted, &ends)
    }

    #[test]
    fn what_was_never_committed_or_is_gone_has_no_lag() {
        let expected = "\
GROUP    STATE   PROTOCOL  COORDINATOR     MEMBERS  LAG
readers  Stable  range     127.0.0.1:9092        1    2

MEMBER    CLIENT  HOST        PARTITIONS
logctl-1  logctl  /127.0.0.1  orders:0,1

TOPIC   PARTITION  COMMITTED  END  LAG  MEMBER
gone            0          7    -    -  -
orders          0         40   42    2  logctl-1
orders          1          -    5    -  logctl-1
";
        assert_eq!(AllDescribed(vec![readers()]).table(), expected);
    }

    #[test]
    fn in_json_what_is_absent_is_null() {
        let text = json(&AllDescribed(vec![readers()])).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value[0]["lag"], 2);
        assert_eq!(
            value[0]["partitions"][2]["committed_offset"],
            serde_json::Value::Null
        );
        assert_eq!(value[0]["partitions"][1]["member"], "logctl-1");
        assert_eq!(value[0]["members"][0]["assigned"][0]["partition"], 1);
    }

    #[test]
    fn a_commit_beyond_the_end_is_no_negative_lag() {
        let mut group = readers();
        assert!(group.partitions.iter().all(|at| at.lag.unwrap_or(0) >= 0));
        group.partitions.clear();
        group.members.clear();
        assert_eq!(group.sections().lines().count(), 2, "only the group itself");
    }
}
