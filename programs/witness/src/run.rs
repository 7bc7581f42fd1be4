//! A run from joining the job to the result: who waits for whom, and for how long.

use crate::engine::{Engine, POLLERS, lock};
use crate::movement;
use crate::options::Options;
use crate::report::{self, Failure};
use crate::script::Stream;
use crate::setup;
use serde_json::{Value, json};
use sojourn::verbs::Context;
use sojourn::{Error, Job};
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often the main thread looks.
const LOOK: Duration = Duration::from_millis(3);

/// How long one question after another rank's note takes at most.
const QUESTION: Duration = Duration::from_millis(100);

/// Notes are at most 32 KiB long: results travel in parts.
const PART: usize = 24 * 1024;

/// Checks messages until the options are satisfied. Rank 0 prints the result.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let job = Job::from_env()?;
    if !(2..=Stream::MAX_RANKS).contains(&job.size()) {
        return Err(format!(
            "a job of {} ranks: 2 to {} are needed; start it as sojourn run -n 2 -- witness",
            job.size(),
            Stream::MAX_RANKS
        )
        .into());
    }
    agree(&job, options)?;
    let context = job.context()?;
    let engine = Arc::new(Engine::new(setup::connect(&job, &context, options)?));
    let start = Instant::now();
    let threads = start_threads(&engine);
    let mover = Mover::start(&job, &context, options, &engine);

    let moves = keep_going(&job, options, &engine, start, mover)?;
    let seconds = start.elapsed().as_secs_f64();
    finish(&job, &engine)?;
    engine.over.store(true, Ordering::Relaxed);
    for thread in threads {
        // A panic has ended the process before.
        let _ = thread.join();
    }
    let links = engine.rank.links.iter().map(|link| lock(link).counts()).collect::<Vec<_>>();
    let mut result = report::counts(&links);
    result["moves"] = Value::Array(moves);
    tell(&job, options, result, seconds)?;
    job.barrier()?; // Nobody leaves while another still asks.
    Ok(())
}

/// Sees to it that all ranks do the same.
fn agree(job: &Job, options: &Options) -> sojourn::Result<()> {
    let mine = options.task();
    let all = job.exchange("witness/task", mine.as_bytes())?;
    match all.iter().position(|theirs| theirs != mine.as_bytes()) {
        None => Ok(()),
        Some(rank) => Err(Error::invalid(format!(
            "rank {rank} was told something else: {}; this rank {}: {mine}",
            String::from_utf8_lossy(&all[rank]),
            job.rank()
        ))),
    }
}

fn start_threads(engine: &Arc<Engine>) -> Vec<JoinHandle<()>> {
    let spawn = |work: fn(&Engine)| {
        let engine = Arc::clone(engine);
        std::thread::spawn(move || work(&engine))
    };
    let mut threads: Vec<_> = (0..POLLERS).map(|_| spawn(Engine::poll)).collect();
    threads.push(spawn(Engine::sleep_and_wake));
    threads
}

/// The thread that moves this rank's device, where it is one of those that do.
struct Mover {
    moves: Option<mpsc::Receiver<Vec<Value>>>,
    /// Ranks whose moves must be over before streams end.
    others: Vec<u32>,
}

impl Mover {
    fn start(job: &Job, context: &Context, options: &Options, engine: &Arc<Engine>) -> Self {
        let moving = |rank: &u32| options.moves > 0 && options.who.includes(*rank, job.size());
        let others = (0..job.size()).filter(|rank| *rank != job.rank()).filter(moving).collect();
        let rank = job.rank();
        let moves = moving(&rank).then(|| {
            let (tell, moves) = mpsc::channel();
            let (context, options, engine) = (context.clone(), options.clone(), engine.clone());
            std::thread::spawn(move || {
                match movement::run(&context, &options, rank, &engine.over) {
                    // Nobody listens where the run has failed meanwhile.
                    Ok(moves) => drop(tell.send(moves)),
                    Err(why) => engine.fail(why),
                }
            });
            moves
        });
        Mover { moves, others }
    }
}

