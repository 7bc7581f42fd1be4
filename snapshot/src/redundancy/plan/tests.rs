use super::super::placement::{Node, Process};
use super::*;
use crate::redundancy::Scheme;
use proptest::prelude::*;

fn placement(scheme: &str, many: usize) -> Placement {
    let node = |i| Node { name: format!("n{i}"), domain: None, stores: vec![format!("s{i}")] };
    let nodes: Vec<Node> = (0..many).map(node).collect();
    let process = |i| Process { id: ProcessId(i as u32 + 1), node: format!("n{i}") };
    let processes: Vec<Process> = (0..many).map(process).collect();
    Placement::new(scheme.parse().unwrap(), &nodes, &processes).unwrap()
}

fn image(process: ProcessId, epoch: u64, attempt: u64) -> Image {
    let bytes = 5000 + u64::from(process.0);
    Image { process, epoch, bytes, seal: u64::from(process.0) << 8 | attempt }
}

/// What all stores say at `epoch`.
fn answers(placement: &Placement, epoch: u64, attempt: u64) -> Vec<Answer> {
    let mut answers: BTreeMap<String, Answer> = BTreeMap::new();
    for (store, _) in placement.loads() {
        answers.insert(store.into(), Answer { store: store.into(), ..Answer::default() });
    }
    for group in 0..placement.groups() {
        let members = placement.members(group);
        let images: Vec<Image> = members.iter().map(|it| image(*it, epoch, attempt)).collect();
        for (_, role, store) in placement.shares(group) {
            let answer = answers.get_mut(store).unwrap();
            match role {
                Role::Image(process) => answer.images.push(image(process, epoch, attempt)),
                Role::Parity(index) => answer.parity.push(Header {
                    scheme: placement.scheme(),
                    group: group as u32,
                    index,
                    images: images.clone(),
                }),
            }
        }
    }
    answers.into_values().collect()
}

/// What a plan says can be followed with these answers, and gives images of this epoch alone.
fn check(placement: &Placement, plan: &Plan, epoch: u64, answers: &[Answer]) {
    fn at<'a>(answers: &'a [Answer], store: &'a str) -> impl Iterator<Item = &'a Answer> {
        answers.iter().filter(move |it| it.store == store)
    }
    for (process, step) in plan.steps() {
        match step {
            Step::Read { image, stores } => {
                assert!(image.process == process && image.epoch == epoch && !stores.is_empty());
                for store in stores {
                    assert!(at(answers, store).any(|it| it.images.contains(image)));
                }
            }
            Step::Rebuild { image, index, group, shares } => {
                assert_eq!((group[*index], image.process, image.epoch), (*image, process, epoch));
                assert!(shares.len() >= group.len());
                for (i, store) in shares {
                    assert!(match i.checked_sub(group.len()) {
                        None => at(answers, store).any(|it| it.images.contains(&group[*i])),
                        Some(parity) => at(answers, store)
                            .flat_map(|it| &it.parity)
                            .any(|it| { it.index == parity && it.images == *group }),
                    });
                    assert_ne!(i, index);
                }
                // And the images of the group that are read are those that this one is rebuilt with.
                for other in group {
                    if let Some(Step::Read { image, .. }) = plan.step(other.process) {
                        assert_eq!(image, other);
                    }
                }
            }
            Step::Missing(missing) => {
                assert_eq!(missing.process, process);
                assert_eq!(placement.group_of(process), Some(missing.group));
                assert!(!missing.absent.is_empty());
            }
        }
    }
}

const SCHEMES: [&str; 6] = ["copies:1", "copies:2", "xor:3", "rs:2+2", "rs:3+2", "rs:4+2"];

