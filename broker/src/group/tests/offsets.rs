//! Committing, fetching, expiring and deleting offsets.

use super::*;

const DAY: Millis = 24 * 60 * 60 * 1000;

#[test]
fn a_client_that_assigns_its_own_partitions_commits_to_a_group_without_members() {
    let mut world = World::new();
    assert_eq!(world.committed("t"), None);
    assert_eq!(now(world.commit("", -1, 41)), Ok(vec![Ok(())]));
    assert_eq!(world.committed("t"), Some(41));
    assert_eq!(world.describe().unwrap().state, "Empty");
    let fetched = now(world.ask(|ticket| Event::FetchOffsets(ticket, Wanted::All))).unwrap();
    let offset = fetched[0].2.as_ref().unwrap();
    assert_eq!((&*offset.metadata, offset.leader_epoch), ("note", 3));
}

#[test]
fn trap_26_it_may_not_while_the_group_has_members() {
    let mut world = World::new();
    world.stable_pair();
    assert_eq!(now(world.commit("", -1, 41)), Err(Refusal::UnknownMember));
    assert_eq!(world.committed("t"), None);
}

#[test]
fn trap_26_a_member_commits_in_its_generation_only_and_not_while_shares_are_dealt() {
    let mut world = World::new();
    let generation = world.stable_pair();
    assert_eq!(now(world.commit("a-1", generation, 1)), Ok(vec![Ok(())]));
    assert_eq!(
        now(world.commit("a-1", generation - 1, 9)),
        Err(Refusal::IllegalGeneration)
    );
    assert_eq!(
        now(world.commit("ghost", generation, 9)),
        Err(Refusal::UnknownMember)
    );

    let mut a = world.join(Join {
        member_id: "a-1".into(),
        ..old_client("a")
    });
    assert_eq!(
        now(world.commit("b-2", generation, 2)),
        Ok(vec![Ok(())]),
        "before it rejoins"
    );
    world.join(Join {
        member_id: "b-2".into(),
        ..old_client("b")
    });
    joined(&mut a);
    let early = world.commit("a-1", generation + 1, 9);
    assert_eq!(now(early), Err(Refusal::RebalanceInProgress));
    assert_eq!(world.committed("t"), Some(2));
}

#[test]
fn a_generation_of_a_group_that_does_not_exist_is_illegal() {
    let mut world = World::new();
    assert_eq!(
        now(world.commit("m", 5, 1)),
        Err(Refusal::IllegalGeneration)
    );
    assert!(world.group.is_vacant());
}

#[test]
fn a_commit_is_a_sign_of_life() {
    let mut world = World::new();
    let generation = world.stable_pair();
    world.pass(6_000);
    now(world.commit("a-1", generation, 1)).unwrap();
    world.pass(6_000);
    let seen = world.describe().unwrap();
    let alive: Vec<&str> = seen
        .members
        .iter()
        .map(|member| &*member.member_id)
        .collect();
    assert_eq!(alive, ["a-1"], "the one that committed");
}

#[test]
fn trap_26_a_note_that_is_too_long_spoils_only_its_own_partition() {
    let mut world = World::new();
    let mut both = commit("", -1, "t", 1);
    both.offsets.push(OffsetToCommit {
        topic: "u".into(),
        metadata: "x".repeat(4097).into(),
        ..both.offsets[0].clone()
    });
    let answer = now(world.ask(|ticket| Event::Commit(ticket, both)));
    assert_eq!(answer, Ok(vec![Ok(()), Err(Refusal::MetadataTooLarge)]));
    assert_eq!(
        (world.committed("t"), world.committed("u")),
        (Some(1), None)
    );
}

#[test]
fn an_offset_is_seen_when_the_log_has_it_and_not_before() {
    let mut world = World::new();
    world.prompt = false;
    let mut first = world.commit("", -1, 1);
    let mut second = world.commit("", -1, 2);
    assert!(waits(&mut first) && waits(&mut second));
    assert_eq!(world.committed("t"), None);
    world.write_all();
    assert_eq!(
        (now(first), now(second)),
        (Ok(vec![Ok(())]), Ok(vec![Ok(())]))
    );
    assert_eq!(world.committed("t"), Some(2));

    let third = world.commit("", -1, 3);
    world.fail_write(WriteError::Unavailable);
    assert_eq!(now(third), Err(Refusal::NotAvailable));
    assert_eq!(world.committed("t"), Some(2));
}

