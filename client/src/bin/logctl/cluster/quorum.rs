//! `logctl cluster quorum`: the group that keeps the cluster's metadata.

use logd_proto::rpc::admin as api;
use serde::Serialize;

use crate::context::Context;
use crate::failure::{Exit, Failure};
use crate::operator::Operator;
use crate::output::{Shown, Table, or_dash};

#[derive(Debug, Serialize)]
struct Member {
    node_id: i32,
    /// `leader`, `voter`, `learner` or `none`; absent if nobody knows.
    role: Option<String>,
    alive: bool,
    /// Entries behind the leader; absent if nobody knows.
    lag: Option<u64>,
    disk: u64,
}

#[derive(Debug, Serialize)]
struct Quorum {
    leader: Option<i32>,
    term: u64,
    committed: u64,
    members: Vec<Member>,
}

impl From<api::DescribeClusterResponse> for Quorum {
    fn from(told: api::DescribeClusterResponse) -> Quorum {
        let members = told.brokers.into_iter().map(|broker| Member {
            node_id: broker.node_id,
            role: Some(broker.metadata_role).filter(|role| !role.is_empty()),
            alive: broker.alive,
            lag: broker.metadata_lag,
            disk: broker.disk,
        });
        Quorum {
            leader: told.controller,
            term: told.metadata_term,
            committed: told.metadata_committed,
            members: members.collect(),
        }
    }
}

impl Shown for Quorum {
    fn table(&self) -> String {
        let mut group = Table::new(&[">LEADER", ">TERM", ">COMMITTED"]);
        group.row([
            or_dash(self.leader),
            self.term.to_string(),
            self.committed.to_string(),
        ]);
        let mut members = Table::new(&[">NODE", "ROLE", "ALIVE", ">LAG"]);
        for member in &self.members {
            members.row([
                member.node_id.to_string(),
                or_dash(member.role.as_ref()),
                if member.alive { "yes" } else { "no" }.to_owned(),
                or_dash(member.lag),
            ]);
        }
        format!("{}\n{}", group.render(), members.render())
    }
}

pub(super) async fn run(context: &Context, operator: &mut Operator) -> Result<Exit, Failure> {
    let quorum = Quorum::from(operator.cluster().await?);
    context.out.show(&quorum)?;
    if quorum.leader.is_none() {
        context.out.note(
            "nobody is known to lead: nothing can be changed until a majority of the voters is up",
        );
    }
    Ok(Exit::Done)
}
