//! Where a program's snapshots go, and how often: what its launcher says, and what it may say itself.

use super::flush::Flush;
use crate::{Error, Result};
use sojourn_fabric::names::{Endpoint, JobKey, env};
use sojourn_snapshot::Interval;
use sojourn_snapshot::files::{Codec, Keep, job_called};
use sojourn_snapshot::redundancy::Scheme;
use sojourn_snapshot::track::Kind;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

/// The stores of the job: `NODE=ENDPOINT` or `NODE@DOMAIN=ENDPOINT`, separated by commas. All ranks are told
/// the same, in the same order.
pub const STORES: &str = "SOJOURN_STORES";
/// The file that holds the key of the stores; that of the job, where it is not set.
pub const STORE_KEY_FILE: &str = "SOJOURN_STORE_KEY_FILE";
/// The node that this process runs on: a store of that name is not used for it.
pub const NODE: &str = "SOJOURN_NODE";
/// How epochs outlive nodes: `copies:2`, `xor:4`, `rs:4+2`.
pub const REDUNDANCY: &str = "SOJOURN_REDUNDANCY";
/// Seconds from one epoch to the next.
pub const INTERVAL: &str = "SOJOURN_EPOCH_SECONDS";
/// Mean time between failures of the whole job, in seconds; in place of [`INTERVAL`].
pub const FAILURES: &str = "SOJOURN_FAILURE_SECONDS";
/// What tells this job from others that use the same directory, or have used the same stores: any text, and the same
/// when it is started anew.
pub const JOB_NAME: &str = "SOJOURN_JOB_NAME";
/// The directory that epochs are drained to, and that a job is restarted from when no store has anything of it.
pub const FLUSH_DIR: &str = "SOJOURN_FLUSH_DIR";
/// Each epoch whose count is a multiple of this is drained.
pub const FLUSH_EVERY: &str = "SOJOURN_FLUSH_EVERY";
/// Which drained epochs stay: the last `N`, `N+K` for each K-th beside, or `all`.
pub const FLUSH_KEEP: &str = "SOJOURN_FLUSH_KEEP";
/// How they are compressed: `none`, `lz4` or `zstd`.
pub const FLUSH_COMPRESS: &str = "SOJOURN_FLUSH_COMPRESS";

/// From one epoch to the next, where nothing was said.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(60);
/// Bytes of windows, where nothing was said: some 20,000 posted requests.
const DEFAULT_WINDOWS: usize = 1 << 20;

/// One store of the job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreAddress {
    /// The node that it is on.
    pub node: String,
    /// What it may fail together with, if that is known.
    pub domain: Option<String>,
    /// Where it listens.
    pub at: Endpoint,
}

impl FromStr for StoreAddress {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refuse = |why: &str| {
            Error::invalid(format!(
                "{STORES}: {text:?} {why}; NODE=ENDPOINT is needed, as node7=tcp:10.0.0.7:7400"
            ))
        };
        let (place, at) = text.split_once('=').ok_or_else(|| refuse("has no ="))?;
        let at = Endpoint::parse(at).map_err(|error| refuse(&format!("({error})")))?;
        let (node, domain) = match place.split_once('@') {
            Some((node, domain)) => (node, Some(domain.to_owned())),
            None => (place, None),
        };
        if node.is_empty() || domain.as_ref().is_some_and(String::is_empty) {
            return Err(refuse("leaves a name empty"));
        }
        Ok(StoreAddress { node: node.to_owned(), domain, at })
    }
}

/// What snapshots need to know.
#[derive(Clone, Debug)]
pub struct Options {
    /// The stores of the job, the same and in the same order for every rank.
    pub stores: Vec<StoreAddress>,
    /// The key of the stores.
    pub key: JobKey,
    /// The node that this process runs on.
    pub node: String,
    /// How epochs outlive nodes.
    pub scheme: Scheme,
    /// How often [`super::Snapshots::should_checkpoint`] says yes.
    pub interval: Interval,
    /// How it is learned what the program has changed; the best that the kernel has, where it is `None`.
    pub tracking: Option<Kind>,
    /// Threads that send, each with a queue pair to each store.
    pub lanes: usize,
    /// Most bytes of the windows of attached contexts: an epoch with more is given up. A slot has room for so many.
    pub windows: usize,
    /// Tells jobs apart that use the same directory, or have used the same stores.
    pub job: [u8; 16],
    /// Epochs are drained to a directory.
    pub flush: Option<Flush>,
}

