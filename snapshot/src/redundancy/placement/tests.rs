use super::*;
use proptest::prelude::*;

fn nodes(domains: &[Option<usize>]) -> Vec<Node> {
    let node = |(i, domain): (usize, &Option<usize>)| Node {
        name: format!("n{i}"),
        domain: domain.map(|it| format!("rack {it}")),
        stores: vec![format!("s{i}")],
    };
    domains.iter().enumerate().map(node).collect()
}

fn processes(on: &[usize]) -> Vec<Process> {
    let process = |(i, node): (usize, &usize)| Process {
        id: ProcessId(i as u32 + 1),
        node: format!("n{node}"),
    };
    on.iter().enumerate().map(process).collect()
}

fn schemes() -> Vec<Scheme> {
    let texts = ["copies:1", "copies:2", "copies:3", "xor:2", "xor:3", "xor:4"];
    let more = ["rs:2+1", "rs:2+2", "rs:3+2", "rs:4+2", "rs:2+3"];
    texts.iter().chain(&more).map(|text| text.parse().unwrap()).collect()
}

/// Where processes of a job of so many nodes may run.
fn homes(many: usize) -> Vec<Vec<usize>> {
    vec![
        (0..many).collect(),
        (0..2 * many).map(|i| i / 2).collect(),
        (0..many + 3).map(|i| i % many).collect(),
        vec![0; many],
        (0..many).map(|i| i % many.div_ceil(2)).collect(),
        vec![many - 1],
    ]
}

fn racks(many: usize) -> Vec<Vec<Option<usize>>> {
    vec![
        vec![None; many],
        (0..many).map(|i| Some(i / 2)).collect(),
        (0..many).map(|i| Some(i % 2)).collect(),
        (0..many).map(|i| (i % 3 != 0).then_some(i % 2)).collect(),
        vec![Some(0); many],
    ]
}

fn node_of(placement: &Placement, store: &str) -> usize {
    placement.places[placement.place(store).unwrap()].node
}

/// The rules that hold for every placement.
fn check(placement: &Placement) {
    let mut loads = BTreeMap::new();
    for group in 0..placement.groups() {
        let shares: Vec<_> = placement.shares(group).collect();
        let on: BTreeSet<usize> =
            shares.iter().map(|(_, _, store)| node_of(placement, store)).collect();
        assert_eq!(on.len(), shares.len(), "two shares of a group on one node");
        for (_, role, store) in &shares {
            *loads.entry((*store).to_owned()).or_insert(0) += 1;
            assert!(!placement.places[placement.place(store).unwrap()].gone);
            if let Role::Image(process) = role {
                assert_ne!(node_of(placement, store), placement.homes[process], "at home");
            }
        }
        let images = placement.members(group).iter().map(|it| placement.stores_of(*it).count());
        assert!(images.into_iter().all(|many| many == placement.scheme().copies()));
    }
    for (store, load) in placement.loads() {
        assert_eq!(loads.get(store).copied().unwrap_or_default(), load);
    }
}

fn subsets(many: usize) -> impl Iterator<Item = Vec<usize>> {
    (0u32..1 << many).map(move |bits| (0..many).filter(|i| bits >> i & 1 == 1).collect())
}

/// What of a placement is gone with these nodes, counted in another way: whose images can't be had.
fn gone(placement: &Placement, lost: &[usize]) -> Vec<ProcessId> {
    let mut processes = Vec::new();
    for group in 0..placement.groups() {
        let (left, dead): (Vec<_>, Vec<_>) = placement
            .shares(group)
            .partition(|(_, _, store)| !lost.contains(&node_of(placement, store)));
        for process in placement.members(group) {
            let has = |(_, role, _): &(Share, Role, &str)| *role == Role::Image(*process);
            let enough = match placement.scheme() {
                Scheme::Copies(_) => false,
                _ => left.len() >= placement.members(group).len(),
            };
            assert_eq!(left.len() + dead.len(), placement.shares(group).count());
            if !left.iter().any(has) && !enough {
                processes.push(*process);
            }
        }
    }
    processes
}

