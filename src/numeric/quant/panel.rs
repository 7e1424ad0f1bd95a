//! Codes with error feedback, for 16 rows at a time.
//!
//! A panel is a span of columns of 16 rows, each column a vector of 16 lanes, so
//! that a column is rounded, and its error passed on, in a few instructions.

use super::scale::{Grid, Lanes};
use super::{ScaleMethod, Scheme};
use crate::numeric::simd::{LANES, Level, Simd, multiversion};

/// One value per row of a panel.
pub(crate) type Column = [f32; LANES];
/// One code per row of a panel.
pub(crate) type Codes = [u8; LANES];

/// Scales and zero points of a panel, by group.
#[derive(Clone, Copy)]
pub(crate) struct PanelParams<'a> {
    /// Scales, by group.
    pub(crate) scales: &'a [Column],
    /// Zero points, by group.
    pub(crate) zeros: &'a [Column],
    /// The group of each column of the span.
    pub(crate) groups: &'a [u32],
}

/// The columns of a span of one panel, gathered.
#[derive(Default)]
pub(crate) struct PanelSpan {
    /// Where weights are rounded at, or slopes; used up.
    pub(crate) targets: Vec<Column>,
    /// Weights, then their errors.
    pub(crate) errors: Vec<Column>,
    /// Codes.
    pub(crate) codes: Vec<Codes>,
}

/// What every panel of a matrix shares.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PanelGrid {
    level: Level,
    grid: Grid,
}

impl PanelGrid {
    pub(crate) fn new(scheme: Scheme) -> Self {
        PanelGrid {
            level: Level::detect(),
            grid: Grid::new(scheme, ScaleMethod::AbsMax),
        }
    }

    /// Rounds a span with feedback, from the last column to the first.
    ///
    /// Targets are weights plus what errors behind the span ask for. `errors`
    /// holds weights `w` and becomes `w - w'`. Row `j` of `feedback` (`width`
    /// apart) says how an error of column `j` moves columns before it,
    /// `variances` what a rounding error costs; the cost is added by row.
    pub(crate) fn round(
        &self,
        span: &mut PanelSpan,
        params: PanelParams,
        feedback: &[f32],
        variances: &[f32],
        costs: &mut [f64; LANES],
    ) {
        let Self { level, grid } = self;
        round_at(*level, span, params, feedback, variances, costs, grid);
    }

    /// Moves each code of a span to the best one, all others being fixed.
    ///
    /// Targets are slopes, `(E H)` of the span; `second` `[width, width]` is the
    /// metric within the span. The fall of the objective is added by row.
    pub(crate) fn descend(
        &self,
        span: &mut PanelSpan,
        params: PanelParams,
        second: &[f32],
        falls: &mut [f64; LANES],
    ) {
        let Self { level, grid } = self;
        descend_at(*level, span, params, second, falls, grid);
    }
}

/// `column[k] += x * factors[k]` for every column.
#[inline(always)]
fn spread<S: Simd>(simd: S, columns: &mut [Column], factors: &[f32], x: S::F) {
    for (column, &factor) in columns.iter_mut().zip(factors) {
        let moved = simd.add(simd.load(column), simd.mul(x, simd.splat(factor)));
        simd.store(moved, column);
    }
}

#[inline(always)]
fn round_body<S: Simd>(
    simd: S,
    span: &mut PanelSpan,
    params: PanelParams,
    feedback: &[f32],
    variances: &[f32],
    costs: &mut [f64; LANES],
    grid: &Grid,
) {
    let PanelSpan {
        targets,
        errors: weights,
        codes,
    } = span;
    let width = targets.len();
    let mut cost = simd.splat(0.0);
    for j in (0..width).rev() {
        let group = params.groups[j] as usize;
        let zero = simd.load(&params.zeros[group]);
        let lanes = Lanes::per_lane(simd, simd.load(&params.scales[group]), zero, grid);
        let (before, rest) = targets.split_at_mut(j);
        let (shifted, left) = lanes.encode(simd.load(&rest[0]));
        simd.store_low_bytes(simd.add(shifted, zero), &mut codes[j]);
        let error = simd.sub(simd.load(&weights[j]), lanes.value(shifted));
        simd.store(error, &mut weights[j]);
        let square = simd.mul(left, left);
        cost = simd.add(cost, simd.mul(square, simd.splat(variances[j])));
        spread(simd, before, &feedback[j * width..][..j], error);
    }
    add_lanes(simd, costs, cost);
}

#[inline(always)]
fn descend_body<S: Simd>(
    simd: S,
    span: &mut PanelSpan,
    params: PanelParams,
    second: &[f32],
    falls: &mut [f64; LANES],
    grid: &Grid,
) {
    let PanelSpan {
        targets: slopes,
        errors,
        codes,
    } = span;
    let width = slopes.len();
    let mut fall = simd.splat(0.0);
    for j in (0..width).rev() {
        let group = params.groups[j] as usize;
        let zero = simd.load(&params.zeros[group]);
        let scale = simd.load(&params.scales[group]);
        let lanes = Lanes::per_lane(simd, scale, zero, grid);
        let (before, rest) = slopes.split_at_mut(j);
        let row = &second[j * width..][..width];
        let (slope, own) = (simd.load(&rest[0]), simd.splat(row[j]));
        let code = simd.load(&std::array::from_fn(|i| f32::from(codes[j][i])));
        let value = simd.mul(simd.sub(code, zero), scale);
        let best = simd.add(value, simd.div(slope, own));
        let (shifted, _) = lanes.encode(best);
        simd.store_low_bytes(simd.add(shifted, zero), &mut codes[j]);
        // The error changes by `step`, the objective by `step * (2 slope + step * own)`.
        let step = simd.sub(value, lanes.value(shifted));
        let moved = simd.add(simd.load(&errors[j]), step);
        simd.store(moved, &mut errors[j]);
        let rise = simd.add(simd.add(slope, slope), simd.mul(step, own));
        fall = simd.sub(fall, simd.mul(step, rise));
        spread(simd, before, &row[..j], step);
    }
    add_lanes(simd, falls, fall);
}

#[inline(always)]
fn add_lanes<S: Simd>(simd: S, sums: &mut [f64; LANES], x: S::F) {
    let mut lanes = [0.0; LANES];
    simd.store(x, &mut lanes);
    for (sum, x) in sums.iter_mut().zip(lanes) {
        *sum += f64::from(x);
    }
}

multiversion! {
    fn round_at(span: &mut PanelSpan, params: PanelParams, feedback: &[f32], variances: &[f32], costs: &mut [f64; LANES], grid: &Grid) = round_body;
}

multiversion! {
    fn descend_at(span: &mut PanelSpan, params: PanelParams, second: &[f32], falls: &mut [f64; LANES], grid: &Grid) = descend_body;
}
