//! Joining, rebalancing, syncing, leaving.

use super::*;

#[test]
fn trap_23_a_new_client_is_told_its_id_and_holds_the_rebalance_until_it_comes_back() {
    let mut world = World::new();
    let generation = world.stable_pair();
    let JoinReply::MemberIdRequired(id) = now(world.join(client("c"))) else {
        panic!()
    };
    assert_eq!(
        world.heartbeat("a-1", generation),
        Ok(()),
        "a given id disturbs nobody"
    );

    let mut a = world.join(Join {
        member_id: "a-1".into(),
        ..old_client("a")
    });
    let mut b = world.join(Join {
        member_id: "b-2".into(),
        ..old_client("b")
    });
    assert!(
        waits(&mut a) && waits(&mut b),
        "the pending member may come any moment"
    );
    let mut c = world.join(Join {
        member_id: id,
        ..client("c")
    });
    assert_eq!(joined(&mut c).generation, generation + 1);
    assert_eq!(joined(&mut a).members.len(), 3);
    assert!(
        joined(&mut b).members.is_empty(),
        "only the leader gets the list"
    );
}

#[test]
fn trap_23_a_pending_member_that_never_comes_back_holds_the_group_for_its_session_only() {
    let mut world = World::new();
    world.stable_pair();
    now(world.join(client("c")));
    let mut a = world.join(Join {
        member_id: "a-1".into(),
        ..old_client("a")
    });
    let mut b = world.join(Join {
        member_id: "b-2".into(),
        ..old_client("b")
    });
    world.pass(9_999);
    assert!(waits(&mut a));
    world.pass(1);
    assert_eq!(joined(&mut a).members.len(), 2);
    joined(&mut b);
}

#[test]
fn trap_23_an_unknown_member_of_an_unknown_group_is_unknown_and_leaves_no_trace() {
    let mut world = World::new();
    let answer = world.join(Join {
        member_id: "ghost".into(),
        ..client("x")
    });
    assert_eq!(refused(answer), Refusal::UnknownMember);
    assert!(world.group.is_vacant());
    assert_eq!(world.describe(), Err(Refusal::NotFound));
}

#[test]
fn trap_24_an_empty_group_waits_for_more_members_and_longer_when_they_come() {
    let mut world = World::with(Limits::default());
    let mut a = world.join(old_client("a"));
    world.pass(2_000);
    let mut b = world.join(old_client("b"));
    world.pass(1_000);
    assert!(waits(&mut a), "a newcomer extends the wait");
    world.pass(3_000);
    assert_eq!(joined(&mut a).generation, 1);
    assert_eq!(joined(&mut b).generation, 1);
    assert_eq!(world.group.state_name(), "CompletingRebalance");
}

#[test]
fn the_first_wait_ends_with_the_rebalance_timeout_however_many_come() {
    let mut world = World::with(Limits::default());
    let mut first = world.join(Join {
        rebalance_timeout: 7_000,
        ..old_client("a")
    });
    for n in 0..6 {
        world.pass(1_000);
        world.join(Join {
            rebalance_timeout: 7_000,
            ..old_client(&format!("m{n}"))
        });
    }
    assert!(waits(&mut first));
    world.pass(1_000);
    assert_eq!(joined(&mut first).members.len(), 7);
}

#[test]
fn a_member_that_does_not_rejoin_in_time_is_out() {
    let mut world = World::new();
    let generation = world.stable_pair();
    let mut a = world.join(Join {
        member_id: "a-1".into(),
        ..old_client("a")
    });
    for _ in 0..11 {
        world.pass(5_000);
        assert_eq!(
            world.heartbeat("b-2", generation),
            Err(Refusal::RebalanceInProgress),
            "alive, and called to rejoin"
        );
    }
    assert!(waits(&mut a));
    world.pass(5_000);
    assert_eq!(joined(&mut a).members.len(), 1);
    assert_eq!(
        world.heartbeat("b-2", generation),
        Err(Refusal::UnknownMember)
    );
}

#[test]
fn a_silent_member_is_removed_and_the_rebalance_it_blocked_completes() {
    let mut world = World::new();
    world.stable_pair();
    let mut a = world.join(Join {
        member_id: "a-1".into(),
        ..old_client("a")
    });
    world.pass(9_999);
    assert!(waits(&mut a));
    world.pass(1);
    assert_eq!(joined(&mut a).members.len(), 1);
}

#[test]
fn trap_24_a_member_that_leaves_while_others_wait_lets_them_go_on() {
    let mut world = World::new();
    world.stable_pair();
    let mut a = world.join(Join {
        member_id: "a-1".into(),
        ..old_client("a")
    });
    assert!(waits(&mut a));
    assert_eq!(now(world.leave("b-2")), Ok(vec![Ok(())]));
    assert_eq!(joined(&mut a).members.len(), 1);
}

