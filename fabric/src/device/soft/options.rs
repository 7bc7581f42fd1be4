//! How a soft device behaves: from the environment, or given to [`super::open_with`].
//!
//! | variable | meaning |
//! | --- | --- |
//! | `SOJOURN_SOFT_DEVICES` | which devices there are: a count (`2`), or names (`soft0,soft1`) |
//! | `SOJOURN_SOFT_DIR` | the runtime directory; default `$XDG_RUNTIME_DIR/sojourn-soft`, else `/tmp/sojourn-soft-UID` |
//! | `SOJOURN_SOFT_LID` | this node's LID; default 1 |
//! | `SOJOURN_SOFT_ADDR` | `ip` or `ip:port` (IPv4): where other machines reach this context; default: nowhere. Each context needs a port of its own: leave it out to have one chosen. Needs `SOJOURN_KEY_FILE`, the job's key |
//! | `SOJOURN_SOFT_MODE` | `sync` (default) or `async:seed=7,latency_us=20,gbps=25` |
//! | `SOJOURN_SOFT_COPY` | `direct` (default) or `ring`: act as if the kernel forbade copies between processes |

use crate::{Error, Result};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

/// When work is executed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mode {
    /// Inside `post_send`, as far as nothing blocks.
    Sync,
    /// Packet by packet, by an engine with a pace.
    Async(Pace),
}

/// The pace of the asynchronous engine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// Seed of the order in which queue pairs take turns.
    pub seed: u64,
    /// From posting to the first packet, and from the last packet to the completion.
    pub latency: Duration,
    /// Gigabits per second over all queue pairs of the context.
    pub gbps: f64,
}

impl Default for Pace {
    fn default() -> Self {
        Pace { seed: 1, latency: Duration::from_micros(2), gbps: 100.0 }
    }
}

/// How a soft device behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// When work is executed.
    pub mode: Mode,
    /// The node's LID.
    pub lid: u16,
    /// Where other machines reach the context; port 0: any.
    pub addr: Option<SocketAddrV4>,
    /// Never copy between processes by system call: act as if the kernel forbade it.
    pub ring_only: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options { mode: Mode::Sync, lid: 1, addr: None, ring_only: false }
    }
}

/// Highest unicast LID (IBTA 4.1.3).
const MAX_LID: u16 = 0xbfff;

impl Options {
    /// What the environment says.
    ///
    /// # Errors
    /// `EINVAL`, naming the variable and what it may hold.
    pub fn from_env() -> Result<Options> {
        let mut options = Options::default();
        if let Some(mode) = var("SOJOURN_SOFT_MODE")? {
            options.mode = parse_mode(&mode)?;
        }
        if let Some(lid) = var("SOJOURN_SOFT_LID")? {
            options.lid =
                lid.parse().ok().filter(|lid| (1..=MAX_LID).contains(lid)).ok_or_else(|| {
                    Error::invalid(format!("SOJOURN_SOFT_LID is \"{lid}\": want 1 to {MAX_LID}"))
                })?;
        }
        if let Some(addr) = var("SOJOURN_SOFT_ADDR")? {
            options.addr = Some(parse_addr(&addr)?);
        }
        match var("SOJOURN_SOFT_COPY")?.as_deref() {
            None | Some("direct") => {}
            Some("ring") => options.ring_only = true,
            Some(other) => {
                return Err(Error::invalid(format!(
                    "SOJOURN_SOFT_COPY is \"{other}\": want \"direct\" or \"ring\""
                )));
            }
        }
        Ok(options)
    }
}

/// The names of the soft devices of this machine.
///
/// # Errors
/// `EINVAL`, naming the variable and what it may hold.
pub(super) fn device_names() -> Result<Vec<String>> {
    let Some(value) = var("SOJOURN_SOFT_DEVICES")? else { return Ok(vec!["soft0".into()]) };
    if let Ok(count) = value.parse::<u32>() {
        if (1..=64).contains(&count) {
            return Ok((0..count).map(|i| format!("soft{i}")).collect());
        }
    } else {
        let mut names: Vec<String> = value.split(',').map(|name| name.trim().to_owned()).collect();
        let good = |name: &String| {
            name.len() <= 32
                && name
                    .strip_prefix("soft")
                    .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_alphanumeric()))
        };
        if names.iter().all(good) {
            if !names.iter().any(|name| name == "soft0") {
                names.insert(0, "soft0".into());
            }
            names.dedup();
            return Ok(names);
        }
    }
    Err(Error::invalid(format!(
        "SOJOURN_SOFT_DEVICES is \"{value}\": want a count from 1 to 64, or names like soft0,soft1"
    )))
}

