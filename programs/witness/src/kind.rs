//! The kinds of messages, the transports that carry them, and the mix that a run is asked for.

use sojourn::abi::{qp_type, wc_opcode};
use std::fmt;

/// Transport of a queue pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    /// Reliable connected: nothing may be missing.
    Rc,
    /// Unreliable connected: may lose, never reorders, repeats or damages.
    Uc,
    /// Unreliable datagrams: may lose and reorder, never repeats or damages.
    Ud,
}

impl Transport {
    /// Whether a message may be lost.
    pub(crate) fn lossy(self) -> bool {
        self != Transport::Rc
    }

    /// Its number in verbs.
    pub(crate) fn qp_type(self) -> u32 {
        match self {
            Transport::Rc => qp_type::RC,
            Transport::Uc => qp_type::UC,
            Transport::Ud => qp_type::UD,
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Transport::Rc => "RC",
            Transport::Uc => "UC",
            Transport::Ud => "UD",
        })
    }
}

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Send,
    SendImm,
    Write,
    WriteImm,
    Read,
    FetchAdd,
    CmpSwap,
}

impl Kind {
    /// All of them, in the order of [`Self::index`].
    pub(crate) const ALL: [Kind; 7] = [
        Kind::Send,
        Kind::SendImm,
        Kind::Write,
        Kind::WriteImm,
        Kind::Read,
        Kind::FetchAdd,
        Kind::CmpSwap,
    ];

    /// Its place in [`Self::ALL`].
    pub(crate) fn index(self) -> usize {
        self as usize
    }

    /// It takes a receive of the peer.
    pub(crate) fn consumes(self) -> bool {
        matches!(self, Kind::Send | Kind::SendImm | Kind::WriteImm)
    }

    /// It carries immediate data.
    pub(crate) fn has_imm(self) -> bool {
        matches!(self, Kind::SendImm | Kind::WriteImm)
    }

    /// It writes to memory that it names.
    pub(crate) fn writes(self) -> bool {
        matches!(self, Kind::Write | Kind::WriteImm)
    }

    /// It is an atomic.
    pub(crate) fn is_atomic(self) -> bool {
        matches!(self, Kind::FetchAdd | Kind::CmpSwap)
    }

    /// The opcode of its completion at the sender.
    pub(crate) fn wc_opcode(self) -> u32 {
        match self {
            Kind::Send | Kind::SendImm => wc_opcode::SEND,
            Kind::Write | Kind::WriteImm => wc_opcode::RDMA_WRITE,
            Kind::Read => wc_opcode::RDMA_READ,
            Kind::FetchAdd => wc_opcode::FETCH_ADD,
            Kind::CmpSwap => wc_opcode::COMP_SWAP,
        }
    }

    /// The opcode of the completion of the receive that it takes.
    pub(crate) fn recv_opcode(self) -> u32 {
        if self == Kind::WriteImm { wc_opcode::RECV_RDMA_WITH_IMM } else { wc_opcode::RECV }
    }

    /// Its name in reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Send => "SEND",
            Kind::SendImm => "SEND_WITH_IMM",
            Kind::Write => "WRITE",
            Kind::WriteImm => "WRITE_WITH_IMM",
            Kind::Read => "READ",
            Kind::FetchAdd => "FETCH_ADD",
            Kind::CmpSwap => "CMP_SWAP",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The words of `--mix`.
const WORDS: [(&str, Transport, &[Kind]); 10] = [
    ("send", Transport::Rc, &[Kind::Send]),
    ("send-imm", Transport::Rc, &[Kind::SendImm]),
    ("write", Transport::Rc, &[Kind::Write]),
    ("write-imm", Transport::Rc, &[Kind::WriteImm]),
    ("read", Transport::Rc, &[Kind::Read]),
    ("fetch-add", Transport::Rc, &[Kind::FetchAdd]),
    ("cmp-swap", Transport::Rc, &[Kind::CmpSwap]),
    ("uc-send", Transport::Uc, &[Kind::Send, Kind::SendImm]),
    ("uc-write", Transport::Uc, &[Kind::Write, Kind::WriteImm]),
    ("ud-send", Transport::Ud, &[Kind::Send, Kind::SendImm]),
];

/// Transports of the queue pairs between two ranks, in turns. Two of each kind come first, so that
/// a run of few queue pairs has all of them; most are RC, where the promises are strictest.
const TURNS: [Transport; 8] = [
    Transport::Rc,
    Transport::Rc,
    Transport::Uc,
    Transport::Ud,
    Transport::Rc,
    Transport::Rc,
    Transport::Rc,
    Transport::Rc,
];

/// Which kinds a run uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mix(Vec<usize>);

impl Mix {
    /// Every kind.
    pub(crate) fn all() -> Self {
        Mix((0..WORDS.len()).collect())
    }

    /// Reads a list of words.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut chosen = Vec::new();
        for word in text.split(',') {
            let known = WORDS.iter().position(|(name, ..)| *name == word);
            let index = known.ok_or_else(|| {
                let names: Vec<_> = WORDS.iter().map(|(name, ..)| *name).collect();
                format!("\"{word}\" is no kind of message; there are {}", names.join(","))
            })?;
            if !chosen.contains(&index) {
                chosen.push(index);
            }
        }
        chosen.sort_unstable();
        Ok(Mix(chosen))
    }

    /// The kinds that travel on `transport`.
    pub(crate) fn kinds(&self, transport: Transport) -> Vec<Kind> {
        let words = self.0.iter().map(|index| WORDS[*index]);
        words.filter(|(_, on, _)| *on == transport).flat_map(|(.., kinds)| kinds).copied().collect()
    }

    /// The transport of queue pair number `index` of those between two ranks.
    pub(crate) fn transport(&self, index: usize) -> Transport {
        let used: Vec<_> = TURNS.into_iter().filter(|t| !self.kinds(*t).is_empty()).collect();
        used[index % used.len()]
    }
}

impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.0.iter().map(|index| WORDS[*index].0).collect();
        f.write_str(&names.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Promise: a mix is what it says, and decides which transports there are.
    #[test]
    fn a_mix_is_read_in_any_order_and_chooses_transports() {
        let mix = Mix::parse("ud-send,read,send,read").unwrap();
        assert_eq!(mix.to_string(), "send,read,ud-send");
        assert_eq!(mix.kinds(Transport::Rc), [Kind::Send, Kind::Read]);
        assert_eq!(mix.kinds(Transport::Uc), []);
        let first: Vec<_> = (0..4).map(|i| mix.transport(i)).collect();
        assert_eq!(first, [Transport::Rc, Transport::Rc, Transport::Ud, Transport::Rc]);
        assert_eq!(Mix::parse("uc-write").unwrap().transport(5), Transport::Uc);
        assert!(Mix::parse("send,fly").unwrap_err().contains("\"fly\" is no kind"));
        assert_eq!(Mix::parse(&Mix::all().to_string()).unwrap(), Mix::all());
        assert!(Kind::ALL.iter().enumerate().all(|(i, kind)| kind.index() == i));
    }
}
