//! Verdicts in the user's cache: `$XDG_CACHE_HOME/sojourn`, or `~/.cache/sojourn`.
//!
//! One small JSON file for each device that was tried. It is a cache: without a home there is none, and
//! what cannot be read, is somebody else's, is of another device or makes no sense counts as absent, and
//! is written anew. Nothing that goes wrong here is an error.

use super::{Known, Verdict};
use crate::device::DeviceContext;
use crate::error::Result;
use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Of the trial: a later one, which tries more, does not believe the verdicts of this one.
const VERSION: u32 = 1;
/// Largest file that is read: one has some 400 bytes.
const MAX_FILE: u64 = 4096;
/// Longest part of a file's name that comes from a device.
const MAX_PART: usize = 40;
/// Others may write.
const OTHERS_WRITE: u32 = 0o022;

/// Whose a verdict is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Key {
    kind: String,
    vendor: u32,
    part: u32,
    hardware: u32,
    firmware: String,
    kernel: String,
    trial: u32,
}

impl Key {
    pub(super) fn of(device: &dyn DeviceContext) -> Result<Self> {
        let attr = device.query_device()?;
        let end = attr.fw_ver.iter().position(|byte| *byte == 0).unwrap_or(attr.fw_ver.len());
        Ok(Key {
            kind: device.kind().as_str().to_owned(),
            vendor: attr.vendor_id,
            part: attr.vendor_part_id,
            hardware: attr.hw_ver,
            firmware: String::from_utf8_lossy(&attr.fw_ver[..end]).into_owned(),
            // Where there is no /proc all kernels look alike: but then no device does either.
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
                .map_or_else(|_| String::new(), |text| text.trim().to_owned()),
            trial: VERSION,
        })
    }

    /// A name for its file. Two keys may have one: then the later takes the place of the earlier.
    fn file_name(&self) -> String {
        let plain = |text: &str| -> String {
            let keep = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '_' };
            text.chars().take(MAX_PART).map(keep).collect()
        };
        format!(
            "packet-number-{}-{:x}-{:x}-{:x}-{}-{}.json",
            plain(&self.kind),
            self.vendor,
            self.part,
            self.hardware,
            plain(&self.firmware),
            plain(&self.kernel)
        )
    }
}

#[derive(Serialize, Deserialize)]
struct Entry {
    key: Key,
    verdict: Verdict,
    tried: u64,
}

/// A directory of verdicts.
pub(super) struct Cache(PathBuf);

impl Cache {
    /// The user's; `None` without a home.
    pub(super) fn of_user() -> Option<Self> {
        let absolute = |name: &str| {
            let path = PathBuf::from(std::env::var_os(name)?);
            path.is_absolute().then_some(path)
        };
        let base = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
        Some(Cache(base.join("sojourn")))
    }

    #[cfg(test)]
    pub(super) fn at(path: &Path) -> Self {
        Cache(path.to_owned())
    }

    /// Nobody else can have put anything there.
    fn is_ours(metadata: &fs::Metadata) -> bool {
        metadata.uid() == nix::unistd::geteuid().as_raw() && metadata.mode() & OTHERS_WRITE == 0
    }

