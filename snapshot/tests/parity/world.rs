//! Nodes with a store and a process each, and who decides for the job: the test itself.

use crate::history::History;
use sojourn_fabric::names::{Endpoint, JobKey, PrivateDir, ProcessId};
use sojourn_snapshot::epoch::{
    Answer, Epoch, Found, Holding, Incarnation, Member, Recovery, RecoveryLimits, Request, Scope,
    Step, StoreId, Term,
};
use sojourn_snapshot::image::Geometry;
use sojourn_snapshot::parity::{Asker, Asking, Made, REBUILT, Restore, rebuildable, restore};
use sojourn_snapshot::redundancy::placement::{Node, Process};
use sojourn_snapshot::redundancy::{Placement, Scheme};
use sojourn_snapshot::session::StoreAt;
use sojourn_snapshot::store::Client;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

pub(crate) const PART: &str = "PARITY_PART";
/// How long a store may take to be connected to, and parity to be made.
const CONNECT: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(60);

/// What a process is told of the job.
#[derive(Clone)]
pub(crate) struct Told {
    pub(crate) scheme: Scheme,
    pub(crate) ranks: usize,
    pub(crate) bytes: usize,
    pub(crate) member: u64,
    pub(crate) life: u32,
    /// The epoch that it goes back to, and the turns that had been taken then.
    pub(crate) from: Option<(Epoch, u64)>,
    pub(crate) key: JobKey,
    nodes: usize,
    dir: std::path::PathBuf,
}

/// What stores have of each member, and which of them do not answer.
type Heard = (BTreeMap<Member, Vec<(StoreId, Holding)>>, Vec<StoreId>);

impl Told {
    pub(crate) fn from_env() -> Told {
        let variable = |name: &str| std::env::var(name).unwrap();
        let number = |name: &str| variable(name).parse::<usize>().unwrap();
        let from = variable("PARITY_FROM");
        let from = from
            .split_once(' ')
            .map(|(epoch, turn)| (Epoch(epoch.parse().unwrap()), turn.parse::<u64>().unwrap()));
        Told {
            scheme: variable("PARITY_SCHEME").parse().unwrap(),
            ranks: number("PARITY_RANKS"),
            bytes: number("PARITY_BYTES"),
            member: number("PARITY_MEMBER") as u64,
            life: number("PARITY_LIFE") as u32,
            from,
            key: JobKey::read(&std::path::Path::new(&variable("PARITY_DIR")).join("key")).unwrap(),
            nodes: number("PARITY_NODES"),
            dir: variable("PARITY_DIR").into(),
        }
    }

    fn at(&self, node: usize) -> Endpoint {
        Endpoint::Unix(self.dir.join(format!("s{node}")))
    }

    pub(crate) fn stores(&self) -> Vec<StoreAt> {
        let store = |node| StoreAt { id: StoreId(node as u64 + 1), at: self.at(node) };
        (0..self.nodes).map(store).collect()
    }

    /// Process i + 1 runs on node i; what is more of nodes has a store alone.
    pub(crate) fn placement(&self) -> Placement {
        let node = |i: usize| Node {
            name: format!("n{i}"),
            domain: None,
            stores: vec![self.at(i).to_string()],
        };
        let process = |i: usize| Process {
            id: ProcessId(i as u32 + 1),
            node: format!("n{}", i % self.nodes),
        };
        let nodes: Vec<Node> = (0..self.nodes).map(node).collect();
        let processes: Vec<Process> = (0..self.ranks).map(process).collect();
        Placement::numbered(self.scheme, &nodes, &processes).unwrap()
    }

    /// The store that the placement names, then the others, without that of the own node.
    pub(crate) fn stores_for(&self, member: u64) -> Vec<StoreAt> {
        let placement = self.placement();
        let process = ProcessId(member as u32);
        let first = placement.stores_of(process).next().unwrap().to_owned();
        let own = self.at((member as usize - 1) % self.nodes);
        let mut stores = self.stores();
        stores.retain(|store| store.at != own);
        stores.sort_by_key(|store| store.at.to_string() != first);
        stores
    }

    pub(crate) fn restore<'a>(
        &'a self,
        stores: &'a [StoreAt],
        placement: &'a Placement,
    ) -> Restore<'a> {
        Restore { device: "soft0", key: &self.key, placement, stores, lanes: 2, fresh: false }
    }
}

/// A process that is killed and reaped when the test is over, however it ends.
struct Part {
    child: Child,
    orders: ChildStdin,
    said: BufReader<ChildStdout>,
}

