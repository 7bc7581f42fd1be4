//! Following: the shell around the follower's machine.

use super::broken::Broken;
use super::kinds::Kind;
use super::queue::Time;
use super::shell::{BARRIER_PATIENCE, time};
use super::world::World;
use crate::remap::{
    Accept, Answer, Cut, Follower, GroupId, HeldEnd, HeldLink, Offer, PrepareError, Request, Side,
};
use crate::replay::Executed;

/// A group that a process follows in.
#[derive(Clone, Debug, Hash)]
pub(super) struct Group {
    mover: usize,
    id: GroupId,
    pub(super) machine: Follower<usize>,
    ground: Ground,
}

impl Group {
    /// When its queue pairs were taken down.
    pub(super) fn down_at(&self) -> Option<Time> {
        self.ground.down_at
    }
}

/// Its links.
#[derive(Clone, Debug, Default, Hash)]
struct Ground {
    process: usize,
    mover: usize,
    /// `None` where the end is not well any more.
    links: Vec<Option<usize>>,
    down_at: Option<Time>,
}

impl Ground {
    fn ends(&self) -> Vec<usize> {
        self.links.iter().copied().flatten().collect()
    }
}

/// The ground, in the world.
struct Here<'a> {
    world: &'a mut World,
    ground: &'a mut Ground,
}

impl World {
    /// What a process answers to a mover.
    pub(super) fn answer(
        &mut self,
        p: usize,
        mover: usize,
        id: GroupId,
        request: Request<usize>,
    ) -> Answer<usize> {
        let now = time(self.now);
        let known = self.procs[p].following.iter().position(|it| (it.mover, it.id) == (mover, id));
        if let Some(at) = known {
            let mut group = self.procs[p].following.swap_remove(at);
            if matches!(request, Request::Prepare { .. }) {
                self.reach(Kind::AskedTwice);
            }
            let mut here = Here { world: self, ground: &mut group.ground };
            let answer = group.machine.handle(request, now, &mut here);
            self.keep(p, group);
            return answer;
        }
        let known = self.procs[p].ended.iter().find(|it| (it.0, it.1) == (mover, id));
        let (over, finished) = (known.is_some(), known.is_some_and(|it| it.2));
        match request {
            Request::Prepare { .. } if over => Answer::refused("that move has ended"),
            Request::Prepare { links } => self.begin_following(p, mover, id, &links),
            Request::Hold { .. } if over => Answer::refused("that hold has ended"),
            Request::Hold { links } => self.begin_held(p, mover, id, &links),
            Request::Finish { .. } if finished || over && self.is(Broken::AlwaysFinished) => {
                Answer::Finished
            }
            Request::Abort => {
                self.procs[p].ended.push((mover, id, false));
                Answer::Aborted
            }
            _ => Answer::Unknown,
        }
    }

    fn keep(&mut self, p: usize, group: Group) {
        if group.machine.is_ended() {
            let finished = group.machine.has_finished();
            self.procs[p].ended.push((group.mover, group.id, finished));
        } else {
            self.procs[p].following.push(group);
        }
    }

    fn begin_following(
        &mut self,
        p: usize,
        mover: usize,
        id: GroupId,
        links: &[Offer<usize>],
    ) -> Answer<usize> {
        if self.is_busy_for(p, mover, id, links.iter().map(|offer| offer.qpn)) {
            return Answer::Busy;
        }
        let mut ground = Ground { process: p, mover, ..Ground::default() };
        let (now, limits) = (time(self.now), self.follower_limits);
        let mut here = Here { world: self, ground: &mut ground };
        let begun = Follower::begin(id, links, now, limits, &mut here);
        self.begun(p, (mover, id), begun, ground)
    }

    /// A holder begins.
    fn begin_held(
        &mut self,
        p: usize,
        mover: usize,
        id: GroupId,
        links: &[HeldLink],
    ) -> Answer<usize> {
        if self.is_busy_for(p, mover, id, links.iter().map(|link| link.qpn)) {
            return Answer::Busy;
        }
        let mut ground = Ground { process: p, mover, ..Ground::default() };
        let (now, limits) = (time(self.now), self.follower_limits);
        let mut here = Here { world: self, ground: &mut ground };
        let begun = Follower::begin_hold(id, links, now, limits, &mut here);
        self.begun(p, (mover, id), begun, ground)
    }

