//! A whole matrix into tiles, with or without error feedback.

use half::f16;

use super::{Encoder, SEQUENCE, TILE, TrellisError, TrellisMatrix, best_scale, tile_bytes};
use crate::numeric::hessian::{Blocks, HessianError, ldlq};

/// Why a matrix can't be trellis-coded.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum QuantizeError {
    /// States, bits or lengths.
    #[error(transparent)]
    Trellis(#[from] TrellisError),
    /// The metric does not fit the matrix.
    #[error(transparent)]
    Hessian(#[from] HessianError),
    /// Weights are too large for the `f16` range of scales.
    #[error(
        "the scale of rows {row} and on would be {scale:e}, which is no f16 (at most 65504): rescale the weights or leave them dense"
    )]
    Scale {
        /// First row of the block.
        row: usize,
        /// The scale that was needed.
        scale: f32,
    },
}

/// How a matrix is coded.
#[derive(Clone, Debug, PartialEq)]
pub struct Coding {
    /// Log2 of the number of states, 8 to 16.
    pub states_log2: u8,
    /// Bits per weight of each block of 16 columns.
    pub bits: Vec<u8>,
    /// Seams at which tiles are cut, see [`Encoder::encode`].
    pub seams: u8,
    /// What scales are multiplied with, against those of a Gaussian source: above 1 where feedback
    /// makes targets larger than weights.
    pub stretch: f32,
}

/// A coded matrix and what it left.
#[derive(Clone, Debug)]
pub struct Coded {
    /// The tiles.
    pub matrix: TrellisMatrix,
    /// `Σ_j tr(e_j D_j e_jᵀ)` with feedback, the sum of squares without.
    pub objective: f64,
}

/// Codes `w` `[rows, cols]`, which is left holding the residual.
///
/// With `feedback`, blocks of 16 columns in natural order, errors of later columns are made up for by
/// earlier ones (block LDLQ).
///
/// # Errors
/// Unsupported states or bits, a metric of another size, weights too large for scales in `f16`.
///
/// # Cost
/// The encoder's time per weight, and `rows · cols² / 2` multiply-adds with feedback.
///
/// Source: Tseng et al., "QTIP", arXiv 2406.11235.
pub fn quantize(
    w: &mut [f32],
    (rows, cols): (usize, usize),
    coding: &Coding,
    feedback: Option<&Blocks>,
) -> Result<Coded, QuantizeError> {
    let mut encoder = Encoder::new(coding.states_log2)?;
    let mut tiles = Tiles::new(w, (rows, cols), coding)?;
    tiles.matrix.check()?;
    let objective = match feedback {
        Some(blocks) => ldlq(w, rows, blocks, |block, target, recon| {
            tiles.code(&mut encoder, block, target, recon);
            Ok::<(), QuantizeError>(())
        })?,
        None => tiles.code_all(&mut encoder, w, cols),
    };
    Ok(Coded {
        matrix: tiles.matrix,
        objective,
    })
}

/// Codes up to 16 rows `[rows, cols]` at a scale that is given, without feedback: the nearest paths.
///
/// `bits` are those of each block of 16 columns; the result is that of [`TrellisMatrix::stripe_bytes`]
/// bytes. Rows and columns that are missing from a tile are zeros.
///
/// # Panics
/// If there are more than 16 rows, or bits of another number of columns.
pub fn quantize_stripe(
    encoder: &mut Encoder,
    rows: &[f32],
    cols: usize,
    bits: &[u8],
    scale: f16,
    seams: u8,
) -> Vec<u8> {
    assert!(rows.len() <= TILE * cols, "rows of a stripe");
    assert_eq!(bits.len(), cols.div_ceil(TILE), "bits of column blocks");
    let mut codes = vec![0u8; TrellisMatrix::stripe_bytes(bits)];
    let (mut tile, mut decoded) = ([0f32; SEQUENCE], [0f32; SEQUENCE]);
    // Stored scales are not zero; one that training has moved there makes a matrix of zeros.
    let inverse = match scale.to_f32() {
        0.0 => 0.0,
        scale => 1.0 / scale,
    };
    let mut start = 0;
    for (block, &bits) in bits.iter().enumerate() {
        let first = block * TILE;
        let width = TILE.min(cols - first);
        tile.fill(0.0);
        for (to, from) in tile.chunks_exact_mut(TILE).zip(rows.chunks_exact(cols)) {
            let from = &from[first..first + width];
            to.iter_mut().zip(from).for_each(|(t, x)| *t = x * inverse);
        }
        let end = start + tile_bytes(bits);
        encoder.encode(bits, seams, &tile, &mut codes[start..end], &mut decoded);
        start = end;
    }
    codes
}

