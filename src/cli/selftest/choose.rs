//! Which cases are run.

use crate::cli::{Failure, Outcome};
use sojourn_conformance::Case;

/// The cases that `pattern` names; all where there is none.
pub(super) fn cases(all: &[Case], pattern: Option<&str>) -> Outcome<Vec<Case>> {
    let Some(pattern) = pattern else { return Ok(all.to_vec()) };
    let chosen: Vec<Case> = all.iter().filter(|case| fits(case.name, pattern)).copied().collect();
    if chosen.is_empty() {
        return Err(Failure::new(format!(
            "no case fits --only {pattern}; sojourn selftest --list names them all"
        )));
    }
    Ok(chosen)
}

/// Whether `name` has `pattern` in it, or matches it where there is a `*` in it.
fn fits(name: &str, pattern: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let rest: Vec<&str> = parts.collect();
    let Some((last, middle)) = rest.split_last() else { return name.contains(pattern) };
    let Some(mut left) = name.strip_prefix(first) else { return false };
    for part in middle {
        match left.find(part) {
            Some(at) => left = &left[at + part.len()..],
            None => return false,
        }
    }
    left.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::fits;

    #[test]
    fn a_pattern_is_a_part_of_a_name_or_has_stars() {
        for (pattern, does) in [
            ("rc", true),
            ("write", true),
            ("rc.*", true),
            ("*write*", true),
            ("rc*imm", true),
            ("*", true),
            ("r*w*i*m", true),
            ("ud.*", false),
            ("rc.*write", false),
            ("uc", false),
        ] {
            assert_eq!(fits("rc.write_imm", pattern), does, "{pattern}");
        }
    }
}
