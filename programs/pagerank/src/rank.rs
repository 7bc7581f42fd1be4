//! PageRank in integers, so that the order of sums does not matter: every number of ranks and
//! workers, and every transport, gives the same result to the last bit.
//!
//! Ranks are in units of 1/[`ONE`], and average one. A node keeps 15 % for everybody, and gives
//! the rest to its targets in equal shares; what a node without targets gives goes to all nodes
//! alike. Shares are rounded down.

use crate::graph::Graph;

/// The average rank.
pub(crate) const ONE: u64 = 1 << 40;

/// What a node of rank `rank` gives away: 85 %.
fn damped(rank: u64) -> u64 {
    // At most 85 % of a rank, which fits where the rank did.
    (u128::from(rank) * 85 / 100) as u64
}

/// What each of `degree` targets gets from a node of rank `rank`; with none, what all nodes
/// together get.
pub(crate) fn share(rank: u64, degree: usize) -> u64 {
    damped(rank) / (degree.max(1) as u64)
}

/// The next rank of a node that was given `sum`, in a graph of `nodes` nodes whose nodes without
/// targets give away `dangling` in all.
pub(crate) fn next(sum: u64, dangling: u64, nodes: usize) -> u64 {
    ONE - damped(ONE) + sum + dangling / nodes as u64
}

/// The ranks after `iterations` rounds, computed by one thread, one node after the other.
pub(crate) fn sequential(graph: &Graph, iterations: usize) -> Vec<u64> {
    let nodes = graph.names.len();
    let mut degrees = vec![0; nodes];
    for (from, _) in &graph.edges {
        degrees[*from as usize] += 1;
    }
    let mut ranks = vec![ONE; nodes];
    for _ in 0..iterations {
        let mut sums = vec![0; nodes];
        for (from, to) in &graph.edges {
            sums[*to as usize] += share(ranks[*from as usize], degrees[*from as usize]);
        }
        let without = (0..nodes).filter(|node| degrees[*node] == 0);
        let dangling = without.map(|node| share(ranks[node], 0)).sum();
        ranks = sums.into_iter().map(|sum| next(sum, dangling, nodes)).collect();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_ranks_all_nodes_alike() {
        let graph = Graph::from_edge_list("a b\nb c\nc a").unwrap();
        assert_eq!(sequential(&graph, 50), [ONE; 3]);
    }

    #[test]
    fn ranks_are_those_of_the_textbook_formula() {
        // Everybody points to hub; hub points to nobody.
        let graph = Graph::from_edge_list("a hub\nb hub\nc hub").unwrap();
        let ranks = sequential(&graph, 100);
        let ranks: Vec<f64> = ranks.iter().map(|rank| *rank as f64 / ONE as f64).collect();
        // leaf = 0.15 + 0.85 hub / 4, hub = leaf + 3 × 0.85 leaf, solved.
        let leaf = 0.15 / (1.0 - 0.85 / 4.0 * 3.55);
        for (rank, expected) in ranks.iter().zip([leaf, leaf, leaf, 3.55 * leaf]) {
            assert!((rank - expected).abs() < 1e-9, "{rank} is not {expected}");
        }
    }

    #[test]
    fn nothing_but_rounding_is_lost() {
        let graph = Graph::random(1000, 5000).unwrap();
        let total: u64 = sequential(&graph, 30).iter().sum();
        let (full, lost) = (1000 * ONE, 1000 * ONE - total);
        // Each iteration each share loses less than one unit.
        assert!(lost < 30 * 7000 && total <= full, "{lost} units lost");
    }
}