/// The matrix while its tiles are filled in.
struct Tiles {
    matrix: TrellisMatrix,
    /// Where the tiles of each block of columns start in those of 16 rows.
    starts: Vec<usize>,
    seams: u8,
}

impl Tiles {
    fn new(
        w: &[f32],
        (rows, cols): (usize, usize),
        coding: &Coding,
    ) -> Result<Self, QuantizeError> {
        let mut end = 0;
        let place = |&bits: &u8| {
            let start = end;
            end += tile_bytes(bits);
            start
        };
        let starts = coding.bits.iter().map(place).collect();
        let mean: usize = coding.bits.iter().map(|&b| usize::from(b)).sum();
        let mean = mean.div_ceil(coding.bits.len().max(1)).clamp(1, 8) as u8;
        let factor = best_scale(coding.states_log2, mean) * coding.stretch;
        let scale = |(number, stripe): (usize, &[f32])| {
            let squares: f64 = stripe.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
            let deviation = (squares / stripe.len().max(1) as f64).sqrt() as f32;
            let scale = deviation * factor;
            if scale.is_nan() || scale > 65504.0 {
                let row = number * TILE;
                return Err(QuantizeError::Scale { row, scale });
            }
            // Stored scales are not zero, so that nothing is divided by zero.
            Ok(f16::from_f32(scale.max(f32::from(f16::from_bits(1)))))
        };
        let stripes = rows.div_ceil(TILE);
        let scales = w.chunks((TILE * cols).max(1)).enumerate().map(scale);
        let scales = scales.collect::<Result<_, _>>()?;
        Ok(Self {
            matrix: TrellisMatrix {
                rows,
                cols,
                states_log2: coding.states_log2,
                codes: vec![0; stripes * end],
                scales,
                bits: coding.bits.clone(),
            },
            starts,
            seams: coding.seams,
        })
    }

    /// Codes one block of columns, `target` and `recon` `[rows, width]`.
    fn code(&mut self, encoder: &mut Encoder, block: usize, target: &[f32], recon: &mut [f32]) {
        let matrix = &mut self.matrix;
        let (Some(&bits), Some(&start)) = (matrix.bits.get(block), self.starts.get(block)) else {
            return;
        };
        let width = TILE.min(matrix.cols - block * TILE);
        let (bytes, stripe) = (tile_bytes(bits), matrix.codes.len() / matrix.scales.len());
        let (mut tile, mut decoded) = ([0f32; SEQUENCE], [0f32; SEQUENCE]);
        let stripes = target
            .chunks(TILE * width)
            .zip(recon.chunks_mut(TILE * width));
        for (number, (target, recon)) in stripes.enumerate() {
            let scale = matrix.scales[number].to_f32();
            tile.fill(0.0);
            for (to, from) in tile.chunks_exact_mut(TILE).zip(target.chunks(width)) {
                to.iter_mut().zip(from).for_each(|(t, x)| *t = x / scale);
            }
            let code = &mut matrix.codes[number * stripe + start..][..bytes];
            encoder.encode(bits, self.seams, &tile, code, &mut decoded);
            for (to, from) in recon.chunks_mut(width).zip(decoded.chunks_exact(TILE)) {
                to.iter_mut().zip(from).for_each(|(t, x)| *t = x * scale);
            }
        }
    }

    /// Codes without feedback; `w` is left holding the residual, whose sum of squares is returned.
    fn code_all(&mut self, encoder: &mut Encoder, w: &mut [f32], cols: usize) -> f64 {
        let (mut target, mut recon) = (Vec::new(), Vec::new());
        let mut squares = 0.0;
        for block in 0..self.matrix.bits.len() {
            let first = block * TILE;
            let width = TILE.min(cols - first);
            target.clear();
            for row in w.chunks_exact(cols) {
                target.extend_from_slice(&row[first..first + width]);
            }
            recon.clear();
            recon.resize(target.len(), 0.0);
            self.code(encoder, block, &target, &mut recon);
            for (row, recon) in w.chunks_exact_mut(cols).zip(recon.chunks_exact(width)) {
                for (x, q) in row[first..].iter_mut().zip(recon) {
                    *x -= q;
                    squares += f64::from(*x) * f64::from(*x);
                }
            }
        }
        squares
    }
}
