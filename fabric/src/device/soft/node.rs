//! Names on the node: where contexts of one user find each other.
//!
//! The soft devices of a node are ports of one subnet, as two HCAs on one switch are: every context
//! reaches every other, whatever devices they were opened on. The subnet's directory (0700, ours) holds
//! for each claimed block of 1,024 QPNs a lock file, `block-N`, locked (`flock`) by the context that owns it for
//! as long as its process lives, and naming the unix socket on which that context answers. The
//! kernel frees the lock when the process dies; what such a file or socket then still says is
//! found out by connecting, and by the handshake, which checks the block.
//!
//! QPNs 0 and 1 are the management ones of InfiniBand: block 0 is never dealt.

use super::limits::{BLOCK_QPNS, NODE_BLOCKS};
use crate::{Error, Result};
use nix::fcntl::{Flock, FlockArg};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The longest path of a unix socket (`sun_path`), without its terminating zero.
const SUN_PATH: usize = 107;

/// The subnet's directory, below the one for all that is ours.
const SUBNET: &str = "subnet";

/// The directory of the node's subnet.
#[derive(Clone, Debug)]
pub(super) struct Node {
    dir: PathBuf,
}

/// A claimed block; the claim ends when it is dropped, or with the process.
pub(super) struct Block {
    number: u32,
    _lock: Flock<File>,
    path: PathBuf,
}

impl Block {
    /// The first QPN.
    pub(super) fn first_qpn(&self) -> u32 {
        self.number * BLOCK_QPNS
    }

    pub(super) fn number(&self) -> u32 {
        self.number
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// 64 random bits from the kernel.
pub(super) fn random() -> u64 {
    let mut bytes = [0u8; 8];
    // SAFETY: eight writable bytes; a read this small is never short once the pool is up.
    unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    u64::from_ne_bytes(bytes)
}

impl Node {
    /// The node's directory, made where it is missing.
    pub(super) fn open() -> Result<Node> {
        let root = match std::env::var_os("SOJOURN_SOFT_DIR").filter(|dir| !dir.is_empty()) {
            Some(dir) => PathBuf::from(dir),
            None => match std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()) {
                Some(dir) => PathBuf::from(dir).join("sojourn-soft"),
                None => PathBuf::from(format!("/tmp/sojourn-soft-{}", nix::unistd::getuid())),
            },
        };
        private_dir(&root)?;
        let dir = root.join(SUBNET);
        private_dir(&dir)?;
        let longest = dir.join("0123456789abcdef.sock");
        if longest.as_os_str().len() > SUN_PATH {
            return Err(Error::invalid(format!(
                "the soft devices' directory {} is too long for unix sockets; set \
                 SOJOURN_SOFT_DIR to a shorter one",
                dir.display()
            )));
        }
        Ok(Node { dir })
    }

    /// Where the context with this identity answers.
    pub(super) fn socket(&self, context: u64) -> PathBuf {
        self.dir.join(format!("{context:016x}.sock"))
    }

    /// Claims a free block for the context that answers at `socket`.
    ///
    /// # Errors
    /// `ENOMEM` when the node has no free block.
    pub(super) fn claim(&self, socket: &Path) -> Result<Block> {
        // A random start: a QPN is not dealt again soon after its process died.
        let start = random() % u64::from(NODE_BLOCKS - 1);
        for i in 0..u64::from(NODE_BLOCKS - 1) {
            let number = 1 + ((start + i) % u64::from(NODE_BLOCKS - 1)) as u32;
            if let Some(block) = self.try_claim(number, socket)? {
                return Ok(block);
            }
        }
        Err(Error::new(
            libc::ENOMEM,
            format!(
                "all {} blocks of queue pair numbers in {} are taken",
                NODE_BLOCKS - 1,
                self.dir.display()
            ),
        ))
    }

    fn try_claim(&self, number: u32, socket: &Path) -> Result<Option<Block>> {
        let path = self.dir.join(format!("block-{number}"));
        let doing = || format!("claiming queue pair numbers in {}", path.display());
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|error| Error::os(&error, doing()))?;
        let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => return Ok(None),
            Err((_, errno)) => return Err(Error::os(&errno.into(), doing())),
        };
        // The owner before us may have removed the file between our open and our lock: then the
        // name stands for another file, or for none, and the block is somebody else's.
        let ours = lock.metadata().map(|m| (m.dev(), m.ino()));
        let named = std::fs::metadata(&path).map(|m| (m.dev(), m.ino()));
        if ours.ok() != named.ok() {
            return Ok(None);
        }
        let mut old = String::new();
        if lock.read_to_string(&mut old).is_ok() && !old.is_empty() && !old.contains('/') {
            // Left by a process that died: nobody answers there.
            let _ = std::fs::remove_file(self.dir.join(old));
        }
        let name = socket.file_name().unwrap_or_default().as_encoded_bytes();
        lock.set_len(0)
            .and_then(|()| std::io::Seek::rewind(&mut *lock))
            .and_then(|()| lock.write_all(name))
            .map_err(|error| Error::os(&error, doing()))?;
        Ok(Some(Block { number, _lock: lock, path }))
    }

    /// The socket of the context that says it owns the block of `qpn`.
    pub(super) fn owner(&self, qpn: u32) -> Option<PathBuf> {
        let path = self.dir.join(format!("block-{}", qpn / BLOCK_QPNS));
        let name = std::fs::read_to_string(path).ok()?;
        (name.len() == 21 && name.ends_with(".sock") && !name.contains('/'))
            .then(|| self.dir.join(name))
    }
}

fn private_dir(path: &Path) -> Result<()> {
    let made = DirBuilder::new().mode(0o700).create(path);
    if let Err(error) = made
        && error.kind() != std::io::ErrorKind::AlreadyExists
    {
        return Err(Error::os(&error, format!("making the directory {}", path.display())));
    }
    let meta = std::fs::symlink_metadata(path)
        .map_err(|error| Error::os(&error, format!("looking at {}", path.display())))?;
    let uid = nix::unistd::getuid().as_raw();
    if !meta.is_dir() || meta.uid() != uid || meta.mode() & 0o077 != 0 {
        return Err(Error::new(
            libc::EACCES,
            format!(
                "{} must be a directory of user {uid} with mode 0700; remove it, or set \
                 SOJOURN_SOFT_DIR to another",
                path.display()
            ),
        ));
    }
    Ok(())
}
