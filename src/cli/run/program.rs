//! Finding the program of a job, and starting one rank of it.

use crate::cli::{Failure, Outcome};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{AccessFlags, Pid, access, getpid, getppid};
use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The file that `program` names, as a shell would find it.
pub(super) fn find(program: &OsStr) -> Outcome<PathBuf> {
    let path = Path::new(program);
    if program.as_encoded_bytes().contains(&b'/') {
        return match runnable(path) {
            Ok(()) => Ok(path.to_owned()),
            Err(reason) => Err(Failure::new(format!("program {}: {reason}", path.display()))),
        };
    }
    let places = std::env::var_os("PATH").unwrap_or_default();
    let mut refused = None;
    for directory in std::env::split_paths(&places) {
        let candidate = directory.join(path);
        match runnable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(reason) if candidate.exists() && refused.is_none() => {
                refused = Some(format!("program {}: {reason}", candidate.display()));
            }
            Err(_) => {}
        }
    }
    Err(Failure::new(refused.unwrap_or_else(|| {
        format!(
            "program \"{}\" not found in PATH; a path with a slash names a file directly",
            path.display()
        )
    })))
}

fn runnable(path: &Path) -> Result<(), String> {
    let meta = path.metadata().map_err(|error| error.to_string())?;
    if !meta.is_file() {
        return Err("not a file".to_owned());
    }
    access(path, AccessFlags::X_OK).map_err(|_| "not executable (chmod +x)".to_owned())
}

/// Starts a rank: in a process group of its own, so that what it starts ends with it; with its
/// output on pipes and nothing to read.
pub(super) fn start(command: &mut Command) -> io::Result<Child> {
    let launcher = getpid();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    // SAFETY: between fork and exec only async-signal-safe calls are made, and nothing is
    // allocated: the closure makes system calls and no others.
    unsafe { command.pre_exec(move || prepare(launcher)) };
    command.spawn()
}

/// Runs in the rank before its program: no signal of the launcher's stays blocked, it dies with
/// the launcher, and its peers may reach its memory where Yama asks.
fn prepare(launcher: Pid) -> io::Result<()> {
    SigSet::empty().thread_set_mask()?;
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    if getppid() != launcher {
        // It died before the line above could take effect.
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    // Under Yama's mode 1 process_vm_writev wants a relation: whoever descends from the launcher
    // has it. It outlives exec. Kernels without Yama answer EINVAL, and need nothing.
    // SAFETY: changes an attribute of the calling process alone.
    unsafe { libc::prctl(libc::PR_SET_PTRACER, launcher.as_raw() as libc::c_ulong, 0, 0, 0) };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_program_that_cannot_run_is_refused_with_the_reason() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("program");
        let reason = |path: &Path| find(path.as_os_str()).unwrap_err().message.unwrap();
        assert!(reason(&file).contains("No such file"), "{}", reason(&file));
        assert!(reason(directory.path()).contains("not a file"));
        std::fs::write(&file, "").unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).unwrap();
        assert!(reason(&file).contains("not executable"));
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).unwrap();
        assert_eq!(find(file.as_os_str()).unwrap(), file);
        let unknown = find(OsStr::new("no-such-program-anywhere")).unwrap_err().message.unwrap();
        assert!(unknown.contains("\"no-such-program-anywhere\" not found in PATH"), "{unknown}");
    }

    #[test]
    fn a_program_is_found_in_path() {
        let shell = find(OsStr::new("sh")).unwrap();
        assert!(shell.is_absolute() && shell.ends_with("sh"));
    }
}
