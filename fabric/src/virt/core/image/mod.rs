//! What is written down of a virtual context: its windows, and the names in them.
//!
//! ```text
//! "SJWINDOW" | version (u32, little endian) | postcard of [`Image`]
//! ```
//!
//! Plain data, with virtual names alone. Objects that the program knows by no name are named by their
//! place in the order in which they were made. Whoever carries the bytes has a checksum; but what
//! [`decode`] takes has all its limits checked (`check`), and the bytes may be anybody's: nothing of
//! them makes it panic, or take more memory than a small multiple of what they are.
//!
//! Written by [`capture`](super::capture), and read by it.

mod check;
mod parts;
#[cfg(test)]
mod tests;

pub(super) use parts::{
    About, AddressHandleImage, AttrImage, ChannelImage, CompletionImage, CqImage, Dealt,
    EventImage, Failing, IdentityImage, Image, Link, NamesImage, PdImage, QpImage, ReceiveImage,
    RecvsImage, RegionImage, RequestImage, SendsImage, SrqImage, cap_image,
};

use crate::error::{Error, Result};

const MAGIC: &[u8; 8] = b"SJWINDOW";
/// Grows with each change of [`Image`].
const VERSION: u32 = 1;
/// Bytes before the image.
const HEADER: usize = MAGIC.len() + 4;

/// The bytes of an image.
pub(super) fn encode(image: &Image) -> Result<Vec<u8>> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(VERSION.to_le_bytes());
    postcard::to_extend(image, bytes)
        .map_err(|error| Error::new(libc::EIO, format!("writing windows down: {error}")))
}

/// The image that some bytes are.
///
/// # Errors
/// `EINVAL` where they are none, or of what a context cannot be; `EOPNOTSUPP` where they are of another
/// version.
pub(super) fn decode(bytes: &[u8]) -> Result<Image> {
    let (header, body) = bytes.split_at_checked(HEADER).ok_or_else(|| {
        Error::invalid(format!("{} bytes are too few to be captured windows", bytes.len()))
    })?;
    let (magic, version) = header.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err(Error::invalid(
            "these are no captured windows: they begin with something else",
        ));
    }
    let version = version.try_into().map_or(0, u32::from_le_bytes);
    if version != VERSION {
        return Err(Error::unsupported(format!(
            "captured windows of version {version}: this library reads version {VERSION}"
        )));
    }
    let (image, rest) = postcard::take_from_bytes::<Image>(body)
        .map_err(|error| Error::invalid(format!("captured windows are damaged: {error}")))?;
    if !rest.is_empty() {
        let text = format!("captured windows with {} bytes too many behind them", rest.len());
        return Err(Error::invalid(text));
    }
    check::check(&image)?;
    Ok(image)
}