impl Options {
    /// What the environment says; `None` where it names no stores.
    ///
    /// # Errors
    /// `EINVAL` for a variable that makes no sense: the message names it.
    pub fn from_env() -> Result<Option<Options>> {
        Options::read(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    pub(super) fn read(get: impl Fn(&str) -> Option<String>) -> Result<Option<Options>> {
        let Some(stores) = get(STORES) else {
            return match get(FLUSH_DIR) {
                None => Ok(None),
                Some(_) => Err(Error::invalid(format!(
                    "{FLUSH_DIR} is set, and {STORES} is not: epochs are drained from stores"
                ))),
            };
        };
        let stores = stores.split(',').map(str::parse).collect::<Result<Vec<_>>>()?;
        let key_file = get(STORE_KEY_FILE).or_else(|| get(env::KEY_FILE)).ok_or_else(|| {
            Error::invalid(format!(
                "{STORES} is set, and neither {STORE_KEY_FILE} nor {}",
                env::KEY_FILE
            ))
        })?;
        let key = JobKey::read(Path::new(&key_file))
            .map_err(|error| Error::invalid(error.to_string()))?;
        let scheme = match get(REDUNDANCY) {
            Some(text) => text.parse::<Scheme>().map_err(|error| error.context(REDUNDANCY))?,
            None => Scheme::Copies(1),
        };
        let interval = match (seconds(&get, INTERVAL)?, seconds(&get, FAILURES)?) {
            (Some(_), Some(_)) => {
                return Err(Error::invalid(format!(
                    "{INTERVAL} and {FAILURES} are both set: one is enough"
                )));
            }
            (Some(every), None) => Interval::Every(every),
            (None, Some(failures)) => Interval::Optimal { failures },
            (None, None) => Interval::Every(DEFAULT_INTERVAL),
        };
        let node = get(NODE).unwrap_or_else(hostname);
        let job = get(JOB_NAME).map_or([0; 16], |name| job_called(&name));
        let flush = flush(&get)?;
        let (tracking, lanes, windows) = (None, 1, DEFAULT_WINDOWS);
        Ok(Some(Options {
            stores,
            key,
            node,
            scheme,
            interval,
            tracking,
            lanes,
            windows,
            job,
            flush,
        }))
    }
}

fn flush(get: impl Fn(&str) -> Option<String>) -> Result<Option<Flush>> {
    let Some(dir) = get(FLUSH_DIR) else {
        let lonely =
            [FLUSH_EVERY, FLUSH_KEEP, FLUSH_COMPRESS].into_iter().find(|name| get(name).is_some());
        return match lonely {
            None => Ok(None),
            Some(name) => Err(Error::invalid(format!("{name} is set, and {FLUSH_DIR} is not"))),
        };
    };
    let mut flush = Flush::to(dir);
    if let Some(text) = get(FLUSH_EVERY) {
        let every = text.parse().ok().filter(|every| *every > 0);
        flush.every = every.ok_or_else(|| {
            Error::invalid(format!("{FLUSH_EVERY}={text}: a number of epochs from 1 is needed"))
        })?;
    }
    if let Some(text) = get(FLUSH_KEEP) {
        flush.keep = keep(&text).ok_or_else(|| {
            Error::invalid(format!("{FLUSH_KEEP}={text}: N, N+K or all is needed, as 4+100"))
        })?;
    }
    if let Some(text) = get(FLUSH_COMPRESS) {
        flush.codec = match text.as_str() {
            "none" => Codec::Raw,
            "lz4" => Codec::Lz4,
            "zstd" => Codec::Zstd,
            _ => {
                let text = format!("{FLUSH_COMPRESS}={text}: none, lz4 or zstd is needed");
                return Err(Error::invalid(text));
            }
        };
        flush.codec.check().map_err(|error| error.context(FLUSH_COMPRESS))?;
    }
    Ok(Some(flush))
}

/// What a text says is kept; `None` where it says nothing.
fn keep(text: &str) -> Option<Option<Keep>> {
    let number = |text: &str| text.parse::<u64>().ok().filter(|number| *number > 0);
    let (last, every) = match text.split_once('+') {
        None if text == "all" => return Some(None),
        None => (number(text)?, None),
        Some((last, every)) => (number(last)?, Some(number(every)?)),
    };
    Some(Some(Keep { last: usize::try_from(last).ok()?, every }))
}

fn seconds(get: impl Fn(&str) -> Option<String>, name: &str) -> Result<Option<Duration>> {
    let Some(text) = get(name) else { return Ok(None) };
    let number: Option<f64> = text.parse().ok();
    let refuse = || Error::invalid(format!("{name}={text}: a number of seconds above 0 is needed"));
    let number = number.filter(|number| *number > 0.0).ok_or_else(refuse)?;
    Duration::try_from_secs_f64(number).map(Some).map_err(|_| refuse())
}

fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "localhost".to_owned() } else { name.trim().to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(more: &[(&str, &str)]) -> Result<Option<Options>> {
        let home = tempfile::tempdir().unwrap();
        let key = home.path().join("key");
        JobKey::generate().unwrap().write(&key).unwrap();
        let key = key.to_str().unwrap().to_owned();
        Options::read(|name| match more.iter().rev().find(|(other, _)| *other == name) {
            Some((_, value)) => Some((*value).to_owned()).filter(|value| !value.is_empty()),
            None if name == STORE_KEY_FILE => Some(key.clone()),
            None => None,
        })
    }

    #[test]
    fn what_the_environment_says_is_understood() {
        assert!(read(&[]).unwrap().is_none());
        let stores = "a=unix:/run/a,b@rack1=tcp:127.0.0.1:7400";
        let options =
            read(&[(STORES, stores), (NODE, "a"), (REDUNDANCY, "copies:2")]).unwrap().unwrap();
        let names: Vec<_> =
            options.stores.iter().map(|it| (it.node.as_str(), it.domain.as_deref())).collect();
        assert_eq!(names, [("a", None), ("b", Some("rack1"))]);
        assert_eq!((options.node.as_str(), options.scheme), ("a", Scheme::Copies(2)));
        assert_eq!(options.interval, Interval::Every(DEFAULT_INTERVAL));
        let options = read(&[(STORES, stores), (FAILURES, "3600.5")]).unwrap().unwrap();
        assert_eq!(
            options.interval,
            Interval::Optimal { failures: Duration::from_millis(3_600_500) }
        );
    }

    #[test]
    fn where_and_how_epochs_are_drained_is_understood() {
        let stores = (STORES, "a=unix:/run/a");
        assert_eq!(read(&[stores]).unwrap().unwrap().flush, None);
        let options = read(&[stores, (FLUSH_DIR, "/scratch/heat")]).unwrap().unwrap();
        assert_eq!(options.flush, Some(Flush::to("/scratch/heat")));
        assert_eq!(options.job, [0; 16]);
        let more = [
            (FLUSH_EVERY, "3"),
            (FLUSH_KEEP, "4+100"),
            (FLUSH_COMPRESS, "none"),
            (JOB_NAME, "heat"),
        ];
        let all = [&[stores, (FLUSH_DIR, "/scratch")], &more[..]].concat();
        let options = read(&all).unwrap().unwrap();
        let flush = options.flush.unwrap();
        assert_eq!((flush.every, flush.codec), (3, Codec::Raw));
        assert_eq!(flush.keep, Some(Keep { last: 4, every: Some(100) }));
        assert_ne!(options.job, [0; 16]);
        assert_eq!(keep("all"), Some(None));
        assert_eq!(keep("2"), Some(Some(Keep { last: 2, every: None })));
        for wrong in ["", "0", "2+0", "2+", "x", "-1"] {
            assert_eq!(keep(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        let one = (STORES, "a=unix:/run/a");
        for (variables, words) in [
            (vec![(STORES, "a")], ["SOJOURN_STORES", "\"a\""]),
            (vec![(STORES, "a=unix:/x,=unix:/y")], ["SOJOURN_STORES", "empty"]),
            (vec![(STORES, "a=nowhere")], ["SOJOURN_STORES", "nowhere"]),
            (vec![one, (REDUNDANCY, "copies:0")], ["SOJOURN_REDUNDANCY", "copies"]),
            (vec![one, (INTERVAL, "-1")], ["SOJOURN_EPOCH_SECONDS=-1", "above 0"]),
            (
                vec![one, (INTERVAL, "1"), (FAILURES, "1")],
                ["SOJOURN_EPOCH_SECONDS", "one is enough"],
            ),
            (vec![one, (STORE_KEY_FILE, "")], ["SOJOURN_STORE_KEY_FILE", "neither"]),
            (vec![one, (STORE_KEY_FILE, "/no/such/key")], ["/no/such/key", "key"]),
            (vec![(FLUSH_DIR, "/x")], ["SOJOURN_FLUSH_DIR", "SOJOURN_STORES is not"]),
            (vec![one, (FLUSH_EVERY, "2")], ["SOJOURN_FLUSH_EVERY", "SOJOURN_FLUSH_DIR is not"]),
            (vec![one, (FLUSH_DIR, "/x"), (FLUSH_EVERY, "0")], ["SOJOURN_FLUSH_EVERY=0", "from 1"]),
            (vec![one, (FLUSH_DIR, "/x"), (FLUSH_KEEP, "0+4")], ["SOJOURN_FLUSH_KEEP=0+4", "N+K"]),
            (
                vec![one, (FLUSH_DIR, "/x"), (FLUSH_COMPRESS, "gz")],
                ["SOJOURN_FLUSH_COMPRESS=gz", "lz4"],
            ),
        ] {
            let error = read(&variables).unwrap_err().to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{variables:?}: {error}");
        }
    }
}
