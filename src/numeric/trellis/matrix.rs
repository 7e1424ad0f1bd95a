//! A matrix of tiles.

use super::{BITS, SEQUENCE, STATES_LOG2, TILE, decode_tile, tile_bytes};
use half::f16;

/// Why parts are no trellis-coded matrix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrellisError {
    /// The number of states is not supported.
    #[error("a trellis of 2^{states_log2} states; 2^8 to 2^16 are supported")]
    States {
        /// Log2 of the number of states.
        states_log2: u8,
    },
    /// A column block has an unsupported number of bits.
    #[error("column block {block} has {bits} bits per weight; 1 to 8 are supported")]
    Bits {
        /// The block of 16 columns.
        block: usize,
        /// Its bits per weight.
        bits: u8,
    },
    /// A part has another size than the shape asks for.
    #[error("a [{rows}, {cols}] trellis matrix has {actual} {what}, not {expected}")]
    Length {
        /// Which part.
        what: &'static str,
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        cols: usize,
        /// Entries that the shape asks for.
        expected: usize,
        /// Entries that there are.
        actual: usize,
    },
}

/// A matrix `[rows, cols]` in tiles of 16 × 16, trellis-coded.
///
/// Rows and columns are padded to multiples of 16. Tiles of a block of 16 rows lie side by side
/// in the order of the columns, `32 * bits[block]` bytes each; blocks of rows follow one another.
/// Weights are `scale * code * UNIT` with one scale per block of rows.
#[derive(Clone, Debug, PartialEq)]
pub struct TrellisMatrix {
    /// Rows (`out`).
    pub rows: usize,
    /// Columns (`in`).
    pub cols: usize,
    /// Log2 of the number of states, 8 to 16.
    pub states_log2: u8,
    /// Bits per weight, 1 to 8, for each block of 16 columns.
    pub bits: Vec<u8>,
    /// The tiles.
    pub codes: Vec<u8>,
    /// A scale per block of 16 rows.
    pub scales: Vec<f16>,
}

/// Bytes of a `[rows, cols]` matrix at a mean of `bits` per weight: codes of whole tiles, scales, and the
/// bits of column blocks.
pub fn matrix_bytes(rows: u64, cols: u64, bits: f64) -> u64 {
    let tile = TILE as u64;
    let (stripes, blocks) = (rows.div_ceil(tile), cols.div_ceil(tile));
    let bits = (bits * blocks as f64).round() as u64;
    let tiles = stripes.saturating_mul(bits).saturating_mul(32);
    tiles
        .saturating_add(stripes.saturating_mul(2))
        .saturating_add(blocks)
}

impl TrellisMatrix {
    /// Bytes of the tiles of 16 rows.
    pub fn stripe_bytes(bits: &[u8]) -> usize {
        bits.iter().map(|&b| tile_bytes(b)).sum()
    }

    /// Checks states, bits and lengths of parts.
    ///
    /// # Errors
    /// What is unsupported or has another length than the shape asks for.
    pub fn check_parts(
        (rows, cols): (usize, usize),
        states_log2: u8,
        bits: &[u8],
        codes: usize,
        scales: usize,
    ) -> Result<(), TrellisError> {
        if !STATES_LOG2.contains(&states_log2) {
            return Err(TrellisError::States { states_log2 });
        }
        let length = |what, expected: usize, actual: usize| {
            if expected == actual {
                return Ok(());
            }
            Err(TrellisError::Length {
                what,
                rows,
                cols,
                expected,
                actual,
            })
        };
        length("bits of column blocks", cols.div_ceil(TILE), bits.len())?;
        if let Some((block, &bits)) = bits.iter().enumerate().find(|(_, b)| !BITS.contains(b)) {
            return Err(TrellisError::Bits { block, bits });
        }
        let stripes = rows.div_ceil(TILE);
        let bytes = stripes.saturating_mul(Self::stripe_bytes(bits));
        length("code bytes", bytes, codes)?;
        length("scales", stripes, scales)
    }

