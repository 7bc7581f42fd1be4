//! Pictures: a PNG's brightness as a field, and a field as a PNG in colours of heat.

use png::{BitDepth, ColorType, Decoder, Encoder, Transformations};
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Seek, Write};
use std::path::Path;

/// The longest side of a plate: 2^16 cells.
pub(crate) const LONGEST_SIDE: usize = 1 << 16;
/// Most cells of a plate: 2 GiB of field in the memory of rank 0, which gathers it.
pub(crate) const MOST_CELLS: usize = 1 << 28;

/// Bytes that the decoder may allocate beside the picture itself.
const DECODER_BYTES: usize = 64 << 20;

/// Colours from cold to hot, at equal distances.
const COLOURS: [[u8; 3]; 9] = [
    [4, 5, 20],
    [28, 16, 78],
    [76, 18, 118],
    [132, 28, 118],
    [188, 44, 92],
    [231, 82, 54],
    [251, 138, 34],
    [253, 202, 82],
    [255, 252, 214],
];

/// The brightness of a picture, 0 to 255, row by row.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Picture {
    /// Columns.
    pub(crate) width: usize,
    /// Rows.
    pub(crate) height: usize,
    /// Brightness of each pixel.
    pub(crate) levels: Vec<u8>,
}

/// What is wrong with a plate of this size, if anything is.
pub(crate) fn check_size(width: usize, height: usize) -> Result<(), String> {
    if width == 0 || height == 0 {
        return Err(format!("{width}x{height} cells: each side has at least 1"));
    }
    if width > LONGEST_SIDE || height > LONGEST_SIDE || width * height > MOST_CELLS {
        return Err(format!(
            "{width}x{height} cells: at most {LONGEST_SIDE} on a side and {MOST_CELLS} in all"
        ));
    }
    Ok(())
}

/// Reads a PNG of any kind.
pub(crate) fn read(path: &Path) -> Result<Picture, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    decode(BufReader::new(file))
}

fn decode(from: impl BufRead + Seek) -> Result<Picture, String> {
    let mut decoder = Decoder::new_with_limits(from, png::Limits { bytes: DECODER_BYTES });
    decoder.set_transformations(Transformations::normalize_to_color8());
    let mut reader = decoder.read_info().map_err(|error| error.to_string())?;
    let (width, height) = (reader.info().width as usize, reader.info().height as usize);
    check_size(width, height)?;
    let size = reader.output_buffer_size().ok_or("too large a picture")?;
    let mut bytes = vec![0; size];
    let frame = reader.next_frame(&mut bytes).map_err(|error| error.to_string())?;
    let channels = frame.color_type.samples();
    let pixels = bytes[..frame.buffer_size()].chunks_exact(channels);
    let levels = pixels.map(|pixel| match channels {
        1 | 2 => pixel[0],
        _ => brightness(pixel[0], pixel[1], pixel[2]),
    });
    Ok(Picture { width, height, levels: levels.collect() })
}

/// Rec. 601 in whole numbers.
fn brightness(red: u8, green: u8, blue: u8) -> u8 {
    let sum = 299 * u32::from(red) + 587 * u32::from(green) + 114 * u32::from(blue);
    ((sum + 500) / 1000) as u8
}

/// Writes a field, row by row, as a PNG; 0 is cold and 1 hot.
pub(crate) fn write(
    path: &Path,
    width: usize,
    height: usize,
    field: impl Iterator<Item = f64>,
) -> Result<(), String> {
    let mut to = BufWriter::new(File::create(path).map_err(|error| error.to_string())?);
    encode(&mut to, width, height, field)?;
    to.flush().map_err(|error| error.to_string())
}

fn encode(
    to: impl Write,
    width: usize,
    height: usize,
    field: impl Iterator<Item = f64>,
) -> Result<(), String> {
    let side = |n: usize| u32::try_from(n).map_err(|error| error.to_string());
    let mut encoder = Encoder::new(to, side(width)?, side(height)?);
    encoder.set_color(ColorType::Rgb);
    encoder.set_depth(BitDepth::Eight);
    let bytes: Vec<u8> = field.flat_map(colour).collect();
    let mut writer = encoder.write_header().map_err(|error| error.to_string())?;
    writer.write_image_data(&bytes).map_err(|error| error.to_string())?;
    writer.finish().map_err(|error| error.to_string())
}

/// The colour of a value.
fn colour(value: f64) -> [u8; 3] {
    let last = COLOURS.len() - 1;
    let at = value.clamp(0.0, 1.0) * last as f64;
    let below = (at as usize).min(last - 1);
    let part = at - below as f64;
    std::array::from_fn(|i| {
        let (a, b) = (f64::from(COLOURS[below][i]), f64::from(COLOURS[below + 1][i]));
        (a + (b - a) * part).round() as u8
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    #[test]
    fn a_field_becomes_a_picture_that_reads_back_brighter_where_it_is_hotter() {
        let mut bytes = Vec::new();
        let field = (0..32).map(|i| f64::from(i) / 31.0);
        encode(&mut bytes, 32, 1, field).unwrap();
        let picture = decode(Cursor::new(&bytes)).unwrap();
        assert_eq!((picture.width, picture.height), (32, 1));
        assert!(picture.levels.is_sorted(), "{:?}", picture.levels);
        assert!(picture.levels[0] < 20 && picture.levels[31] > 235);
    }

    #[test]
    fn values_beyond_the_scale_have_its_end_colours() {
        assert_eq!(colour(-1.0), COLOURS[0]);
        assert_eq!(colour(7.0), COLOURS[8]);
        assert_eq!(colour(0.5), COLOURS[4]);
    }

    #[test]
    fn what_is_no_picture_is_refused() {
        assert!(decode(Cursor::new(b"not a picture")).is_err());
        let mut bytes = Vec::new();
        encode(&mut bytes, 8, 8, std::iter::repeat_n(0.5, 64)).unwrap();
        bytes.truncate(bytes.len() / 2);
        assert!(decode(Cursor::new(&bytes)).is_err());
        assert!(check_size(0, 5).is_err());
        assert!(check_size(LONGEST_SIDE + 1, 1).is_err());
        assert!(check_size(LONGEST_SIDE, LONGEST_SIDE).is_err());
    }
}
