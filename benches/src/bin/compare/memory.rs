//! Heap of an idle queue pair, and of one more entry of its windows.

use crate::report::{Goal, Report};
use sojourn_benches::memory::{of_queue_pair, sizes};
use sojourn_fabric::Result;
use sojourn_fabric::abi::QpCap;

/// Entries by which two queue pairs differ whose difference is told: windows are powers of two.
const FEW: u32 = 64;
const MORE: u32 = 128;

/// Takes all measures.
pub(crate) fn measure(report: &mut Report) -> std::result::Result<(), Box<dyn std::error::Error>> {
    for (what, cap) in [
        ("1 + 1 entries", sizes(1, 1, 1, 0)),
        ("128 + 128 entries", sizes(128, 128, 1, 0)),
        ("128 + 128, 4 elements, 64 B inline", sizes(128, 128, 4, 64)),
    ] {
        let name = format!("memory: idle QP, {what}");
        if report.wants(&name) {
            let (raw, virt) = of_queue_pair(cap)?;
            report.line(&name, "B", virt, raw, Goal::None);
        }
    }
    type Sizes = fn(u32) -> QpCap;
    let entries: [(&str, Sizes); 4] = [
        ("send entry, 1 element", |n| sizes(n, 1, 1, 0)),
        ("send entry, 4 elements", |n| sizes(n, 1, 4, 0)),
        ("send entry, 64 B inline", |n| sizes(n, 1, 1, 64)),
        ("receive entry, 1 element", |n| sizes(1, n, 1, 0)),
    ];
    for (what, sizes) in entries {
        let name = format!("memory: {what}");
        if report.wants(&name) {
            let (raw, virt) = more(sizes)?;
            report.line(&name, "B", virt, raw, Goal::None);
        }
    }
    Ok(())
}

fn more(sizes: fn(u32) -> QpCap) -> Result<(f64, f64)> {
    let (few, more) = (of_queue_pair(sizes(FEW))?, of_queue_pair(sizes(MORE))?);
    let each = |more: f64, few: f64| (more - few) / f64::from(MORE - FEW);
    Ok((each(more.0, few.0), each(more.1, few.1)))
}
