//! The job key: 32 random bytes that every process of a job holds, and nobody else.
//!
//! It authenticates each control connection ([`session`](super::session)). It comes from a file that
//! only its owner can read, never from an argument list, and is never printed.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::geteuid;
use snow::params::HashChoice;
use snow::resolvers::{CryptoResolver, DefaultResolver};

use super::error::{Error, errno_of};
use super::types::JobId;

/// Length of a key; what Noise takes as a pre-shared key.
pub const KEY_LEN: usize = 32;

/// Hex form: two digits per byte.
const HEX_LEN: usize = 2 * KEY_LEN;

/// Separates the hash that names the job from every other use of the key.
const JOB_ID_CONTEXT: &[u8] = b"sojourn: number of the job that holds this key\0";

/// The key of a job.
#[derive(Clone)]
pub struct JobKey {
    bytes: [u8; KEY_LEN],
    origin: Option<PathBuf>,
}

impl JobKey {
    /// A fresh key from the system's random source.
    pub fn generate() -> Result<JobKey, Error> {
        Ok(JobKey { bytes: random()?, origin: None })
    }

    /// A key that the caller already holds.
    pub fn from_bytes(bytes: [u8; KEY_LEN]) -> JobKey {
        JobKey { bytes, origin: None }
    }

    /// Reads a key file: 32 raw bytes, or 64 hex digits and at most one newline. The file must be
    /// a regular file of this user that nobody else may touch.
    pub fn read(path: &Path) -> Result<JobKey, Error> {
        let bad = |problem: String| Error::KeyFile { path: path.into(), problem };
        // Without O_NONBLOCK the open of a FIFO would wait for its writer.
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .map_err(|e| bad(format!("can't be opened: {}", errno_of(&e).desc())))?;
        let meta = file.metadata().map_err(|e| bad(e.to_string()))?;
        let (mode, me) = (meta.mode() & 0o7777, geteuid().as_raw());
        if !meta.is_file() {
            return Err(bad("is not a regular file".into()));
        }
        if meta.uid() != me {
            return Err(bad(format!(
                "belongs to uid {}, and this process runs as {me}",
                meta.uid()
            )));
        }
        if mode & 0o177 != 0 {
            return Err(bad(format!(
                "has mode {mode:04o}; only its owner may have access: chmod 600"
            )));
        }
        // One byte past the longest valid form tells "too long" without reading it all.
        let mut content = Vec::new();
        (&mut file)
            .take(HEX_LEN as u64 + 2)
            .read_to_end(&mut content)
            .map_err(|e| bad(e.to_string()))?;
        let bytes = parse(&content).ok_or_else(|| {
            bad(format!(
                "holds no key: it has {} bytes, and a key is {KEY_LEN} raw bytes or {HEX_LEN} hex \
                 digits",
                meta.len()
            ))
        })?;
        Ok(JobKey { bytes, origin: Some(path.into()) })
    }

    /// Writes the key to a new file with mode 0600, as hex. A file that is there already stays.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let bad = |e: std::io::Error| Error::KeyFile {
            path: path.into(),
            problem: format!("can't be written: {}", errno_of(&e).desc()),
        };
        let mut text: String = self.bytes.iter().map(|b| format!("{b:02x}")).collect();
        text.push('\n');
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(bad)?;
        file.write_all(text.as_bytes()).map_err(bad)
    }

    /// The number of the job that holds this key.
    pub fn job_id(&self) -> JobId {
        let mut digest = [0; 32];
        if let Some(mut hash) = DefaultResolver.resolve_hash(&HashChoice::Blake2s) {
            hash.input(JOB_ID_CONTEXT);
            hash.input(&self.bytes);
            hash.result(&mut digest);
        }
        JobId(u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]))
    }

    /// Where the key came from, for messages.
    pub(crate) fn origin(&self) -> String {
        match &self.origin {
            Some(path) => path.display().to_string(),
            None => "given by the program".into(),
        }
    }

    pub(crate) fn bytes(&self) -> &[u8; KEY_LEN] {
        &self.bytes
    }
}

impl fmt::Debug for JobKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobKey").field("origin", &self.origin).finish_non_exhaustive()
    }
}

/// Bytes from the system's random source.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    DefaultResolver
        .resolve_rng()
        .and_then(|mut rng| rng.try_fill_bytes(&mut bytes).ok())
        .ok_or_else(|| Error::system("the system's random source", Errno::ENOSYS))?;
    Ok(bytes)
}

fn parse(content: &[u8]) -> Option<[u8; KEY_LEN]> {
    if let Ok(raw) = content.try_into() {
        return Some(raw);
    }
    let hex = content.strip_suffix(b"\n").unwrap_or(content);
    if hex.len() != HEX_LEN {
        return None;
    }
    let mut key = [0; KEY_LEN];
    for (byte, pair) in key.iter_mut().zip(hex.chunks_exact(2)) {
        let digit = |c: u8| char::from(c).to_digit(16);
        *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
    }
    Some(key)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn file(dir: &tempfile::TempDir, content: &[u8], mode: u32) -> PathBuf {
        let path = dir.path().join("key");
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn a_written_key_reads_back_and_no_file_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let key = JobKey::generate().unwrap();
        key.write(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(JobKey::read(&path).unwrap().bytes, key.bytes);
        let again = JobKey::generate().unwrap().write(&path).unwrap_err().to_string();
        assert!(again.contains("exists") && again.contains("key"), "{again}");
        assert_eq!(JobKey::read(&path).unwrap().bytes, key.bytes);
    }

    #[test]
    fn raw_and_hex_forms_are_read_and_nothing_else() {
        let raw = *b"0123456789abcdef0123456789abcdef";
        assert_eq!(parse(&raw), Some(raw));
        assert_eq!(parse("AB".repeat(32).as_bytes()), Some([0xab; 32]));
        assert_eq!(parse(format!("{}\n", "00".repeat(32)).as_bytes()), Some([0; 32]));
        for bad in ["", "00", &"0".repeat(63), &"g".repeat(64), &"0".repeat(66)] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn each_fault_of_a_key_file_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let error = |path: &Path| JobKey::read(path).unwrap_err().to_string();
        assert!(error(&file(&dir, &[7; 32], 0o640)).contains("mode 0640"));
        assert!(error(&file(&dir, &[7; 31], 0o600)).contains("31 bytes"));
        assert!(error(&file(&dir, &[7; 4096], 0o600)).contains("4096 bytes"));
        assert!(error(dir.path()).contains("regular file"));
        assert!(error(&dir.path().join("none")).contains("No such file"));
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(error(&fifo).contains("regular file"));
        if geteuid().is_root() {
            let path = file(&dir, &[7; 32], 0o600);
            nix::unistd::chown(&path, Some(12345.into()), None).unwrap();
            assert!(error(&path).contains("uid 12345"));
        }
    }

    #[test]
    fn the_key_is_never_printed() {
        let text = format!("{:?}", JobKey::from_bytes([0xAB; 32]));
        assert!(!text.contains("171") && !text.to_lowercase().contains("ab, "), "{text}");
        assert!(!text.to_lowercase().contains("abab"), "{text}");
    }

    #[test]
    fn the_number_of_a_job_follows_from_its_key() {
        let (one, two) = (JobKey::from_bytes([1; 32]), JobKey::from_bytes([2; 32]));
        assert_eq!(one.job_id(), one.clone().job_id());
        assert_ne!(one.job_id(), two.job_id());
    }
}
