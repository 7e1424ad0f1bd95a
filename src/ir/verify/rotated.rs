//! Rotations by ops, and weights that are turned when they are read.

use super::Verifier;
use crate::ir::{Encoding, Gain, Rotated, Rotation, Storage, Turn, Weight};
use crate::weights::DType;

/// Largest block that kernels turn.
const MAX_ROTATION_BLOCK: u64 = Rotation::MAX_BLOCK;

/// Whether vectors can be turned in blocks of this size.
pub(super) fn is_block(block: u64) -> bool {
    block.is_power_of_two() && block <= MAX_ROTATION_BLOCK
}

/// What is wrong with another size.
pub(super) fn bad_block(block: u64) -> String {
    format!("block={block}: blocks are powers of two up to {MAX_ROTATION_BLOCK}")
}

/// Whether the turn is one of vectors of length `n`.
fn fits(turn: &Turn, n: u64) -> bool {
    let period = turn.repeat.unwrap_or(n);
    is_block(turn.block)
        && n.is_multiple_of(turn.block)
        && (n == 0 || period > 0)
        && period.is_multiple_of(turn.block)
}

impl Verifier<'_> {
    pub(super) fn rotated(&mut self, weight: &Weight, rotated: &Rotated, place: &str) {
        let (rows, cols) = weight.sides();
        let sides = [
            ("rows", rotated.rows, rows),
            ("columns", rotated.columns, cols),
        ];
        for (side, turn, n) in sides {
            if let Some(turn) = turn.filter(|turn| !fits(turn, n)) {
                let text = format!(
                    "{side} ({n}) can't be turned in blocks of {}: blocks are powers of two up to \
                     {MAX_ROTATION_BLOCK} that divide the side, and what signs repeat after",
                    turn.block
                );
                self.report(place, text);
            }
        }
        let made = [DType::F32, DType::F16, DType::BF16].contains(&weight.dtype);
        if !made || !rotated.dtype.is_float() {
            let (from, to) = (rotated.dtype, weight.dtype);
            let text =
                format!("{from} can't be turned into {to}: floats are, into f32, f16 or bf16");
            self.report(place, text);
        }
        let (gains, takes) = match rotated.gain {
            None => (0, 1),
            Some(Gain { along_rows, .. }) => (if along_rows { rows } else { cols }, 2),
        };
        if rotated.parts.len() != takes {
            let has = rotated.parts.len();
            return self.report(
                place,
                format!("is turned from {has} tensors, needs {takes}"),
            );
        }
        let needs = [
            (rotated.dtype, weight.elements()),
            (rotated.gain.map_or(DType::F32, |g| g.dtype), Some(gains)),
        ];
        for (part, (dtype, count)) in rotated.parts.iter().zip(needs) {
            let size = count.and_then(|n| dtype.bytes_for(n));
            let plain = matches!(
                part,
                Storage::File {
                    encoding: Encoding::Raw,
                    ..
                } | Storage::Inline(_)
                    | Storage::Synthetic(_)
            );
            match part.raw_bytes() {
                _ if !plain => self.report(place, "is turned from what has no bytes of its own"),
                Some(have) if size != Some(have) => {
                    let need = size.map_or("too many".to_string(), |n| n.to_string());
                    self.report(place, format!("is turned from {have} bytes, needs {need}"));
                }
                _ => {}
            }
        }
    }
}