    /// Whether a process cannot follow now. What the mover has begun before over these links is over.
    fn is_busy_for(
        &mut self,
        p: usize,
        mover: usize,
        id: GroupId,
        links: impl Iterator<Item = u32>,
    ) -> bool {
        let process = &self.procs[p];
        let moves = process.moving.is_some() && !self.is(Broken::BusyIgnored);
        if moves || process.holding.is_some() {
            return true;
        }
        if !self.is(Broken::StaleKept) {
            self.abort_stale(p, mover, id, &links.collect::<Vec<_>>());
        }
        false
    }

    fn begun(
        &mut self,
        p: usize,
        (mover, id): (usize, GroupId),
        (machine, answer): (Option<Follower<usize>>, Answer<usize>),
        ground: Ground,
    ) -> Answer<usize> {
        if let Some(machine) = machine {
            if self.procs[p].following.iter().any(|it| it.mover != mover) {
                self.reach(Kind::FollowedTwo);
            }
            self.procs[p].following.push(Group { mover, id, machine, ground });
            let at = self.now + self.follower_limits.patience.as_micros() as Time;
            self.tick_at(p, at);
        }
        answer
    }

    /// A mover that offers a link in a later group has taken back the earlier one, though its word did not
    /// come. (An offer of an earlier group may be late, and says nothing.)
    fn abort_stale(&mut self, p: usize, mover: usize, id: GroupId, links: &[u32]) {
        let is_stale = |it: &Group| {
            it.mover == mover
                && it.id < id
                && it.ground.ends().iter().any(|e| links.contains(&(*e as u32)))
        };
        while let Some(at) = self.procs[p].following.iter().position(is_stale) {
            let mut group = self.procs[p].following.swap_remove(at);
            self.reach(Kind::StaleGroup);
            let now = time(self.now);
            let mut here = Here { world: self, ground: &mut group.ground };
            if group.machine.handle(Request::Abort, now, &mut here) != Answer::Aborted {
                self.procs[p].following.push(group);
                return;
            }
            self.keep(p, group);
        }
    }

    /// Movers that have not been heard of for long.
    pub(super) fn wake_followers(&mut self, p: usize) {
        let now = time(self.now);
        for mut group in std::mem::take(&mut self.procs[p].following) {
            let mut here = Here { world: self, ground: &mut group.ground };
            group.machine.wake(now, &mut here);
            if group.machine.is_ended() {
                self.reach(Kind::GaveUpSilent);
                for e in group.ground.ends() {
                    // An impatient one may go on with the old path when its mover has left that.
                    if self.impatient {
                        self.excuse(e, "its follower was impatient");
                    }
                }
            } else if let Some(at) = group.machine.wake_at() {
                self.tick_at(p, at.as_micros() as Time);
            }
            self.keep(p, group);
        }
    }

    /// Its movers are dead.
    pub(super) fn give_up_mover(&mut self, p: usize, dead: usize) {
        for mut group in std::mem::take(&mut self.procs[p].following) {
            if group.mover == dead {
                self.reach(Kind::MoverDied);
                if group.ground.down_at.is_some() {
                    self.reach(Kind::MoverDiedAfterCommit);
                }
                let mut here = Here { world: self, ground: &mut group.ground };
                group.machine.give_up(&mut here);
            }
            self.keep(p, group);
        }
    }

    /// Attaches ends in order; which of them were cut.
    pub(super) fn attach_all(&mut self, ends: &[usize], numbers: &[Executed]) -> Vec<Cut> {
        let mut cuts = Vec::new();
        for (at, (e, executed)) in ends.iter().zip(numbers).enumerate() {
            let landed = self.attach(*e, executed);
            cuts.extend(landed.map(|landed| Cut { link: at as u32, landed }));
        }
        cuts
    }
}

