//! The row kernels: scale, codes, residual and sums of squares in one pass.

use super::pack::pack_row_body;
use super::scale::{Fault, Grid, Lanes, Params, absmax_params, scale_to_f16, squared_error};
use super::search::lsq_params_at;
use super::{ScaleMethod, Scheme};
use crate::numeric::simd::{LANES, Level, Simd, multiversion, padded};
use half::f16;

/// Where the codes of a row go. All slices are of the row's exact length.
pub(super) struct RowOut<'a> {
    /// One scale per group.
    pub(super) scales: &'a mut [f16],
    /// One zero point per group, not packed; empty if symmetric.
    pub(super) zeros: &'a mut [u8],
    /// One code per weight, not packed: scratch.
    pub(super) codes: &'a mut [u8],
    /// Packed codes.
    pub(super) packed: &'a mut [u8],
}

/// Sums of squares of a row: weights and residual.
pub(super) type Sums = (f64, f64);

/// What encodes a row: the token, the grid, and running sums per lane.
///
/// Lanes count from the start of each group.
struct RowEncoder<'a, S: Simd> {
    simd: S,
    level: Level,
    grid: &'a Grid,
    weight: S::D,
    residual: S::D,
}

impl<'a, S: Simd> RowEncoder<'a, S> {
    #[inline(always)]
    fn new(simd: S, level: Level, grid: &'a Grid) -> Self {
        let zero = simd.zero_sums();
        RowEncoder {
            simd,
            level,
            grid,
            weight: zero,
            residual: zero,
        }
    }

    #[inline(always)]
    fn sums(&self) -> Sums {
        (self.simd.total(self.weight), self.simd.total(self.residual))
    }

    /// Encodes 16 weights in place.
    #[inline(always)]
    fn chunk(
        &mut self,
        w: &mut [f32; LANES],
        codes: &mut [u8; LANES],
        lanes: &Lanes<S>,
        zero: S::F,
    ) {
        let x = self.simd.load(w);
        let (shifted, rest) = lanes.encode(x);
        // Whole numbers below 2^22: adding the zero point is exact.
        self.simd
            .store_low_bytes(self.simd.add(shifted, zero), codes);
        self.simd.store(rest, w);
        self.weight = self.simd.add_squares(self.weight, x);
        self.residual = self.simd.add_squares(self.residual, rest);
    }

    /// Chooses the scale of a group and encodes it in place.
    #[inline(always)]
    fn group(&mut self, w: &mut [f32], codes: &mut [u8]) -> Result<Params, Fault> {
        let params = match self.grid.method {
            ScaleMethod::AbsMax => absmax_params(self.simd, w, self.grid)?,
            ScaleMethod::Lsq => lsq_params_at(self.level, w, self.grid)?,
        };
        let lanes = Lanes::new(self.simd, params, self.grid);
        let zero = self.simd.splat(params.zero as f32);
        let (chunks, rest) = w.as_chunks_mut::<LANES>();
        let (code_chunks, code_rest) = codes.as_chunks_mut::<LANES>();
        for (w, codes) in chunks.iter_mut().zip(code_chunks) {
            self.chunk(w, codes, &lanes, zero);
        }
        if !rest.is_empty() {
            let (mut w, mut codes) = (padded(rest), [0; LANES]);
            self.chunk(&mut w, &mut codes, &lanes, zero);
            rest.copy_from_slice(&w[..rest.len()]);
            code_rest.copy_from_slice(&codes[..code_rest.len()]);
        }
        Ok(params)
    }

    /// Encodes group `g` of a row.
    #[inline(always)]
    fn indexed_group(
        &mut self,
        g: usize,
        w: &mut [f32],
        codes: &mut [u8],
        scales: &mut [f16],
        zeros: &mut [u8],
    ) -> Result<(), (usize, Fault)> {
        let params = self.group(w, codes).map_err(|fault| (g, fault))?;
        scales[g] = scale_to_f16(params.scale);
        if let Some(zero) = zeros.get_mut(g) {
            *zero = params.zero as u8;
        }
        Ok(())
    }

    /// Encodes a row whose group width is the constant `W`.
    #[inline(always)]
    fn groups<const W: usize>(
        &mut self,
        w: &mut [f32],
        out: &mut RowOut,
    ) -> Result<(), (usize, Fault)> {
        let (chunks, rest) = w.as_chunks_mut::<W>();
        let (code_chunks, code_rest) = out.codes.as_chunks_mut::<W>();
        let full = chunks.len();
        for (g, (w, codes)) in chunks.iter_mut().zip(code_chunks).enumerate() {
            self.indexed_group(g, w, codes, out.scales, out.zeros)?;
        }
        if rest.is_empty() {
            return Ok(());
        }
        self.indexed_group(full, rest, code_rest, out.scales, out.zeros)
    }
}

#[inline(always)]
fn encode_row_body<S: Simd>(
    simd: S,
    w: &mut [f32],
    width: usize,
    out: &mut RowOut,
    level: Level,
    grid: &Grid,
) -> Result<Sums, (usize, Fault)> {
    let mut row = RowEncoder::new(simd, level, grid);
    match width {
        32 => row.groups::<32>(w, out)?,
        64 => row.groups::<64>(w, out)?,
        128 => row.groups::<128>(w, out)?,
        _ => {
            let chunks = w.chunks_mut(width).zip(out.codes.chunks_mut(width));
            for (g, (w, codes)) in chunks.enumerate() {
                row.indexed_group(g, w, codes, out.scales, out.zeros)?;
            }
        }
    }
    pack_row_body(grid.bits, out.codes, out.packed);
    Ok(row.sums())
}

