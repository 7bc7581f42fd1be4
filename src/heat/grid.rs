//! The cells of one rank, and the step.
//!
//! A cell's new value is made by the same operations in the same order wherever it stands, so a
//! plate comes out bit for bit the same however it is cut. The cells are surrounded by a ring of
//! ghosts: copies of the neighbours' edge cells, or, on the plate's own sides, of the cells
//! themselves, which insulates it.

use super::decomposition::Side;
use sojourn::Result;
use sojourn::snapshot::Memory;
use std::ops::Range;

/// Two fields, of this step and of the next, each with its ring of ghosts.
pub(crate) struct Grid {
    width: usize,
    height: usize,
    fields: [Memory<f64>; 2],
    /// The one of this step.
    now: usize,
    /// How much of the difference to its neighbours a cell takes over at each step; 0 holds it.
    /// Without ghosts.
    rate: Memory<f64>,
}

impl Grid {
    /// A grid of `width` × `height` cells, all of them 0 and held.
    pub(crate) fn new(width: usize, height: usize) -> Result<Self> {
        let size = (width + 2) * (height + 2);
        let fields = [Memory::new(size)?, Memory::new(size)?];
        Ok(Grid { width, height, fields, now: 0, rate: Memory::new(width * height)? })
    }

    /// Begins anew: `cell(x, y)` gives each cell its value and its rate.
    pub(crate) fn fill(&mut self, mut cell: impl FnMut(usize, usize) -> (f64, f64)) {
        self.now = 0;
        for y in 0..self.height {
            for x in 0..self.width {
                let (value, rate) = cell(x, y);
                let at = self.at(x, y);
                self.fields[0][at] = value;
                self.rate[y * self.width + x] = rate;
            }
        }
    }

    /// Everything that it consists of, but for which of the fields is that of this step.
    pub(crate) fn parts(&self) -> [&Memory<f64>; 3] {
        [&self.fields[0], &self.fields[1], &self.rate]
    }

    /// Which of the fields is that of this step.
    pub(crate) fn current(&self) -> usize {
        self.now
    }

    /// Says which it is, after the parts were restored.
    pub(crate) fn set_current(&mut self, now: usize) {
        self.now = now % 2;
    }

    fn now(&self) -> &[f64] {
        &self.fields[self.now]
    }

    fn next(&self) -> &[f64] {
        &self.fields[1 - self.now]
    }

    /// The cells of a row, as they are now.
    pub(crate) fn row(&self, y: usize) -> &[f64] {
        let at = self.at(0, y);
        &self.now()[at..at + self.width]
    }

    /// All cells as they are now, row by row.
    pub(crate) fn cells(&self) -> Vec<f64> {
        (0..self.height).flat_map(|y| self.row(y)).copied().collect()
    }

    /// Cells of this rank along a side.
    fn side(&self, side: Side) -> usize {
        match side {
            Side::North | Side::South => self.width,
            Side::West | Side::East => self.height,
        }
    }

    /// The edge cells along `side` as they are now.
    pub(crate) fn edge(&self, side: Side) -> impl Iterator<Item = f64> {
        (0..self.side(side)).map(move |i| self.now()[self.edge_at(side, i)])
    }

    /// The edge cells along `side` as they will be, once [`Self::step_border`] has made them.
    pub(crate) fn next_edge(&self, side: Side) -> impl Iterator<Item = f64> {
        (0..self.side(side)).map(move |i| self.next()[self.edge_at(side, i)])
    }

    /// Fills the ghosts beyond `side` with the neighbour's edge.
    pub(crate) fn set_ghosts(&mut self, side: Side, edge: impl Iterator<Item = f64>) {
        for (i, value) in (0..self.side(side)).zip(edge) {
            let at = self.ghost_at(side, i);
            self.fields[self.now][at] = value;
        }
    }

    /// Fills the ghosts beyond `side` with the cells before them: no heat passes.
    pub(crate) fn insulate(&mut self, side: Side) {
        for i in 0..self.side(side) {
            let (ghost, cell) = (self.ghost_at(side, i), self.edge_at(side, i));
            self.fields[self.now][ghost] = self.now()[cell];
        }
    }

    /// Makes the next values of the outermost cells. Returns the largest change where it is asked
    /// for, else 0.
    pub(crate) fn step_border(&mut self, measure: bool) -> f64 {
        let (width, height) = (self.width, self.height);
        let mut largest = self.span(0, 0..width, measure);
        if height > 1 {
            largest = larger(largest, self.span(height - 1, 0..width, measure));
        }
        for y in 1..height.saturating_sub(1) {
            largest = larger(largest, self.span(y, 0..1, measure));
            if width > 1 {
                largest = larger(largest, self.span(y, width - 1..width, measure));
            }
        }
        largest
    }

    /// Rows that have inner cells.
    pub(crate) fn inner_rows(&self) -> Range<usize> {
        1..self.height.saturating_sub(1).max(1)
    }

    /// Makes the next values of the inner cells of `rows`, which are some of
    /// [`Self::inner_rows`]. Returns as [`Self::step_border`].
    pub(crate) fn step_inner(&mut self, rows: Range<usize>, measure: bool) -> f64 {
        let columns = 1..self.width.saturating_sub(1).max(1);
        let mut largest = 0.0;
        for y in rows {
            largest = larger(largest, self.span(y, columns.clone(), measure));
        }
        largest
    }