/// Every set of nodes that do not answer: what the plan says is missing is what the placement says.
#[test]
fn a_plan_misses_what_the_placement_says_is_gone() {
    for (scheme, many) in SCHEMES.into_iter().flat_map(|scheme| [(scheme, 6), (scheme, 7)]) {
        let placement = placement(scheme, many);
        let all = answers(&placement, 9, 0);
        for bits in 0u32..1 << many {
            let lost: Vec<String> =
                (0..many).filter(|i| bits >> i & 1 == 1).map(|i| i.to_string()).collect();
            let stores: Vec<String> = lost.iter().map(|i| format!("s{i}")).collect();
            let nodes: Vec<String> = lost.iter().map(|i| format!("n{i}")).collect();
            let nodes: Vec<&str> = nodes.iter().map(String::as_str).collect();
            let left: Vec<Answer> =
                all.iter().filter(|it| !stores.contains(&it.store)).cloned().collect();
            let plan = Plan::new(&placement, 9, &left);
            check(&placement, &plan, 9, &left);
            let mut told: Vec<&Missing> = plan.missing().collect();
            let mut gone = placement.missing(&nodes).unwrap();
            told.sort_by_key(|it| it.process);
            gone.sort_by_key(|it| it.process);
            assert_eq!(told, gone.iter().collect::<Vec<_>>(), "{scheme}, {nodes:?}");
            if lost.len() <= placement.scheme().losses() {
                assert!(told.is_empty());
            }
        }
    }
}

#[test]
fn epochs_are_never_combined() {
    let placement = placement("xor:3", 4);
    let lost = placement.stores_of(ProcessId(1)).next().unwrap().to_owned();
    let mut old = answers(&placement, 8, 0);
    old.retain(|it| it.store != lost);
    for answer in &mut old {
        // All are at epoch 9 but for the parity.
        let newer = |it: &Image| image(it.process, 9, 0);
        answer.images = answer.images.iter().map(newer).collect();
    }
    let plan = Plan::new(&placement, 9, &old);
    let Some(Step::Missing(missing)) = plan.step(ProcessId(1)) else { panic!("{plan:?}") };
    assert_eq!(missing.absent.len(), 2);
    assert_eq!((&missing.absent[0].store, &missing.absent[0].why), (&lost, &Why::Lost));
    assert_eq!(missing.absent[1].why, Why::OtherEpochs(vec![8]));
    let text = missing.to_string();
    assert!(text.contains("has it of epoch 8 only"), "{text}");
    // Nor can it be had of epoch 8.
    let plan = Plan::new(&placement, 8, &old);
    assert!(matches!(plan.step(ProcessId(1)), Some(Step::Missing(_))));
}

#[test]
fn two_attempts_at_one_epoch_are_never_combined() {
    let placement = placement("rs:3+2", 5);
    let members = placement.members(0).to_vec();
    let store = |role: Role| {
        let mut shares = placement.shares(0);
        shares.find(|(_, it, _)| *it == role).map(|(_, _, store)| store.to_owned()).unwrap()
    };
    // The first member's store is lost; the second one has a later attempt, the third one the first.
    let mut mixed = answers(&placement, 9, 1);
    mixed.retain(|it| it.store != store(Role::Image(members[0])));
    for answer in &mut mixed {
        for it in answer.images.iter_mut().filter(|it| it.process == members[1]) {
            *it = image(members[1], 9, 2);
        }
    }
    let plan = Plan::new(&placement, 9, &mixed);
    check(&placement, &plan, 9, &mixed);
    let Some(Step::Missing(missing)) = plan.step(members[0]) else { panic!("{plan:?}") };
    assert!(missing.absent.iter().any(|it| it.why == Why::OtherImages), "{missing}");
    // With both attempts of the second one there, parity says which goes with it.
    let stray =
        Answer { store: "stray".into(), images: vec![image(members[1], 9, 1)], parity: Vec::new() };
    mixed.push(stray);
    let plan = Plan::new(&placement, 9, &mixed);
    check(&placement, &plan, 9, &mixed);
    let Some(Step::Rebuild { image: first, .. }) = plan.step(members[0]) else {
        panic!("{plan:?}")
    };
    let Some(Step::Read { image: second, stores }) = plan.step(members[1]) else {
        panic!("{plan:?}")
    };
    assert_eq!((*first, *second), (image(members[0], 9, 1), image(members[1], 9, 1)));
    assert_eq!(*stores, ["stray"]);
}

