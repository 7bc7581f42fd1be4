//! Parity over the images of a group, and what the library that computes Reed–Solomon codes does of it when it is
//! called alone, on the same stripes.

use reed_solomon_simd::{ReedSolomonDecoder, ReedSolomonEncoder};
use sojourn_snapshot::redundancy::code::STRIPE;
use sojourn_snapshot::redundancy::{Code, Scheme};
use std::hint::black_box;

/// Bytes of each image: all together are more than any cache holds.
pub const IMAGE: usize = 32 << 20;
/// What is measured.
pub const SCHEMES: [&str; 5] = ["xor:4", "xor:8", "rs:4+2", "rs:8+2", "rs:8+4"];

/// Images, and room for their parity.
pub struct Group {
    /// How it is protected.
    pub scheme: Scheme,
    /// One for each member.
    pub images: Vec<Vec<u8>>,
    /// The shares of parity.
    pub parity: Vec<Vec<u8>>,
}

impl Group {
    /// A whole group of a scheme.
    ///
    /// # Errors
    /// Where it is no scheme.
    pub fn new(text: &str) -> sojourn_fabric::Result<Self> {
        let scheme: Scheme = text.parse()?;
        let image = |i| (0..IMAGE).map(|at| (at * 31 + i * 7 + at / 251) as u8).collect();
        let images = (0..scheme.group()).map(image).collect();
        Ok(Group { scheme, images, parity: vec![vec![1; IMAGE]; scheme.parity()] })
    }

    /// Computes those shares of parity that `wanted` says.
    ///
    /// # Panics
    /// Where `code` is of another scheme.
    pub fn encode(&mut self, code: &mut Code, wanted: fn(usize) -> bool) {
        for at in (0..IMAGE).step_by(STRIPE) {
            let stripe = at..at + STRIPE;
            let images: Vec<&[u8]> = self.images.iter().map(|it| &it[stripe.clone()]).collect();
            let parity = self.parity.iter_mut().enumerate().filter(|(i, _)| wanted(*i));
            let mut parity: Vec<(usize, &mut [u8])> =
                parity.map(|(i, it)| (i, &mut it[stripe.clone()])).collect();
            code.encode(&images, &mut parity).expect("a stripe of images");
        }
    }

    /// What the library does of it. Parity has to be put where it belongs, else it is in no store; `put`
    /// false leaves that out.
    ///
    /// # Panics
    /// Where `encoder` is of other numbers.
    pub fn encode_alone(&mut self, encoder: &mut ReedSolomonEncoder, put: bool) {
        for at in (0..IMAGE).step_by(STRIPE) {
            for image in &self.images {
                encoder.add_original_shard(&image[at..at + STRIPE]).expect("a stripe");
            }
            let made = encoder.encode().expect("all images");
            for (bytes, place) in made.recovery_iter().zip(&mut self.parity) {
                black_box(bytes);
                if put {
                    place[at..at + STRIPE].copy_from_slice(bytes);
                }
            }
        }
    }

    /// Rebuilds the first image.
    ///
    /// # Panics
    /// Where `code` is of another scheme.
    pub fn rebuild(&self, code: &mut Code, into: &mut [u8]) {
        for at in (0..IMAGE).step_by(STRIPE) {
            let stripe = at..at + STRIPE;
            let images = self.images.iter().chain(&self.parity);
            let mut shares: Vec<Option<&[u8]>> =
                images.map(|it| Some(&it[stripe.clone()])).collect();
            shares[0] = None;
            code.rebuild(&shares, &mut [(0, &mut into[stripe])]).expect("enough shares");
        }
    }

    /// What the library does of that.
    ///
    /// # Panics
    /// Where `decoder` is of other numbers.
    pub fn rebuild_alone(&self, decoder: &mut ReedSolomonDecoder, into: &mut [u8]) {
        for at in (0..IMAGE).step_by(STRIPE) {
            let stripe = at..at + STRIPE;
            for (i, image) in self.images.iter().enumerate().skip(1) {
                decoder.add_original_shard(i, &image[stripe.clone()]).expect("a stripe");
            }
            decoder.add_recovery_shard(0, &self.parity[0][stripe.clone()]).expect("a stripe");
            let made = decoder.decode().expect("enough shares");
            into[stripe].copy_from_slice(made.restored_original(0).expect("it was lost"));
        }
    }
}

/// The fastest that one thread reads the images in.
#[must_use]
pub fn read(images: &[Vec<u8>]) -> u64 {
    let word = |eight: &[u8]| eight.try_into().map_or(0, u64::from_le_bytes);
    images.iter().flat_map(|it| it.chunks_exact(8)).fold(0, |sum, eight| sum ^ word(eight))
}
