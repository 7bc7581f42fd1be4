//! What a plate looks like at the start.

use super::image::Picture;

/// Rate of the cells of a picture (below 1/4 the scheme is stable).
const RATE: f64 = 0.2;

/// Rate around the Julia set: so slow that its lace is still to be seen after thousands of steps.
const SLOW: f64 = 0.04;

/// A point counts as in the set when it has not escaped after so many iterations. The set of this
/// parameter is dust; this many leave its lace.
const INSIDE: u32 = 110;

/// The parameter of the set.
const PARAMETER: (f64, f64) = (0.285, 0.01);

/// Half of the shorter side of the plate, in the plane of the set.
const EXTENT: f64 = 1.25;

/// Where the initial field comes from.
pub(crate) enum Pattern {
    /// A cold plate with a Julia set on it that is held hot.
    /// Made with nothing but additions, multiplications and divisions, it has the same bits on
    /// every machine.
    Julia {
        /// Cells from west to east.
        width: usize,
        /// Cells from north to south.
        height: usize,
    },
    /// The brightness of a picture, which then diffuses.
    Picture(Picture),
}

impl Pattern {
    /// Cells from west to east, and from north to south.
    pub(crate) fn size(&self) -> (usize, usize) {
        match self {
            Pattern::Julia { width, height } => (*width, *height),
            Pattern::Picture(picture) => (picture.width, picture.height),
        }
    }

    /// Value and rate of a cell.
    pub(crate) fn cell(&self, x: usize, y: usize) -> (f64, f64) {
        match self {
            Pattern::Julia { width, height } => {
                let scale = 2.0 * EXTENT / *width.min(height) as f64;
                let along = |i: usize, n: usize| (i as f64 + 0.5 - n as f64 / 2.0) * scale;
                if inside(along(x, *width), along(y, *height)) { (1.0, 0.0) } else { (0.0, SLOW) }
            }
            Pattern::Picture(picture) => {
                (f64::from(picture.levels[y * picture.width + x]) / 255.0, RATE)
            }
        }
    }

    /// A number that two ranks share where they start from the same plate.
    pub(crate) fn fingerprint(&self) -> u64 {
        match self {
            Pattern::Julia { width, height } => {
                super::checksum([*width as u64, *height as u64].into_iter())
            }
            Pattern::Picture(picture) => super::checksum(
                [picture.width as u64]
                    .into_iter()
                    .chain(picture.levels.iter().map(|level| u64::from(*level))),
            ),
        }
    }
}

fn inside(mut re: f64, mut im: f64) -> bool {
    for _ in 0..INSIDE {
        let (re2, im2) = (re * re, im * im);
        if re2 + im2 > 4.0 {
            return false;
        }
        im = 2.0 * re * im + PARAMETER.1;
        re = re2 - im2 + PARAMETER.0;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_set_is_hot_and_held_on_a_cold_plate() {
        let pattern = Pattern::Julia { width: 96, height: 64 };
        let points = (0..64).flat_map(|y| (0..96).map(move |x| (x, y)));
        let cells: Vec<_> = points.map(|(x, y)| pattern.cell(x, y)).collect();
        let hot = cells.iter().filter(|cell| **cell == (1.0, 0.0)).count();
        assert_eq!(cells.iter().filter(|cell| **cell == (0.0, SLOW)).count(), cells.len() - hot);
        assert!(hot > 20 && hot < cells.len() / 10, "{hot} of {}", cells.len());
        // Half a turn leaves it as it is.
        assert!((0..cells.len()).all(|i| cells[i] == cells[cells.len() - 1 - i]));
    }

    #[test]
    fn a_picture_is_read_by_brightness() {
        let picture = Picture { width: 2, height: 1, levels: vec![0, 255] };
        let pattern = Pattern::Picture(picture);
        assert_eq!(pattern.size(), (2, 1));
        assert_eq!((pattern.cell(0, 0).0, pattern.cell(1, 0).0), (0.0, 1.0));
    }
}
