//! What rank 0 says and writes in the end.

use crate::graph::{Graph, fnv};
use crate::rank::ONE;
use std::fmt::Write as _;

/// One `NAME RANK` line per node, in the order of names; ranks in units of 1/2⁴⁰.
pub(crate) fn lines(graph: &Graph, ranks: &[u64]) -> String {
    let mut lines = String::new();
    for (name, rank) in graph.names.iter().zip(ranks) {
        let _ = writeln!(lines, "{name} {rank}");
    }
    lines
}

/// A number that is the same where all ranks are.
pub(crate) fn checksum(lines: &str) -> u64 {
    fnv(lines.bytes())
}

/// The `count` nodes of highest rank, which is given with the average as 1.
pub(crate) fn top(graph: &Graph, ranks: &[u64], count: usize) -> String {
    let mut order: Vec<usize> = (0..ranks.len()).collect();
    order.sort_by_key(|node| (std::cmp::Reverse(ranks[*node]), *node));
    let mut lines = String::new();
    for (place, node) in order.into_iter().take(count).enumerate() {
        let rank = ranks[node] as f64 / ONE as f64;
        let _ = writeln!(lines, "{:>4}  {rank:>10.4}  {}", place + 1, graph.names[node]);
    }
    lines
}

/// Where two results differ first.
pub(crate) fn difference(graph: &Graph, ranks: &[u64], expected: &[u64]) -> Option<String> {
    if ranks.len() != expected.len() {
        return Some(format!("{} ranks, expected {}", ranks.len(), expected.len()));
    }
    let node = (0..ranks.len()).find(|node| ranks[*node] != expected[*node])?;
    let (name, rank, expected) = (&graph.names[node], ranks[node], expected[node]);
    Some(format!("the rank of {name} is {rank}, and one process computes {expected}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_orders_by_rank_then_name_and_finds_what_differs() {
        let graph = Graph::from_edge_list("a b\nb c").unwrap();
        let ranks = [ONE / 2, 2 * ONE, ONE / 2];
        assert_eq!(top(&graph, &ranks, 2), "   1      2.0000  b\n   2      0.5000  a\n");
        assert_eq!(lines(&graph, &[1, 2, 3]), "a 1\nb 2\nc 3\n");
        assert_ne!(checksum("a 1\n"), checksum("a 2\n"));
        assert_eq!(difference(&graph, &ranks, &ranks), None);
        let difference = difference(&graph, &[1, 2, 4], &[1, 2, 3]).unwrap();
        assert_eq!(difference, "the rank of c is 4, and one process computes 3");
    }
}