#[test]
fn answers_of_another_job_or_shape_count_for_nothing() {
    let placement = placement("rs:2+2", 4);
    let lost = placement.stores_of(ProcessId(1)).next().unwrap().to_owned();
    let group = placement.group_of(ProcessId(1)).unwrap();
    let mut left = answers(&placement, 9, 0);
    left.retain(|it| it.store != lost);
    assert_eq!(Plan::new(&placement, 9, &left).missing().count(), 0);
    let spoil = |how: &dyn Fn(&mut Header)| {
        let mut left = left.clone();
        let parity = left.iter_mut().flat_map(|it| &mut it.parity);
        parity.filter(|it| it.group as usize == group).for_each(how);
        let plan = Plan::new(&placement, 9, &left);
        check(&placement, &plan, 9, &left);
        assert!(matches!(plan.step(ProcessId(1)), Some(Step::Missing(_))));
    };
    spoil(&|it| it.scheme = Scheme::ReedSolomon { data: 3, parity: 2 });
    spoil(&|it| it.group = 99);
    spoil(&|it| it.index = 2);
    spoil(&|it| it.images.reverse());
    spoil(&|it| it.images.truncate(1));
    spoil(&|it| it.images[0].epoch = 8);
    spoil(&|it| it.images.clear());
}

#[test]
fn copies_that_contradict_each_other_are_not_read() {
    let placement = placement("copies:2", 4);
    let first = placement.stores_of(ProcessId(1)).next().unwrap().to_owned();
    let mut all = answers(&placement, 9, 0);
    for answer in all.iter_mut().filter(|it| it.store == first) {
        let mine = answer.images.iter_mut().filter(|it| it.process == ProcessId(1));
        mine.for_each(|it| it.seal += 1);
    }
    let plan = Plan::new(&placement, 9, &all);
    assert_eq!(plan.missing().count(), 1);
    let Some(Step::Missing(missing)) = plan.step(ProcessId(1)) else { panic!("{plan:?}") };
    assert!(missing.absent.iter().all(|it| it.why == Why::Contradicts), "{missing}");
    // Found to be damaged, it goes out of the answers, and the other one is read.
    all.retain(|it| it.store != first);
    let plan = Plan::new(&placement, 9, &all);
    let Some(Step::Read { stores, .. }) = plan.step(ProcessId(1)) else { panic!("{plan:?}") };
    assert_eq!(*stores, placement.stores_of(ProcessId(1)).skip(1).collect::<Vec<_>>());
}

#[test]
fn of_two_groups_that_could_be_rebuilt_neither_is() {
    let placement = placement("xor:2", 4);
    let members = placement.members(0).to_vec();
    let parity = |attempt| Header {
        scheme: placement.scheme(),
        group: 0,
        index: 0,
        images: members.iter().map(|it| image(*it, 9, attempt)).collect(),
    };
    // The second member has two images, and each goes with one parity.
    let said = |attempt| Answer {
        store: format!("s{attempt}"),
        images: vec![image(members[1], 9, attempt)],
        parity: vec![parity(attempt)],
    };
    let one = Plan::new(&placement, 9, &[said(1)]);
    assert!(matches!(one.step(members[0]), Some(Step::Rebuild { .. })));
    let both = [said(1), said(2)];
    let plan = Plan::new(&placement, 9, &both);
    check(&placement, &plan, 9, &both);
    assert!(members.iter().all(|it| matches!(plan.step(*it), Some(Step::Missing(_)))));
}

proptest! {
    /// Whatever stores say, of whatever epochs and attempts, a plan can be followed and mixes nothing.
    #[test]
    fn whatever_stores_say_a_plan_mixes_nothing(
        scheme in prop::sample::select(SCHEMES.as_slice()),
        from in prop::collection::vec((7u64..10, 0u64..2, 0usize..7, any::<u16>()), 0..24),
    ) {
        let placement = placement(scheme, 7);
        let mut said: Vec<Answer> = Vec::new();
        for (epoch, attempt, at, keep) in from {
            // Some of what that store would say of that attempt.
            let mut answer = answers(&placement, epoch, attempt).swap_remove(at);
            let mut bit = 0;
            let mut some = || {
                bit += 1;
                keep >> (bit % 16) & 1 == 1
            };
            answer.images.retain(|_| some());
            answer.parity.retain(|_| some());
            said.push(answer);
        }
        for epoch in 7..10 {
            let plan = Plan::new(&placement, epoch, &said);
            prop_assert_eq!(plan.steps().count(), 7);
            check(&placement, &plan, epoch, &said);
        }
    }
}
