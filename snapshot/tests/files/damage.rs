//! What is damaged is named, and never restored as if it were not.

use crate::world::{JOB, JOB_NAME, Process, files, flush, number, restored};
use proptest::prelude::*;
use sojourn_snapshot::files::{
    Codec, Directory, Image, Manifest, Options, SlotImage, exercise_data, exercise_manifest,
    unwatched,
};
use sojourn_snapshot::image::{PageTable, Stamp};
use sojourn_snapshot::{Error, Layout, PAGE, Result};
use std::ops::Range;
use std::path::PathBuf;

/// A full epoch, an increment on it, and the process as it was at that.
fn small() -> (tempfile::TempDir, Directory, Process) {
    let root = tempfile::tempdir().unwrap();
    let directory = Directory::create(root.path(), &JOB).unwrap();
    let mut process = Process::new(1, &[PAGE + 40, 30]);
    process.write(0, 0, &[9; PAGE]);
    process.noise(0, PAGE, 40, 1);
    process.memory.windows = b"windows".to_vec();
    let options = Options { codec: Codec::Lz4, chain: 3 };
    flush(&directory, 1, &mut [&mut process], &options).unwrap();
    process.noise(0, PAGE + 3, 20, 2);
    process.noise(1, 0, 30, 3);
    flush(&directory, 2, &mut [&mut process], &options).unwrap();
    assert_eq!(directory.manifest(2).unwrap().base, Some(1));
    (root, directory, process)
}

fn path(directory: &Directory, name: &str) -> PathBuf {
    directory.path().join(name)
}

/// The error of restoring epoch 2, which must name this file.
fn names(directory: &Directory, name: &str) -> Error {
    let error = restored(directory, 2, 1).unwrap_err();
    assert!(error.to_string().contains(path(directory, name).to_str().unwrap()), "{error}");
    error
}

#[test]
fn no_flipped_byte_is_restored() {
    let (_root, directory, process) = small();
    let all = files(&directory);
    assert_eq!(all.len(), 4);
    for name in all {
        let file = path(&directory, &name);
        let bytes = std::fs::read(&file).unwrap();
        for at in 0..bytes.len() {
            let mut other = bytes.clone();
            other[at] ^= [1, 0x20, 0xFF][at % 3];
            std::fs::write(&file, &other).unwrap();
            match restored(&directory, 2, 1) {
                // White space of a manifest, or what is in the base and not of this epoch.
                Ok(memory) => assert_eq!(memory, process.memory, "byte {at} of {name}"),
                Err(error) => assert!(error.to_string().contains(&name), "{at}: {error}"),
            }
            // What every byte of a data file is, is in the hash of its manifest. (Not each is tried: it takes long.)
            if !name.ends_with(".json") && at % 5 == 0 {
                let verified = directory.verify(2, &mut unwatched).unwrap();
                assert!(!verified.is_sound(), "byte {at} of {name}");
                assert!(verified.problems.iter().all(|it| it.what.contains(&name)));
            }
        }
        // Nor one that is cut short, or longer; but for the white space at the end of a manifest.
        for length in [0, 1, bytes.len() / 2, bytes.len() - 2] {
            std::fs::write(&file, &bytes[..length]).unwrap();
            names(&directory, &name);
        }
        let mut longer = bytes.clone();
        longer.extend([b'\n'; 9]);
        std::fs::write(&file, &longer).unwrap();
        match restored(&directory, 2, 1) {
            Ok(memory) => assert!(name.ends_with(".json") && memory == process.memory),
            Err(error) => assert!(error.to_string().contains(&name), "{error}"),
        }
        std::fs::write(&file, &bytes).unwrap();
    }
    assert!(directory.verify(2, &mut unwatched).unwrap().is_sound());
    assert_eq!(restored(&directory, 2, 1).unwrap(), process.memory);
}

