//! PageRank on timely dataflow, over byte streams of virtual verbs.
//!
//! ```text
//! sojourn run -n 3 -- pagerank --graph dpkg --iterations 20 --check
//! ```
//!
//! The engine is timely, which knows nothing of verbs: it is given streams. The same program runs
//! over TCP (`--transport tcp`), and its result does not depend on the transport, the number of
//! ranks or that of workers, to the last bit.

mod dataflow;
mod dpkg;
mod graph;
mod rank;
mod report;
mod transport;

use clap::{Parser, ValueEnum};
use graph::Graph;
use sojourn::Job;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Ranks the nodes of a graph by PageRank.
#[derive(Parser)]
#[command(name = "pagerank", version)]
struct Args {
    /// The graph: `dpkg` (the installed packages and what they depend on), `dpkg:FILE`,
    /// `random:NODES,EDGES`, or a file of lines `FROM TO`.
    #[arg(long, default_value = "dpkg")]
    graph: String,
    /// Rounds of PageRank.
    #[arg(long, default_value_t = 20)]
    iterations: usize,
    /// What carries messages between the ranks.
    #[arg(long, value_enum, default_value_t = Transport::Verbs)]
    transport: Transport,
    /// Worker threads of each rank; all ranks need the same number.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    workers: u16,
    /// Where ranks listen with `--transport tcp`.
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    tcp_address: IpAddr,
    /// Nodes to print.
    #[arg(long, default_value_t = 10)]
    top: usize,
    /// Write the rank of every node to this file.
    #[arg(long)]
    output: Option<PathBuf>,
    /// Compare with what a single thread computes without timely.
    #[arg(long)]
    check: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Transport {
    Verbs,
    Tcp,
}

fn main() -> ExitCode {
    let args = Args::parse();
    // Timely's communication threads panic where a connection breaks, and leave the workers
    // waiting: a rank that cannot go on ends, with one line.
    std::panic::set_hook(Box::new(|info| {
        let payload = info.payload();
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
        eprintln!("pagerank: {}", text.unwrap_or("a thread panicked"));
        std::process::exit(1);
    }));
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("pagerank: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), String> {
    let graph = Arc::new(load(&args.graph)?);
    let job = Job::from_env().map_err(|error| error.to_string())?;
    agree(&job, args, &graph).map_err(|error| error.to_string())?;
    let (results, time) = compute(&job, args, &graph)?;
    if job.rank() > 0 {
        return Ok(());
    }

    let device = job.device().unwrap_or_default();
    let over = match args.transport {
        Transport::Verbs => format!("verbs ({device})"),
        Transport::Tcp => format!("TCP ({})", args.tcp_address),
    };
    println!(
        "{} nodes, {} edges, {} iterations on {} ranks of {} workers over {over}",
        graph.names.len(),
        graph.edges.len(),
        args.iterations,
        job.size(),
        args.workers,
    );
    print!("{}", report::top(&graph, &results, args.top));
    let lines = report::lines(&graph, &results);
    if let Some(path) = &args.output {
        let written = std::fs::write(path, &lines);
        written.map_err(|error| format!("writing {}: {error}", path.display()))?;
    }
    println!("time: {:.6} s", time.as_secs_f64());
    println!("checksum: {:016x}", report::checksum(&lines));
    if args.check {
        let expected = rank::sequential(&graph, args.iterations);
        if let Some(difference) = report::difference(&graph, &results, &expected) {
            return Err(difference);
        }
        println!("check: ok");
    }
    Ok(())
}

fn load(name: &str) -> Result<Graph, String> {
    let read = |path: &str| {
        // Names need not be UTF-8 to be ranked.
        let bytes = std::fs::read(path).map_err(|error| format!("reading {path}: {error}"))?;
        Ok::<_, String>(String::from_utf8_lossy(&bytes).into_owned())
    };
    let about = |path: &str| {
        let path = path.to_owned();
        move |why: String| format!("{path}: {why}")
    };
    if let Some(sizes) = name.strip_prefix("random:") {
        let sizes = sizes.split_once(',').and_then(|(nodes, edges)| {
            Some((nodes.trim().parse().ok()?, edges.trim().parse().ok()?))
        });
        let (nodes, edges) = sizes.ok_or(format!("--graph {name}: expected random:NODES,EDGES"))?;
        return Graph::random(nodes, edges);
    }
    let status = if name == "dpkg" { Some(dpkg::STATUS) } else { name.strip_prefix("dpkg:") };
    match status {
        Some(path) => dpkg::parse(&read(path)?).map_err(about(path)),
        None => Graph::from_edge_list(&read(name)?).map_err(about(name)),
    }
}

/// Sees to it that all ranks compute the same: their results would be nonsense otherwise.
fn agree(job: &Job, args: &Args, graph: &Graph) -> sojourn::Result<()> {
    let mine = format!(
        "graph {:016x}, {} iterations, {} workers",
        graph.fingerprint(),
        args.iterations,
        args.workers
    );
    for (rank, theirs) in job.exchange("pagerank/task", mine.as_bytes())?.iter().enumerate() {
        if theirs != mine.as_bytes() {
            return Err(sojourn::Error::invalid(format!(
                "rank {rank} was told to compute something else: {}; this rank {}: {mine}",
                String::from_utf8_lossy(theirs),
                job.rank(),
            )));
        }
    }
    Ok(())
}

/// The ranks of all nodes (on rank 0), and how long they took.
fn compute(job: &Job, args: &Args, graph: &Arc<Graph>) -> Result<(Vec<u64>, Duration), String> {
    let workers = usize::from(args.workers);
    let text = |error: std::io::Error| error.to_string();
    let (builders, guard) = match args.transport {
        Transport::Verbs => {
            let sockets = transport::verbs(job).map_err(text)?;
            transport::allocators(sockets, job.rank(), workers)
        }
        Transport::Tcp => {
            let sockets = transport::tcp(job, args.tcp_address).map_err(text)?;
            transport::allocators(sockets, job.rank(), workers)
        }
    }
    .map_err(text)?;
    job.barrier().map_err(|error| error.to_string())?;
    let start = Instant::now();
    let (graph, iterations) = (Arc::clone(graph), args.iterations);
    let workers = timely::execute::execute_from(
        builders,
        Box::new(guard),
        timely::WorkerConfig::default(),
        move |worker| (dataflow::run(worker, &graph, iterations), start.elapsed()),
    )?;
    let mut finished = workers.join().into_iter();
    finished.next().unwrap_or_else(|| Err("there is no worker".into()))
}
