//! Several at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::errno::Errno;

use super::*;
use crate::real_nft::open;

const ROUNDS: usize = 20;

/// The agent, which finds a host without rules, looks while the first container comes: what it sees between two looks at a group is no
/// damage, and making it anew would take away the chains of what is about to come.
#[test]
fn what_an_add_is_making_is_not_made_anew() {
    let mut kernel = fresh_host();
    let is_over = AtomicBool::new(false);
    let (intact, renewed) = thread::scope(|scope| {
        let agent = scope.spawn(|| {
            let (mut kernel, mut renewed) = (open(), 0);
            while !is_over.load(Ordering::Relaxed) {
                renewed += usize::from(renew_others(&mut kernel, &Elements::default()).unwrap());
            }
            renewed
        });
        let round = |_| {
            let made = ensure_all(&mut kernel);
            let whole = GROUPS.iter().all(|group| group::is_intact(&mut kernel, group).unwrap());
            undo(&mut kernel, &made).unwrap();
            whole && made.len() == GROUPS.len()
        };
        let intact = (0..ROUNDS).map(round).filter(|intact| *intact).count();
        is_over.store(true, Ordering::Relaxed);
        (intact, agent.join().unwrap())
    });
    assert_eq!((intact, renewed), (ROUNDS, 0));
}

#[test]
fn what_is_made_for_a_former_state_is_refused() {
    let mut kernel = fresh_host();
    let before = kernel.generation().unwrap();
    let change = || vec![Change::ensure_table(Table::Inet)];
    kernel.batch_in(before, change()).unwrap();
    let now = kernel.generation().unwrap();
    assert_ne!(now, before);
    assert_eq!(kernel.batch_in(before, change()).unwrap_err().errno, Errno::ERESTART);
    kernel.batch_in(now, change()).unwrap();
}
