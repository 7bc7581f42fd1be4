//! The part of a process of the job: it does what it is told on its standard input, line by line.

use crate::history::History;
use crate::world::Told;
use sojourn_snapshot::epoch::{
    Epoch, Incarnation, Member, Order, Policy, Term, Word, WriterLimits,
};
use sojourn_snapshot::parity::restore;
use sojourn_snapshot::session::{Notice, Options, Session};
use std::io::BufRead;
use std::time::{Duration, Instant};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

fn say(text: &str) {
    println!("parity: {text}");
}

pub(crate) fn run() {
    let told = Told::from_env();
    let (member, life) = (told.member, told.life);
    let mut history = History::new(member, told.bytes);
    let mut restored = None;
    if let Some((epoch, turn)) = told.from {
        let (stores, placement) = (told.stores(), told.placement());
        let place = history.layout();
        let process = sojourn_fabric::names::ProcessId(member as u32);
        // SAFETY: memory that nobody else uses.
        let back = unsafe {
            restore(&told.restore(&stores, &placement), process, epoch, |_| Ok(place.clone()))
        };
        restored = Some(back.unwrap().restored);
        history.turn = turn;
        History::after(member, told.bytes, turn).assert_equal(&history);
        // What was read is what there is.
        sojourn_snapshot::session::Program::collect(&mut history, &mut |_| {}).unwrap();
    }
    let mut options = Options::new(told.key.clone(), Member(member), life, told.stores_for(member));
    options.policy = Policy { protect: true, ..Policy::default() };
    options.windows = 64 << 10;
    options.limits = WriterLimits { answer: Duration::from_secs(2), ..WriterLimits::default() };
    // SAFETY: the memory outlives the session.
    let mut session = unsafe { Session::open(options, history.layout(), restored) }.unwrap();
    say("ready");
    for line in std::io::stdin().lock().lines() {
        let line = line.unwrap();
        let mut words = line.split(' ');
        let (what, epoch) = (words.next().unwrap(), words.next().unwrap());
        let epoch = Epoch(epoch.parse().unwrap());
        let order = |word| Order { term: Term(life), to: Incarnation::of_life(life), word };
        match what {
            "begin" => {
                history.take_turn();
                session.order(order(Word::Begin(epoch)));
            }
            "turn" => {
                history.take_turn();
                say("turned");
                continue;
            }
            "protected" => session.protected(epoch, Ok(())),
            "commit" => session.order(order(Word::Commit(epoch))),
            "abort" => session.order(order(Word::Abort(epoch))),
            other => panic!("{other} is no order"),
        }
        let until = Instant::now() + PATIENCE;
        say(&loop {
            let found = session.drive(&mut history).into_iter().find_map(|notice| match notice {
                Notice::Protect(_) => Some("sealed".to_owned()),
                Notice::Report(report) => {
                    let complete = report.open.is_some_and(|open| open.complete);
                    (complete && what == "protected").then(|| "complete".to_owned())
                }
                Notice::Committed(_) => Some("committed".to_owned()),
                Notice::GivenUp(_, why) => Some(format!("given up: {why}")),
                Notice::Fenced(_) => Some("fenced".to_owned()),
            });
            if let Some(found) = found {
                break found;
            }
            assert!(Instant::now() < until, "{line}");
            std::thread::sleep(Duration::from_millis(1));
        });
    }
}