/// Changes the manifest of epoch 2, and makes its hash right, as who means harm would.
fn forge(directory: &Directory, change: impl Fn(&mut Manifest)) {
    let mut manifest = directory.manifest(2).unwrap();
    change(&mut manifest);
    manifest.blake3 = String::new();
    let bare = serde_json::to_string_pretty(&manifest).unwrap() + "\n";
    manifest.blake3 = blake3::hash(bare.as_bytes()).to_hex().to_string();
    let json = serde_json::to_string_pretty(&manifest).unwrap();
    std::fs::write(path(directory, "epoch-0000000002.json"), json).unwrap();
}

#[test]
fn a_manifest_that_was_edited_is_refused() {
    let (_root, directory, process) = small();
    let json = path(&directory, "epoch-0000000002.json");
    let was = std::fs::read_to_string(&json).unwrap();
    let edited = |from: &str, to: &str, words: &str| {
        assert!(was.contains(from), "{was}");
        std::fs::write(&json, was.replacen(from, to, 1)).unwrap();
        let error = names(&directory, "epoch-0000000002.json").to_string();
        assert!(error.contains(words), "{error}");
        let list = directory.list().unwrap();
        assert_eq!(list[1].damaged.as_ref(), Some(&error));
        assert!(list[0].damaged.is_none());
        assert_eq!(directory.last_restorable().unwrap(), 1);
        std::fs::write(&json, &was).unwrap();
    };
    edited("\"incarnation\": 1", "\"incarnation\": 2", "edited by hand");
    edited("\"version\": 1", "\"version\": 2", "is of version 2, 1 is read here");
    edited("\"epoch\": 2", "\"epoch\": 2, \"more\": 1", "unknown field");
    edited("\"epoch\": 2", "\"epoch\": -2", "is no manifest");
    edited("\"members\": [", "\"members\": {", "is no manifest");
    edited("\"epoch\": 2,", "", "missing field");

    let forged = |change: &dyn Fn(&mut Manifest), words: &str| {
        forge(&directory, change);
        let error = restored(&directory, 2, 1).unwrap_err().to_string();
        assert!(error.contains("epoch-0000000002.") && error.contains(words), "{error}");
        std::fs::write(&json, &was).unwrap();
    };
    for file in ["../../etc/passwd", "/etc/passwd", "epoch-0000000001.process-1.full", ""] {
        forged(&|it| it.members[0].file = file.into(), "the file of process 1 is");
    }
    forged(&|it| it.job = "0".repeat(32), JOB_NAME);
    forged(&|it| it.epoch = 3, "is of epoch 3, and not of 2");
    forged(&|it| it.base = Some(2), "cannot stand on Some(2)");
    forged(&|it| (it.base, it.members[0].base) = (Some(9), Some(9)), "cannot stand on Some(9)");
    forged(&|it| it.base = None, "cannot stand on None");
    forged(&|it| it.members[0].base_tables = None, "stands on another epoch");
    forged(&|it| it.members[0].blake3 = "abc".into(), "has a hash that is none");
    forged(&|it| it.members[0].chunks = u64::MAX, "do not fit each other");
    forged(&|it| it.members[0].stored_chunks = u64::MAX, "do not fit each other");
    forged(&|it| it.members[0].areas[0].bytes = u64::MAX, "area 20");
    forged(&|it| it.members.clear(), "it has no process");
    forged(&|it| it.members.push(it.members[0].clone()), "process 1 comes before 1");
    // What can be, and is not so.
    forged(&|it| it.term = 4, "another term");
    forged(&|it| it.members[0].incarnation = 7, "another incarnation");
    forged(&|it| it.members[0].areas[0].addr += 4096, "another areas");
    forged(&|it| it.members[0].bytes += 1, "bytes, and its manifest says");
    forged(&|it| it.members[0].tables = "0".repeat(64), "another tables");
    forged(&|it| it.members[0].base_tables = Some("0".repeat(64)), "not the one in this directory");
    forge(&directory, |it| it.members[0].blake3 = "0".repeat(64));
    let verified = directory.verify(2, &mut unwatched).unwrap();
    assert_eq!(verified.problems.len(), 1);
    assert!(verified.problems[0].what.contains("another hash than epoch-0000000002.json says"));
    std::fs::write(&json, &was).unwrap();
    assert_eq!(restored(&directory, 2, 1).unwrap(), process.memory);
}

