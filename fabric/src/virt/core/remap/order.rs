//! Orders from outside to take all contexts to a device: for operators, and for programs that know
//! nothing of moves.
//!
//! The service thread takes the order, and answers at once; a thread of its own carries it out. Who
//! gave it asks again until it is done. One at a time.

use super::mover::{self, Cause, Relocation};
use crate::device;
use crate::error::Result;
use crate::names::{MAX_ORDERED, MAX_REASON, Order, Relocated};
use crate::virt::core::local::Local;
use crate::virt::core::lock_mutex;
use std::sync::{Arc, Mutex};

/// The last order, by its ticket.
#[derive(Default)]
pub(in crate::virt::core) struct Orders(Mutex<Option<(u64, Order)>>);

impl Orders {
    /// Takes an order, or tells how it goes.
    pub(in crate::virt::core) fn answer(
        &self,
        local: &Arc<Local>,
        ticket: u64,
        device: &str,
    ) -> Order {
        let mut last = lock_mutex(&self.0);
        match &*last {
            Some((known, order)) if *known == ticket => return order.clone(),
            Some((_, Order::UnderWay)) => {
                return Order::Failed("another order is being carried out".to_owned());
            }
            _ => {}
        }
        let (on, name) = (Arc::clone(local), device.to_owned());
        let thread = std::thread::Builder::new().name("sojourn-order".to_owned());
        let started = thread.spawn(move || {
            super::block_signals();
            let order = match carry_out(&on, &name) {
                Ok(moves) => Order::Done(moves),
                Err(error) => Order::Failed(shortened(error.to_string())),
            };
            *lock_mutex(&on.orders.0) = Some((ticket, order));
        });
        let order = match started {
            Ok(_) => Order::UnderWay,
            Err(error) => Order::Failed(format!("no thread can be started: {error}")),
        };
        *last = Some((ticket, order.clone()));
        order
    }
}

fn shortened(mut text: String) -> String {
    let end = (0..=text.len().min(MAX_REASON)).rev().find(|at| text.is_char_boundary(*at));
    text.truncate(end.unwrap_or(0));
    text
}

fn carry_out(local: &Local, name: &str) -> Result<Vec<Relocated>> {
    let contexts = local.contexts.alive();
    // Also where nothing is open: a name that is wrong is always said.
    device::open(name)?;
    let mut moves = Vec::new();
    let all = contexts.len();
    for (done, context) in contexts.iter().enumerate() {
        if context.underlay().device.name() == name {
            continue;
        }
        let moved = device::open(name)
            .and_then(|device| mover::relocate(context, &device, Cause::Asked))
            .map_err(|error| match done {
                0 => error,
                done => error.context(format_args!("{done} of {all} contexts are there; the next")),
            })?;
        if moves.len() < MAX_ORDERED {
            moves.push(told(&moved));
        }
        context.note_move(moved);
    }
    Ok(moves)
}

fn told(moved: &Relocation) -> Relocated {
    let nanos = |took: std::time::Duration| u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
    Relocated {
        from: moved.from.clone(),
        to: moved.to.clone(),
        queue_pairs: u32::try_from(moved.queue_pairs).unwrap_or(u32::MAX),
        peers: u32::try_from(moved.peers).unwrap_or(u32::MAX),
        blackout: nanos(moved.blackout()),
        phases: moved.phases.iter().map(|it| (it.name.to_owned(), nanos(it.took))).collect(),
    }
}