/// Every small job, every set of lost nodes: within the promise nobody is missing, and beyond it those
/// are named who are, with the shares that are gone.
#[test]
fn any_loss_within_the_promise_leaves_every_epoch() {
    let (mut placed, mut beyond) = (0, 0);
    for many in 2..=7 {
        for (scheme, on, domains) in schemes().into_iter().flat_map(|scheme| {
            homes(many).into_iter().flat_map(move |on| {
                racks(many).into_iter().map(move |domains| (scheme, on.clone(), domains))
            })
        }) {
            let all = nodes(&domains);
            let Ok(placement) = Placement::new(scheme, &all, &processes(&on)) else { continue };
            placed += 1;
            check(&placement);
            for lost in subsets(many) {
                let names: Vec<&str> = lost.iter().map(|i| all[*i].name.as_str()).collect();
                let missing = placement.missing(&names).unwrap();
                let who: Vec<ProcessId> = missing.iter().map(|it| it.process).collect();
                assert_eq!(who, gone(&placement, &lost), "{scheme}, {on:?}, {lost:?}");
                if lost.len() <= scheme.losses() {
                    assert!(who.is_empty(), "{scheme}, {on:?}, {domains:?}, {lost:?}: {missing:?}");
                }
                if lost.len() <= scheme.own_losses() {
                    let died = |it: &&ProcessId| lost.contains(&placement.homes[*it]);
                    assert_eq!(who.iter().find(died), None, "{scheme}, {on:?}, {lost:?}");
                }
                for it in &missing {
                    beyond += 1;
                    let stores: Vec<&str> = it.absent.iter().map(|it| it.store.as_str()).collect();
                    let dead = placement.shares(it.group).map(|(_, _, store)| store);
                    let dead: Vec<&str> =
                        dead.filter(|store| lost.contains(&node_of(&placement, store))).collect();
                    assert_eq!(stores, dead);
                    assert!(it.absent.len() > scheme.losses());
                    let text = it.to_string();
                    assert!(text.starts_with(&it.process.to_string()), "{text}");
                    assert!(stores.iter().all(|store| text.contains(&format!("{store:?}"))));
                }
            }
            // The promise of whole failure domains.
            let of: Vec<usize> = placement.domains();
            let racks: BTreeSet<usize> = of.iter().copied().collect();
            let racks: Vec<usize> = racks.into_iter().collect();
            for lost in subsets(racks.len()).filter(|it| it.len() <= placement.domain_losses()) {
                let inside = |i: &usize| lost.iter().any(|rack| racks[*rack] == of[*i]);
                let lost: Vec<usize> = (0..many).filter(inside).collect();
                assert!(gone(&placement, &lost).is_empty(), "{scheme}, {on:?}, {domains:?}");
            }
        }
    }
    assert!(placed > 1000 && beyond > 10_000, "{placed} jobs, {beyond} losses beyond");
}

