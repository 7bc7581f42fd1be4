//! The shares of one group, and the nodes that they are given: a matching.
//!
//! Each share needs a node of its own among those that it may be on, and no failure domain may be given
//! more than a number of shares. That is a flow from shares through nodes to domains; a share is placed
//! along an augmenting path, so where there is any solution one is found.

/// Who may be placed where.
pub(super) struct Rules<'a> {
    /// Whether share `.0` may be on node `.1`.
    pub(super) allowed: &'a dyn Fn(usize, usize) -> bool,
    /// The failure domain of each node.
    pub(super) domains: &'a [usize],
    /// The nodes, those that should be taken first before others.
    pub(super) order: &'a [usize],
    /// Most shares in one domain.
    pub(super) most: usize,
}

/// Which node each share has.
#[derive(Clone)]
pub(super) struct Seats {
    node_of: Vec<Option<usize>>,
    share_on: Vec<Option<usize>>,
    in_domain: Vec<usize>,
}

impl Seats {
    /// So many shares that have none yet.
    pub(super) fn new(shares: usize, domains: &[usize]) -> Self {
        let many = domains.iter().max().map_or(0, |last| last + 1);
        Seats {
            node_of: vec![None; shares],
            share_on: vec![None; domains.len()],
            in_domain: vec![0; many],
        }
    }

    /// Puts `share` on `node`, where it is already.
    pub(super) fn set(&mut self, share: usize, node: usize, domains: &[usize]) {
        self.node_of[share] = Some(node);
        self.share_on[node] = Some(share);
        self.in_domain[domains[node]] += 1;
    }

    /// The node of `share`.
    pub(super) fn node(&self, share: usize) -> Option<usize> {
        self.node_of[share]
    }

    /// Most shares that a domain has now.
    pub(super) fn crowd(&self) -> usize {
        self.in_domain.iter().copied().max().unwrap_or_default()
    }

    /// Places `share` on the first node that is free and takes it; no other share moves.
    pub(super) fn place_alone(&mut self, share: usize, rules: &Rules<'_>) -> bool {
        let free = |node: &usize| {
            self.share_on[*node].is_none()
                && self.in_domain[rules.domains[*node]] < rules.most
                && (rules.allowed)(share, *node)
        };
        let Some(node) = rules.order.iter().copied().find(free) else { return false };
        self.set(share, node, rules.domains);
        true
    }

    /// Places `share`, and moves others that are placed where that is needed. Where it can't be done
    /// nothing has changed.
    pub(super) fn place(&mut self, share: usize, rules: &Rules<'_>) -> bool {
        if self.place_alone(share, rules) {
            return true;
        }
        let seen_nodes = &mut vec![false; self.share_on.len()];
        let seen_domains = &mut vec![false; self.in_domain.len()];
        self.augment(share, rules, seen_nodes, seen_domains)
    }

    /// As deep as there are shares at most: each call follows one that is placed, and none twice.
    fn augment(
        &mut self,
        share: usize,
        rules: &Rules<'_>,
        seen_nodes: &mut [bool],
        seen_domains: &mut [bool],
    ) -> bool {
        for &node in rules.order {
            if seen_nodes[node] || !(rules.allowed)(share, node) {
                continue;
            }
            seen_nodes[node] = true;
            let domain = rules.domains[node];
            if let Some(other) = self.share_on[node] {
                // The other one goes elsewhere, and leaves its place in the domain too.
                if self.augment(other, rules, seen_nodes, seen_domains) {
                    self.node_of[share] = Some(node);
                    self.share_on[node] = Some(share);
                    return true;
                }
                continue;
            }
            if self.in_domain[domain] < rules.most {
                self.set(share, node, rules.domains);
                return true;
            }
            if seen_domains[domain] {
                continue;
            }
            seen_domains[domain] = true;
            // The node is free and its domain is full: somebody leaves the domain.
            for &neighbour in rules.order {
                if rules.domains[neighbour] != domain || seen_nodes[neighbour] {
                    continue;
                }
                let Some(other) = self.share_on[neighbour] else { continue };
                seen_nodes[neighbour] = true;
                if self.augment(other, rules, seen_nodes, seen_domains) {
                    self.share_on[neighbour] = None;
                    self.node_of[share] = Some(node);
                    self.share_on[node] = Some(share);
                    return true;
                }
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Whether there is any way, by trying all.
    fn any_way(
        share: usize,
        shares: usize,
        may: &[Vec<bool>],
        domains: &[usize],
        most: usize,
        taken: &mut Vec<usize>,
    ) -> bool {
        if share == shares {
            return true;
        }
        (0..domains.len()).any(|node| {
            let full = taken.iter().filter(|it| domains[**it] == domains[node]).count() >= most;
            if !may[share][node] || taken.contains(&node) || full {
                return false;
            }
            taken.push(node);
            let found = any_way(share + 1, shares, may, domains, most, taken);
            taken.pop();
            found
        })
    }

    proptest! {
        /// Where there is a way it is found, and what is found keeps the rules.
        #[test]
        fn shares_are_placed_whenever_there_is_a_way(
            may in prop::collection::vec(prop::collection::vec(any::<bool>(), 6), 1..6),
            domains in prop::collection::vec(0usize..4, 6),
            most in 1usize..4,
        ) {
            let allowed = |share: usize, node: usize| may[share][node];
            let order = [3, 1, 0, 5, 2, 4];
            let rules = Rules { allowed: &allowed, domains: &domains, order: &order, most };
            let mut seats = Seats::new(may.len(), &domains);
            let all = (0..may.len()).all(|share| seats.place(share, &rules));
            let way = any_way(0, may.len(), &may, &domains, most, &mut Vec::new());
            prop_assert_eq!(all, way);
            let placed: Vec<_> =
                (0..may.len()).filter_map(|i| Some((i, seats.node(i)?))).collect();
            prop_assert!(placed.iter().all(|(share, node)| allowed(*share, *node)));
            let mut nodes: Vec<_> = placed.iter().map(|(_, node)| *node).collect();
            nodes.sort_unstable();
            nodes.dedup();
            prop_assert_eq!(nodes.len(), placed.len());
            let mut count = [0; 4];
            nodes.iter().for_each(|node| count[domains[*node]] += 1);
            prop_assert!(count.iter().all(|many| *many <= most));
            prop_assert_eq!(seats.crowd(), count.into_iter().max().unwrap());
        }
    }
}
