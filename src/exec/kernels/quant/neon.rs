//! NEON.
#![allow(unsafe_code)]

use super::activations::Rows;
use super::{QuantRows, scalar};
use crate::exec::kernels::Write;
use crate::exec::pool::Tile;

pub(super) fn int8(w: &QuantRows<'_>, x: &Rows, write: Write, tile: Tile<'_, f32>) {
    scalar::int8(w, x, write, tile);
}
