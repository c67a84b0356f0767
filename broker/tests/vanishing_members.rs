//! Members of a group that vanish in the middle of a rebalance, without a word: those who stay share everything as soon as
//! the session of the one that went has ended, and not only when the rebalance's own time is over.

#![allow(
    clippy::panic,
    reason = "a helper of tests says what it expects by panicking"
)]

mod common;

use bytes::Bytes;
use common::requests::*;
use common::{Broker, PATIENCE};
use logd_proto::ErrorCode;
use logd_proto::api::encode_request;
use logd_proto::message;
use logd_proto::messages::*;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

const SESSION_MS: i32 = 1_500;
/// Longer than the test has patience for: nobody may wait until it is over.
const REBALANCE_MS: i32 = 300_000;
const HEARTBEAT: Duration = Duration::from_millis(100);

/// What a member does when it is called to rejoin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    Never,
    /// It goes instead of rejoining.
    BeforeItRejoins,
    /// It rejoins and does not wait for the answer.
    WhileItJoins,
    /// It is told to deal the shares, and goes.
    BeforeItDeals,
}

struct Member {
    group: &'static str,
    vanishes: When,
    socket: TcpStream,
    /// For heartbeats while the other waits.
    pulse: TcpStream,
    id: String,
    generation: i32,
}

impl Member {
    async fn new(broker: SocketAddr, group: &'static str, vanishes: When) -> Self {
        let connect = async || {
            TcpStream::connect(broker)
                .await
                .expect("the broker accepts")
        };
        Self {
            group,
            vanishes,
            socket: connect().await,
            pulse: connect().await,
            id: String::new(),
            generation: 0,
        }
    }

    /// As a client library does, until it vanishes.
    async fn live(mut self) {
        let mut called = false;
        loop {
            if called && self.vanishes == When::BeforeItRejoins {
                return;
            }
            if called && self.vanishes == When::WhileItJoins {
                let join = encode_request(&self.joining(), 3, 1, None).expect("it encodes");
                self.socket.write_all(&join.to_bytes()).await.expect("sent");
                // Long enough for the request to be taken.
                tokio::time::sleep(HEARTBEAT).await;
                return;
            }
            let join = self.joining();
            let joined = ask(&mut self.socket, &join, 3).await;
            if joined.error_code == ErrorCode::UnknownMemberId.code() {
                self.id.clear();
                continue;
            }
            assert_eq!(joined.error_code, 0);
            self.id = joined.member_id.to_string();
            self.generation = joined.generation_id;
            if called && self.vanishes == When::BeforeItDeals {
                assert_eq!(joined.leader, joined.member_id, "it was to deal");
                return;
            }
            if self.has_share(&joined).await {
                while self.heartbeat().await == 0 {
                    tokio::time::sleep(HEARTBEAT).await;
                }
            }
            called = true;
        }
    }

    fn joining(&self) -> JoinGroupRequest {
        let protocol = message!(join_group_request::JoinGroupRequestProtocol {
            name: "range".into()
        });
        message!(JoinGroupRequest {
            group_id: self.group.into(),
            session_timeout_ms: SESSION_MS,
            rebalance_timeout_ms: REBALANCE_MS,
            member_id: self.id.as_str().into(),
            protocol_type: "consumer".into(),
            protocols: vec![protocol]
        })
    }

    /// Waits for its share, with a heartbeat now and then; false if it is called to rejoin.
    async fn has_share(&mut self, joined: &JoinGroupResponse) -> bool {
        let shares = joined.members.iter().map(|member| {
            message!(sync_group_request::SyncGroupRequestAssignment {
                member_id: member.member_id.clone(),
                assignment: Bytes::from_static(b"a share")
            })
        });
        let sync = message!(SyncGroupRequest {
            group_id: self.group.into(),
            generation_id: self.generation,
            member_id: self.id.as_str().into(),
            assignments: shares.collect()
        });
        let beat = self.beat();
        let (socket, pulse) = (&mut self.socket, &mut self.pulse);
        let beating = async {
            loop {
                ask(pulse, &beat, 2).await;
                tokio::time::sleep(HEARTBEAT).await;
            }
        };
        tokio::select! {
            synced = ask(socket, &sync, 2) => synced.error_code == 0,
            () = beating => false,
        }
    }

    fn beat(&self) -> HeartbeatRequest {
        message!(HeartbeatRequest {
            group_id: self.group.into(),
            generation_id: self.generation,
            member_id: self.id.as_str().into()
        })
    }

    async fn heartbeat(&mut self) -> i16 {
        let beat = self.beat();
        ask(&mut self.socket, &beat, 2).await.error_code
    }
}

/// Waits until the group is stable with so many members, each of them with a share.
async fn is_shared_by(socket: &mut TcpStream, group: &str, count: usize) {
    let request = message!(DescribeGroupsRequest {
        groups: vec![group.into()]
    });
    let begun = Instant::now();
    loop {
        let found = ask(socket, &request, 5).await.groups.remove(0);
        let served = found
            .members
            .iter()
            .filter(|m| !m.member_assignment.is_empty());
        if &*found.group_state == "Stable"
            && found.members.len() == count
            && served.count() == count
        {
            return;
        }
        assert!(
            begun.elapsed() < PATIENCE,
            "{group}: {} with {} members",
            &*found.group_state,
            found.members.len()
        );
        tokio::time::sleep(HEARTBEAT).await;
    }
}

#[tokio::test]
async fn those_who_stay_go_on_without_a_member_that_vanishes_mid_rebalance() {
    let broker = Broker::start_with(&[
        ("LOGD_GROUP__INITIAL_REBALANCE_DELAY_MS", "0"),
        ("LOGD_GROUP__MIN_SESSION_TIMEOUT_MS", "1000"),
    ]);
    let mut admin = broker.connect().await;
    let locate = message!(FindCoordinatorRequest { key: "g".into() });
    assert_eq!(ask(&mut admin, &locate, 3).await.error_code, 0);
    let stories = [
        ("before it rejoins", When::BeforeItRejoins),
        ("while it joins", When::WhileItJoins),
        ("before it deals", When::BeforeItDeals),
    ];
    let mut staying = tokio::task::JoinSet::new();
    for (group, vanishes) in stories {
        // The first to come leads.
        let vanishing = tokio::spawn(Member::new(broker.kafka, group, vanishes).await.live());
        is_shared_by(&mut admin, group, 1).await;
        for _ in 0..2 {
            staying.spawn(Member::new(broker.kafka, group, When::Never).await.live());
        }
        let vanished = tokio::time::timeout(PATIENCE, vanishing).await;
        vanished.expect("it is called to rejoin").expect("it went");
        is_shared_by(&mut admin, group, 2).await;
        assert!(
            staying.try_join_next().is_none(),
            "a member that stays ended"
        );
    }
}
