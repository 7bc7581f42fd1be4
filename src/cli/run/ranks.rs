//! Which ranks of a job a launcher starts: `0,2` or `0-3,8`.

use std::collections::BTreeSet;

/// The ranks that `text` names, in order, all below `size`. The error says what is wrong with
/// which part.
pub(super) fn parse(text: &str, size: u32) -> Result<Vec<u32>, String> {
    let mut ranks = BTreeSet::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |digits: &str| {
            digits
                .trim()
                .parse::<u32>()
                .map_err(|_| format!("{part:?} is neither a rank nor a range of ranks such as 0-3"))
        };
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(format!("the range {part} runs backwards"));
        }
        if last >= size {
            return Err(format!(
                "there is no rank {last}: a job of {size} has the ranks 0 to {}",
                size - 1
            ));
        }
        for rank in first..=last {
            if !ranks.insert(rank) {
                return Err(format!("rank {rank} is named twice"));
            }
        }
    }
    Ok(ranks.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_ranges_name_ranks_in_order() {
        assert_eq!(parse("0", 1).unwrap(), [0]);
        assert_eq!(parse("3,0-1", 4).unwrap(), [0, 1, 3]);
        assert_eq!(parse("0-3", 4).unwrap(), [0, 1, 2, 3]);
    }

    #[test]
    fn each_wrong_list_is_refused_with_its_reason() {
        for (text, reason) in [
            ("", "neither a rank"),
            ("x", "neither a rank"),
            ("1-", "neither a rank"),
            ("-1", "neither a rank"),
            ("0,,1", "neither a rank"),
            ("2-1", "runs backwards"),
            ("4", "no rank 4"),
            ("0-4294967295", "no rank 4294967295"),
            ("1,0-2", "rank 1 is named twice"),
        ] {
            let error = parse(text, 4).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
