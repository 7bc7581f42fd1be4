//! The options, and what makes no sense.

use crate::kind::Mix;
use crate::sabotage::Sabotage;
use crate::script::Stream;
use std::time::Duration;

/// What `--help` prints.
pub(crate) const HELP: &str = "\
Checks every message of every kind between all pairs of ranks.

Usage: sojourn run -n N -- witness [options]

  --messages N      messages of each queue pair in each direction, at least (default 1000)
  --seconds S       go on for so long instead
  --qps Q           queue pairs between two ranks (default 8)
  --seed X          seed of everything that is decided by chance (default 1)
  --max-size B      largest payload in bytes, 64 to 8388608 (default 1048576)
  --window W        requests outstanding on each queue pair, 2 to 512 (default 16)
  --mix LIST        of send,send-imm,write,write-imm,read,fetch-add,cmp-swap,uc-send,uc-write,ud-send
                    (default: all)
  --moves N         relocate devices so many times while messages travel (default 0)
  --who WHICH       ranks that relocate: first, last, all or none (default first)
  --devices A,B     devices to go to in turns (default soft1,soft0); with ! before the name, the
                    port of that (soft) device goes down in place of a move, for as long as a pause
  --pause-ms P      pause before each move (default 100)
  --stall S         seconds without progress that are a failure (default 30)
  --json            print one line of JSON
";

/// Which ranks relocate their device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    First,
    Last,
    All,
    None,
}

impl Who {
    /// Whether `rank` of `size` does.
    pub(crate) fn includes(self, rank: u32, size: u32) -> bool {
        match self {
            Who::First => rank == 0,
            Who::Last => rank + 1 == size,
            Who::All => true,
            Who::None => false,
        }
    }
}

/// What a run is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Messages of each stream, at least.
    pub(crate) messages: u64,
    /// How long streams go on, at least.
    pub(crate) time: Duration,
    pub(crate) qps: u32,
    pub(crate) seed: u64,
    pub(crate) max_size: usize,
    pub(crate) window: usize,
    pub(crate) mix: Mix,
    pub(crate) moves: u32,
    pub(crate) who: Who,
    pub(crate) devices: Vec<String>,
    pub(crate) pause: Duration,
    pub(crate) stall: Duration,
    pub(crate) json: bool,
    /// How rank 0 misbehaves on purpose: not for users.
    pub(crate) sabotage: Option<Sabotage>,
}

/// Messages of each stream where nothing is said.
const MESSAGES: u64 = 1000;

/// The largest message of rxe on Debian's 6.1.
const LARGEST: u64 = 8 << 20;

/// Two control messages and a header must fit.
const SMALLEST: u64 = 64;

/// Receives and requests are counted in 16 bits, and devices take a few thousand.
const LARGEST_WINDOW: u64 = 512;

/// A day: nobody waits longer, and no sum of times overflows.
const LONGEST: f64 = 86_400.0;

impl Options {
    /// Reads the arguments; `None` where help was asked for.
    pub(crate) fn parse(args: impl IntoIterator<Item = String>) -> Result<Option<Self>, String> {
        let mut options = Options {
            messages: MESSAGES,
            time: Duration::ZERO,
            qps: 8,
            seed: 1,
            max_size: 1 << 20,
            window: 16,
            mix: Mix::all(),
            moves: 0,
            who: Who::First,
            devices: vec!["soft1".to_owned(), "soft0".to_owned()],
            pause: Duration::from_millis(100),
            stall: Duration::from_secs(30),
            json: false,
            sabotage: None,
        };
        let (mut by_count, mut by_time) = (false, false);
        let mut args = args.into_iter();
        while let Some(name) = args.next() {
            match name.as_str() {
                "--help" | "-h" => return Ok(None),
                "--json" => {
                    options.json = true;
                    continue;
                }
                _ => {}
            }
            let known = HELP.contains(&format!("  {name} ")) || name == "--sabotage";
            if !name.starts_with("--") || !known {
                return Err(format!("unknown option \"{name}\"; --help lists them"));
            }
            let value = args.next().ok_or(format!("{name} needs a value"))?;
            let about = |why: String| format!("{name} {value}: {why}");
            let number = |from, to| number(&value, from, to).map_err(about);
            let seconds = |from| seconds(&value, from).map_err(about);
            match name.as_str() {
                "--messages" => (options.messages, by_count) = (number(1, 1 << 40)?, true),
                "--seconds" => (options.time, by_time) = (seconds(0.001)?, true),
                "--qps" => options.qps = number(1, u64::from(Stream::MAX_QPS))? as u32,
                "--seed" => options.seed = number(0, u64::MAX)?,
                "--max-size" => options.max_size = number(SMALLEST, LARGEST)? as usize,
                "--window" => options.window = number(2, LARGEST_WINDOW)? as usize,
                "--mix" => options.mix = Mix::parse(&value).map_err(about)?,
                "--moves" => options.moves = number(0, 1_000_000)? as u32,
                "--who" => options.who = who(&value).map_err(about)?,
                "--devices" => options.devices = devices(&value).map_err(about)?,
                "--pause-ms" => options.pause = Duration::from_millis(number(0, 3_600_000)?),
                "--stall" => options.stall = seconds(0.1)?,
                _ => options.sabotage = Some(Sabotage::parse(&value).map_err(about)?),
            }
        }
        if by_count && by_time {
            return Err("--messages and --seconds: give one of them".to_owned());
        }
        if by_time {
            options.messages = 0;
        }
        Ok(Some(options))
    }

