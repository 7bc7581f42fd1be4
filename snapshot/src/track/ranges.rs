//! Lists of ranges of addresses: sorted, disjoint, none of them empty, none touching the next.

use std::ops::Range;

/// Sorts ranges and joins those that overlap or touch.
pub(crate) fn normalize(mut ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    ranges.retain(|range| range.start < range.end);
    ranges.sort_unstable_by_key(|range| range.start);
    let mut out: Vec<Range<usize>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        push(&mut out, range);
    }
    out
}

/// Adds a range that does not begin before the last one.
pub(crate) fn push(list: &mut Vec<Range<usize>>, range: Range<usize>) {
    match list.last_mut() {
        Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
        _ => list.push(range),
    }
}

/// What is in `all` and not in `without`.
pub(crate) fn subtract(all: &[Range<usize>], without: &[Range<usize>]) -> Vec<Range<usize>> {
    let mut out = Vec::new();
    let mut first = 0;
    for range in all {
        let mut at = range.start;
        while first < without.len() && without[first].end <= at {
            first += 1;
        }
        for hole in without[first..].iter().take_while(|hole| hole.start < range.end) {
            if at < hole.start {
                out.push(at..hole.start);
            }
            at = at.max(hole.end);
        }
        if at < range.end {
            out.push(at..range.end);
        }
    }
    out
}

/// What is in both.
pub(crate) fn intersect(one: &[Range<usize>], other: &[Range<usize>]) -> Vec<Range<usize>> {
    let mut out = Vec::new();
    let mut first = 0;
    for range in one {
        while first < other.len() && other[first].end <= range.start {
            first += 1;
        }
        for it in other[first..].iter().take_while(|it| it.start < range.end) {
            out.push(it.start.max(range.start)..it.end.min(range.end));
        }
    }
    out
}

/// The pieces of `list` between the multiples of `most`, in order.
pub(crate) fn windows(
    list: &[Range<usize>],
    most: usize,
) -> impl Iterator<Item = Range<usize>> + '_ {
    list.iter().flat_map(move |range| {
        let mut at = range.start;
        std::iter::from_fn(move || {
            let start = at;
            at = (start / most).saturating_add(1).saturating_mul(most).min(range.end);
            (start < at).then_some(start..at)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn any_ranges() -> impl Strategy<Value = Vec<Range<usize>>> {
        prop::collection::vec((0usize..60, 0usize..12).prop_map(|(at, long)| at..at + long), 0..8)
    }

    fn points(ranges: &[Range<usize>]) -> BTreeSet<usize> {
        ranges.iter().cloned().flatten().collect()
    }

    proptest! {
        #[test]
        fn lists_of_ranges_are_sets_of_addresses(one in any_ranges(), other in any_ranges(), most in 1usize..9) {
            let (a, b) = (normalize(one.clone()), normalize(other.clone()));
            prop_assert_eq!(points(&a), points(&one));
            prop_assert!(a.windows(2).all(|two| two[0].end < two[1].start));
            prop_assert_eq!(points(&subtract(&a, &b)), &points(&a) - &points(&b));
            prop_assert_eq!(points(&intersect(&a, &b)), &points(&a) & &points(&b));
            let pieces: Vec<_> = windows(&a, most).collect();
            prop_assert!(pieces.iter().all(|it| !it.is_empty() && it.start / most == (it.end - 1) / most));
            prop_assert_eq!(points(&pieces), points(&a));
        }
    }
}
