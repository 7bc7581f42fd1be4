//! The frames of a [`crate::Link`]: one tag byte, then what the tag says. Numbers are little
//! endian, text is UTF-8 to the end of the frame.

use crate::case::Outcome;
use crate::link::MAX_FRAME;

/// Most numbers in one [`Message::Data`].
pub(crate) const MAX_WORDS: usize = 64;
/// Most bytes of a name or a sentence.
const MAX_TEXT: usize = 4 * 1024;

/// What sides tell each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// The leader begins a case, which has this many milliseconds.
    Start { limit_ms: u64, case: String },
    /// A word of a case.
    Data(Vec<u64>),
    /// A side has ended.
    Done(Ended),
    /// The leader has no more cases.
    Bye,
}

/// How one side of a case ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// With an outcome of its own.
    With(Outcome),
    /// Because the other side had stopped.
    Abandoned(String),
}

const START: u8 = 1;
const DATA: u8 = 2;
const PASSED: u8 = 3;
const NOT_APPLICABLE: u8 = 4;
const FAILED: u8 = 5;
const ABANDONED: u8 = 6;
const BYE: u8 = 7;

impl Message {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let (tag, words, text): (u8, &[u64], &str) = match self {
            Message::Start { limit_ms, case } => (START, std::slice::from_ref(limit_ms), case),
            Message::Data(words) => (DATA, words, ""),
            Message::Done(Ended::With(Outcome::Passed)) => (PASSED, &[], ""),
            Message::Done(Ended::With(Outcome::NotApplicable(why))) => (NOT_APPLICABLE, &[], why),
            Message::Done(Ended::With(Outcome::Failed(why))) => (FAILED, &[], why),
            Message::Done(Ended::Abandoned(why)) => (ABANDONED, &[], why),
            Message::Bye => (BYE, &[], ""),
        };
        let mut frame = vec![tag];
        frame.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        let cut = (0..=text.len().min(MAX_TEXT)).rev().find(|&at| text.is_char_boundary(at));
        frame.extend_from_slice(&text.as_bytes()[..cut.unwrap_or(0)]);
        debug_assert!(frame.len() <= MAX_FRAME);
        frame
    }

    /// Reads a frame; an error is a sentence about what is wrong with it.
    pub(crate) fn decode(frame: &[u8]) -> Result<Self, String> {
        let Some((&tag, rest)) = frame.split_first() else {
            return Err("an empty frame".into());
        };
        match tag {
            START => {
                let (limit, name) = rest
                    .split_first_chunk::<8>()
                    .ok_or_else(|| format!("a Start of {} bytes", rest.len()))?;
                Ok(Message::Start { limit_ms: u64::from_le_bytes(*limit), case: text(name)? })
            }
            DATA => {
                let (words, tail) = rest.as_chunks::<8>();
                if words.len() > MAX_WORDS || !tail.is_empty() {
                    return Err(format!("a Data frame of {} bytes", rest.len()));
                }
                Ok(Message::Data(words.iter().map(|word| u64::from_le_bytes(*word)).collect()))
            }
            PASSED if rest.is_empty() => Ok(Message::Done(Ended::With(Outcome::Passed))),
            NOT_APPLICABLE => Ok(Message::Done(Ended::With(Outcome::NotApplicable(text(rest)?)))),
            FAILED => Ok(Message::Done(Ended::With(Outcome::Failed(text(rest)?)))),
            ABANDONED => Ok(Message::Done(Ended::Abandoned(text(rest)?))),
            BYE if rest.is_empty() => Ok(Message::Bye),
            _ => Err(format!("a frame of {} bytes with tag {tag}", frame.len())),
        }
    }
}

fn text(bytes: &[u8]) -> Result<String, String> {
    if bytes.len() > MAX_TEXT {
        return Err(format!("a text of {} bytes", bytes.len()));
    }
    String::from_utf8(bytes.to_vec()).map_err(|_| "a text that is not UTF-8".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message() -> impl Strategy<Value = Message> {
        let outcome = prop_oneof![
            Just(Outcome::Passed),
            ".{0,64}".prop_map(Outcome::NotApplicable),
            ".{0,64}".prop_map(Outcome::Failed),
        ];
        prop_oneof![
            (any::<u64>(), "[a-z_.]{0,40}")
                .prop_map(|(limit_ms, case)| Message::Start { limit_ms, case }),
            prop::collection::vec(any::<u64>(), 0..=MAX_WORDS).prop_map(Message::Data),
            outcome.prop_map(|outcome| Message::Done(Ended::With(outcome))),
            ".{0,64}".prop_map(|why| Message::Done(Ended::Abandoned(why))),
            Just(Message::Bye),
        ]
    }

    proptest! {
        #[test]
        fn messages_survive_their_frames(message in message()) {
            let frame = message.encode();
            prop_assert!(frame.len() <= MAX_FRAME);
            prop_assert_eq!(Message::decode(&frame), Ok(message));
        }

        #[test]
        fn no_frame_makes_the_decoder_panic(frame: Vec<u8>) {
            if let Ok(message) = Message::decode(&frame) {
                prop_assert_eq!(message.encode(), frame);
            }
        }

        #[test]
        fn a_truncated_frame_is_no_longer_message(message in message(), cut in 1..20usize) {
            let frame = message.encode();
            let short = &frame[..frame.len().saturating_sub(cut)];
            prop_assert_ne!(Message::decode(short), Ok(message));
        }
    }

    #[test]
    fn a_long_sentence_is_cut_and_still_arrives() {
        let long = Message::Done(Ended::With(Outcome::Failed("é".repeat(MAX_TEXT))));
        let Ok(Message::Done(Ended::With(Outcome::Failed(text)))) = Message::decode(&long.encode())
        else {
            panic!("a cut sentence must still decode");
        };
        assert!(text.starts_with('é') && text.len() <= MAX_TEXT);
    }
}
