//! The manifest of an epoch.

use super::read::damaged;
use crate::epoch::{Epoch, Term};
use crate::image::{Geometry, MAX_EPOCH};
use crate::{Area, Error, Layout, Result};
use serde::{Deserialize, Serialize};

/// Of the format that is written and read here.
const VERSION: u32 = 1;
/// Most bytes of a manifest: 64 times what 4,096 processes with 16 areas each take.
pub(super) const MAX_MANIFEST: usize = 1 << 28;

/// What an epoch of a job is: written last, so it exists when this does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Of the format.
    pub version: u32,
    /// The job, in hex.
    pub job: String,
    /// The count of the epoch.
    pub epoch: u64,
    /// The term in which it was dealt.
    pub term: u32,
    /// The epoch that its increments stand on, where it has any.
    pub base: Option<u64>,
    /// The processes, by number.
    pub members: Vec<Member>,
    /// The hash of the manifest with this left empty, as it is written here.
    pub blake3: String,
}

/// One process in an epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Which process.
    pub process: u32,
    /// Its incarnation when the epoch was written.
    pub incarnation: u32,
    /// When it was paused for the epoch, in nanoseconds since 1970.
    pub paused_at: u64,
    /// Its data file.
    pub file: String,
    /// The size of that file.
    pub bytes: u64,
    /// The hash of that file.
    pub blake3: String,
    /// The hash of areas, page table and windows: what identifies the image in whatever file.
    pub tables: String,
    /// The epoch that it stands on, where it is an increment.
    pub base: Option<u64>,
    /// The hash of the tables of that one.
    pub base_tables: Option<String>,
    /// Bytes of its windows.
    pub windows: u64,
    /// Chunks of its image.
    pub chunks: u64,
    /// Of these, how many are in the file.
    pub stored_chunks: u64,
    /// Of these, how many are zeros.
    pub zero_chunks: u64,
    /// Its areas.
    pub areas: Vec<AreaRecord>,
}

/// An area of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AreaRecord {
    /// Its id.
    pub id: u32,
    /// Where it lay.
    pub addr: u64,
    /// Its bytes.
    pub bytes: u64,
}

impl Member {
    /// Its areas.
    ///
    /// # Errors
    /// `EINVAL` where they are no [`Layout`].
    pub fn layout(&self) -> Result<Layout> {
        let number = |value| usize::try_from(value).unwrap_or(usize::MAX);
        Layout::new(self.areas.iter().map(|area| Area {
            id: area.id,
            addr: number(area.addr),
            bytes: number(area.bytes),
        }))
    }
}

/// The records of a layout's areas.
pub(super) fn records(layout: &Layout) -> Vec<AreaRecord> {
    let record =
        |area: &Area| AreaRecord { id: area.id, addr: area.addr as u64, bytes: area.bytes as u64 };
    layout.areas().iter().map(record).collect()
}

impl Manifest {
    /// The manifest of these, and its hash.
    pub(super) fn new(job: &[u8; 16], epoch: Epoch, members: Vec<Member>) -> Manifest {
        let bare = Manifest {
            version: VERSION,
            job: job_name(job),
            epoch: epoch.count(),
            term: epoch.term().0,
            base: None,
            members: Vec::new(),
            blake3: String::new(),
        };
        bare.with(members)
    }

    /// The same epoch with these members, by number of process, and its hash.
    pub(super) fn with(mut self, mut members: Vec<Member>) -> Manifest {
        members.sort_by_key(|member| member.process);
        self.base = members.iter().find_map(|member| member.base);
        self.members = members;
        self.blake3 = self.hash();
        self
    }