fn var(name: &str) -> Result<Option<String>> {
    match std::env::var(name) {
        Ok(value) if value.is_empty() => Ok(None),
        Ok(value) => Ok(Some(value)),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => {
            Err(Error::invalid(format!("{name} is not valid UTF-8")))
        }
    }
}

fn parse_addr(text: &str) -> Result<SocketAddrV4> {
    let ip = || text.parse::<Ipv4Addr>().map(|ip| SocketAddrV4::new(ip, 0));
    text.parse().or_else(|_| ip()).map_err(|_| {
        Error::invalid(format!(
            "SOJOURN_SOFT_ADDR is \"{text}\": want an IPv4 address of this machine, or one with a \
             port, like 10.0.0.1:4791"
        ))
    })
}

fn parse_mode(text: &str) -> Result<Mode> {
    let wrong = || {
        Error::invalid(format!(
            "SOJOURN_SOFT_MODE is \"{text}\": want \"sync\" or \"async:seed=N,latency_us=N,gbps=N\""
        ))
    };
    if text == "sync" {
        return Ok(Mode::Sync);
    }
    let rest = text.strip_prefix("async").ok_or_else(wrong)?;
    let mut pace = Pace::default();
    let settings = match rest.strip_prefix(':') {
        Some(settings) => settings,
        None if rest.is_empty() => "",
        None => return Err(wrong()),
    };
    for setting in settings.split(',').filter(|s| !s.is_empty()) {
        let (key, value) = setting.split_once('=').ok_or_else(wrong)?;
        match key {
            "seed" => pace.seed = value.parse().map_err(|_| wrong())?,
            "latency_us" => {
                let us: u64 =
                    value.parse().ok().filter(|us| *us <= 10_000_000).ok_or_else(wrong)?;
                pace.latency = Duration::from_micros(us);
            }
            "gbps" => {
                pace.gbps = value
                    .parse()
                    .ok()
                    .filter(|g: &f64| g.is_finite() && (1e-6..=1e6).contains(g))
                    .ok_or_else(wrong)?;
            }
            _ => return Err(wrong()),
        }
    }
    Ok(Mode::Async(pace))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An address may leave out the port, and nothing else.
    #[test]
    fn addresses_parse_or_are_refused() {
        let at = |port| SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), port);
        assert_eq!(parse_addr("10.0.0.1").unwrap(), at(0));
        assert_eq!(parse_addr("10.0.0.1:4791").unwrap(), at(4791));
        for bad in ["", "10.0.0", "host", "10.0.0.1:", "10.0.0.1:70000", "::1"] {
            assert!(parse_addr(bad).unwrap_err().to_string().contains("SOJOURN_SOFT_ADDR"));
        }
    }

    /// Every part of a mode is read, and anything else is refused with the variable's name.
    #[test]
    fn modes_parse_or_are_refused() {
        assert_eq!(parse_mode("sync").unwrap(), Mode::Sync);
        assert_eq!(parse_mode("async").unwrap(), Mode::Async(Pace::default()));
        let Mode::Async(pace) = parse_mode("async:seed=7,latency_us=20,gbps=2.5").unwrap() else {
            panic!("not async");
        };
        assert_eq!((pace.seed, pace.latency, pace.gbps), (7, Duration::from_micros(20), 2.5));
        for bad in ["", "asynch", "async:seed", "async:gbps=0", "async:gbps=nan", "async:x=1"] {
            assert!(parse_mode(bad).unwrap_err().to_string().contains("SOJOURN_SOFT_MODE"));
        }
    }
}
