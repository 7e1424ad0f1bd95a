//! Block Hadamard rotations → Mul by signs, MatMul with one block's matrix.

use super::ExportError;
use super::lower::{Lowerer, Site, no_form};
use super::recipe::encode;
use super::terms::{Coded, Part};
use crate::ir::{Op, Operand, QuantTerm};
use crate::numeric::hadamard::Rotation;

impl Lowerer<'_> {
    /// A term that is kept in rotated coordinates, times `x`: `R_outᵀ (Q (R_in x))`.
    pub(super) fn rotated(
        &mut self,
        site: &mut Site,
        x: Operand,
        coded: Coded,
        term: &QuantTerm,
        part: Part,
    ) -> Result<Operand, ExportError> {
        let Some(rotation) = term.rotation else {
            return self.coded(site, x, coded, part, "q");
        };
        // Linears of one input, in one region, share its rotation.
        let (side, region) = (rotation.in_side(), self.region_of(site));
        let key = format!("turned {x:?} {side:?} {region}");
        let known = self
            .shared
            .get(&key)
            .and_then(|values| values.first().copied());
        let turned = match known {
            Some(known) => known,
            None => self.turn(site, x, (side, coded.cols), false)?,
        };
        self.shared.insert(key, vec![turned]);
        let y = self.coded(site, turned, coded, part, "q")?;
        self.turn(site, y, (rotation.out_side(), coded.rows), true)
    }

    /// An op `hadamard`.
    pub(super) fn hadamard(
        &mut self,
        site: &mut Site,
        op: &Op,
        (block, seed): (u64, u64),
        inverse: bool,
    ) -> Result<Operand, ExportError> {
        let x = op.inputs.first().copied().unwrap_or(Operand::None);
        let width = match x {
            Operand::Value(value) => self.widths().size(site.at.graph, value, -1),
            _ => None,
        };
        let sizes =
            width.and_then(|w| Some((usize::try_from(w).ok()?, usize::try_from(block).ok()?)));
        let Some((width, block)) = sizes else {
            return Err(no_form(
                site,
                "a rotation of activations of unknown width has no ONNX form",
            ));
        };
        self.turn(site, x, (Rotation { block, seed }, width), inverse)
    }

    /// `R x` along the last axis, of `width`, or `Rᵀ x`. The norm goes with the signs, so that the block's
    /// matrix has entries of ±1, exact in any type.
    pub(super) fn turn(
        &mut self,
        site: &mut Site,
        x: Operand,
        (rotation, width): (Rotation, usize),
        inverse: bool,
    ) -> Result<Operand, ExportError> {
        let block = rotation.block;
        if rotation.is_identity() {
            return Ok(x);
        }
        if !block.is_power_of_two() || !width.is_multiple_of(block) {
            return Err(no_form(
                site,
                &format!("blocks of {block} do not divide {width}"),
            ));
        }
        let signs = self.signs(site, rotation, width)?;
        let matrix = self.block_matrix(site, block)?;
        let mut y = x;
        if !inverse {
            y = self.standard(site, "Mul", vec![y, signs], Vec::new());
        }
        // Shapes of three axes are constants, which readers follow; tokens of experts have one axis here
        // and two there.
        let three = self.region_of(site) == 0 && self.rank_of(site) == Some(3);
        let blocks: &[i64] = if three {
            &[0, 0, -1, block as i64]
        } else {
            &[-1, block as i64]
        };
        y = self.reshape(site, y, blocks);
        y = self.standard(site, "MatMul", vec![y, matrix], Vec::new());
        y = match three {
            true => self.reshape(site, y, &[0, 0, width as i64]),
            false => {
                let shape = self.unary(site, "Shape", x);
                self.standard(site, "Reshape", vec![y, shape], Vec::new())
            }
        };
        if inverse {
            y = self.standard(site, "Mul", vec![y, signs], Vec::new());
        }
        Ok(y)
    }

    /// Axes of what the op makes, and so of what it takes.
    fn rank_of(&self, site: &Site) -> Option<usize> {
        let op = self.source.op(site.at)?;
        let result = op.results.first().copied().flatten()?;
        self.widths().rank(site.at.graph, result)
    }

    /// Signs over the norm, `[width]`.
    fn signs(
        &mut self,
        site: &Site,
        rotation: Rotation,
        width: usize,
    ) -> Result<Operand, ExportError> {
        let key = format!("{rotation:?} {width} {}", site.dtype);
        if let Some(&[known]) = self.shared.get(&key).map(Vec::as_slice) {
            return Ok(known);
        }
        let norm = (rotation.block as f32).sqrt().recip();
        let signs = rotation.signs(width).into_iter().map(|sign| sign * norm);
        let bytes = encode(signs, site.dtype).ok_or_else(|| no_type(site))?;
        let made = self.inline(site, "signs", site.dtype, &[width], bytes);
        self.shared.insert(key, vec![made]);
        Ok(made)
    }

    /// The Walsh–Hadamard matrix of a block, of ±1.
    fn block_matrix(&mut self, site: &Site, block: usize) -> Result<Operand, ExportError> {
        let key = format!("hadamard {block} {}", site.dtype);
        if let Some(&[known]) = self.shared.get(&key).map(Vec::as_slice) {
            return Ok(known);
        }
        let entry = |at: usize| match ((at / block) & (at % block)).count_ones() % 2 {
            0 => 1.0,
            _ => -1.0,
        };
        let bytes = encode((0..block * block).map(entry), site.dtype);
        let bytes = bytes.ok_or_else(|| no_type(site))?;
        let made = self.inline(site, "hadamard", site.dtype, &[block, block], bytes);
        self.shared.insert(key, vec![made]);
        Ok(made)
    }
}

fn no_type(site: &Site) -> ExportError {
    no_form(
        site,
        &format!("{} activations can't be rotated", site.dtype),
    )
}
