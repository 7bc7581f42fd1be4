//! What is said: faults, counts, and the result of a run.

use crate::kind::{Kind, Transport};
use serde_json::{Value, json};
use std::fmt::Display;

/// Something that must not be. Who found it where is added by the link.
#[derive(Debug)]
pub(crate) struct Fault {
    /// What it is about.
    pub(crate) what: String,
    /// Its sequence number, where it has one.
    pub(crate) seq: Option<u64>,
    /// What should have been.
    pub(crate) expected: String,
    /// What was.
    pub(crate) found: String,
    /// The connection broke: perhaps because the peer has failed.
    broken: bool,
}

/// Why a run failed.
#[derive(Debug)]
pub(crate) struct Failure {
    /// What to say.
    pub(crate) line: String,
    /// It may be the consequence of another rank's failure.
    pub(crate) broken: bool,
}

impl From<String> for Failure {
    fn from(line: String) -> Self {
        Failure { line, broken: false }
    }
}

impl From<sojourn::Error> for Failure {
    fn from(error: sojourn::Error) -> Self {
        error.to_string().into()
    }
}

/// What checking answers.
pub(crate) type Checked<T = ()> = Result<T, Fault>;

impl Fault {
    pub(crate) fn new(
        what: impl Display,
        seq: Option<u64>,
        expected: impl Display,
        found: impl Display,
    ) -> Self {
        let (expected, found) = (expected.to_string(), found.to_string());
        Fault { what: what.to_string(), seq, expected, found, broken: false }
    }

    /// The same, perhaps because the peer has failed.
    pub(crate) fn broken(self) -> Self {
        Fault { broken: true, ..self }
    }

    /// What the run fails with, where `whose` found it.
    pub(crate) fn blame(&self, whose: impl Display) -> Failure {
        Failure { line: format!("{whose}: {}", self.line()), broken: self.broken }
    }

    /// A verbs call that failed.
    pub(crate) fn call(what: impl Display, seq: Option<u64>, error: &sojourn::Error) -> Self {
        Fault::new(what, seq, "success", error)
    }

    /// Everything in one line.
    pub(crate) fn line(&self) -> String {
        let seq = self.seq.map(|seq| format!(", sequence {seq}")).unwrap_or_default();
        format!("{}{seq}: expected {}, found {}", self.what, self.expected, self.found)
    }
}

/// Counts of messages by kind.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    by_kind: [u64; Kind::ALL.len()],
    /// Bytes of payload.
    pub(crate) bytes: u64,
}

impl Tally {
    /// Counts one.
    pub(crate) fn add(&mut self, kind: Kind, bytes: usize) {
        self.by_kind[kind.index()] += 1;
        self.bytes += bytes as u64;
    }

    /// Counts messages whose bytes nobody knows.
    pub(crate) fn add_some(&mut self, kind: Kind, count: u64) {
        self.by_kind[kind.index()] += count;
    }

    /// All of them.
    pub(crate) fn count(&self) -> u64 {
        self.by_kind.iter().sum()
    }
}

/// What one queue pair came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinkCounts {
    pub(crate) transport: Transport,
    /// Requests that completed.
    pub(crate) done: Tally,
    /// Messages of the peer that were checked here.
    pub(crate) checked: Tally,
    /// Messages of the peer that never came.
    pub(crate) lost: Tally,
    /// Control messages that were sent.
    pub(crate) controls: u64,
}

/// The counts of many queue pairs, as JSON.
pub(crate) fn counts(links: &[LinkCounts]) -> Value {
    let mut all = json!({"done": {}, "checked": {}, "lost": {}, "controls": 0, "bytes": 0});
    for link in links {
        for (name, tally) in [("done", link.done), ("checked", link.checked), ("lost", link.lost)] {
            for kind in Kind::ALL {
                let count = tally.by_kind[kind.index()];
                if count > 0 {
                    let key = format!("{} {kind}", link.transport);
                    add(&mut all[name][key], count);
                }
            }
        }
        add(&mut all["controls"], link.controls);
        add(&mut all["bytes"], link.done.bytes);
    }
    all
}

/// Adds the results of another rank to `sum`: numbers are added, lists joined.
pub(crate) fn merge(sum: &mut Value, other: &Value) {
    match (sum, other) {
        (Value::Object(sum), Value::Object(other)) => {
            for (key, value) in other {
                merge(sum.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (Value::Array(sum), Value::Array(other)) => sum.extend(other.iter().cloned()),
        (sum @ Value::Null, other) => *sum = other.clone(),
        (sum, other) => {
            if let Some(number) = other.as_u64() {
                add(sum, number);
            }
        }
    }
}

fn add(to: &mut Value, number: u64) {
    *to = json!(to.as_u64().unwrap_or(0) + number);
}

/// The result for people.
pub(crate) fn text(result: &Value) -> String {
    let mut lines = String::new();
    for (title, key) in [("completed", "done"), ("checked", "checked"), ("lost", "lost")] {
        let counts = result[key].as_object().into_iter().flatten();
        let counts: Vec<_> = counts.map(|(kind, count)| format!("{kind} {count}")).collect();
        if !counts.is_empty() {
            lines += &format!("{title}: {}\n", counts.join(", "));
        }
    }
    for a_move in result["moves"].as_array().into_iter().flatten() {
        let number = |value: &Value| value.as_f64().unwrap_or_default();
        let phases = a_move["phases"].as_array().into_iter().flatten().map(|phase| {
            format!("{} {:.3}", phase["name"].as_str().unwrap_or("?"), number(&phase["ms"]))
        });
        lines += &format!(
            "move: rank {} to {}: {:.3} ms ({})\n",
            a_move["rank"],
            a_move["device"].as_str().unwrap_or("?"),
            number(&a_move["blackout_ms"]),
            phases.collect::<Vec<_>>().join(", ")
        );
    }
    lines + &format!("{} bytes in {} s: ok\n", result["bytes"], result["seconds"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_results_of_ranks_add_up() {
        let link = |transport| {
            let mut done = Tally::default();
            done.add(Kind::Send, 5);
            done.add(Kind::Read, 7);
            let none = Tally::default();
            LinkCounts { transport, done, checked: done, lost: none, controls: 2 }
        };
        let mut sum = counts(&[link(Transport::Rc), link(Transport::Rc), link(Transport::Uc)]);
        assert_eq!(sum["done"], json!({"RC SEND": 2, "RC READ": 2, "UC SEND": 1, "UC READ": 1}));
        sum["moves"] = json!([1]);
        let other = sum.clone();
        merge(&mut sum, &other);
        assert_eq!(sum["bytes"], 72);
        assert_eq!(sum["controls"], 12);
        assert_eq!(sum["done"]["RC SEND"], 4);
        assert_eq!(sum["moves"], json!([1, 1]));
    }

    #[test]
    fn a_fault_is_one_line() {
        let fault = Fault::new("RC SEND", Some(4), "5 bytes", "6 bytes");
        assert_eq!(fault.line(), "RC SEND, sequence 4: expected 5 bytes, found 6 bytes");
    }
}
