//! Where a payload is cut into the elements of its gather or scatter list.

use crate::script::Message;
use sojourn::abi::Sge;
use sojourn::verbs::MemoryRegion;

/// One to three elements of the bytes at `start`, cut where chance has it.
pub(super) fn cut<'a>(
    memory: &MemoryRegion,
    start: usize,
    message: &Message,
    sges: &'a mut [Sge; 3],
) -> &'a [Sge] {
    let (size, dice) = (message.size, message.dice);
    let pieces = if size < 3 || message.kind.is_atomic() { 1 } else { 1 + (dice >> 16) % 3 };
    if size == 0 {
        return &[];
    }
    let mut cuts =
        [dice >> 24, dice >> 44].map(|dice| 1 + (dice as usize & 0xf_ffff) % (size - 1).max(1));
    cuts.sort_unstable();
    let (a, b) = (cuts[0], cuts[1]);
    match pieces {
        1 => sges[0] = memory.slice(start..start + size),
        2 => {
            sges[0] = memory.slice(start..start + a);
            sges[1] = memory.slice(start + a..start + size);
        }
        _ if a == b => return cut_at(memory, start, a, size, sges),
        _ => {
            sges[0] = memory.slice(start..start + a);
            sges[1] = memory.slice(start + a..start + b);
            sges[2] = memory.slice(start + b..start + size);
        }
    }
    &sges[..pieces as usize]
}

fn cut_at<'a>(
    memory: &MemoryRegion,
    start: usize,
    at: usize,
    size: usize,
    sges: &'a mut [Sge; 3],
) -> &'a [Sge] {
    sges[0] = memory.slice(start..start + at);
    sges[1] = memory.slice(start + at..start + size);
    &sges[..2]
}