    /// Its file.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut json = serde_json::to_vec_pretty(self).expect("plain numbers and strings");
        json.push(b'\n');
        json
    }

    /// The manifest that is in a file, where that is of this job and epoch.
    ///
    /// # Errors
    /// `EBADMSG` says what is wrong.
    pub(super) fn decode(json: &[u8], job: &[u8; 16], epoch: u64) -> Result<Manifest> {
        /// Of any version.
        #[derive(Deserialize)]
        struct Any {
            version: u64,
        }
        if json.len() > MAX_MANIFEST {
            let bytes = json.len();
            return Err(damaged(format!("{bytes} bytes: a manifest has at most {MAX_MANIFEST}")));
        }
        let no_manifest = |error: serde_json::Error| damaged(format!("is no manifest: {error}"));
        let any: Any = serde_json::from_slice(json).map_err(no_manifest)?;
        if any.version != u64::from(VERSION) {
            let version = any.version;
            return Err(damaged(format!("is of version {version}, {VERSION} is read here")));
        }
        let manifest: Manifest = serde_json::from_slice(json).map_err(no_manifest)?;
        if manifest.hash() != manifest.blake3 {
            return Err(damaged(
                "is not as it was written (its hash is another): edited by hand, or damaged",
            ));
        }
        if manifest.job != job_name(job) {
            let (is, job) = (&manifest.job, job_name(job));
            return Err(damaged(format!("is of job {is:?}, and not of {job}")));
        }
        if manifest.epoch != epoch {
            let is = manifest.epoch;
            return Err(damaged(format!("is of epoch {is}, and not of {epoch}")));
        }
        manifest.check().map_err(damaged)?;
        Ok(manifest)
    }

    /// The epoch, with its term.
    #[must_use]
    pub fn number(&self) -> Epoch {
        Epoch::new(Term(self.term), self.epoch)
    }

    /// The member of this process.
    ///
    /// # Errors
    /// `ENOENT` where there is none.
    pub fn member(&self, process: u32) -> Result<&Member> {
        self.members.iter().find(|member| member.process == process).ok_or_else(|| {
            let (epoch, many) = (self.epoch, self.members.len());
            let text = format!("epoch {epoch} has no process {process}: it has {many} others");
            Error::new(libc::ENOENT, text)
        })
    }

    fn hash(&self) -> String {
        let bare = Manifest { blake3: String::new(), ..self.clone() };
        blake3::hash(&bare.encode()).to_hex().to_string()
    }

    /// Says what cannot be.
    fn check(&self) -> std::result::Result<(), String> {
        let epoch = self.epoch;
        if !(1..=MAX_EPOCH).contains(&epoch) {
            return Err(format!("there is no epoch {epoch}"));
        }
        if self.members.is_empty() {
            return Err("it has no process".into());
        }
        if let Some(two) = self.members.windows(2).find(|two| two[0].process >= two[1].process) {
            return Err(format!("process {} comes before {}", two[0].process, two[1].process));
        }
        if self.base != self.members.iter().find_map(|member| member.base)
            || self.base.is_some_and(|base| base == 0 || base >= epoch)
        {
            return Err(format!("epoch {epoch} cannot stand on {:?}", self.base));
        }
        for member in &self.members {
            let of = member.process;
            let based = member.base.is_some();
            if based && member.base != self.base || based != member.base_tables.is_some() {
                return Err(format!("process {of} stands on another epoch than the others"));
            }
            // Nothing that is outside of the directory, or anything but a data file, can be named.
            let name = data_name(epoch, of, based);
            if member.file != name {
                return Err(format!(
                    "the file of process {of} is {:?} and not {name}",
                    member.file
                ));
            }
            let hashes = [Some(&member.blake3), Some(&member.tables), member.base_tables.as_ref()];
            if hashes.into_iter().flatten().any(|hash| blake3::Hash::from_hex(hash).is_err()) {
                return Err(format!("process {of} has a hash that is none"));
            }
            let layout = member.layout().map_err(|error| format!("process {of}: {error}"))?;
            let sum = member.stored_chunks.checked_add(member.zero_chunks);
            if layout.chunks() as u64 != member.chunks
                || sum.is_none_or(|sum| sum > member.chunks)
                || !based && sum != Some(member.chunks)
                || member.windows > Geometry::MAX_WINDOWS as u64
            {
                return Err(format!("process {of} has numbers that do not fit each other"));
            }
        }
        Ok(())
    }
}

/// The name of a job's directory.
pub(super) fn job_name(job: &[u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(*job))
}

/// The job whose directory has this name.
pub(super) fn job_of(name: &str) -> Option<[u8; 16]> {
    let job = u128::from_str_radix(name, 16).ok()?.to_be_bytes();
    (job_name(&job) == name).then_some(job)
}

/// The name of the manifest of an epoch.
pub(super) fn manifest_name(epoch: u64) -> String {
    format!("epoch-{epoch:010}.json")
}

/// The epoch whose manifest has this name.
pub(super) fn epoch_of(name: &str) -> Option<u64> {
    let epoch = name.strip_prefix("epoch-")?.strip_suffix(".json")?.parse().ok()?;
    (manifest_name(epoch) == name).then_some(epoch)
}

/// The name of a data file: of an increment where it is `based`.
pub(super) fn data_name(epoch: u64, process: u32, based: bool) -> String {
    let kind = if based { "inc" } else { "full" };
    format!("epoch-{epoch:010}.process-{process}.{kind}")
}

/// The epoch of the data file that has this name.
pub(super) fn epoch_of_data(name: &str) -> Option<u64> {
    let (epoch, rest) = name.strip_prefix("epoch-")?.split_once(".process-")?;
    let (process, kind) = rest.split_once('.')?;
    let (epoch, process) = (epoch.parse().ok()?, process.parse().ok()?);
    (data_name(epoch, process, kind == "inc") == name).then_some(epoch)
}

/// Decodes whatever `json` is, as it is and with a hash that fits it, for tests by chance.
///
/// # Panics
/// Where a promise of this module does not hold.
pub fn exercise(json: &[u8]) {
    let look = |json: &[u8], job: &[u8; 16], epoch| {
        if let Ok(manifest) = Manifest::decode(json, job, epoch) {
            assert_eq!(manifest.check(), Ok(()));
            assert!(manifest.members.iter().all(|member| !member.file.contains('/')));
            let again = Manifest::decode(&manifest.encode(), job, epoch);
            assert_eq!(again.expect("what was read can be written"), manifest);
        }
    };
    look(json, &[0; 16], 1);
    let Ok(mut manifest) = serde_json::from_slice::<Manifest>(json) else { return };
    manifest.version = VERSION;
    manifest.blake3 = manifest.hash();
    let job = job_of(&manifest.job).unwrap_or_default();
    look(&manifest.encode(), &job, manifest.epoch);
}