    pub(super) fn look_up(&self, key: &Key) -> Option<Known> {
        let directory = fs::symlink_metadata(&self.0).ok()?;
        if !directory.is_dir() || !Self::is_ours(&directory) {
            return None;
        }
        let mut open = OpenOptions::new();
        // A file that is something else (a pipe, say) keeps nobody waiting.
        open.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC);
        let file = open.open(self.0.join(key.file_name())).ok()?;
        let metadata = file.metadata().ok()?;
        if !metadata.is_file() || !Self::is_ours(&metadata) || metadata.len() > MAX_FILE {
            return None;
        }
        let mut text = String::new();
        file.take(MAX_FILE).read_to_string(&mut text).ok()?;
        let entry: Entry = serde_json::from_str(&text).ok()?;
        (entry.key == *key).then_some(Known { verdict: entry.verdict, tried: Some(entry.tried) })
    }

    pub(super) fn store(&self, key: &Key, known: &Known) {
        if let Err(error) = self.try_store(key, known) {
            tracing::debug!("a verdict is not remembered in {}: {error}", self.0.display());
        }
    }

    fn try_store(&self, key: &Key, known: &Known) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.0)?;
        let directory = fs::symlink_metadata(&self.0)?;
        if !directory.is_dir() || !Self::is_ours(&directory) {
            return Err(io::Error::other("it is not this user's alone"));
        }
        let Known { verdict, tried } = known.clone();
        let entry = Entry { key: key.clone(), verdict, tried: tried.unwrap_or(0) };
        let text = serde_json::to_string_pretty(&entry).map_err(io::Error::other)?;
        // Whoever reads meanwhile, or writes too, has the one or the other.
        let name = key.file_name();
        let lot = RandomState::new().hash_one(0u8);
        let new = self.0.join(format!(".{name}.{lot:x}"));
        let written =
            write_new(&new, text.as_bytes()).and_then(|()| fs::rename(&new, self.0.join(name)));
        if written.is_err() {
            let _ = fs::remove_file(&new);
        }
        written
    }
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file: File = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn key() -> Key {
        Key {
            kind: "hca".into(),
            vendor: 0x15b3,
            part: 4119,
            hardware: 0,
            firmware: "16.35/../2".into(),
            kernel: "6.1.0-28-amd64".into(),
            trial: VERSION,
        }
    }

    fn not_live() -> Known {
        let case = "WRITE".to_owned();
        Known { verdict: Verdict::NotLive { case, expected: 7, found: Some(5) }, tried: Some(99) }
    }

    /// Promise: a verdict is found again for the very same device, firmware, kernel and trial, and for no
    /// other.
    #[test]
    fn a_verdict_is_found_again_for_the_same_device_alone() {
        let place = tempfile::tempdir().unwrap();
        let cache = Cache::at(&place.path().join("deep/sojourn"));
        assert_eq!(cache.look_up(&key()), None);
        cache.store(&key(), &not_live());
        assert_eq!(cache.look_up(&key()), Some(not_live()));
        assert_eq!(fs::metadata(&cache.0).unwrap().mode() & 0o777, 0o700);
        let others = [
            Key { firmware: "16.35/..?2".into(), ..key() },
            Key { part: 1, ..key() },
            Key { kernel: "6.12".into(), ..key() },
            Key { trial: VERSION + 1, ..key() },
        ];
        assert!(others.iter().all(|other| cache.look_up(other).is_none()));
        // The first has a file of the same name: the later takes its place.
        let live = Known { verdict: Verdict::Live, tried: Some(3) };
        cache.store(&others[0], &live);
        assert_eq!((cache.look_up(&others[0]), cache.look_up(&key())), (Some(live), None));
        let left: Vec<_> = fs::read_dir(&cache.0).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }

    /// Promise: what makes no sense, or may be somebody else's, counts as absent, and is written anew.
    #[test]
    fn what_is_not_to_be_believed_is_written_anew() {
        let place = tempfile::tempdir().unwrap();
        let cache = Cache::at(place.path());
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o700)).unwrap();
        cache.store(&key(), &not_live());
        let file = place.path().join(key().file_name());
        let good = fs::read(&file).unwrap();
        let mut long = good.clone();
        long.resize(MAX_FILE as usize + 1, b' ');
        for bad in [&b""[..], b"{}", &good[..good.len() - 2], &[0xff; 9], &long] {
            fs::write(&file, bad).unwrap();
            assert_eq!(cache.look_up(&key()), None);
            cache.store(&key(), &not_live());
            assert_eq!(cache.look_up(&key()), Some(not_live()));
        }
        // Others may write the file; it is a link; others may write the directory.
        fs::set_permissions(&file, fs::Permissions::from_mode(0o622)).unwrap();
        assert_eq!(cache.look_up(&key()), None);
        let elsewhere = tempfile::NamedTempFile::new().unwrap();
        fs::write(elsewhere.path(), &good).unwrap();
        fs::remove_file(&file).unwrap();
        symlink(elsewhere.path(), &file).unwrap();
        assert_eq!(cache.look_up(&key()), None);
        cache.store(&key(), &not_live());
        assert_eq!(cache.look_up(&key()), Some(not_live()));
        assert_eq!(fs::read(elsewhere.path()).unwrap(), good, "it was not written through");
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(cache.look_up(&key()), None);
        cache.store(&key(), &not_live());
        assert_eq!(cache.look_up(&key()), None);
    }

    /// Promise: where nothing can be written there is no cache, and nothing fails.
    #[test]
    fn without_a_place_nothing_is_remembered() {
        let place = tempfile::NamedTempFile::new().unwrap();
        let cache = Cache::at(&place.path().join("sojourn"));
        cache.store(&key(), &not_live());
        assert_eq!(cache.look_up(&key()), None);
    }
}