/// An image whose chunks are not those of its page table.
struct Liar(SlotImage<Vec<u8>>);

impl Image for Liar {
    fn stamp(&self) -> &Stamp {
        self.0.stamp()
    }

    fn layout(&self) -> &Layout {
        self.0.layout()
    }

    fn pages(&self) -> &PageTable {
        self.0.pages()
    }

    fn windows(&self) -> &[u8] {
        self.0.windows()
    }

    fn read(&mut self, chunks: Range<usize>, into: &mut [u8]) -> Result<()> {
        self.0.read(chunks, into)?;
        into[0] ^= 1;
        Ok(())
    }

    fn confirm(&mut self) -> Result<()> {
        self.0.confirm()
    }
}

#[test]
fn extents_and_chunks_are_each_checked() {
    let (_root, directory, mut process) = small();
    process.noise(0, 0, PAGE, 8);
    let mut liar = Liar(process.image(3));
    let options = Options { codec: Codec::Raw, chain: 3 };
    directory.flush(number(3), &mut [&mut liar], &options, &mut unwatched).unwrap();
    // All of the file is as it was written, and it is not what the table says.
    directory.probe(3).unwrap();
    let error = restored(&directory, 3, 1).unwrap_err().to_string();
    let words = "epoch-0000000003.process-1.inc: chunk 0 of the image is not the one of epoch 3";
    assert!(error.contains(words), "{error}");
    assert!(!directory.verify(3, &mut unwatched).unwrap().is_sound());

    let file = path(&directory, "epoch-0000000003.process-1.inc");
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[8] ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    // Now the chunk would be right, and the extent is not.
    let error = restored(&directory, 3, 1).unwrap_err().to_string();
    assert!(error.contains("the extent at 8 has another checksum"), "{error}");
}

#[test]
fn a_file_that_is_missing_or_of_something_else_is_named() {
    let (root, directory, mut process) = small();
    let base = path(&directory, "epoch-0000000001.process-1.full");
    let bytes = std::fs::read(&base).unwrap();
    std::fs::remove_file(&base).unwrap();
    let error = names(&directory, "epoch-0000000001.process-1.full");
    assert_eq!(error.errno(), libc::ENOENT);
    let listed = directory.list().unwrap();
    assert!(listed.iter().all(|it| it.damaged.as_ref().unwrap().contains("process-1.full")));
    let verified = directory.verify(2, &mut unwatched).unwrap();
    assert!(verified.problems.iter().any(|it| it.epoch == 1 && it.what.contains("process-1.full")));
    // Neither a pipe, a link nor a directory is a file.
    let text = std::ffi::CString::new(base.to_str().unwrap()).unwrap();
    // SAFETY: a path that ends with a zero.
    assert_eq!(unsafe { libc::mkfifo(text.as_ptr(), 0o600) }, 0);
    names(&directory, "epoch-0000000001.process-1.full");
    std::fs::remove_file(&base).unwrap();
    let other = root.path().join("elsewhere");
    std::fs::write(&other, &bytes).unwrap();
    std::os::unix::fs::symlink(&other, &base).unwrap();
    names(&directory, "epoch-0000000001.process-1.full");
    std::fs::remove_file(&base).unwrap();
    std::fs::create_dir(&base).unwrap();
    names(&directory, "epoch-0000000001.process-1.full");
    std::fs::remove_dir(&base).unwrap();
    std::fs::write(&base, &bytes).unwrap();

    // An epoch 1 of another run: all of it is sound, and it is not what epoch 2 stands on.
    let elsewhere = tempfile::tempdir().unwrap();
    let foreign = Directory::create(elsewhere.path(), &JOB).unwrap();
    let mut stranger = Process::new(1, &[PAGE + 40, 30]);
    stranger.noise(0, 0, PAGE, 77);
    flush(&foreign, 1, &mut [&mut stranger], &Options::default()).unwrap();
    for name in files(&foreign) {
        std::fs::copy(path(&foreign, &name), path(&directory, &name)).unwrap();
    }
    assert_eq!(restored(&directory, 1, 1).unwrap(), stranger.memory);
    let error = names(&directory, "epoch-0000000002.process-1.inc");
    assert!(error.to_string().contains("not the one in this directory"), "{error}");
    // The next epoch does not build on it.
    let flushed = flush(&directory, 3, &mut [&mut process], &Options::default()).unwrap();
    assert_eq!(flushed.base, None);

    let error = Directory::open(root.path(), &[7; 16]).unwrap_err();
    assert!(error.to_string().contains(&format!("it has jobs {JOB_NAME}")), "{error}");
    // The directory of one job under the name of another.
    let renamed = root.path().join("07".repeat(16));
    std::fs::rename(directory.path(), &renamed).unwrap();
    let error = Directory::open(root.path(), &[7; 16]).unwrap().manifest(1).unwrap_err();
    let words = format!("is of job {JOB_NAME:?}, and not of {}", "07".repeat(16));
    assert!(error.to_string().contains(&words), "{error}");
}

