//! Committed epochs, read out of the stores for [`files`](crate::files): the program's memory is not touched.

use super::copy::{Bytes, Copy};
use crate::epoch::{Answer, Epoch, Member, Request};
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
        Ok(self.slot.read(&bytes, chunks, into)?)
    }

    fn confirm(&mut self) -> Result<()> {
        let all = self.slot.geometry().bytes();
        let bytes = Bytes::new(&self.room, &mut self.lanes, self.at, all)?;
        Ok(self.slot.confirm(&bytes)?)
    }
}

/// The images of one epoch, one of each of `members`, wherever a store has it.
///
/// They are connected to, and their tables are read; nothing keeps their writers from beginning those slots anew.
///
/// # Errors
/// `ENODATA` where no store has a sound copy of one: names the process, and says what each store has.
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
        let mut why = Vec::new();
        let found = stores.iter().zip(&mut clients).find_map(|(store, client)| {
            match open(device, key, store, client, *member, epoch) {
                Ok(copy) => Some(copy),
                Err(error) => {
                    why.push(error.to_string());
                    None
                }
            }
        });
        let found = found.ok_or_else(|| {
            let text = format!("{epoch} of process {member} is nowhere: {}", why.join("; "));
            Error::new(libc::ENODATA, text)
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
    let answer = client.request(member, Request::Tell)?;
    let slot = match &answer {
        Answer::Told(Some(holding)) => holding.slot_of(epoch),
        _ => None,
    };
    let slot = slot.ok_or_else(|| {
        let has = match answer {
            Answer::Told(Some(holding)) => {
                let words = holding.words.into_iter().filter(|word| word.is_some());
                let words: Vec<String> = words.map(|word| word.to_string()).collect();
                if words.is_empty() { "no epoch".to_owned() } else { words.join(", ") }
            }
            _ => "nothing of it".to_owned(),
        };
        Error::new(libc::ENODATA, format!("store {} has {has}", client.about().name))
    })?;
    let copy = Copy::open(device, key, store, member, slot, 1)?;
    if copy.slot().stamp().epoch != epoch.0 {
        let text = format!("store {} began another epoch meanwhile", client.about().name);
        return Err(Error::new(libc::ENODATA, text));
    }
    Ok(copy)
}