    /// The next values become those of now.
    pub(crate) fn swap(&mut self) {
        self.now = 1 - self.now;
    }

    fn span(&mut self, y: usize, columns: Range<usize>, measure: bool) -> f64 {
        let stride = self.width + 2;
        let (at, length) = (self.at(columns.start, y), columns.len());
        let rate = y * self.width + columns.start;
        let (north, south) = (at - stride, at + stride);
        let [first, second] = &mut self.fields;
        let (now, next) = if self.now == 0 { (first, second) } else { (second, first) };
        let around = Around {
            north: &now[north..north + length],
            middle: &now[at - 1..at + length + 1],
            south: &now[south..south + length],
        };
        let rate = &self.rate[rate..rate + length];
        let next = &mut next[at..at + length];
        advance(&around, rate, next);
        if measure { change(&around.middle[1..], next) } else { 0.0 }
    }

    fn at(&self, x: usize, y: usize) -> usize {
        (y + 1) * (self.width + 2) + x + 1
    }

    fn edge_at(&self, side: Side, i: usize) -> usize {
        match side {
            Side::North => self.at(i, 0),
            Side::South => self.at(i, self.height - 1),
            Side::West => self.at(0, i),
            Side::East => self.at(self.width - 1, i),
        }
    }

    fn ghost_at(&self, side: Side, i: usize) -> usize {
        let stride = self.width + 2;
        let at = self.edge_at(side, i);
        match side {
            Side::North => at - stride,
            Side::South => at + stride,
            Side::West => at - 1,
            Side::East => at + 1,
        }
    }
}

struct Around<'a> {
    north: &'a [f64],
    /// One cell more at each end.
    middle: &'a [f64],
    south: &'a [f64],
}

/// The step of a run of cells (explicit Euler, five points).
#[inline]
fn advance(around: &Around<'_>, rate: &[f64], next: &mut [f64]) {
    let n = next.len();
    let (north, south, rate) = (&around.north[..n], &around.south[..n], &rate[..n]);
    let (west, centre, east) =
        (&around.middle[..n], &around.middle[1..n + 1], &around.middle[2..n + 2]);
    for i in 0..n {
        let sum = (north[i] + south[i]) + (west[i] + east[i]);
        next[i] = centre[i] + rate[i] * (sum - 4.0 * centre[i]);
    }
}

/// The largest change of a run of cells.
fn change(before: &[f64], after: &[f64]) -> f64 {
    before.iter().zip(after).fold(0.0, |largest, (a, b)| larger(largest, (b - a).abs()))
}

/// The larger of two; both are numbers.
fn larger(a: f64, b: f64) -> f64 {
    if b > a { b } else { a }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(x: usize, y: usize) -> f64 {
        let mixed = (x as u64 * 0x9e37_79b9 + y as u64 * 0x85eb_ca6b).wrapping_mul(0xc2b2_ae35);
        (mixed >> 11) as f64 / (1u64 << 53) as f64
    }

    fn grid(width: usize, height: usize, cell: impl Fn(usize, usize) -> (f64, f64)) -> Grid {
        let mut grid = Grid::new(width, height).unwrap();
        grid.fill(cell);
        grid
    }

    fn insulated_step(grid: &mut Grid) -> f64 {
        Side::ALL.into_iter().for_each(|side| grid.insulate(side));
        let border = grid.step_border(true);
        let inner = grid.step_inner(grid.inner_rows(), true);
        grid.swap();
        larger(border, inner)
    }

    #[test]
    fn border_and_inner_cells_together_are_all_cells_once() {
        for (width, height) in [(1, 1), (1, 5), (5, 1), (2, 2), (3, 3), (4, 7)] {
            let mut grid = grid(width, height, |x, y| (noise(x, y), 0.2));
            let before = grid.cells();
            let largest = insulated_step(&mut grid);
            let at = |x: isize, y: isize| {
                let (x, y) = (x.clamp(0, width as isize - 1), y.clamp(0, height as isize - 1));
                before[y as usize * width + x as usize]
            };
            let mut expected = 0.0;
            for y in 0..height as isize {
                for x in 0..width as isize {
                    let c = at(x, y);
                    let sum = (at(x, y - 1) + at(x, y + 1)) + (at(x - 1, y) + at(x + 1, y));
                    let next = c + 0.2 * (sum - 4.0 * c);
                    assert_eq!(grid.row(y as usize)[x as usize].to_bits(), next.to_bits());
                    expected = larger(expected, (next - c).abs());
                }
            }
            assert_eq!(largest, expected);
        }
    }

    #[test]
    fn an_insulated_plate_keeps_its_heat_and_evens_out() {
        let mut grid = grid(9, 6, |x, y| (noise(x, y), 0.2));
        let before: f64 = grid.cells().iter().sum();
        for _ in 0..2000 {
            insulated_step(&mut grid);
        }
        let after = grid.cells();
        assert!((before - after.iter().sum::<f64>()).abs() < 1e-9);
        assert!(after.iter().all(|cell| (cell - after[0]).abs() < 1e-6));
    }

    #[test]
    fn held_cells_hold() {
        let held = |x: usize| if x == 2 { (1.0, 0.0) } else { (0.0, 0.2) };
        let mut grid = grid(5, 3, |x, _| held(x));
        for _ in 0..500 {
            insulated_step(&mut grid);
        }
        assert!((0..3).all(|y| grid.row(y)[2] == 1.0));
        assert!(grid.cells().iter().all(|cell| *cell > 0.9));
    }
}
