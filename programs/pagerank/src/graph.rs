//! The graph: nodes with names, and edges between them. Read from a file, or drawn at random.

use std::collections::BTreeSet;
use std::fmt::Write as _;

/// Most nodes: with as many, the sum of all ranks still has 62 bits ([`crate::rank::ONE`]).
pub(crate) const MAX_NODES: usize = 1 << 22;

/// A directed graph without parallel edges. Node n is called `names[n]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Graph {
    /// In ascending order, where they were read.
    pub(crate) names: Vec<String>,
    /// In ascending order, each once.
    pub(crate) edges: Vec<(u32, u32)>,
}

impl Graph {
    /// A graph of named edges; nodes without any are in `alone`.
    pub(crate) fn from_names<'a>(
        edges: impl IntoIterator<Item = (&'a str, &'a str)> + Clone,
        alone: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, String> {
        let ends = edges.clone().into_iter().flat_map(|(from, to)| [from, to]);
        let names: BTreeSet<&str> = ends.chain(alone).collect();
        let names: Vec<&str> = names.into_iter().collect();
        let index = |name: &str| {
            let at = names.binary_search(&name).expect("every end is among the names");
            u32::try_from(at).map_err(|_| too_many(names.len()))
        };
        let edges: Result<Vec<_>, String> =
            edges.into_iter().map(|(from, to)| Ok((index(from)?, index(to)?))).collect();
        Graph::new(names.iter().map(ToString::to_string).collect(), edges?)
    }

    fn new(names: Vec<String>, mut edges: Vec<(u32, u32)>) -> Result<Self, String> {
        if names.len() > MAX_NODES {
            return Err(too_many(names.len()));
        }
        if names.is_empty() {
            return Err("the graph has no nodes".into());
        }
        edges.sort_unstable();
        edges.dedup();
        Ok(Graph { names, edges })
    }

    /// An edge list: one `FROM TO` per line; `#` starts a comment.
    pub(crate) fn from_edge_list(text: &str) -> Result<Self, String> {
        let mut edges = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default();
            let mut words = line.split_whitespace();
            match (words.next(), words.next(), words.next()) {
                (None, ..) => {}
                (Some(from), Some(to), None) => edges.push((from, to)),
                _ => {
                    return Err(format!("line {}: \"{}\" is not FROM TO", number + 1, line.trim()));
                }
            }
        }
        Graph::from_names(edges.iter().copied(), [])
    }

    /// `edges` edges between `nodes` nodes, the same for every run. Low numbers are more popular
    /// as targets, as in real graphs.
    pub(crate) fn random(nodes: usize, edges: usize) -> Result<Self, String> {
        if nodes > MAX_NODES {
            return Err(too_many(nodes));
        }
        let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut below = |limit: u64| {
            // xorshift64*; its high half is what is good.
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            let random = state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
            (random * limit) >> 32
        };
        let count = nodes as u64;
        let mut node = |popular: bool| {
            let limit = if popular { below(count) + 1 } else { count };
            u32::try_from(below(limit)).expect("below MAX_NODES")
        };
        let edges = if nodes == 0 { 0 } else { edges };
        let edges = (0..edges).map(|_| (node(false), node(true))).collect();
        Graph::new((0..nodes).map(|node| node.to_string()).collect(), edges)
    }

    /// A number that differs where graphs differ: ranks of a job compare theirs.
    pub(crate) fn fingerprint(&self) -> u64 {
        let mut text = String::new();
        for name in &self.names {
            let _ = writeln!(text, "{name}");
        }
        let edges = self.edges.iter().flat_map(|(from, to)| [from.to_le_bytes(), to.to_le_bytes()]);
        fnv(text.bytes().chain(edges.flatten()))
    }
}

fn too_many(nodes: usize) -> String {
    format!("the graph has {nodes} nodes; at most {MAX_NODES} are possible")
}

/// FNV-1a: tells files apart that differ by mistake, not on purpose.
pub(crate) fn fnv(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edge_list_is_read_in_any_order_with_comments_and_repetitions() {
        let graph = Graph::from_edge_list("# a graph\nc b\n\na b # twice\n a  b\nb a\n").unwrap();
        assert_eq!(graph.names, ["a", "b", "c"]);
        assert_eq!(graph.edges, [(0, 1), (1, 0), (2, 1)]);
    }

    #[test]
    fn a_line_that_is_no_edge_is_named() {
        let error = Graph::from_edge_list("a b\nc\n").unwrap_err();
        assert_eq!(error, "line 2: \"c\" is not FROM TO");
        assert_eq!(Graph::from_edge_list("a b c").unwrap_err(), "line 1: \"a b c\" is not FROM TO");
        assert_eq!(Graph::from_edge_list("# none\n").unwrap_err(), "the graph has no nodes");
    }

    #[test]
    fn a_random_graph_is_the_same_every_time_and_within_its_bounds() {
        let graph = Graph::random(100, 1000).unwrap();
        assert_eq!(graph, Graph::random(100, 1000).unwrap());
        assert!(graph.edges.iter().all(|(from, to)| from.max(to) < &100));
        assert!(graph.edges.len() > 500);
        assert!(Graph::random(MAX_NODES + 1, 0).unwrap_err().contains("4194305 nodes"));
        assert!(Graph::random(0, 10).is_err());
    }

    #[test]
    fn graphs_that_differ_have_different_fingerprints() {
        let graph = Graph::from_edge_list("a b\nb c").unwrap();
        let other = Graph::from_edge_list("a b\nc b").unwrap();
        assert_ne!(graph.fingerprint(), other.fingerprint());
        assert_eq!(graph.fingerprint(), graph.clone().fingerprint());
    }
}