#[test]
fn trap_24_heartbeats_are_welcome_while_the_leader_thinks() {
    let mut world = World::new();
    let mut a = world.join(old_client("a"));
    let a = joined(&mut a);
    assert_eq!(world.group.state_name(), "CompletingRebalance");
    assert_eq!(world.heartbeat(&a.member_id, 1), Ok(()));
    assert_eq!(
        world.heartbeat(&a.member_id, 0),
        Err(Refusal::IllegalGeneration)
    );
    assert_eq!(world.heartbeat("nobody", 1), Err(Refusal::UnknownMember));
}

#[test]
fn trap_24_a_sync_during_a_rebalance_or_of_an_old_generation_is_refused() {
    let mut world = World::new();
    let generation = world.stable_pair();
    let stale = world.sync("b-2", generation - 1, &[]);
    assert_eq!(now(stale), Err(Refusal::IllegalGeneration));
    world.join(Join {
        member_id: "a-1".into(),
        ..old_client("a")
    });
    let during = world.sync("b-2", generation, &[]);
    assert_eq!(now(during), Err(Refusal::RebalanceInProgress));
}

#[test]
fn trap_24_a_follower_that_rejoins_unchanged_gets_its_seat_again_and_a_leader_a_rebalance() {
    let mut world = World::new();
    let generation = world.stable_pair();
    let mut b = world.join(Join {
        member_id: "b-2".into(),
        ..old_client("b")
    });
    let seat = joined(&mut b);
    assert_eq!((seat.generation, &*seat.leader), (generation, "a-1"));
    assert_eq!(world.group.state_name(), "Stable");

    let mut a = world.join(Join {
        member_id: "a-1".into(),
        ..old_client("a")
    });
    assert!(waits(&mut a));
    assert_eq!(world.group.state_name(), "PreparingRebalance");
}

#[test]
fn a_follower_with_a_new_subscription_causes_a_rebalance() {
    let mut world = World::new();
    world.stable_pair();
    let changed = Join {
        member_id: "b-2".into(),
        protocols: vec![offer("range", &["t", "u"])],
        ..old_client("b")
    };
    let mut b = world.join(changed);
    assert!(waits(&mut b));
    assert_eq!(world.group.state_name(), "PreparingRebalance");
}

#[test]
fn a_join_whose_answer_was_lost_is_answered_again_while_the_leader_thinks() {
    let mut world = World::new();
    let mut a = world.join(old_client("a"));
    let a = joined(&mut a);
    let mut again = world.join(Join {
        member_id: a.member_id.clone(),
        ..old_client("a")
    });
    assert_eq!(joined(&mut again), a);
}

#[test]
fn asking_twice_answers_the_first_request_too() {
    let mut world = World::new();
    world.stable_pair();
    let first = world.join(Join {
        member_id: "a-1".into(),
        ..old_client("a")
    });
    let mut second = world.join(Join {
        member_id: "a-1".into(),
        ..old_client("a")
    });
    assert_eq!(refused(first), Refusal::RebalanceInProgress);
    assert!(waits(&mut second));
}

#[test]
fn trap_24_the_protocol_is_one_that_all_support_and_most_prefer() {
    let mut world = World::with(Limits::default());
    let offers = |names: &[&str]| names.iter().map(|name| offer(name, &["t"])).collect();
    let mut a = world.join(Join {
        protocols: offers(&["x", "range"]),
        ..old_client("a")
    });
    world.join(Join {
        protocols: offers(&["sticky", "range"]),
        ..old_client("b")
    });
    world.join(Join {
        protocols: offers(&["sticky", "range"]),
        ..old_client("c")
    });
    world.pass(6_000);
    assert_eq!(&*joined(&mut a).protocol, "range");

    let stranger = Join {
        protocols: offers(&["own"]),
        ..old_client("d")
    };
    assert_eq!(refused(world.join(stranger)), Refusal::InconsistentProtocol);
    let connect = Join {
        protocol_type: "connect".into(),
        ..old_client("e")
    };
    assert_eq!(refused(world.join(connect)), Refusal::InconsistentProtocol);
    let mute = Join {
        protocols: Vec::new(),
        ..old_client("f")
    };
    assert_eq!(refused(world.join(mute)), Refusal::InconsistentProtocol);
}

#[test]
fn session_timeouts_have_limits_and_groups_have_seats() {
    let mut world = World::with(Limits {
        members_max: 2,
        initial_rebalance_delay_ms: 0,
        ..Limits::default()
    });
    let hasty = Join {
        session_timeout: 5_999,
        ..client("a")
    };
    assert_eq!(refused(world.join(hasty)), Refusal::InvalidSessionTimeout);
    let patient = Join {
        session_timeout: 1_800_001,
        ..client("a")
    };
    assert_eq!(refused(world.join(patient)), Refusal::InvalidSessionTimeout);
}

