//! One connection to a store, as the machine names them: by incarnation.

use super::StoreAt;
use crate::epoch::{Answer, Holding, Member, Request, Slot};
use crate::store::{Client, Granted};
use crate::stream::Lane;
use crate::{Error, Result};
use sojourn_fabric::names::JobKey;
use sojourn_fabric::virt::{ProtectionDomain, Remote};
use std::time::{Duration, Instant};

/// A store, and what it has granted.
pub(super) struct Link {
    client: Client,
    granted: Option<Granted<()>>,
}

impl Link {
    pub(super) fn connect(store: &StoreAt, key: &JobKey, patience: Duration) -> Result<Link> {
        let client = Client::connect(&store.at, key, Instant::now() + patience)?;
        Ok(Link { client, granted: None })
    }

    /// What the store answers.
    pub(super) fn ask(
        &mut self,
        pd: &ProtectionDomain,
        lanes: usize,
        member: Member,
        request: Request,
    ) -> Result<Answer> {
        let Request::Grant { bytes, .. } = request else {
            return self.client.request(member, request);
        };
        let granted = match self.client.grant(pd, lanes, member, request)? {
            Ok(granted) => granted,
            Err(answer) => return Ok(answer),
        };
        let Holding { bytes: there, .. } = granted.holding;
        if there != bytes {
            let name = &self.client.about().name;
            let text =
                format!("store {name} has granted {there} bytes where {bytes} were asked for");
            return Err(Error::new(libc::EPROTO, text));
        }
        let answer = Answer::Granted(granted.holding);
        self.granted = Some(granted);
        Ok(answer)
    }

    /// A slot's first byte, and the queue pairs that write there.
    pub(super) fn reach(&mut self, slot: Slot) -> Result<(Remote, &mut [Lane<()>])> {
        let granted = self.granted.as_mut().ok_or_else(not_granted)?;
        Ok((granted.slots[slot.index()], &mut granted.lanes))
    }
}

pub(super) fn not_granted() -> Error {
    Error::new(libc::ENOTCONN, "a store that has granted nothing")
}
