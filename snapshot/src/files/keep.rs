//! Which epochs stay.

use super::directory::{Directory, Lock};
use super::io::sync_dir;
use super::manifest::{Manifest, data_name, epoch_of_data, manifest_name};
use super::{Progress, Step, Watcher};
use crate::{Error, Result};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Which epochs are kept, of those that can be restored.
///
/// Whatever it says, the last that can be restored is kept, and everything that a kept one stands on. One
/// that cannot be restored is left for somebody to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// So many of the last ones; 0 is as 1.
    pub last: usize,
    /// And those whose count is a multiple of this.
    pub every: Option<u64>,
}

impl Default for Keep {
    fn default() -> Self {
        Keep { last: 4, every: None }
    }
}

/// What was removed, and what was not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Pruned {
    /// Epochs that are removed.
    pub removed: Vec<u64>,
    /// Epochs that are kept by the rule.
    pub kept: Vec<u64>,
    /// Epochs that are kept because these stand on them.
    pub needed: Vec<u64>,
    /// Epochs that cannot be restored, and why. They are left.
    pub damaged: BTreeMap<u64, String>,
    /// Bytes of the removed data files.
    pub bytes: u64,
}

impl Directory {
    /// Removes epochs that need not be kept; says which ones only, where it is a trial.
    ///
    /// Whether an epoch can be restored is what [`Self::probe`] says. A manifest goes first, so that an epoch
    /// that is half removed does not exist.
    ///
    /// # Errors
    /// The directory cannot be read, or a file cannot be removed.
    pub fn prune(&self, keep: &Keep, trial: bool, watcher: &mut Watcher<'_>) -> Result<Pruned> {
        if keep.every == Some(0) {
            return Err(Error::invalid("to keep every 0th epoch: the least is 1"));
        }
        let lock = self.lock()?;
        let mut pruned = Pruned::default();
        let mut sound = BTreeMap::new();
        for epoch in self.epochs()? {
            match self.probe(epoch).and_then(|()| self.manifest(epoch)) {
                Ok(manifest) => drop(sound.insert(epoch, manifest)),
                Err(error) => drop(pruned.damaged.insert(epoch, error.to_string())),
            }
        }
        let last = sound.keys().rev().take(keep.last.max(1));
        let every = sound.keys().filter(|epoch| keep.every.is_some_and(|k| *epoch % k == 0));
        let kept: BTreeSet<u64> = last.chain(every).copied().collect();
        // What one that is damaged stands on may be what it can be repaired with.
        let broken = pruned.damaged.keys().filter_map(|epoch| self.manifest(*epoch).ok());
        let mut needed = BTreeSet::new();
        let mut open: Vec<u64> = broken.filter_map(|manifest| manifest.base).collect();
        open.extend(kept.iter().filter_map(|epoch| sound[epoch].base));
        while let Some(epoch) = open.pop() {
            if needed.insert(epoch) {
                open.extend(sound.get(&epoch).and_then(|manifest| manifest.base));
            }
        }
        for (epoch, manifest) in &sound {
            if kept.contains(epoch) {
                pruned.kept.push(*epoch);
            } else if needed.contains(epoch) {
                pruned.needed.push(*epoch);
            } else {
                pruned.removed.push(*epoch);
                pruned.bytes += manifest.members.iter().map(|member| member.bytes).sum::<u64>();
            }
        }
        if !trial {
            let gone = pruned.removed.iter().map(|epoch| &sound[epoch]);
            self.remove_epochs(gone, &lock, watcher)?;
        }
        Ok(pruned)
    }

    /// Removes every epoch after `epoch`, which must be one that can be restored: a job that was restarted
    /// from it writes those anew.
    ///
    /// # Errors
    /// The epoch cannot be restored, or a file cannot be removed.
    pub fn remove_after(&self, epoch: u64, watcher: &mut Watcher<'_>) -> Result<Vec<u64>> {
        let lock = self.lock()?;
        self.probe(epoch)?;
        let later: Vec<u64> = self.epochs()?.into_iter().filter(|it| *it > epoch).collect();
        // The last one first: what is left stands on nothing that is gone. A damaged manifest has data files too;
        // these are cleaned as those of no epoch.
        for number in later.iter().rev() {
            self.remove(&manifest_name(*number))?;
            sync_dir(self.path())?;
            let name = manifest_name(*number);
            watcher(&Progress { step: Step::ManifestRemoved, file: &name, done: 0, total: 0 })?;
        }
        self.clean(&lock)?;
        Ok(later)
    }

    fn remove_epochs<'a>(
        &self,
        gone: impl DoubleEndedIterator<Item = &'a Manifest>,
        _: &Lock,
        watcher: &mut Watcher<'_>,
    ) -> Result<()> {
        // The last one first, since it may stand on those before.
        for manifest in gone.rev() {
            let name = manifest_name(manifest.epoch);
            self.remove(&name)?;
            sync_dir(self.path())?;
            watcher(&Progress { step: Step::ManifestRemoved, file: &name, done: 0, total: 0 })?;
            for member in &manifest.members {
                let name = data_name(manifest.epoch, member.process, member.base.is_some());
                debug_assert_eq!(epoch_of_data(&name), Some(manifest.epoch));
                self.remove(&name)?;
                watcher(&Progress { step: Step::DataRemoved, file: &name, done: 0, total: 0 })?;
            }
        }
        sync_dir(self.path())
    }
}
