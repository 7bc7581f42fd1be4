//! PageRank as a timely dataflow: a loop whose timestamp is the iteration.
//!
//! A worker owns the nodes whose number is its own modulo the number of workers. Edges travel to
//! the owner of their source; then, in each iteration, shares to the owner of their target. A
//! worker goes on once the frontier says that all shares of the iteration are in.

use crate::graph::Graph;
use crate::rank;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use timely::dataflow::ProbeHandle;
use timely::dataflow::channels::pact::Exchange as Routed;
use timely::dataflow::operators::{
    ConnectLoop, Exchange, Feedback, Inspect, OkErr, Operator, Probe, ToStream,
};
use timely::worker::Worker;

/// What circulates.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Message {
    /// A node gets a share of rank.
    Share(u32, u64),
    /// A worker hears what nodes without targets give away.
    Dangling(u32, u64),
    /// The rank of a node after the last iteration.
    Result(u32, u64),
}

impl Message {
    fn route(&self) -> u64 {
        match self {
            Message::Share(node, _) => u64::from(*node),
            Message::Dangling(worker, _) => u64::from(*worker),
            Message::Result(..) => 0,
        }
    }
}

/// What a worker was given for one iteration.
#[derive(Clone, Default)]
struct Given {
    sums: Vec<u64>,
    dangling: u64,
}

/// The nodes of one worker.
struct Owned {
    worker: usize,
    workers: usize,
    nodes: usize,
    targets: Vec<Vec<u32>>,
    ranks: Vec<u64>,
    /// By iteration: others may be one ahead.
    given: BTreeMap<usize, Given>,
}

impl Owned {
    fn new(worker: usize, workers: usize, nodes: usize) -> Self {
        let count = (worker..nodes).step_by(workers).count();
        Owned {
            worker,
            workers,
            nodes,
            targets: vec![Vec::new(); count],
            ranks: vec![rank::ONE; count],
            given: BTreeMap::new(),
        }
    }

    fn local(&self, node: u32) -> usize {
        debug_assert_eq!(node as usize % self.workers, self.worker);
        node as usize / self.workers
    }

    fn global(&self, local: usize) -> u32 {
        u32::try_from(local * self.workers + self.worker).expect("below MAX_NODES")
    }

    fn give(&mut self, iteration: usize, message: Message) {
        let count = self.ranks.len();
        let at = match message {
            Message::Share(node, _) => self.local(node),
            Message::Dangling(..) | Message::Result(..) => 0,
        };
        let given = self.given.entry(iteration).or_default();
        given.sums.resize(count, 0);
        match message {
            Message::Share(_, share) => given.sums[at] += share,
            Message::Dangling(_, share) => given.dangling += share,
            Message::Result(..) => unreachable!("results leave the loop"),
        }
    }

    /// Everything that was to be given for `iteration` is here.
    fn finish(&mut self, iteration: usize) {
        let mut given = self.given.remove(&iteration).unwrap_or_default();
        given.sums.resize(self.ranks.len(), 0);
        for (rank, sum) in self.ranks.iter_mut().zip(given.sums) {
            *rank = rank::next(sum, given.dangling, self.nodes);
        }
    }

    /// What the nodes give away.
    fn shares(&self, mut send: impl FnMut(Message)) {
        let mut dangling = 0;
        for (rank, targets) in self.ranks.iter().zip(&self.targets) {
            let share = rank::share(*rank, targets.len());
            if targets.is_empty() {
                dangling += share;
            }
            targets.iter().for_each(|to| send(Message::Share(*to, share)));
        }
        for worker in 0..self.workers {
            send(Message::Dangling(u32::try_from(worker).expect("few workers"), dangling));
        }
    }
}

/// Runs `iterations` rounds on this worker and all others. Worker 0 returns the rank of every
/// node, the others nothing.
pub(crate) fn run(worker: &mut Worker, graph: &Graph, iterations: usize) -> Vec<u64> {
    let (index, workers, nodes) = (worker.index(), worker.peers(), graph.names.len());
    let mine: Vec<(u32, u32)> = graph.edges.iter().copied().skip(index).step_by(workers).collect();
    let results = Rc::new(RefCell::new(vec![0; if index == 0 { nodes } else { 0 }]));
    let sink = Rc::clone(&results);
    let probe = ProbeHandle::new();

    worker.dataflow::<usize, _, _>(|scope| {
        let edges = mine.to_stream(scope).container::<Vec<_>>();
        let (handle, cycle) = scope.feedback(1);
        let (shares, finished) = edges
            .binary_frontier(
                cycle,
                Routed::new(|(from, _): &(u32, u32)| u64::from(*from)),
                Routed::new(Message::route),
                "PageRank",
                move |capability, _info| {
                    let mut owned = Owned::new(index, workers, nodes);
                    // For the iteration that is next; none once all are done.
                    let mut capability = Some(capability);
                    move |(edges, edges_left), (shares, shares_left), output| {
                        edges.for_each(|_, batch| {
                            for (from, to) in batch.drain(..) {
                                let from = owned.local(from);
                                owned.targets[from].push(to);
                            }
                        });
                        shares.for_each(|stamp, batch| {
                            let iteration = stamp.least().copied().unwrap_or_default();
                            for message in batch.drain(..) {
                                owned.give(iteration, message);
                            }
                        });
                        while let Some(current) = capability.take() {
                            let iteration = *current.time();
                            if edges_left.less_equal(&iteration)
                                || shares_left.less_equal(&iteration)
                            {
                                capability = Some(current);
                                break;
                            }
                            if iteration > 0 {
                                owned.finish(iteration);
                            }
                            let mut session = output.session(&current);
                            if iteration < iterations {
                                owned.shares(|message| session.give(message));
                                drop(session);
                                capability = Some(current.delayed(&(iteration + 1)));
                            } else {
                                for (local, rank) in owned.ranks.iter().enumerate() {
                                    session.give(Message::Result(owned.global(local), *rank));
                                }
                            }
                        }
                    }
                },
            )
            .container::<Vec<_>>()
            .ok_err(|message| match message {
                Message::Result(node, rank) => Err((node, rank)),
                other => Ok(other),
            });
        shares.connect_loop(handle);
        finished
            .exchange(|_| 0)
            .container::<Vec<_>>()
            .inspect(move |(node, rank): &(u32, u64)| sink.borrow_mut()[*node as usize] = *rank)
            .probe_with(&probe);
    });

    while !probe.done() {
        worker.step_or_park(None);
    }
    results.take()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    /// Guards: the dataflow computes what the plain loop does, for any number of workers.
    #[test]
    fn any_number_of_workers_computes_what_one_thread_does() {
        let sparse = Graph::from_edge_list("a b\nb c\nd a").unwrap();
        for (graph, iterations) in
            [(sparse.clone(), 0), (sparse, 7), (Graph::random(300, 1500).unwrap(), 10)]
        {
            let graph = Arc::new(graph);
            let expected = rank::sequential(&graph, iterations);
            for workers in [1, 2, 3, 7] {
                let shared = Arc::clone(&graph);
                let guards = timely::execute(timely::Config::process(workers), move |worker| {
                    run(worker, &shared, iterations)
                })
                .unwrap();
                let mut results = guards.join().into_iter().map(Result::unwrap);
                assert_eq!(results.next().unwrap(), expected, "{workers} workers");
                assert!(results.all(|other| other.is_empty()));
            }
        }
    }
}