#[test]
fn an_epoch_of_a_damaged_manifest_is_left_as_it_is() {
    let (_root, directory, mut process) = small();
    let json = path(&directory, "epoch-0000000002.json");
    let was = std::fs::read(&json).unwrap();
    std::fs::write(&json, &was[..was.len() - 9]).unwrap();
    flush(&directory, 3, &mut [&mut process], &Options::default()).unwrap();
    let pruned = directory.prune(&Default::default(), false, &mut unwatched).unwrap();
    assert_eq!(pruned.damaged.keys().copied().collect::<Vec<_>>(), [2]);
    std::fs::write(&json, &was).unwrap();
    assert_eq!(restored(&directory, 2, 1).unwrap(), process.memory);
}

proptest! {
    /// Whatever is in a data file or a manifest, nothing panics.
    #[test]
    fn random_and_mutated_files_are_refused_or_read(
        random in prop::collection::vec(any::<u8>(), 0..600),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..5),
        words in prop::collection::vec((0usize..40, any::<u64>(), 0u32..64), 0..3),
        which in 0usize..4,
        cut in any::<Option<prop::sample::Index>>(),
    ) {
        use std::sync::OnceLock;
        static FILES: OnceLock<Vec<(bool, Vec<u8>)>> = OnceLock::new();
        exercise_data(&random);
        exercise_manifest(&random);
        let files = FILES.get_or_init(|| {
            let (_root, directory, _) = small();
            let names = files(&directory).into_iter();
            let read = |name: String| (name.ends_with(".json"), std::fs::read(path(&directory, &name)).unwrap());
            names.map(read).collect()
        });
        let (is_manifest, mut bytes) = files[which].clone();
        for (at, byte) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= byte;
        }
        if is_manifest {
            // Digits where digits are.
            for (skip, value, _) in words {
                let digit = |byte: &u8| byte.is_ascii_digit();
                if let Some(at) = bytes.iter().enumerate().filter(|it| digit(it.1)).map(|it| it.0).nth(skip) {
                    bytes[at] = b'0' + (value % 10) as u8;
                }
            }
        } else {
            // Numbers of the trailer, and of the tables before it.
            for (skip, value, shift) in words {
                if let Some(at) = bytes.len().checked_sub(8 * (skip + 1)) {
                    bytes[at..at + 8].copy_from_slice(&(value >> shift).to_le_bytes());
                }
            }
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if is_manifest { exercise_manifest(&bytes) } else { exercise_data(&bytes) }
    }
}
