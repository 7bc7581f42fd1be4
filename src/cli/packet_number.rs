//! What is known of a device's packet number, in words.

use serde::Serialize;
use sojourn::trial::{Known, Verdict};

/// As it is printed.
#[derive(Serialize)]
pub(super) struct PacketNumber {
    /// `live`, `not live` or `not tried`.
    pub(super) verdict: &'static str,
    /// The day of the trial.
    #[serde(skip_serializing_if = "Option::is_none")]
    tried: Option<String>,
    /// By what it showed that it is not live.
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

impl PacketNumber {
    pub(super) fn new(known: Option<&Known>) -> Self {
        let Some(known) = known else {
            return PacketNumber { verdict: "not tried", tried: None, why: None };
        };
        let (verdict, why) = match &known.verdict {
            Verdict::Live => ("live", None),
            not_live @ Verdict::NotLive { .. } => ("not live", Some(not_live.to_string())),
        };
        PacketNumber { verdict, tried: known.tried.map(day), why }
    }

    pub(super) fn text(&self) -> String {
        // It begins with the verdict.
        let what = self.why.as_deref().unwrap_or(self.verdict);
        match &self.tried {
            Some(day) => format!("{what} (tried on {day})"),
            None => what.to_owned(),
        }
    }
}

/// The day of a second since 1970, in UTC.
fn day(seconds: u64) -> String {
    const DAY: u64 = 24 * 60 * 60;
    let is_leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    // What a file says may be any number: no year is counted for ever.
    let mut left = (seconds / DAY).min(3_000_000);
    let mut year = 1970;
    while left >= 365 + u64::from(is_leap(year)) {
        left -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let february = 28 + u64::from(is_leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if left < length {
            break;
        }
        left -= length;
        month += 1;
    }
    format!("{year}-{month:02}-{:02}", left + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_those_of_the_calendar() {
        let days = [
            (0, "1970-01-01"),
            (951_782_399, "2000-02-28"),
            (951_782_400, "2000-02-29"),
            (951_868_800, "2000-03-01"),
            (1_735_689_599, "2024-12-31"),
            (1_735_689_600, "2025-01-01"),
            (4_107_542_400, "2100-03-01"),
        ];
        for (seconds, expected) in days {
            assert_eq!(day(seconds), expected);
        }
        assert!(day(u64::MAX).starts_with("10183-"), "{}", day(u64::MAX));
    }

    #[test]
    fn a_verdict_is_told_with_its_reason_and_day() {
        let not_live = Verdict::NotLive { case: "SEND".into(), expected: 5, found: Some(4) };
        let text = |known: Option<&Known>| PacketNumber::new(known).text();
        assert_eq!(text(None), "not tried");
        assert_eq!(text(Some(&Known { verdict: Verdict::Live, tried: None })), "live");
        let live = Known { verdict: Verdict::Live, tried: Some(0) };
        assert_eq!(text(Some(&live)), "live (tried on 1970-01-01)");
        let known = Known { verdict: not_live, tried: Some(0) };
        assert_eq!(
            text(Some(&known)),
            "not live (SEND: 0x5 was expected, and 0x4 found) (tried on 1970-01-01)"
        );
    }
}