impl Side<usize> for Here<'_> {
    fn prepare(
        &mut self,
        offers: &[Offer<usize>],
    ) -> Result<Vec<Option<Accept<usize>>>, PrepareError> {
        let refusal = self.world.faults.refused;
        if self.world.now < self.world.horizon && self.world.rng.permille(refusal) {
            return Err(PrepareError::Refused("it does not want to".into()));
        }
        let stale_kept = self.world.is(Broken::StaleKept);
        let mut accepts = Vec::new();
        for offer in offers {
            let e = offer.qpn as usize;
            let end = &mut self.world.ends[e];
            if end.failed {
                self.ground.links.push(None);
                accepts.push(None);
                continue;
            }
            let newer = offer.incarnation > end.incarnation;
            let taken = end.fresh.is_some() && !stale_kept;
            if !newer || taken {
                self.discard();
                let busy = PrepareError::Busy;
                let late = PrepareError::Refused("the link has had a later path".into());
                return Err(if newer { busy } else { late });
            }
            end.incarnation = offer.incarnation;
            let device = self.world.procs[self.ground.process].device;
            let qp = self.world.make_fresh(e, device);
            let psn = self.world.qps[qp].psn;
            self.world.qps[qp].connect(Some(offer.end), offer.psn);
            self.ground.links.push(Some(e));
            accepts.push(Some(Accept { end: qp, psn }));
        }
        Ok(accepts)
    }

    fn stop(&mut self) {
        self.ground.ends().into_iter().for_each(|e| self.world.stop(e));
    }

    fn is_drained(&mut self) -> bool {
        let ends = self.ground.ends();
        ends.iter().for_each(|e| self.world.harvest(*e));
        ends.iter().all(|e| self.world.is_quiet(*e))
    }

    fn take_down(&mut self) {
        self.ground.ends().into_iter().for_each(|e| self.world.take_down(e));
        self.ground.down_at = Some(self.world.now);
    }

    fn executed(&mut self) -> Option<Vec<Executed>> {
        let last_look =
            self.ground.down_at.is_some_and(|at| self.world.now >= at + BARRIER_PATIENCE);
        let world = &mut *self.world;
        let one = |link: &Option<usize>| match link {
            Some(e) => world.executed(*e, last_look),
            None => Some(Executed::default()),
        };
        let numbers: Option<Vec<Executed>> = self.ground.links.iter().map(one).collect();
        for (link, executed) in self.ground.links.iter().zip(numbers.iter().flatten()) {
            if let Some(e) = link {
                self.world.numbers_told(*e, executed);
            }
        }
        numbers
    }

    fn attach(&mut self, mover: &[Executed]) -> Vec<Cut> {
        self.ground.ends().into_iter().for_each(|e| self.world.receive_on(e));
        self.world.followed_shared(self.ground.process, &self.ground.ends());
        let mut cuts = Vec::new();
        for (at, (link, executed)) in self.ground.links.iter().zip(mover).enumerate() {
            let landed = link.and_then(|e| self.world.attach(e, executed));
            cuts.extend(landed.map(|landed| Cut { link: at as u32, landed }));
        }
        cuts
    }

    fn release(&mut self, cuts: &[Cut]) {
        for cut in cuts {
            if let Some(Some(e)) = self.ground.links.get(cut.link as usize) {
                self.world.expect_cut(*e, cut.landed);
            }
        }
        for e in self.ground.ends() {
            self.world.release(e);
            self.world.leave(e);
        }
    }

    fn lose(&mut self, cuts: &[Cut]) {
        if self.world.is(Broken::CutHandedAfterAll) {
            return;
        }
        for cut in cuts {
            if let Some(Some(e)) = self.ground.links.get(cut.link as usize) {
                self.world.excuse(*e, "its mover may not know what was cut");
                self.world.lose_peer(*e);
            }
        }
    }

    fn go_on(&mut self) {
        self.ground.ends().into_iter().for_each(|e| self.world.go_on(e));
    }

    fn discard(&mut self) {
        self.ground.ends().into_iter().for_each(|e| self.world.discard(e));
    }

    fn hold(&mut self, links: &[HeldLink]) -> Result<(), PrepareError> {
        let ends: Vec<usize> = links.iter().map(|link| link.qpn as usize).collect();
        let end = |e: &usize| &self.world.ends[*e];
        if ends.iter().any(|e| end(e).fresh.is_some() || end(e).withhold.is_some()) {
            return Err(PrepareError::Busy);
        }
        self.ground.links = ends.iter().map(|e| (!end(e).failed).then_some(*e)).collect();
        self.ground.ends().into_iter().for_each(|e| self.world.stand_still(e));
        Ok(())
    }

    fn is_still(&mut self, links: &[HeldLink]) -> (bool, Vec<Option<HeldEnd>>) {
        let still = links.iter().all(|link| self.world.is_held_still(link.qpn as usize, &link.end));
        let end = |link: &Option<usize>| link.map(|e| self.world.held_end(e));
        (still, self.ground.links.iter().map(end).collect())
    }

    fn let_go(&mut self) {
        self.ground.ends().into_iter().for_each(|e| self.world.go_on_receiving(e));
    }
}
