//! Parity between operating system processes: stores are the program `sojourn-store`, and the processes of the job are
//! this test program again. The test itself decides for the job, and kills.

mod history;
mod rank;
mod world;

use std::time::Duration;
use world::World;

/// Bytes of a process, about.
const SMALL: usize = 200_000;

#[test]
#[ignore = "the entry point of the processes that the other tests start"]
fn part() {
    match std::env::var(world::PART).as_deref() {
        Ok("rank") => rank::run(),
        Ok(other) => panic!("{}={other} is no part", world::PART),
        Err(_) => println!("skipped: {} is not set, so no test has started this", world::PART),
    }
}

#[test]
fn with_xor_any_one_node_may_be_lost_and_a_second_is_named() {
    for node in 0..4 {
        let mut world = World::new("xor:3", 4, 3, SMALL);
        (0..3).for_each(|_| drop(world.epoch()));
        world.kill_node(node);
        assert_eq!(world.restore(), Ok(world.committed), "without node {node}");
        let other = (node + 1) % 4;
        world.kill_node(other);
        let error = world.restore().unwrap_err();
        assert!(
            error.contains("of the 4 shares of group 0, 2 are missing, and xor:3 makes up for 1"),
            "{error}"
        );
        for node in [node, other] {
            assert!(error.contains(&format!("/s{node}\" does not answer)")), "s{node}: {error}");
        }
    }
}

#[test]
fn with_reed_solomon_any_two_nodes_may_be_lost_and_a_third_is_named() {
    for nodes in [[0, 1], [1, 4], [3, 4], [0, 3]] {
        let mut world = World::new("rs:3+2", 5, 3, SMALL);
        (0..2).for_each(|_| drop(world.epoch()));
        nodes.iter().for_each(|node| world.kill_node(*node));
        assert_eq!(world.restore(), Ok(world.committed), "without nodes {nodes:?}");
        world.kill_node(2);
        let error = world.restore().unwrap_err();
        assert!(error.contains("of the 5 shares of group 0, 3 are missing"), "{error}");
    }
}

#[test]
fn what_was_rebuilt_is_gone_on_from_with_parity_of_its_own() {
    let mut world = World::new("xor:3", 5, 3, SMALL);
    (0..3).for_each(|_| drop(world.epoch()));
    world.kill_node(world.image_node(2));
    assert_eq!(world.restore(), Ok(world.committed));
    world.go_on();
    // Another store takes the place of the lost one; what is lost then is made up for again.
    (0..3).for_each(|_| drop(world.epoch()));
    world.kill_node(world.image_node(1));
    assert_eq!(world.restore(), Ok(world.committed));
}

#[test]
fn a_store_of_parity_that_is_gone_is_replaced_in_the_same_epoch() {
    let mut world = World::new("xor:3", 5, 3, SMALL);
    (0..2).for_each(|_| drop(world.epoch()));
    world.kill_store(world.parity_node(0));
    world.epoch();
    world.kill_node(world.image_node(3));
    assert_eq!(world.restore(), Ok(world.committed));
}

#[test]
fn only_what_has_changed_is_read_again_and_parity_is_the_same_as_made_of_all() {
    let mut world = World::new("rs:3+2", 5, 3, 20 * SMALL);
    let first = world.epoch();
    let all = first.iter().map(|it| it.computed).max().unwrap();
    world.epoch();
    for turn in 0..8 {
        let made = world.epoch();
        assert_eq!(made.len(), 2);
        for made in made {
            assert!(made.computed < all / 4, "turn {turn}: {} of {all} chunks", made.computed);
            assert!(made.read < first[0].read / 4, "turn {turn}: {} bytes", made.read);
        }
    }
    // Two images are rebuilt from what was made bit by bit; each chunk of them has its checksum.
    world.kill_node(world.image_node(1));
    world.kill_node(world.image_node(3));
    assert_eq!(world.restore(), Ok(world.committed));
}

#[test]
fn a_store_that_is_killed_while_parity_is_made_leaves_the_epoch_before() {
    for (round, millis) in [0, 2, 10, 30, 60, 120].into_iter().enumerate() {
        let mut world = World::new("xor:3", 4, 3, 10 * SMALL);
        (0..2).for_each(|_| drop(world.epoch()));
        let before = world.committed;
        let victim = if round % 2 == 0 {
            world.parity_node(0)
        } else {
            world.image_node(1 + round as u64 / 2)
        };
        world.seal();
        let made = world.gather_while(|world| {
            std::thread::sleep(Duration::from_millis(millis));
            world.kill_store(victim);
        });
        // It may have been made before. Where a store took the place of another, it was made there.
        match made {
            Ok(()) => world.commit(),
            Err(_) => world.abort(),
        }
        assert!(world.committed >= before);
        assert_eq!(world.restore(), Ok(world.committed), "killed after {millis} ms");
    }
}

#[test]
fn an_epoch_that_was_never_made_whole_is_not_restored() {
    let mut world = World::new("xor:3", 4, 3, SMALL);
    (0..2).for_each(|_| drop(world.epoch()));
    let before = world.committed;
    // All images are complete, and their parity is not.
    world.seal();
    assert_eq!(world.restore(), Ok(before));
    // Nor with a node lost, which only the parity of the epoch before makes up for.
    world.kill_node(world.image_node(2));
    assert_eq!(world.restore(), Ok(before));
    world.replace_store(world.image_node(2));
    world.go_on();
    world.epoch();
    assert_eq!(world.restore(), Ok(world.committed));
}

#[test]
fn parity_of_an_epoch_that_was_not_gone_on_from_is_made_anew() {
    let mut world = World::new("xor:2", 3, 4, SMALL);
    (0..2).for_each(|_| drop(world.epoch()));
    let before = world.committed;
    // One group has it all, the other has not.
    world.seal();
    world.gather_one(0);
    assert_eq!(world.restore(), Ok(before));
    world.go_on();
    // The next epoch has the same count, and other contents.
    world.turn();
    world.epoch();
    world.kill_node(world.image_node(1));
    assert_eq!(world.restore(), Ok(world.committed));
}
