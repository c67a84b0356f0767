//! Static members: a process restarts, its seat stays.

use super::*;

/// Two static members, stable; returns the generation and both member ids, leader first.
fn static_pair(world: &mut World) -> (i32, Name, Name) {
    let mut first = world.join(static_client("one"));
    let one = joined(&mut first).member_id;
    let mut second = world.join(static_client("two"));
    let mut first = world.join(Join {
        member_id: one.clone(),
        ..static_client("one")
    });
    let generation = joined(&mut first).generation;
    let two = joined(&mut second).member_id;
    let second = world.sync(&two, generation, &[]);
    now(world.sync(&one, generation, &[(&one, "p0"), (&two, "p1")])).unwrap();
    assert_eq!(share(second), "p1");
    (generation, one, two)
}

#[test]
fn a_static_member_gets_an_id_at_once() {
    let mut world = World::new();
    let mut answer = world.join(static_client("one"));
    assert!(joined(&mut answer).member_id.starts_with("one-"));
}

#[test]
fn trap_25_a_restarted_follower_keeps_its_share_without_a_rebalance_and_fences_its_past() {
    let mut world = World::new();
    let (generation, _, two) = static_pair(&mut world);
    let mut again = world.join(static_client("two"));
    let seat = joined(&mut again);
    assert_eq!(seat.generation, generation);
    assert!(!seat.skip_assignment && seat.members.is_empty());
    assert_ne!(seat.member_id, two);
    assert_eq!(world.group.state_name(), "Stable");
    assert_eq!(share(world.sync(&seat.member_id, generation, &[])), "p1");

    let zombie = Heartbeat {
        member_id: two,
        generation,
        instance_id: Some("two".into()),
    };
    let answer = world.ask(|ticket| Event::Heartbeat(ticket, zombie));
    assert_eq!(now(answer), Err(Refusal::FencedInstance));
}

#[test]
fn trap_25_a_restarted_leader_sees_the_members_but_skips_the_assignment() {
    let mut world = World::new();
    let (generation, one, _) = static_pair(&mut world);
    let mut again = world.join(static_client("one"));
    let seat = joined(&mut again);
    assert_eq!((seat.generation, seat.skip_assignment), (generation, true));
    assert_eq!(seat.leader, seat.member_id);
    assert_eq!(seat.members.len(), 2);
    assert!(seat.members.iter().all(|member| member.member_id != one));
    assert_eq!(share(world.sync(&seat.member_id, generation, &[])), "p0");
}

#[test]
fn a_restarted_leader_of_an_old_version_is_made_to_believe_that_it_follows() {
    let mut world = World::new();
    let (generation, one, _) = static_pair(&mut world);
    let mut again = world.join(Join {
        takes_skip: false,
        ..static_client("one")
    });
    let seat = joined(&mut again);
    assert_eq!((seat.generation, seat.skip_assignment), (generation, false));
    assert_eq!(seat.leader, one);
    assert!(seat.members.is_empty());
}

#[test]
fn a_replacement_is_told_only_after_the_log_has_it() {
    let mut world = World::new();
    let (generation, _, two) = static_pair(&mut world);
    world.prompt = false;
    let mut again = world.join(static_client("two"));
    assert!(waits(&mut again));
    assert_eq!(
        world.heartbeat(&two, generation),
        Ok(()),
        "not replaced yet"
    );
    world.fail_write(WriteError::Unavailable);
    assert_eq!(refused(again), Refusal::NotAvailable);
    assert_eq!(world.heartbeat(&two, generation), Ok(()), "and not at all");
}

#[test]
fn a_restart_with_another_protocol_rebalances() {
    let mut world = World::new();
    let mut first = world.join(Join {
        protocols: vec![offer("range", &["t"]), offer("sticky", &["t"])],
        ..static_client("one")
    });
    let id = joined(&mut first).member_id;
    now(world.sync(&id, 1, &[(&id, "p0")])).unwrap();
    let mut again = world.join(Join {
        protocols: vec![offer("sticky", &["t"])],
        ..static_client("one")
    });
    let seat = joined(&mut again);
    assert_eq!((seat.generation, &*seat.protocol), (2, "sticky"));
}

#[test]
fn two_processes_with_one_instance_id_cannot_both_wait() {
    let mut world = World::with(Limits::default());
    let first = world.join(static_client("one"));
    let mut second = world.join(static_client("one"));
    assert_eq!(refused(first), Refusal::FencedInstance);
    world.pass(10_000);
    assert_eq!(joined(&mut second).members.len(), 1);
}

#[test]
fn a_static_member_keeps_its_seat_through_a_rebalance_it_misses() {
    let mut world = World::new();
    let (generation, one, two) = static_pair(&mut world);
    // `one` restarts its subscription; `two` is down, but within its long session.
    let mut first = world.join(Join {
        member_id: one.clone(),
        ..static_client("one")
    });
    assert!(waits(&mut first));
    world.pass(9_000);
    let beat = Heartbeat {
        member_id: two,
        generation,
        instance_id: Some("two".into()),
    };
    now(world.ask(|ticket| Event::Heartbeat(ticket, beat))).unwrap_err();
    let patient = Join {
        session_timeout: 600_000,
        ..static_client("two")
    };
    world.join(Join {
        member_id: one,
        ..static_client("one")
    });
    let mut second = world.join(patient);
    assert_eq!(joined(&mut second).generation, generation + 1);
}

#[test]
fn trap_25_an_administrator_removes_static_members_by_instance_many_at_once() {
    let mut world = World::new();
    let (generation, _, _) = static_pair(&mut world);
    let leaving = |instance: &str| Leaving {
        member_id: "".into(),
        instance_id: Some(instance.into()),
        reason: Some("scale down".into()),
    };
    let batch = vec![leaving("one"), leaving("two"), leaving("three")];
    let answer = now(world.ask(|ticket| Event::Leave(ticket, batch))).unwrap();
    assert_eq!(answer, vec![Ok(()), Ok(()), Err(Refusal::UnknownMember)]);
    assert_eq!(world.group.state_name(), "Empty");
    assert_eq!(
        world.group.generation(),
        generation + 1,
        "one rebalance for all"
    );
}

#[test]
fn trap_25_leaving_under_a_replaced_id_is_fenced() {
    let mut world = World::new();
    let (_, _, two) = static_pair(&mut world);
    joined(&mut world.join(static_client("two")));
    let leaving = Leaving {
        member_id: two,
        instance_id: Some("two".into()),
        reason: None,
    };
    let answer = now(world.ask(|ticket| Event::Leave(ticket, vec![leaving]))).unwrap();
    assert_eq!(answer, vec![Err(Refusal::FencedInstance)]);
}
