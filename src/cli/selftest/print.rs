//! What a selftest prints: a line for each case as it ends and the count, or JSON.

use crate::cli::packet_number::PacketNumber;
use crate::cli::{Failure, Outcome, print};
use serde::Serialize;
use sojourn::trial::Known;
use sojourn_conformance::{self as conformance, Case, Layer, Summary};

/// What has been found so far.
#[derive(Serialize)]
pub(super) struct Report {
    device: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<String>,
    runs: Vec<Run>,
    passed: usize,
    failed: usize,
    not_applicable: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    packet_number: Option<PacketNumber>,
    #[serde(skip)]
    json: bool,
}

#[derive(Serialize)]
struct Run {
    layer: &'static str,
    #[serde(flatten)]
    summary: Summary,
}

impl Report {
    pub(super) fn new(device: &str, peer: Option<String>, json: bool) -> Self {
        let (passed, failed, not_applicable) = (0, 0, 0);
        let runs = Vec::new();
        let packet_number = None;
        let device = device.into();
        Report { device, peer, runs, passed, failed, not_applicable, packet_number, json }
    }

    /// A case has ended.
    pub(super) fn case(&self, layer: Layer, report: &conformance::Report) {
        if self.json {
            return;
        }
        let name = format!("{}/{}", layer.as_str(), report.name);
        let line = match &report.outcome {
            conformance::Outcome::Passed => format!("ok {name}\n"),
            conformance::Outcome::NotApplicable(reason) => format!("n/a {name}: {reason}\n"),
            conformance::Outcome::Failed(message) => format!("FAIL {name}: {message}\n"),
        };
        // Whoever does not read on is told the status all the same.
        let _ = print(&line);
    }

    /// The cases of a layer have ended.
    pub(super) fn layer(&mut self, layer: Layer, summary: Summary) {
        self.passed += summary.passed();
        self.failed += summary.failed();
        self.not_applicable += summary.not_applicable();
        self.runs.push(Run { layer: layer.as_str(), summary });
    }

    /// Its packet number was tried.
    pub(super) fn packet_number(&mut self, known: Option<&Known>) {
        self.packet_number = Some(PacketNumber::new(known));
    }

    /// Prints the rest; an error where something failed.
    pub(super) fn finish(self) -> Outcome {
        if self.json {
            print(&json(&self)?)?;
        } else {
            if let Some(number) = &self.packet_number {
                print(&format!("packet number: {}\n", number.text()))?;
            }
            print(&format!(
                "{} passed, {} failed, {} not applicable\n",
                self.passed, self.failed, self.not_applicable
            ))?;
        }
        if let Some(why) = self.runs.iter().find_map(|run| run.summary.stopped.as_ref()) {
            return Err(Failure::new(format!("the selftest stopped early: {why}")));
        }
        if self.failed > 0 { Err(Failure::status(1)) } else { Ok(()) }
    }
}

/// A case as it is listed.
#[derive(Serialize)]
struct Listed {
    name: &'static str,
    guards: &'static str,
}

/// Prints names and what each case guards.
pub(super) fn list(cases: &[Case], as_json: bool) -> Outcome {
    if as_json {
        let cases: Vec<Listed> =
            cases.iter().map(|case| Listed { name: case.name, guards: case.guards }).collect();
        return print(&json(&cases)?);
    }
    let lines: Vec<String> =
        cases.iter().map(|case| format!("{}: {}\n", case.name, case.guards)).collect();
    print(&lines.concat())
}

fn json(value: &impl Serialize) -> Outcome<String> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::new(format!("writing JSON: {error}")))?;
    Ok(text + "\n")
}