impl Part {
    fn hear(&mut self) -> String {
        let mut line = String::new();
        while self.said.read_line(&mut line).unwrap() > 0 {
            if let Some(said) = line.trim_end().split_once("parity: ") {
                return said.1.to_owned();
            }
            line.clear();
        }
        "dead".to_owned()
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The job.
pub(crate) struct World {
    pub(crate) told: Told,
    _dir: PrivateDir,
    stores: BTreeMap<usize, Part>,
    ranks: BTreeMap<u64, Part>,
    askers: Vec<Asker>,
    last: Epoch,
    pub(crate) committed: Epoch,
    /// The turns that had been taken when an epoch was sealed.
    turns: BTreeMap<Epoch, u64>,
    turn: u64,
}

impl World {
    /// So many nodes with a store each, and processes on the first of them.
    pub(crate) fn new(scheme: &str, nodes: usize, ranks: usize, bytes: usize) -> World {
        let dir = PrivateDir::create().unwrap();
        let key = JobKey::generate().unwrap();
        key.write(&dir.path().join("key")).unwrap();
        let told = Told {
            scheme: scheme.parse().unwrap(),
            ranks,
            bytes,
            member: 0,
            life: 1,
            from: None,
            key,
            nodes,
            dir: dir.path().to_owned(),
        };
        let mut world = World {
            told,
            _dir: dir,
            stores: BTreeMap::new(),
            ranks: BTreeMap::new(),
            askers: vec![],
            last: Epoch::NONE,
            committed: Epoch::NONE,
            turns: BTreeMap::new(),
            turn: 0,
        };
        (0..nodes).for_each(|node| world.start_store(node));
        world.begin();
        world
    }

    fn start_store(&mut self, node: usize) {
        let at = self.told.at(node);
        let name = format!("s{node}");
        let mut child = Command::new(env!("CARGO_BIN_EXE_sojourn-store"))
            .args(["--device", "soft0", "--with-parent", "--bytes", "256M", "--name", &name])
            .args(["--listen", &at.to_string(), "--key-file"])
            .arg(self.told.dir.join("key"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (orders, said) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut part = Part { child, orders, said: BufReader::new(said) };
        let mut line = String::new();
        part.said.read_line(&mut line).unwrap();
        assert!(line.starts_with(&format!("store {name} at ")), "{line:?}");
        self.stores.insert(node, part);
    }

    /// Starts all processes in this life, and whoever asks for their parity.
    fn begin(&mut self) {
        let placement = self.told.placement();
        let stores: Vec<Endpoint> = self.told.stores().into_iter().map(|it| it.at).collect();
        let slot = |member: u64| {
            let layout = History::new(member, self.told.bytes).layout();
            Geometry::of(&layout, 64 << 10).unwrap().bytes() as u64
        };
        let bytes = (1..=self.told.ranks as u64).map(slot).max().unwrap();
        let (key, life) = (self.told.key.clone(), self.told.life);
        let asker = |group| {
            let (key, placement, stores) = (&key, &placement, &stores[..]);
            Asker::new(&Asking { key, placement, group, stores, bytes, life }).unwrap()
        };
        self.askers = (0..placement.groups()).map(asker).collect();
        for member in 1..=self.told.ranks as u64 {
            let told = &self.told;
            let from = told.from.map(|(epoch, turn)| format!("{} {turn}", epoch.0));
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["part", "--exact", "--ignored", "--nocapture"])
                .env(PART, "rank")
                .env("PARITY_SCHEME", told.scheme.to_string())
                .env("PARITY_RANKS", told.ranks.to_string())
                .env("PARITY_BYTES", told.bytes.to_string())
                .env("PARITY_MEMBER", member.to_string())
                .env("PARITY_LIFE", told.life.to_string())
                .env("PARITY_FROM", from.unwrap_or_default())
                .env("PARITY_NODES", told.nodes.to_string())
                .env("PARITY_DIR", &told.dir)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let (orders, said) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
            self.ranks.insert(member, Part { child, orders, said: BufReader::new(said) });
        }
        assert!(self.ranks.values_mut().all(|part| part.hear() == "ready"));
    }

    /// Tells all processes, and returns what each answers.
    fn tell(&mut self, what: &str) -> Vec<String> {
        let line = format!("{what} {}\n", self.last.0);
        for part in self.ranks.values_mut() {
            let _ = part.orders.write_all(line.as_bytes());
        }
        self.ranks.values_mut().map(Part::hear).collect()
    }

    /// Begins an epoch, and brings it as far as that all images are complete.
    pub(crate) fn seal(&mut self) {
        self.last = self.last.after(Term(self.told.life));
        self.turn += 1;
        self.turns.insert(self.last, self.turn);
        let said = self.tell("begin");
        assert!(said.iter().all(|it| it == "sealed"), "{said:?}");
    }

    /// All processes take a turn without an epoch.
    pub(crate) fn turn(&mut self) {
        self.turn += 1;
        assert!(self.tell("turn").iter().all(|it| it == "turned"));
    }

    /// Has parity of the epoch made, of one group alone.
    pub(crate) fn gather_one(&mut self, group: usize) {
        let until = Instant::now() + PATIENCE;
        self.askers[group].gather(self.last, self.committed, until).unwrap();
    }

    /// Has parity of the epoch made.
    pub(crate) fn gather(&mut self) -> sojourn_snapshot::Result<Vec<Made>> {
        let (epoch, committed) = (self.last, self.committed);
        let until = Instant::now() + PATIENCE;
        let made = self.askers.iter_mut().map(|it| it.gather(epoch, committed, until));
        Ok(made.collect::<sojourn_snapshot::Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    /// The same on another thread, while `meanwhile` happens to the stores.
    pub(crate) fn gather_while(
        &mut self,
        meanwhile: impl FnOnce(&mut World),
    ) -> sojourn_snapshot::Result<()> {
        let (epoch, committed) = (self.last, self.committed);
        let until = Instant::now() + PATIENCE;
        let mut askers = std::mem::take(&mut self.askers);
        let thread = std::thread::spawn(move || {
            let made = askers.iter_mut().map(|it| it.gather(epoch, committed, until).map(drop));
            let made = made.collect::<sojourn_snapshot::Result<()>>();
            (askers, made)
        });
        meanwhile(self);
        let (askers, made) = thread.join().unwrap();
        self.askers = askers;
        made
    }

    pub(crate) fn commit(&mut self) {
        let said = self.tell("protected");
        assert!(said.iter().all(|it| it == "complete"), "{said:?}");
        let said = self.tell("commit");
        assert!(said.iter().all(|it| it == "committed"), "{said:?}");
        self.committed = self.last;
        self.askers.iter_mut().for_each(|it| it.note(self.last));
    }

    pub(crate) fn abort(&mut self) {
        let said = self.tell("abort");
        assert!(said.iter().all(|it| it.starts_with("given up")), "{said:?}");
    }

    /// A whole epoch.
    pub(crate) fn epoch(&mut self) -> Vec<Made> {
        self.seal();
        let made = self.gather().unwrap();
        self.commit();
        made
    }

    /// The node is gone: its store, and its process.
    pub(crate) fn kill_node(&mut self, node: usize) {
        self.kill_store(node);
        if let Some(mut part) = self.ranks.remove(&(node as u64 + 1)) {
            part.kill();
        }
    }

    pub(crate) fn kill_store(&mut self, node: usize) {
        self.stores.remove(&node).unwrap().kill();
    }

    /// A store on this node that has nothing.
    pub(crate) fn replace_store(&mut self, node: usize) {
        let _ = std::fs::remove_file(self.told.dir.join(format!("s{node}")));
        self.start_store(node);
    }

    /// The node that holds this share of the parity of group 0.
    pub(crate) fn parity_node(&self, index: usize) -> usize {
        let placement = self.told.placement();
        let share = placement.members(0).len() + index;
        let at = placement.shares(0).nth(share).unwrap().2.to_owned();
        (0..self.told.nodes).find(|node| self.told.at(*node).to_string() == at).unwrap()
    }

    /// The node that holds the image of this process.
    pub(crate) fn image_node(&self, member: u64) -> usize {
        let placement = self.told.placement();
        let at = placement.stores_of(ProcessId(member as u32)).next().unwrap().to_owned();
        (0..self.told.nodes).find(|node| self.told.at(*node).to_string() == at).unwrap()
    }

    /// What stores say that they have, for a new life: nothing of an older one lands there any more.
    fn heard(&mut self, life: u32) -> Heard {
        let incarnation = Incarnation::of_life(life);
        let ranks = (1..=self.told.ranks as u64).map(Member);
        let groups = self.told.placement().groups() as u32;
        let parity = self.told.scheme.parity();
        let shares = (0..groups).flat_map(|group| {
            (0..parity).map(move |i| sojourn_snapshot::parity::member_of(group, i))
        });
        let members: Vec<Member> = ranks.chain(shares).collect();
        let (mut heard, mut silent) = (BTreeMap::<Member, Vec<_>>::new(), vec![]);
        for store in self.told.stores() {
            let until = Instant::now() + CONNECT;
            let Ok(mut client) = Client::connect(&store.at, &self.told.key, until) else {
                silent.push(store.id);
                continue;
            };
            for member in &members {
                let holding = loop {
                    match client.request(*member, Request::Claim { incarnation }).unwrap() {
                        Answer::Told(holding) => break holding,
                        Answer::Wait => std::thread::sleep(Duration::from_millis(1)),
                        other => panic!("{other:?}"),
                    }
                };
                if let Some(holding) = holding {
                    heard.entry(*member).or_default().push((store.id, holding));
                }
            }
        }
        (heard, silent)
    }

    /// What a new life restores, each process held against what it was: the epoch, or why there is none.
    pub(crate) fn restore(&mut self) -> Result<Epoch, String> {
        self.told.life += 1;
        let life = self.told.life;
        let (heard, silent) = self.heard(life);
        let (stores, placement) = (self.told.stores(), self.told.placement());
        let members: Vec<Member> = (1..=self.told.ranks as u64).map(Member).collect();
        let incarnations = members.iter().map(|member| (*member, Incarnation::of_life(life)));
        let ids = stores.iter().map(|store| store.id).chain([REBUILT]);
        let now = Duration::ZERO;
        let limits = RecoveryLimits::default();
        let mut machine = Recovery::new(incarnations, ids, Scope::Whole, now, limits);
        silent.iter().for_each(|store| machine.found(Found::Lost(*store), now));
        let holdings = heard
            .iter()
            .map(|(member, all)| (*member, all.iter().map(|(_, holding)| *holding).collect()));
        let virtual_ones = rebuildable(&placement, &holdings.collect());
        for member in &members {
            for store in stores.iter().filter(|store| !silent.contains(&store.id)) {
                let all = heard.get(member).into_iter().flatten();
                let holding = all.filter(|(of, _)| *of == store.id).map(|it| it.1).next();
                machine.found(Found::Answer(store.id, *member, Answer::Told(holding)), now);
            }
            let rebuilt = Answer::Told(virtual_ones.get(member).copied());
            machine.found(Found::Answer(REBUILT, *member, rebuilt), now);
        }
        let mut wrong = vec![];
        while let Some(step) = machine.poll(now) {
            match step {
                Step::Ask(..) => {}
                Step::Read(member, origin) => {
                    let outcome = self.read(member.0, origin.epoch, &stores, &placement);
                    if let Err(error) = &outcome {
                        wrong.push(error.clone());
                    }
                    machine.found(Found::Read(member, origin, outcome), now);
                }
                Step::Restored(epoch, _) => {
                    self.told.from = Some((epoch, self.turns[&epoch]));
                    return Ok(epoch);
                }
                Step::Impossible(missing) => {
                    if let Some(member) = missing.lacking().next() {
                        let why = self.read(member.0, missing.committed, &stores, &placement);
                        wrong.extend(why.err());
                    }
                    return Err(wrong.join("\n"));
                }
            }
        }
        panic!("a recovery did not end");
    }

    fn read(
        &self,
        member: u64,
        epoch: Epoch,
        stores: &[StoreAt],
        placement: &Placement,
    ) -> Result<(), String> {
        // Not fresh: what was there before must not show through.
        let fresh = History::after(member, self.told.bytes, 1);
        let place = fresh.layout();
        let process = ProcessId(member as u32);
        let options = self.told.restore(stores, placement);
        // SAFETY: memory that nobody else uses.
        let back = unsafe { restore(&options, process, epoch, |_| Ok(place.clone())) };
        let back = back.map_err(|error| error.to_string())?;
        let then = History::after(member, self.told.bytes, self.turns[&epoch]);
        then.assert_equal(&fresh);
        assert_eq!(back.windows, then.windows(), "windows of process {member}");
        Ok(())
    }

    /// All processes start again, from the epoch that was restored last.
    pub(crate) fn go_on(&mut self) {
        self.ranks.clear();
        let (epoch, turn) = self.told.from.unwrap();
        (self.committed, self.last, self.turn) = (epoch, epoch, turn);
        self.begin();
    }
}
