//! What survives: replies wait for the log, and a crash takes back nothing that was told.

use super::*;

#[test]
fn a_generation_is_written_before_anybody_joins_it() {
    let mut world = World::new();
    world.prompt = false;
    let mut a = world.join(old_client("a"));
    assert!(waits(&mut a));
    world.write_all();
    assert_eq!(joined(&mut a).generation, 1);
}

#[test]
fn an_assignment_is_written_before_anybody_gets_it() {
    let mut world = World::new();
    let mut a = world.join(old_client("a"));
    joined(&mut a);
    world.prompt = false;
    let mut sync = world.sync("a-1", 1, &[("a-1", "p0")]);
    assert!(waits(&mut sync));
    assert_eq!(world.group.state_name(), "CompletingRebalance");
    world.write_all();
    assert_eq!(share(sync), "p0");
}

#[test]
fn an_assignment_that_cannot_be_written_is_worked_out_again() {
    let mut world = World::new();
    let mut a = world.join(old_client("a"));
    joined(&mut a);
    world.prompt = false;
    let sync = world.sync("a-1", 1, &[("a-1", "p0")]);
    world.fail_write(WriteError::Unavailable);
    assert_eq!(now(sync), Err(Refusal::NotAvailable));
    assert_eq!(world.group.state_name(), "PreparingRebalance");
    world.prompt = true;
    let mut a = world.join(Join {
        member_id: "a-1".into(),
        ..old_client("a")
    });
    assert_eq!(joined(&mut a).generation, 2);
}

#[test]
fn a_generation_that_cannot_be_written_sends_its_members_back_to_ask_again() {
    let mut world = World::new();
    world.prompt = false;
    let a = world.join(old_client("a"));
    world.fail_write(WriteError::Unavailable);
    assert_eq!(refused(a), Refusal::NotAvailable);
    world.prompt = true;
    let mut a = world.join(Join {
        member_id: "a-1".into(),
        ..old_client("a")
    });
    assert_eq!(
        joined(&mut a).generation,
        1,
        "nobody was told of the first attempt"
    );
}

#[test]
fn events_wait_while_a_change_is_written_and_then_see_its_result() {
    let mut world = World::new();
    let mut a = world.join(old_client("a"));
    joined(&mut a);
    world.prompt = false;
    world.sync("a-1", 1, &[("a-1", "p0")]);
    let mut again = world.sync("a-1", 1, &[]);
    let mut late = world.join(old_client("b"));
    assert!(waits(&mut again) && waits(&mut late));
    assert_eq!(
        world.heartbeat("a-1", 1),
        Ok(()),
        "signs of life do not wait"
    );
    world.write_all();
    assert_eq!(share(again), "p0");
    assert_eq!(world.group.state_name(), "PreparingRebalance");
}

#[test]
fn a_stable_group_survives_a_crash_and_nobody_notices() {
    let mut world = World::new();
    let generation = world.stable_pair();
    now(world.commit("a-1", generation, 17)).unwrap();
    let before = world.group.remembered();
    world.crash();
    assert_eq!(world.group.remembered(), before);
    assert_eq!(world.heartbeat("a-1", generation), Ok(()));
    assert_eq!(share(world.sync("b-2", generation, &[])), "p1");
    assert_eq!(world.committed("t"), Some(17));
    world.pass(10_000);
    assert_eq!(
        world.group.state_name(),
        "Empty",
        "sessions start anew, and end"
    );
}

#[test]
fn a_crash_between_join_and_sync_keeps_the_generation() {
    let mut world = World::new();
    let mut a = world.join(old_client("a"));
    joined(&mut a);
    world.crash();
    assert_eq!(world.group.state_name(), "CompletingRebalance");
    assert_eq!(share(world.sync("a-1", 1, &[("a-1", "p0")])), "p0");
}

#[test]
fn the_last_member_learns_that_it_left_when_the_log_knows() {
    let mut world = World::new();
    let mut a = world.join(old_client("a"));
    joined(&mut a);
    world.prompt = false;
    let mut leave = world.leave("a-1");
    assert!(waits(&mut leave));
    world.fail_write(WriteError::Unavailable);
    assert_eq!(now(leave), Err(Refusal::NotAvailable));
    world.prompt = true;
    world.pass(1_000);
    assert_eq!(world.group.state_name(), "Empty", "it is tried again");
    world.crash();
    assert_eq!(
        (world.group.state_name(), world.group.generation()),
        ("Empty", 2)
    );
}