#[test]
fn trap_26_offsets_outlive_members_by_the_retention_counted_from_empty() {
    let mut world = World::new();
    let generation = world.stable_pair();
    now(world.commit("a-1", generation, 7)).unwrap();
    for _ in 0..(8 * DAY / 9_000) {
        world.pass(9_000);
        world.heartbeat("a-1", generation).unwrap();
        world.heartbeat("b-2", generation).unwrap();
    }
    world.step(Event::Expire);
    assert_eq!(world.committed("t"), Some(7), "in use");

    now(world.leave("a-1")).unwrap();
    now(world.leave("b-2")).unwrap();
    world.pass(7 * DAY - 1);
    world.step(Event::Expire);
    assert_eq!(world.committed("t"), Some(7));
    world.pass(1);
    world.step(Event::Expire);
    assert_eq!(world.committed("t"), None);
    assert!(
        world.group.is_vacant(),
        "and the group goes with its last offset"
    );
    world.crash();
    assert!(world.group.is_vacant(), "for good");
}

#[test]
fn trap_26_an_offset_of_a_topic_no_longer_subscribed_expires_under_a_living_group() {
    let mut world = World::new();
    let generation = world.stable_pair();
    let other = commit("a-1", generation, "former", 5);
    now(world.ask(|ticket| Event::Commit(ticket, other)))
        .unwrap()
        .remove(0)
        .unwrap();
    now(world.commit("a-1", generation, 6)).unwrap();
    world.now += 7 * DAY;
    world.step(Event::Expire);
    assert_eq!(
        (world.committed("former"), world.committed("t")),
        (None, Some(6))
    );
}

#[test]
fn a_simple_clients_offset_expires_by_its_own_age() {
    let mut world = World::new();
    now(world.commit("", -1, 1)).unwrap();
    world.pass(7 * DAY - 1);
    now(world.ask(|ticket| Event::Commit(ticket, commit("", -1, "u", 1)))).unwrap();
    world.pass(1);
    world.step(Event::Expire);
    assert_eq!(
        (world.committed("t"), world.committed("u")),
        (None, Some(1))
    );
}

#[test]
fn an_old_clients_own_retention_is_honoured() {
    let mut world = World::new();
    let brief = Commit {
        retention: Some(1_000),
        ..commit("", -1, "t", 1)
    };
    now(world.ask(|ticket| Event::Commit(ticket, brief))).unwrap();
    world.pass(1_000);
    world.step(Event::Expire);
    assert_eq!(world.committed("t"), None);
}

#[test]
fn expiry_spares_an_offset_that_is_being_committed_anew() {
    let mut world = World::new();
    now(world.commit("", -1, 1)).unwrap();
    world.pass(8 * DAY);
    world.prompt = false;
    let fresh = world.commit("", -1, 2);
    world.step(Event::Expire);
    world.write_all();
    now(fresh).unwrap();
    assert_eq!(world.committed("t"), Some(2));
}

#[test]
fn the_offsets_of_a_deleted_topic_go_with_it() {
    let mut world = World::new();
    now(world.commit("", -1, 1)).unwrap();
    world.step(Event::TopicsDeleted([TOPIC_ID].into()));
    assert_eq!(world.committed("t"), None);
    assert!(world.group.is_vacant());
}

#[test]
fn the_offsets_of_a_topic_that_has_the_name_of_a_deleted_one_stay() {
    let mut world = World::new();
    now(world.commit("", -1, 1)).unwrap();
    world.prompt = false;
    let mut renewed = commit("", -1, "t", 2);
    renewed.offsets[0].topic_id = [8; 16];
    let of_the_new_one = world.ask(|ticket| Event::Commit(ticket, renewed));
    world.step(Event::TopicsDeleted([TOPIC_ID].into()));
    world.write_all();
    now(of_the_new_one).unwrap();
    assert_eq!(world.committed("t"), Some(2));
}

#[test]
fn a_group_is_deleted_when_empty_and_only_then() {
    let mut world = World::new();
    assert_eq!(now(world.ask(Event::Delete)), Err(Refusal::NotFound));
    let generation = world.stable_pair();
    now(world.commit("a-1", generation, 1)).unwrap();
    assert_eq!(now(world.ask(Event::Delete)), Err(Refusal::NonEmpty));
    now(world.leave("a-1")).unwrap();
    now(world.leave("b-2")).unwrap();
    assert_eq!(now(world.ask(Event::Delete)), Ok(()));
    assert!(world.group.is_vacant());
    assert_eq!(world.committed("t"), None);
    world.crash();
    assert_eq!(world.describe(), Err(Refusal::NotFound));
}

#[test]
fn single_offsets_are_deleted_unless_the_group_reads_the_topic() {
    let mut world = World::new();
    let generation = world.stable_pair();
    now(world.commit("a-1", generation, 1)).unwrap();
    now(world.ask(|ticket| Event::Commit(ticket, commit("a-1", generation, "former", 2)))).unwrap();
    let places = vec![("t".into(), 0), ("former".into(), 0)];
    let answer = now(world.ask(|ticket| Event::DeleteOffsets(ticket, places)));
    assert_eq!(answer, Ok(vec![Err(Refusal::Subscribed), Ok(())]));
    assert_eq!(
        (world.committed("t"), world.committed("former")),
        (Some(1), None)
    );
}
