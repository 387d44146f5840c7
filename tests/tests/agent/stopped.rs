//! A plugin that is stopped in the midst of its work, with a lock that the agent wants, too.

use weft_tests::hold;

use super::*;

/// What needs no lock is repaired in time all the same, and what is waited for is told.
#[test]
fn who_holds_a_lock_keeps_nothing_else_from_being_repaired() {
    let fleet = Fleet::new(1);
    let (node, agent) = (fleet.node(0), &fleet.agents[0]);
    let held = hold(node.state_dir().join(".networks/lock"));
    node.command("nft flush ruleset");
    eventually(PATIENCE, "it is not ready and names the lock", || {
        let answer = agent.ask("/readyz")?;
        (answer.status == 503 && answer.body.contains(".networks/lock")).then_some(())
    });
    for _ in 0..3 {
        node.command(&format!("ip link del {DEVICE}"));
        eventually(REPAIR, "the device is back", || node.link(DEVICE));
    }
    drop(held);
    eventually(Duration::from_secs(30), "the next look finds nobody at it", || {
        (agent.ask("/readyz")?.status == 200).then_some(())
    });
    assert!(node.command("nft list ruleset").contains("\"network "), "the rules know the network again");
}
