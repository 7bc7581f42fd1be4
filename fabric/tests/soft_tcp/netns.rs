//! Two network namespaces joined by a virtual cable, for the life of a test.

use std::fs::File;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

/// Two namespaces, `10.99.0.1` and `10.99.0.2` in them.
pub(crate) struct Cable {
    names: [String; 2],
    before: File,
}

fn ip(args: &[&str]) -> Result<(), String> {
    let say = |what: String| format!("ip {}: {what}", args.join(" "));
    match Command::new("ip").args(args).output() {
        Ok(Output { status, .. }) if status.success() => Ok(()),
        Ok(output) => Err(say(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
        Err(error) => Err(say(error.to_string())),
    }
}

impl Cable {
    /// `None`, with the reason printed, where this machine does not let us.
    pub(crate) fn new() -> Option<Cable> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = |side| format!("sojourn-{}-{n}{side}", std::process::id());
        let before = File::open("/proc/thread-self/ns/net").unwrap();
        let cable = Cable { names: [name("a"), name("b")], before };
        match cable.lay() {
            Ok(()) => Some(cable),
            Err(why) => {
                println!("skipped: no network namespaces here ({why}); needs root and iproute2");
                None
            }
        }
    }

    fn lay(&self) -> Result<(), String> {
        let [a, b] = &self.names;
        ip(&["netns", "add", a])?;
        ip(&["netns", "add", b])?;
        ip(&["-n", a, "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", b])?;
        for (name, address) in [(a, "10.99.0.1/24"), (b, "10.99.0.2/24")] {
            ip(&["-n", name, "addr", "add", address, "dev", "wire"])?;
            ip(&["-n", name, "link", "set", "wire", "up"])?;
            ip(&["-n", name, "link", "set", "lo", "up"])?;
        }
        Ok(())
    }

    /// Moves this thread, and what it starts from now on, into a namespace.
    pub(crate) fn enter(&self, side: usize) {
        enter(&File::open(format!("/var/run/netns/{}", self.names[side])).unwrap());
    }

    /// Pulls the cable out at the far end.
    pub(crate) fn cut(&self) {
        ip(&["-n", &self.names[1], "link", "set", "wire", "down"]).unwrap();
    }
}

fn enter(namespace: &File) {
    nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
}

impl Drop for Cable {
    fn drop(&mut self) {
        enter(&self.before);
        for name in &self.names {
            let _ = ip(&["netns", "del", name]);
        }
    }
}