/// Waits until the streams of all ranks have ended. Returns the moves of this one.
fn keep_going(
    job: &Job,
    options: &Options,
    engine: &Engine,
    start: Instant,
    mut mover: Mover,
) -> Result<Vec<Value>, Failure> {
    let mut moves = Vec::new();
    // Streams go on at least as long as anybody moves.
    while mover.moves.is_some() || !mover.others.is_empty() || start.elapsed() < options.time {
        look(options, engine)?;
        if let Some(made) = mover.moves.as_ref().and_then(|moves| moves.try_recv().ok()) {
            moves = made;
            mover.moves = None;
            job.publish("witness/moved", &[])?;
        }
        match mover.others.last() {
            Some(rank) if told(job, *rank, "witness/moved")? => drop(mover.others.pop()),
            Some(_) => {}
            None => std::thread::sleep(LOOK),
        }
    }
    engine.may_end.store(true, Ordering::Relaxed);
    while !engine.done() {
        look(options, engine)?;
        std::thread::sleep(LOOK);
    }
    // What a peer asks is answered until it has ended, too. It ends, or finds out why not.
    job.publish("witness/done", &[])?;
    for rank in (0..job.size()).filter(|rank| *rank != job.rank()) {
        while !told(job, rank, "witness/done")? {
            look(options, engine)?;
        }
    }
    look(options, engine)?;
    Ok(moves)
}

/// Whether `rank` has left this note.
fn told(job: &Job, rank: u32, note: &str) -> Result<bool, Failure> {
    match job.fetch_until(rank, note, Instant::now() + QUESTION) {
        Ok(_) => Ok(true),
        Err(error) if error.errno() == libc::ETIMEDOUT => Ok(false),
        Err(error) => Err(Failure { broken: true, ..error.into() }),
    }
}

fn look(options: &Options, engine: &Engine) -> Result<(), Failure> {
    if let Some(why) = engine.failure() {
        return Err(Failure { line: why.line.clone(), broken: why.broken });
    }
    engine.stalled(options.stall).map_or(Ok(()), |why| Err(why.into()))
}

/// What can only be checked when nobody sends any more.
fn finish(job: &Job, engine: &Engine) -> Result<(), Failure> {
    let mut expected = 0;
    for link in &engine.rank.links {
        let mut link = lock(link);
        link.finish()?;
        expected += link.shared_adds();
    }
    let found = engine.rank.shared.atomic_u64(0).load(Ordering::Acquire);
    if found != expected {
        return Err(format!(
            "rank {}: FETCH_ADD by all peers: expected a word of {expected:#x}, found {found:#x}",
            job.rank()
        )
        .into());
    }
    match &engine.rank.plot {
        Some(plot) if !plot.done() => {
            Err("nothing was sabotaged: the streams were too short, or --mix does not allow it"
                .to_owned()
                .into())
        }
        _ => Ok(()),
    }
}

/// Brings the results of all ranks together; rank 0 prints them.
fn tell(job: &Job, options: &Options, mut result: Value, seconds: f64) -> Result<(), Failure> {
    if job.rank() > 0 {
        let bytes = result.to_string().into_bytes();
        let parts: Vec<_> = bytes.chunks(PART).collect();
        for (number, part) in parts.iter().enumerate() {
            job.publish(&format!("witness/result/{number}"), part)?;
        }
        return Ok(job.publish("witness/result", parts.len().to_string().as_bytes())?);
    }
    for rank in 1..job.size() {
        let about = |why: String| format!("the result of rank {rank}: {why}");
        let parts = job.fetch(rank, "witness/result")?;
        let parts: usize = String::from_utf8_lossy(&parts)
            .parse()
            .map_err(|error: std::num::ParseIntError| about(error.to_string()))?;
        let mut bytes = Vec::new();
        for number in 0..parts {
            bytes.extend(job.fetch(rank, &format!("witness/result/{number}"))?);
        }
        let theirs: Value =
            serde_json::from_slice(&bytes).map_err(|error| about(error.to_string()))?;
        report::merge(&mut result, &theirs);
    }
    result["ranks"] = json!(job.size());
    result["qps"] = json!(options.qps);
    result["seed"] = json!(options.seed);
    result["mix"] = json!(options.mix.to_string());
    result["seconds"] = json!((seconds * 1e3).round() / 1e3);
    if options.json {
        println!("{result}")
    } else {
        print!("{}", report::text(&result))
    }
    Ok(())
}