    /// Checks that the parts fit together.
    ///
    /// # Errors
    /// As [`TrellisMatrix::check_parts`].
    pub fn check(&self) -> Result<(), TrellisError> {
        Self::check_parts(
            (self.rows, self.cols),
            self.states_log2,
            &self.bits,
            self.codes.len(),
            self.scales.len(),
        )
    }

    /// All bytes: tiles with their padding, scales, and a byte for the bits of each column block.
    pub fn bytes(&self) -> usize {
        self.codes.len() + 2 * self.scales.len() + self.bits.len()
    }

    /// The tile at a block of rows and a block of columns; empty if there is none.
    pub fn tile(&self, row_block: usize, col_block: usize) -> &[u8] {
        let Some(&bits) = self.bits.get(col_block) else {
            return &[];
        };
        let before = Self::stripe_bytes(&self.bits[..col_block]);
        let start = row_block
            .saturating_mul(Self::stripe_bytes(&self.bits))
            .saturating_add(before);
        let end = start.saturating_add(tile_bytes(bits));
        self.codes.get(start..end).unwrap_or_default()
    }

    /// Decodes all weights, row-major `[rows, cols]`.
    ///
    /// # Errors
    /// If the parts do not fit together.
    pub fn decode(&self) -> Result<Vec<f32>, TrellisError> {
        self.check()?;
        let mut out = vec![0.0; self.rows * self.cols];
        for block in 0..self.scales.len() {
            let rows = block * TILE..(block * TILE + TILE).min(self.rows);
            let out = &mut out[rows.start * self.cols..rows.end * self.cols];
            self.decode_stripe(block, 0..rows.len(), out);
        }
        Ok(out)
    }

    /// Decodes one row, `[cols]`.
    ///
    /// # Errors
    /// If the parts do not fit together.
    ///
    /// # Panics
    /// If there is no such row or `out` has another length.
    pub fn decode_row(&self, row: usize, out: &mut [f32]) -> Result<(), TrellisError> {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        assert_eq!(out.len(), self.cols, "length of the output");
        self.check()?;
        self.decode_stripe(row / TILE, row % TILE..row % TILE + 1, out);
        Ok(())
    }

    /// Adds rows to `[rows, cols]` values. The parts must fit together ([`TrellisMatrix::check`]).
    pub fn add_rows(&self, rows: std::ops::Range<usize>, out: &mut [f32]) {
        let mut values = Vec::new();
        let mut out = out.chunks_exact_mut(self.cols.max(1));
        let mut row = rows.start;
        while row < rows.end.min(self.rows) {
            let (block, inside) = (row / TILE, row % TILE);
            let count = (TILE - inside).min(rows.end.min(self.rows) - row);
            values.clear();
            values.resize(count * self.cols, 0.0);
            self.decode_stripe(block, inside..inside + count, &mut values);
            // The values lead: a zip takes from its first side before it finds the second one empty.
            for (values, out) in values.chunks_exact(self.cols.max(1)).zip(out.by_ref()) {
                out.iter_mut().zip(values).for_each(|(o, v)| *o += v);
            }
            row += count;
        }
    }

    /// Decodes some rows of a block of rows.
    fn decode_stripe(&self, block: usize, rows: std::ops::Range<usize>, out: &mut [f32]) {
        let scale = self.scales[block].to_f32();
        let mut start = block * Self::stripe_bytes(&self.bits);
        let mut tile = [0.0; SEQUENCE];
        for (c, &bits) in self.bits.iter().enumerate() {
            let end = start + tile_bytes(bits);
            decode_tile(&self.codes[start..end], bits, self.states_log2, &mut tile);
            start = end;
            let first = c * TILE;
            let width = TILE.min(self.cols - first);
            for (r, out) in rows.clone().zip(out.chunks_exact_mut(self.cols)) {
                let from = &tile[r * TILE..][..width];
                for (o, w) in out[first..][..width].iter_mut().zip(from) {
                    *o = scale * w;
                }
            }
        }
    }
}
