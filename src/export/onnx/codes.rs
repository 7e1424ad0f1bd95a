//! Quantized matrices in the layouts of ONNX ops: codes, scales, zero points.

use super::recipe::{Form, encode};
use crate::numeric::quant::{pack_row, packed_len};
use crate::numeric::{Group, QuantMatrix};

/// The bytes of a quantized matrix in a form; `None` where the form is none of codes.
pub(super) fn quant_form(q: &QuantMatrix, form: Form) -> Option<Vec<u8>> {
    match form {
        Form::Blocks { bits, block } => Some(codes(q, bits, q.cols.div_ceil(block) * block)),
        Form::Rows { bits } => Some(codes(q, bits, q.cols)),
        Form::BlockScales { dtype, block } => {
            let starts = blocks(q, block);
            let scale = |(row, col)| match q.group {
                Group::Column => 1.0,
                _ => q
                    .scales
                    .get(q.scale_index(row, col))
                    .map_or(0.0, |s| s.to_f32()),
            };
            encode(starts.map(scale), dtype)
        }
        Form::BlockZeros { bits, block } => {
            let count = q.cols.div_ceil(block);
            let zeros: Vec<u8> = blocks(q, block)
                .map(|(row, col)| q.zero(row, col))
                .collect();
            let mut out = vec![0; q.rows * packed_len(bits, count)];
            let rows = zeros
                .chunks(count)
                .zip(out.chunks_mut(packed_len(bits, count)));
            rows.for_each(|(zeros, out)| pack_row(bits, zeros, out));
            Some(out)
        }
        Form::Grid { bits, transposed } => Some(grid(q, bits, transposed)),
        Form::GridScales { dtype, transposed } => {
            let at = |(row, col)| {
                q.scales
                    .get(q.scale_index(row, col))
                    .map_or(0.0, |s| s.to_f32())
            };
            encode(grid_groups(q, transposed).into_iter().map(at), dtype)
        }
        Form::GridZeros { bits, transposed } => {
            let zeros: Vec<u8> = grid_groups(q, transposed)
                .into_iter()
                .map(|(row, col)| q.zero(row, col))
                .collect();
            let mut out = vec![0; packed_len(bits, zeros.len())];
            pack_row(bits, &zeros, &mut out);
            Some(out)
        }
        Form::ColumnScales { dtype } => encode(q.scales.iter().map(|s| s.to_f32()), dtype),
        _ => None,
    }
}

/// Row and first column of every block, row by row.
fn blocks(q: &QuantMatrix, block: usize) -> impl Iterator<Item = (usize, usize)> {
    let count = q.cols.div_ceil(block);
    (0..q.rows).flat_map(move |row| (0..count).map(move |k| (row, k * block)))
}

/// What is added to codes when they move to wider fields: symmetric schemes
/// keep their distance from the middle, others keep their zero points.
fn shift(q: &QuantMatrix, bits: u8) -> u8 {
    if q.zeros.is_some() {
        0
    } else {
        (1 << (bits - 1)) - q.scheme.midpoint()
    }
}

/// Codes by rows in fields of `bits`, rows padded with zeros to `width`.
fn codes(q: &QuantMatrix, bits: u8, width: usize) -> Vec<u8> {
    if bits == q.scheme.bits && packed_len(bits, width) == q.row_bytes() {
        return q.codes.clone();
    }
    let shift = shift(q, bits);
    let row_bytes = packed_len(bits, width);
    let mut out = vec![0; q.rows * row_bytes];
    let mut row_codes = vec![0; width];
    for (row, out) in out.chunks_mut(row_bytes.max(1)).enumerate() {
        let (inside, padding) = row_codes.split_at_mut(q.cols);
        q.unpack_codes(row, inside);
        inside.iter_mut().for_each(|code| *code += shift);
        padding.fill(if q.cols == 0 {
            0
        } else {
            q.zero(row, q.cols - 1) + shift
        });
        pack_row(bits, &row_codes, out);
    }
    out
}

/// Codes as elements of a tensor, packed without regard to rows.
fn grid(q: &QuantMatrix, bits: u8, transposed: bool) -> Vec<u8> {
    let flip = if q.zeros.is_some() {
        0
    } else {
        1u8 << (bits - 1)
    };
    let shift = shift(q, bits);
    let mut all = vec![0u8; q.rows * q.cols];
    let mut row_codes = vec![0; q.cols];
    for row in 0..q.rows {
        q.unpack_codes(row, &mut row_codes);
        for (col, &code) in row_codes.iter().enumerate() {
            let at = if transposed {
                col * q.rows + row
            } else {
                row * q.cols + col
            };
            if let Some(slot) = all.get_mut(at) {
                // Two's complement of code − 2^(bits−1) flips the top bit.
                *slot = (code + shift) ^ flip;
            }
        }
    }
    let mut out = vec![0; packed_len(bits, all.len())];
    pack_row(bits, &all, &mut out);
    out
}

/// One element of each group, in the order of the scales' tensor.
fn grid_groups(q: &QuantMatrix, transposed: bool) -> Vec<(usize, usize)> {
    match q.group {
        Group::Column => (0..q.cols).map(|col| (0, col)).collect(),
        Group::Row => (0..q.rows).map(|row| (row, 0)).collect(),
        Group::Size(size) => {
            let size = (size as usize).max(1);
            let groups = q.cols.div_ceil(size);
            if transposed {
                (0..groups)
                    .flat_map(|g| (0..q.rows).map(move |row| (row, g * size)))
                    .collect()
            } else {
                blocks(q, size).collect()
            }
        }
    }
}