multiversion! {
    /// Encodes a row of row-wise groups; leaves the residual in `w`.
    ///
    /// On a fault, `w` is partly encoded and the index is that of the group.
    pub(super) fn encode_row(w: &mut [f32], width: usize, out: &mut RowOut, inner: Level, grid: &Grid) -> Result<Sums, (usize, Fault)> = encode_row_body;
}

/// Parameters per column, padded to whole vectors.
#[derive(Default)]
pub(super) struct ColumnParams {
    pub(super) scale: Vec<f32>,
    pub(super) zero: Vec<f32>,
}

impl ColumnParams {
    /// Adds a column.
    pub(super) fn push(&mut self, params: Params) {
        self.scale.push(params.scale);
        self.zero.push(params.zero as f32);
    }

    /// Pads to whole vectors.
    pub(super) fn finish(&mut self, grid: &Grid) {
        let len = self.scale.len().next_multiple_of(LANES);
        self.scale.resize(len, 1.0);
        self.zero.resize(len, grid.mid as f32);
    }
}

#[inline(always)]
fn encode_columns_body<S: Simd>(
    simd: S,
    w: &mut [f32],
    params: &ColumnParams,
    codes: &mut [u8],
    packed: &mut [u8],
    level: Level,
    grid: &Grid,
) -> Sums {
    let mut row = RowEncoder::new(simd, level, grid);
    let params = params
        .scale
        .as_chunks()
        .0
        .iter()
        .zip(params.zero.as_chunks().0);
    let chunks = w.chunks_mut(LANES).zip(codes.chunks_mut(LANES));
    for ((w, codes), (scale, zero)) in chunks.zip(params) {
        let zero = simd.load(zero);
        let lanes = Lanes::per_lane(simd, simd.load(scale), zero, grid);
        let (mut values, mut bytes) = (padded(w), [0; LANES]);
        row.chunk(&mut values, &mut bytes, &lanes, zero);
        w.copy_from_slice(&values[..w.len()]);
        codes.copy_from_slice(&bytes[..codes.len()]);
    }
    pack_row_body(grid.bits, codes, packed);
    row.sums()
}

multiversion! {
    /// Encodes a row under one scale per column; leaves the residual in `w`.
    pub(super) fn encode_columns(w: &mut [f32], params: &ColumnParams, codes: &mut [u8], packed: &mut [u8], inner: Level, grid: &Grid) -> Sums = encode_columns_body;
}

#[inline(always)]
fn group_params_body<S: Simd>(
    simd: S,
    w: &[f32],
    level: Level,
    grid: &Grid,
) -> Result<Params, Fault> {
    match grid.method {
        ScaleMethod::AbsMax => absmax_params(simd, w, grid),
        ScaleMethod::Lsq => lsq_params_at(level, w, grid),
    }
}

multiversion! {
    /// Scale and zero point of one group.
    pub(super) fn group_params(w: &[f32], inner: Level, grid: &Grid) -> Result<Params, Fault> = group_params_body;
}

#[inline(always)]
fn group_error_body<S: Simd>(simd: S, w: &[f32], level: Level, grid: &Grid) -> f32 {
    match group_params_body(simd, w, level, grid) {
        Ok(params) => squared_error(simd, w, params, grid),
        Err(_) => f32::INFINITY,
    }
}

multiversion! {
    fn group_error_at(w: &[f32], inner: Level, grid: &Grid) -> f32 = group_error_body;
}

#[inline(always)]
fn group_residual_body<S: Simd>(simd: S, w: &mut [f32], level: Level, grid: &Grid) -> f32 {
    let Ok(params) = group_params_body(simd, w, level, grid) else {
        return f32::INFINITY;
    };
    let error = squared_error(simd, w, params, grid);
    let lanes = Lanes::new(simd, params, grid);
    for w in w.chunks_mut(LANES) {
        let mut values = padded(w);
        let (_, rest) = lanes.encode(simd.load(&values));
        simd.store(rest, &mut values);
        w.copy_from_slice(&values[..w.len()]);
    }
    error
}

multiversion! {
    fn group_residual_at(w: &mut [f32], inner: Level, grid: &Grid) -> f32 = group_residual_body;
}

/// Squared error that a quantizer leaves in one group.
///
/// Infinite where the group can't be quantized.
pub(crate) fn group_error(w: &[f32], scheme: Scheme, method: ScaleMethod) -> f32 {
    let level = Level::detect();
    group_error_at(level, w, level, &Grid::new(scheme, method))
}

/// Quantizes one group, leaves the residual in `w` and returns its squared error.
///
/// `w` is unchanged and the error infinite where the group can't be quantized.
pub(crate) fn group_residual(w: &mut [f32], scheme: Scheme, method: ScaleMethod) -> f32 {
    let level = Level::detect();
    group_residual_at(level, w, level, &Grid::new(scheme, method))
}
