//! Which rank computes which cells: the plate is cut into columns × rows of blocks.

use std::ops::Range;

/// A side of a block, and of the plate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// Towards row 0.
    North,
    /// Towards the last row.
    South,
    /// Towards column 0.
    West,
    /// Towards the last column.
    East,
}

impl Side {
    /// All four.
    pub(crate) const ALL: [Side; 4] = [Side::North, Side::South, Side::West, Side::East];
}

/// The cells of one rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    /// Columns of the plate.
    pub(crate) x: Range<usize>,
    /// Rows of the plate.
    pub(crate) y: Range<usize>,
}

impl Block {
    /// Cells along a side.
    pub(crate) fn side(&self, side: Side) -> usize {
        match side {
            Side::North | Side::South => self.x.len(),
            Side::West | Side::East => self.y.len(),
        }
    }

    /// All of its cells.
    pub(crate) fn cells(&self) -> usize {
        self.x.len() * self.y.len()
    }
}

/// How the plate is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Decomposition {
    width: usize,
    height: usize,
    /// Blocks side by side.
    pub(crate) columns: u32,
    /// Blocks one above the other.
    pub(crate) rows: u32,
}

impl Decomposition {
    /// Cuts a plate of `width` × `height` cells into one block per rank so that the cuts are as
    /// short as can be: what crosses them travels at every step. Of equal ones it takes that of
    /// more rows, whose edges lie together in memory.
    ///
    /// `None` where so many blocks do not fit.
    pub(crate) fn new(width: usize, height: usize, ranks: u32) -> Option<Self> {
        (1..=ranks)
            .filter(|columns| ranks.is_multiple_of(*columns))
            .map(|columns| Decomposition { width, height, columns, rows: ranks / columns })
            .filter(|cut| cut.columns as usize <= width && cut.rows as usize <= height)
            .min_by_key(|cut| (cut.columns as usize - 1) * height + (cut.rows as usize - 1) * width)
    }

    /// The block of a rank; ranks count along the rows of blocks.
    pub(crate) fn block(&self, rank: u32) -> Block {
        let part = |length: usize, at: u32, of: u32| {
            let edge = |i: u32| length * i as usize / of as usize;
            edge(at)..edge(at + 1)
        };
        Block {
            x: part(self.width, rank % self.columns, self.columns),
            y: part(self.height, rank / self.columns, self.rows),
        }
    }

    /// The rank on the other side of a side, if that is not the plate's own.
    pub(crate) fn neighbour(&self, rank: u32, side: Side) -> Option<u32> {
        let (column, row) = (rank % self.columns, rank / self.columns);
        match side {
            Side::North => (row > 0).then(|| rank - self.columns),
            Side::South => (row + 1 < self.rows).then(|| rank + self.columns),
            Side::West => (column > 0).then(|| rank - 1),
            Side::East => (column + 1 < self.columns).then(|| rank + 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cell_belongs_to_exactly_one_rank_and_neighbours_touch() {
        for (width, height) in [(1, 1), (7, 5), (64, 64), (100, 3), (3, 100)] {
            for ranks in 1..=40 {
                let Some(cut) = Decomposition::new(width, height, ranks) else { continue };
                let mut owner = vec![None; width * height];
                for rank in 0..ranks {
                    let block = cut.block(rank);
                    assert!(block.cells() > 0);
                    for y in block.y.clone() {
                        for x in block.x.clone() {
                            assert_eq!(owner[y * width + x].replace(rank), None);
                        }
                    }
                }
                assert!(owner.iter().all(Option::is_some));
                for rank in 0..ranks {
                    let here = cut.block(rank);
                    for side in Side::ALL {
                        let Some(other) = cut.neighbour(rank, side) else { continue };
                        let there = cut.block(other);
                        let (touching, along) = match side {
                            Side::North => (here.y.start == there.y.end, here.x == there.x),
                            Side::South => (here.y.end == there.y.start, here.x == there.x),
                            Side::West => (here.x.start == there.x.end, here.y == there.y),
                            Side::East => (here.x.end == there.x.start, here.y == there.y),
                        };
                        assert!(touching && along, "{rank} {side:?} {other}");
                    }
                }
            }
        }
    }

    #[test]
    fn cuts_are_short_and_impossible_ones_refused() {
        let cut = |w, h, n| Decomposition::new(w, h, n).map(|cut| (cut.columns, cut.rows));
        assert_eq!(cut(512, 512, 4), Some((2, 2)));
        assert_eq!(cut(512, 512, 2), Some((1, 2)));
        assert_eq!(cut(1000, 10, 4), Some((4, 1)));
        assert_eq!(cut(512, 512, 5), Some((1, 5)));
        assert_eq!(cut(3, 3, 10), None);
        assert_eq!(cut(2, 2, 4), Some((2, 2)));
        assert_eq!(cut(4, 4, 5), None);
    }
}
