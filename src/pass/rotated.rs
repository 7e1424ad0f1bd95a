//! Matrices and moments in rotated coordinates.

use std::ops::Range;

use super::terms::TermData;
use super::{PassError, Peel, Remark, RemarkKind};
use crate::ir::Rotation;
use crate::numeric::hadamard::{Rotation as Side, block_for};

impl Rotation {
    /// The rotation of a matrix `[rows, cols]` with the largest blocks that fit.
    pub fn of(rows: usize, cols: usize, seed: u64) -> Self {
        Self {
            out_block: block_for(rows) as u64,
            in_block: block_for(cols) as u64,
            seed,
        }
    }

    /// The side of the outputs.
    pub fn out_side(&self) -> Side {
        Side {
            block: self.out_block as usize,
            // Other signs than the inputs', where both sides have one length.
            seed: self.seed ^ 0x6f75_7470_7574_0a0d,
        }
    }

    /// The side of the inputs.
    pub fn in_side(&self) -> Side {
        Side {
            block: self.in_block as usize,
            seed: self.seed,
        }
    }

    /// `W` becomes `R_out W R_inᵀ`. `[_, cols]`, in place; time `entries · log block`.
    pub fn apply(&self, w: &mut [f32], cols: usize) {
        self.in_side().rotate_rows(w, cols);
        self.out_side().rotate_cols(w, cols);
    }

    /// Takes [`Self::apply`] back.
    pub fn undo(&self, w: &mut [f32], cols: usize) {
        self.out_side().unrotate_cols(w, cols);
        self.in_side().unrotate_rows(w, cols);
    }

    /// Second moments `[n, n]` of rotated inputs.
    pub fn moments(&self, h: &mut [f32], n: usize) {
        self.in_side().rotate_rows(h, n);
        self.in_side().rotate_cols(h, n);
    }

    /// Adds rows of a term that is kept rotated to `[rows, cols]` values.
    pub(crate) fn add_rows(
        &self,
        term: &TermData,
        rows: Range<usize>,
        (all, cols): (usize, usize),
        out: &mut [f32],
    ) -> Result<(), PassError> {
        let block = (self.out_block as usize).max(1);
        let first = rows.start / block * block;
        let last = rows.end.div_ceil(block).saturating_mul(block).min(all);
        let mut values = vec![0f32; (last - first) * cols];
        term.add_rows(first..last, &mut values)?;
        // Signs are counted from the matrix's first row.
        let signs = match self.out_block {
            0 | 1 => vec![1.0; all],
            _ => self.out_side().signs(all),
        };
        let plain = Side {
            block,
            seed: self.seed,
        };
        plain.unrotate_cols_with(&mut values, cols, signs.get(first..last).unwrap_or(&[]));
        self.in_side().unrotate_rows(&mut values, cols);
        let skip = (rows.start - first) * cols;
        let values = values.get(skip..).unwrap_or(&[]);
        out.iter_mut().zip(values).for_each(|(o, v)| *o += v);
        Ok(())
    }
}

impl Peel<'_> {
    /// Rotates the residual, which must be the whole matrix and not be rotated yet.
    pub fn rotate(&mut self) -> Rotation {
        let rotation = Rotation::of(self.rows, self.cols, self.rotation_seed);
        rotation.apply(self.residual, self.cols);
        *self.rotation = Some(rotation);
        if rotation.in_block < 16 && rotation.out_block < 16 {
            let (rows, cols) = (self.rows, self.cols);
            let text = format!(
                "sides of {rows} and {cols} have no power of two from 16 on as a factor: the rotation mixes little"
            );
            self.remarks
                .push(Remark::new(RemarkKind::Missed, self.site, text));
        }
        rotation
    }

    /// Second moments of the inputs in the residual's coordinates, where they are known.
    pub fn hessian(&self) -> Option<Vec<f32>> {
        let mut h = self.moments?.hessian.clone()?;
        if let Some(rotation) = *self.rotation {
            rotation.moments(&mut h, self.cols);
        }
        Some(h)
    }
}
