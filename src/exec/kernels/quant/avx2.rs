//! AVX2 with FMA.
#![allow(unsafe_code)]

use super::activations::Rows;
use super::{QuantRows, scalar};
use crate::exec::kernels::Write;
use crate::exec::pool::Tile;

pub(super) fn int8(w: &QuantRows<'_>, x: &Rows, write: Write, tile: Tile<'_, f32>) {
    scalar::int8(w, x, write, tile);
}

pub(super) fn decode_row(w: &QuantRows<'_>, row: usize, out: &mut [f32]) {
    scalar::decode_row(w, row, out);
}

pub(super) fn dot(x: &[f32], y: &[f32]) -> f32 {
    scalar::dot(x, y)
}