#[test]
fn the_smallest_loss_beyond_the_promise_names_what_is_gone() {
    let make = |scheme: &str, many: usize| {
        let on: Vec<usize> = (0..many).collect();
        Placement::new(scheme.parse().unwrap(), &nodes(&vec![None; many]), &processes(&on)).unwrap()
    };
    let copies = make("copies:1", 3);
    let missing = copies.missing(&["n1"]).unwrap();
    assert_eq!(missing.len(), 1);
    assert_eq!(
        missing[0].to_string(),
        "process 1 can't be restored: of its 1 images, 1 are missing: the image of process 1 (store \
         \"s1\" does not answer)"
    );
    let xor = make("xor:2", 3);
    let two: Vec<&str> = xor.shares(0).take(2).map(|(_, _, store)| store).collect();
    let names: Vec<String> = two.iter().map(|it| it.replace('s', "n")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let missing = xor.missing(&names).unwrap();
    let of_group: Vec<_> = missing.iter().filter(|it| it.group == 0).collect();
    assert_eq!(of_group.len(), 2);
    let text = of_group[0].to_string();
    assert!(text.contains("of the 3 shares of group 0, 2 are missing, and xor:2 makes up for 1"));
    assert_eq!(xor.missing(&["nowhere"]).unwrap_err().errno(), libc::ENOENT);
}

#[test]
fn too_few_nodes_are_told_how_many_are_needed() {
    let refused = |scheme: &str, many: usize, on: &[usize], words: &str| {
        let made =
            Placement::new(scheme.parse().unwrap(), &nodes(&vec![None; many]), &processes(on));
        let error = made.unwrap_err();
        assert_eq!(error.errno(), libc::ENOSPC);
        assert!(error.to_string().contains(words), "{error}");
    };
    refused("rs:4+2", 5, &[0, 1, 2, 3], "rs:4+2 needs 6 nodes with stores");
    refused("rs:4+2", 5, &[0, 1, 2, 3], "this job has 5");
    refused(
        "copies:2",
        2,
        &[1],
        "needs 2 other nodes with stores beside \"n1\", on which process 1",
    );
    refused("copies:2", 2, &[1], "this job has 2, which leaves 1");
    refused("xor:2", 2, &[0, 1], "xor:2 needs 3 nodes");
    let mut bare = nodes(&[None; 6]);
    bare[2].stores.clear();
    let made = Placement::new("rs:4+2".parse().unwrap(), &bare, &processes(&[0, 1, 2, 3]));
    assert!(made.unwrap_err().to_string().contains("this job has 5, and 1 without"));
    // With just as many as it says, it can be done.
    for on in [vec![0, 1, 2, 3], vec![0; 4], vec![5, 5, 4, 4]] {
        let all = nodes(&[None; 6]);
        check(&Placement::new("rs:4+2".parse().unwrap(), &all, &processes(&on)).unwrap());
    }
}

#[test]
fn a_job_that_makes_no_sense_is_refused_by_name() {
    let refused = |nodes: &[Node], processes: &[Process], words: &str| {
        let error = Placement::new(Scheme::Copies(1), nodes, processes).unwrap_err();
        assert_eq!(error.errno(), libc::EINVAL);
        assert!(error.to_string().contains(words), "{error}");
    };
    let three = nodes(&[None; 3]);
    let mut twice = three.clone();
    twice[2].name = "n0".into();
    refused(&twice, &[], "two nodes are called \"n0\"");
    let mut twice = three.clone();
    twice[2].stores = vec!["s1".into()];
    refused(&twice, &[], "two stores are called \"s1\"");
    refused(&three, &processes(&[7]), "process 1 runs on \"n7\"");
    let mut two = processes(&[0, 1]);
    two[1].id = two[0].id;
    refused(&three, &two, "process 1 is named twice");
    let nobody = Placement::new(Scheme::Copies(1), &three, &[]).unwrap();
    assert_eq!((nobody.groups(), nobody.domain_losses()), (0, 0));
}

#[test]
fn shares_are_on_different_racks_where_there_are_enough() {
    // Six racks of two nodes.
    let domains: Vec<_> = (0..12).map(|i| Some(i / 2)).collect();
    let on: Vec<usize> = (0..12).collect();
    for scheme in schemes() {
        let placement = Placement::new(scheme, &nodes(&domains), &processes(&on)).unwrap();
        check(&placement);
        if placement.scheme().group() + scheme.parity() <= 6 {
            assert_eq!(placement.domain_losses(), scheme.losses(), "{scheme}");
        }
        let own = |process: &ProcessId| {
            let home = placement.nodes[placement.homes[process]].domain;
            placement
                .stores_of(*process)
                .any(|it| placement.domain_of(placement.place(it).unwrap()) == home)
        };
        if let Scheme::Copies(_) = scheme {
            assert_eq!(
                placement.homes.keys().find(|it| own(it)),
                None,
                "{scheme}: in its own rack"
            );
        }
    }
    // Three racks for six shares: two in each, so one rack may go.
    let domains: Vec<_> = (0..9).map(|i| Some(i % 3)).collect();
    let scheme = "rs:4+2".parse().unwrap();
    let placement = Placement::new(scheme, &nodes(&domains), &processes(&[0, 1, 2, 3])).unwrap();
    assert_eq!(placement.domain_losses(), 1);
}

#[test]
fn load_is_even_where_a_process_runs_on_every_node() {
    for many in 2..=24 {
        for (scheme, per_node) in schemes().into_iter().flat_map(|it| [(it, 1), (it, 4)]) {
            let on: Vec<usize> = (0..many * per_node).map(|i| i % many).collect();
            let made = Placement::new(scheme, &nodes(&vec![None; many]), &processes(&on));
            let Ok(placement) = made else { continue };
            let loads = placement.loads();
            let (most, least) = (loads[0].1, loads[loads.len() - 1].1);
            assert!(most - least <= 1, "{scheme} on {many}: {loads:?}");
        }
    }
}

proptest! {
    /// Rules hold, and the same input gives the same output; whatever goes, only what was there moves
    /// (or shares of the same group that make room), and the rules hold again.
    #[test]
    fn a_store_that_is_replaced_moves_only_what_it_held(
        scheme in prop::sample::select(schemes()),
        racks in prop::collection::vec(prop::option::of(0usize..4), 4..10),
        on in prop::collection::vec(any::<prop::sample::Index>(), 1..16),
        gone in any::<prop::sample::Index>(),
        spare in any::<bool>(),
    ) {
        let all = nodes(&racks);
        let on: Vec<usize> = on.iter().map(|it| it.index(racks.len())).collect();
        let made = Placement::new(scheme, &all, &processes(&on));
        let Ok(before) = made else { return Ok(()) };
        check(&before);
        prop_assert_eq!(&Placement::new(scheme, &all, &processes(&on)).unwrap(), &before);
        let mut after = before.clone();
        let gone = format!("s{}", gone.index(racks.len()));
        if spare {
            let new = Node { name: "new".into(), domain: None, stores: vec!["spare".into()] };
            after.add(&new).unwrap();
            prop_assert_eq!(after.replace(&["s99"]).unwrap_err().errno(), libc::ENOENT);
        }
        let unchanged = after.clone();
        let moves = match after.replace(&[&gone]) {
            Ok(moves) => moves,
            Err(error) => {
                prop_assert!(!spare, "{}", error);
                prop_assert_eq!(error.errno(), libc::ENOSPC);
                prop_assert_eq!(&after, &unchanged);
                return Ok(());
            }
        };
        check(&after);
        let held: BTreeSet<Share> = before.held_by(&gone).map(|(share, _)| share).collect();
        let moved: BTreeSet<Share> = moves.iter().map(|it| it.share).collect();
        prop_assert!(held.is_subset(&moved));
        for it in &moves {
            prop_assert!(held.iter().any(|share| share.group == it.share.group));
            if spare {
                // There is a free node for everything.
                prop_assert!(held.contains(&it.share), "{:?} moved", it);
            }
        }
        for group in 0..before.groups() {
            for (old, new) in before.shares(group).zip(after.shares(group)) {
                let told = moves.iter().find(|it| it.share == old.0);
                prop_assert_eq!((old.0, old.1), (new.0, new.1));
                prop_assert_eq!(old.2 != new.2, told.is_some());
                if let Some(told) = told {
                    prop_assert_eq!((told.from.as_str(), told.to.as_str()), (old.2, new.2));
                }
            }
        }
        prop_assert!(after.domain_losses() <= scheme.losses());
    }

    /// A process that runs elsewhere is never where its image is.
    #[test]
    fn a_process_that_moves_leaves_its_images_elsewhere(
        scheme in prop::sample::select(schemes()),
        many in 5usize..9,
        moves in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 1..5),
    ) {
        let on: Vec<usize> = (0..many).collect();
        let made = Placement::new(scheme, &nodes(&vec![None; many]), &processes(&on));
        let Ok(mut placement) = made else { return Ok(()) };
        for (who, to) in moves {
            let who = ProcessId(who.index(many) as u32 + 1);
            let to = format!("n{}", to.index(many));
            let before = placement.clone();
            match placement.relocate(who, &to) {
                Ok(moves) => {
                    check(&placement);
                    prop_assert_eq!(placement.home_of(who), Some(to.as_str()));
                    let group = placement.group_of(who).unwrap();
                    prop_assert!(moves.iter().all(|it| it.share.group == group));
                    let was_there = before.stores_of(who).any(|it| it == to.replace('n', "s"));
                    prop_assert_eq!(moves.is_empty(), !was_there);
                }
                Err(error) => {
                    prop_assert_eq!(error.errno(), libc::ENOSPC);
                    prop_assert_eq!(&placement, &before);
                }
            }
        }
        prop_assert_eq!(placement.relocate(ProcessId(99), "n0").unwrap_err().errno(), libc::ENOENT);
    }
}

#[test]
fn groups_by_number_stay_what_they_are_wherever_processes_run() {
    for scheme in schemes() {
        for many in 2..9 {
            let nodes = nodes(&vec![None; many]);
            let mut groups: BTreeMap<usize, Vec<Vec<ProcessId>>> = BTreeMap::new();
            for on in homes(many) {
                let numbered = Placement::numbered(scheme, &nodes, &processes(&on));
                let Ok(numbered) = numbered else {
                    // Where there is no place for these, there is none for others.
                    assert!(Placement::new(scheme, &nodes, &processes(&on)).is_err(), "{scheme}");
                    continue;
                };
                check(&numbered);
                let all = (0..numbered.groups()).map(|group| numbered.members(group).to_vec());
                let all: Vec<_> = all.collect();
                assert!(all.concat().is_sorted());
                assert_eq!(*groups.entry(on.len()).or_insert_with(|| all.clone()), all);
            }
        }
    }
}