#[test]
fn a_full_group_takes_nobody_else() {
    let mut world = World::with(Limits {
        members_max: 2,
        initial_rebalance_delay_ms: 0,
        ..Limits::default()
    });
    let generation = world.stable_pair();
    assert_eq!(refused(world.join(old_client("c"))), Refusal::GroupFull);
    assert_eq!(world.heartbeat("a-1", generation), Ok(()));
}

#[test]
fn those_who_join_but_never_sync_are_out_after_one_rebalance_timeout() {
    let mut world = World::new();
    let mut a = world.join(old_client("a"));
    joined(&mut a);
    for _ in 0..12 {
        assert_eq!(world.heartbeat("a-1", 1), Ok(()));
        world.pass(5_000);
    }
    assert_eq!(world.heartbeat("a-1", 1), Err(Refusal::UnknownMember));
    assert_eq!(world.group.state_name(), "Empty");
}

#[test]
fn a_departing_leader_is_succeeded_and_parked_syncs_are_called_to_rejoin() {
    let mut world = World::new();
    let generation = world.stable_pair();
    let mut a = world.join(Join {
        member_id: "a-1".into(),
        ..old_client("a")
    });
    let mut b = world.join(Join {
        member_id: "b-2".into(),
        ..old_client("b")
    });
    joined(&mut a);
    joined(&mut b);
    let b = world.sync("b-2", generation + 1, &[]);
    now(world.leave("a-1")).unwrap();
    assert_eq!(now(b), Err(Refusal::RebalanceInProgress));
    let mut b = world.join(Join {
        member_id: "b-2".into(),
        ..old_client("b")
    });
    let seat = joined(&mut b);
    assert_eq!((seat.generation, &*seat.leader), (generation + 2, "b-2"));
}

#[test]
fn a_leader_that_vanishes_before_it_deals_is_succeeded_after_its_session() {
    let mut world = World::new();
    let generation = world.stable_pair();
    let mut a = world.join(Join {
        member_id: "a-1".into(),
        ..old_client("a")
    });
    let mut b = world.join(Join {
        member_id: "b-2".into(),
        ..old_client("b")
    });
    let leader = joined(&mut a).leader;
    joined(&mut b);
    assert_eq!(&*leader, "a-1");
    let mut share = world.sync("b-2", generation + 1, &[]);
    world.pass(5_000);
    assert_eq!(world.heartbeat("b-2", generation + 1), Ok(()));
    world.pass(4_999);
    assert!(waits(&mut share));
    world.pass(1);
    assert_eq!(now(share), Err(Refusal::RebalanceInProgress));
    let mut b = world.join(Join {
        member_id: "b-2".into(),
        ..old_client("b")
    });
    let seat = joined(&mut b);
    assert_eq!((seat.generation, &*seat.leader), (generation + 2, "b-2"));
}

#[test]
fn whom_the_leader_forgets_gets_an_empty_share() {
    let mut world = World::new();
    let mut a = world.join(old_client("a"));
    joined(&mut a);
    assert_eq!(share(world.sync("a-1", 1, &[("b-9", "p0")])), "");
    assert_eq!(world.group.state_name(), "Stable");
}

#[test]
fn a_sync_that_believes_in_another_protocol_is_refused() {
    let mut world = World::new();
    world.stable_pair();
    let sync = Sync {
        member_id: "b-2".into(),
        generation: world.group.generation(),
        instance_id: None,
        protocol_type: Some("consumer".into()),
        protocol: Some("roundrobin".into()),
        assignments: Vec::new(),
    };
    let answer = world.ask(|ticket| Event::Sync(ticket, sync));
    assert_eq!(now(answer), Err(Refusal::InconsistentProtocol));
}

#[test]
fn an_operator_sees_members_and_shares_of_a_stable_group_only() {
    let mut world = World::new();
    world.stable_pair();
    let seen = world.describe().unwrap();
    assert_eq!(
        (seen.state, &*seen.protocol, seen.members.len()),
        ("Stable", "range", 2)
    );
    assert_eq!(&seen.members[1].assignment[..], b"p1");
    assert_eq!(&*seen.members[1].client_host, "/127.0.0.1");

    world.join(Join {
        member_id: "a-1".into(),
        ..old_client("a")
    });
    let seen = world.describe().unwrap();
    assert_eq!((seen.state, &*seen.protocol), ("PreparingRebalance", ""));
    assert!(seen.members[1].assignment.is_empty());
}