    /// What all ranks must have in common.
    pub(crate) fn task(&self) -> String {
        format!(
            "{} messages or {:?} on {} queue pairs, seed {}, up to {} bytes, {} outstanding, \
             mix {}, {} moves of {:?}",
            self.messages,
            self.time,
            self.qps,
            self.seed,
            self.max_size,
            self.window,
            self.mix,
            self.moves,
            self.who
        )
    }
}

fn number(text: &str, from: u64, to: u64) -> Result<u64, String> {
    let number = text.parse().ok().filter(|number| (from..=to).contains(number));
    number.ok_or(format!("a number from {from} to {to} is needed"))
}

fn seconds(text: &str, from: f64) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds: &f64| (from..=LONGEST).contains(seconds));
    let seconds = seconds.ok_or(format!("seconds from {from} to {LONGEST} are needed"))?;
    Ok(Duration::from_secs_f64(seconds))
}

fn who(text: &str) -> Result<Who, String> {
    match text {
        "first" => Ok(Who::First),
        "last" => Ok(Who::Last),
        "all" => Ok(Who::All),
        "none" => Ok(Who::None),
        _ => Err("there are first, last, all and none".to_owned()),
    }
}

fn devices(text: &str) -> Result<Vec<String>, String> {
    let names: Vec<_> = text.split(',').map(str::to_owned).collect();
    if names.iter().any(String::is_empty) {
        return Err("names of devices are needed, with commas between them".to_owned());
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Options, String> {
        let args = text.split_whitespace().map(str::to_owned);
        Options::parse(args).map(|options| options.expect("no help was asked for"))
    }

    #[test]
    fn options_are_read_and_have_defaults() {
        let options = parse("").unwrap();
        assert_eq!((options.messages, options.qps, options.window), (1000, 8, 16));
        assert_eq!(options.mix, Mix::all());
        let options = parse(
            "--seconds 0.5 --qps 2 --seed 9 --max-size 4096 --window 4 --mix send,read --moves 3 \
             --who all --devices a,b --pause-ms 7 --json --sabotage drop --stall 2",
        )
        .unwrap();
        assert_eq!((options.messages, options.time), (0, Duration::from_millis(500)));
        assert_eq!((options.moves, options.who, options.json), (3, Who::All, true));
        assert_eq!(options.devices, ["a", "b"]);
        assert_eq!(options.sabotage, Some(Sabotage::Drop));
        assert!(Options::parse(["--help".to_owned()]).unwrap().is_none());
    }

    #[test]
    fn what_makes_no_sense_is_refused_in_one_sentence() {
        for (text, why) in [
            ("--fly 1", "unknown option \"--fly\""),
            ("fast", "unknown option \"fast\""),
            ("--qps", "--qps needs a value"),
            ("--qps 0", "--qps 0: a number from 1 to 512"),
            ("--max-size 63", "--max-size 63: a number from 64 to 8388608"),
            ("--window x", "--window x: a number from 2 to 512"),
            ("--seconds -1", "--seconds -1: seconds from 0.001"),
            ("--seconds 1 --messages 1", "give one of them"),
            ("--mix tea", "--mix tea: \"tea\" is no kind"),
            ("--who some", "--who some: there are first"),
            ("--devices a,,b", "--devices a,,b: names"),
            ("--sabotage x", "--sabotage x: there are"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn who_moves_is_decided_by_rank() {
        let chosen = |who: Who| (0..3).filter(|rank| who.includes(*rank, 3)).collect::<Vec<_>>();
        assert_eq!(chosen(Who::First), [0]);
        assert_eq!(chosen(Who::Last), [2]);
        assert_eq!(chosen(Who::All), [0, 1, 2]);
        assert_eq!(chosen(Who::None), [0; 0]);
    }
}
