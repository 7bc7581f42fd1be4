//! Committed epochs, read out of the stores for [`files`](crate::files): the program's memory is not touched.

use super::copy::{Bytes, Copy};
use crate::epoch::{Answer, Epoch, Holding, Member, Request};
use crate::files::Image;
use crate::image::{PageTable, Stamp};
use crate::session::StoreAt;
use crate::store::Client;
use crate::{Error, Layout, Result};
use sojourn_fabric::names::JobKey;
use std::ops::Range;
use std::time::{Duration, Instant};

/// How long a store may take to be reached. Draining waits for it, and no program does.
const CONNECT: Duration = Duration::from_secs(5);

impl Image for Copy {
    fn stamp(&self) -> &Stamp {
        self.slot.stamp()
    }

    fn layout(&self) -> &Layout {
        self.slot.layout()
    }

    fn pages(&self) -> &PageTable {
        self.slot.pages()
    }

    fn windows(&self) -> &[u8] {
        self.slot.windows()
    }

    fn read(&mut self, chunks: Range<usize>, into: &mut [u8]) -> Result<()> {
        let all = self.slot.geometry().bytes();
        let bytes = Bytes::new(&self.room, &mut self.lanes, self.at, all)?;
        let Err(damaged) = self.slot.read(&bytes, chunks, into) else { return Ok(()) };
        // What looks damaged is as a rule what its writer has put there since.
        match self.slot.confirm(&bytes) {
            Err(now) if now.is_incomplete() => Err(overwritten(self.slot.stamp())),
            _ => Err(damaged.into()),
        }
    }

    fn confirm(&mut self) -> Result<()> {
        let all = self.slot.geometry().bytes();
        let bytes = Bytes::new(&self.room, &mut self.lanes, self.at, all)?;
        self.slot.confirm(&bytes).map_err(|now| match now.is_incomplete() {
            true => overwritten(self.slot.stamp()),
            false => now.into(),
        })
    }
}

fn overwritten(stamp: &Stamp) -> Error {
    let (epoch, process) = (Epoch(stamp.epoch), stamp.process);
    let text = format!("{epoch} of {process} was overwritten before all of it was read");
    Error::new(libc::ESTALE, text)
}

/// The images of one epoch, one of each of `members`, wherever a store has it.
///
/// They are connected to, and their tables are read; nothing keeps their writers from beginning those slots anew.
///
/// # Errors
/// `ESTALE` where a store has begun a later epoch in its place, and otherwise `ENODATA` where no store has a sound
/// copy of one: names the process, and says what each store has.
pub fn images(
    device: &str,
    key: &JobKey,
    stores: &[StoreAt],
    members: &[Member],
    epoch: Epoch,
) -> Result<Vec<Box<dyn Image + Send>>> {
    let mut clients: Vec<Result<Client>> = stores
        .iter()
        .map(|store| Client::connect(&store.at, key, Instant::now() + CONNECT))
        .collect();
    let mut images: Vec<Box<dyn Image + Send>> = Vec::with_capacity(members.len());
    for member in members {
        let (mut why, mut errno) = (Vec::new(), libc::ENODATA);
        let found = stores.iter().zip(&mut clients).find_map(|(store, client)| {
            match open(device, key, store, client, *member, epoch) {
                Ok(copy) => Some(copy),
                Err(error) => {
                    if error.errno() == libc::ESTALE {
                        errno = libc::ESTALE;
                    }
                    why.push(error.to_string());
                    None
                }
            }
        });
        let found = found.ok_or_else(|| {
            let text = format!("{epoch} of process {member} is nowhere: {}", why.join("; "));
            Error::new(errno, text)
        })?;
        images.push(Box::new(found));
    }
    Ok(images)
}

fn open(
    device: &str,
    key: &JobKey,
    store: &StoreAt,
    client: &mut Result<Client>,
    member: Member,
    epoch: Epoch,
) -> Result<Copy> {
    let client = client.as_mut().map_err(|error| error.clone())?;
    let holding = |client: &mut Client| match client.request(member, Request::Tell)? {
        Answer::Told(Some(holding)) => Ok(holding),
        _ => {
            let name = &client.about().name;
            Err(Error::new(libc::ENODATA, format!("store {name} has nothing of it")))
        }
    };
    let lacks = |client: &Client, has: Holding| {
        let words = has.words.into_iter().filter(|word| word.is_some());
        let words: Vec<String> = words.map(|word| word.to_string()).collect();
        let words = if words.is_empty() { "no epoch".to_owned() } else { words.join(", ") };
        let errno = if has.largest() > epoch { libc::ESTALE } else { libc::ENODATA };
        Error::new(errno, format!("store {} has {words}", client.about().name))
    };
    let has = holding(client)?;
    let slot = has.slot_of(epoch).ok_or_else(|| lacks(client, has))?;
    let copy = Copy::open(device, key, store, member, slot, 1);
    match copy {
        Ok(copy) if copy.slot().stamp().epoch == epoch.0 => Ok(copy),
        copy => {
            // It was there a moment ago: either its writer has begun it anew, or it is damaged.
            let has = holding(client)?;
            match copy {
                Err(error) if has.slot_of(epoch) == Some(slot) => Err(error),
                _ => Err(Error::new(
                    libc::ESTALE,
                    format!("store {} began another epoch meanwhile", client.about().name),
                )),
            }
        }
    }
}
