//! A matrix while it is being quantized: columns of 16-row vectors.

use super::super::{Feedback, HessianError};
use crate::numeric::matrix::ShapeError;
use crate::numeric::quant::{
    Column, Group, PanelGrid, PanelParams, PanelSpan, QuantError, QuantMatrix, Scheme, pack_row,
    packed_len,
};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use half::f16;

/// Rows of a panel.
pub(super) const LANES: usize = 16;
/// Columns whose errors are passed on by one product.
pub(super) const SPAN: usize = 128;

/// Errors, codes, scales and zero points; columns in the order of the inputs.
#[derive(Clone)]
pub(super) struct State {
    pub(super) rows: usize,
    pub(super) n: usize,
    /// `rows`, up to a whole number of panels.
    pub(super) stride: usize,
    pub(super) group_width: usize,
    /// Groups per row.
    pub(super) groups: usize,
    /// `E` transposed: `[n, stride]`.
    pub(super) errors: Vec<f32>,
    /// What was rounded: weights plus feedback; transposed likewise.
    pub(super) targets: Vec<f32>,
    /// Codes, transposed likewise.
    pub(super) codes: Vec<u8>,
    /// Scales `[panels, groups]`.
    pub(super) scales: Vec<Column>,
    /// Zero points `[panels, groups]`.
    pub(super) zeros: Vec<Column>,
    /// The damped objective of each row, `[panels]`.
    pub(super) costs: Vec<[f64; LANES]>,
}

impl State {
    pub(super) fn new(
        rows: usize,
        n: usize,
        scheme: Scheme,
        group: Group,
    ) -> Result<Self, HessianError> {
        if !matches!(scheme.bits, 2 | 3 | 4 | 8) {
            return Err(QuantError::Bits { bits: scheme.bits }.into());
        }
        let group_width = match group.width(n) {
            None => return Err(HessianError::ColumnGroups),
            Some(0) => return Err(QuantError::EmptyGroup.into()),
            Some(width) => width,
        };
        let too_large = ShapeError {
            rows,
            cols: n,
            len: 0,
        };
        let stride = rows.checked_next_multiple_of(LANES).ok_or(too_large)?;
        let count = stride.checked_mul(n).ok_or(too_large)?;
        let groups = group.per_row(n);
        let symmetric_zero = if scheme.symmetric {
            f32::from(scheme.midpoint())
        } else {
            0.0
        };
        Ok(State {
            rows,
            n,
            stride,
            group_width,
            groups,
            errors: vec![0.0; count],
            targets: vec![0.0; count],
            codes: vec![0; count],
            // Rows of the padding hold zeros, for which any scale will do.
            scales: vec![[1.0; LANES]; stride / LANES * groups],
            zeros: vec![[symmetric_zero; LANES]; stride / LANES * groups],
            costs: vec![[0.0; LANES]; stride / LANES],
        })
    }

    pub(super) fn set_params(&mut self, row: usize, group: usize, scale: f32, zero: f32) {
        let at = row / LANES * self.groups + group;
        self.scales[at][row % LANES] = scale;
        self.zeros[at][row % LANES] = zero;
    }

    /// Scales and zero points of a panel.
    pub(super) fn params<'a>(
        scales: &'a [Column],
        zeros: &'a [Column],
        panel: usize,
        per_panel: usize,
        groups: &'a [u32],
    ) -> PanelParams<'a> {
        PanelParams {
            scales: &scales[panel * per_panel..][..per_panel],
            zeros: &zeros[panel * per_panel..][..per_panel],
            groups,
        }
    }

    /// Chooses all codes for `w` `[rows, n]`; returns the damped objective.
    pub(super) fn round_with_feedback(
        &mut self,
        w: &[f32],
        feedback: &Feedback,
        grid: &PanelGrid,
    ) -> f64 {
        let (n, stride) = (self.n, self.stride);
        let inputs = feedback.inputs();
        // By positions: a product needs the columns behind a span side by side.
        let mut errors = self.transposed(w, inputs);
        let mut codes = vec![0u8; n * stride];
        let groups: Vec<u32> = inputs.iter().map(|i| i / self.group_width as u32).collect();
        let variances: Vec<f32> = feedback.variances().iter().map(|d| *d as f32).collect();
        let mut costs = vec![[0f64; LANES]; stride / LANES];
        let mut ahead = Vec::new();
        let mut scratch = PanelSpan::default();
        for s0 in (0..n).step_by(SPAN).rev() {
            let s1 = (s0 + SPAN).min(n);
            let width = s1 - s0;
            ahead.clear();
            ahead.resize(width * stride, 0.0);
            let (own, behind) = errors.split_at_mut(s1 * stride);
            let lower = MatRef::from_row_major_slice(feedback.lower(), n, n);
            let l = lower.submatrix(s1, s0, n - s1, width).transpose();
            product(&mut ahead, l, behind, n - s1, stride);
            let block = block_of(feedback.lower(), n, s0, width);
            let own = &mut own[s0 * stride..];
            let span_codes = &mut codes[s0 * stride..s1 * stride];
            for (panel, costs) in costs.iter_mut().enumerate() {
                scratch.gather(own, span_codes, panel, stride);
                scratch.add_to_targets(&ahead, panel, stride);
                let params = Self::params(
                    &self.scales,
                    &self.zeros,
                    panel,
                    self.groups,
                    &groups[s0..s1],
                );
                let of_span = &variances[s0..s1];
                grid.round(&mut scratch, params, &block, of_span, costs);
                scratch.scatter(own, span_codes, panel, stride);
                for (target, &input) in scratch.targets.iter().zip(&inputs[s0..s1]) {
                    let at = input as usize * stride + panel * LANES;
                    self.targets[at..at + LANES].copy_from_slice(target);
                }
            }
        }
        for (position, &input) in inputs.iter().enumerate() {
            let (from, to) = (position * stride, input as usize * stride);
            self.errors[to..to + stride].copy_from_slice(&errors[from..from + stride]);
            self.codes[to..to + stride].copy_from_slice(&codes[from..from + stride]);
        }
        self.costs = costs;
        self.sum_rows(&self.costs)
    }

    /// The targets as `[rows, n]`.
    pub(super) fn targets_by_row(&self) -> Vec<f32> {
        let mut out = vec![0f32; self.rows * self.n];
        for (r, row) in out.chunks_mut(self.n.max(1)).enumerate() {
            for (o, column) in row.iter_mut().zip(self.targets.chunks(self.stride.max(1))) {
                *o = column[r];
            }
        }
        out
    }

    /// Takes back rows that were better before; returns the objective.
    pub(super) fn keep_better_rows(&mut self, before: &State) -> f64 {
        for r in 0..self.rows {
            let (panel, lane) = (r / LANES, r % LANES);
            if self.costs[panel][lane] <= before.costs[panel][lane] {
                continue;
            }
            self.costs[panel][lane] = before.costs[panel][lane];
            for at in (0..self.n).map(|j| j * self.stride + r) {
                self.errors[at] = before.errors[at];
                self.codes[at] = before.codes[at];
            }
            for at in panel * self.groups..(panel + 1) * self.groups {
                self.scales[at][lane] = before.scales[at][lane];
                self.zeros[at][lane] = before.zeros[at][lane];
            }
        }
        self.sum_rows(&self.costs)
    }

    /// Rows of `w` as columns, in the order of `inputs`.
    fn transposed(&self, w: &[f32], inputs: &[u32]) -> Vec<f32> {
        let (n, stride) = (self.n, self.stride);
        let mut out = vec![0f32; n * stride];
        for (r0, rows) in w.chunks(LANES * n.max(1)).enumerate() {
            for (position, &input) in inputs.iter().enumerate() {
                let column = &mut out[position * stride + r0 * LANES..][..LANES];
                for (o, row) in column.iter_mut().zip(rows.chunks(n)) {
                    *o = row[input as usize];
                }
            }
        }
        out
    }

    /// The sum over rows, padding left out.
    pub(super) fn sum_rows(&self, sums: &[[f64; LANES]]) -> f64 {
        sums.iter().flatten().take(self.rows).sum()
    }

    /// Packs codes, scales and zero points.
    pub(super) fn into_matrix(
        self,
        scheme: Scheme,
        group: Group,
    ) -> Result<QuantMatrix, HessianError> {
        let (n, bits) = (self.n, scheme.bits);
        let row_bytes = packed_len(bits, n);
        let zero_bytes = packed_len(bits, self.groups);
        let mut codes = vec![0u8; self.rows * row_bytes];
        let mut zeros = vec![
            0u8;
            if scheme.symmetric {
                0
            } else {
                self.rows * zero_bytes
            }
        ];
        let mut scales = Vec::with_capacity(self.rows * self.groups);
        let mut unpacked = vec![0u8; LANES * n];
        let mut row_zeros = vec![0u8; self.groups];
        for r in 0..self.rows {
            let (panel, lane) = (r / LANES, r % LANES);
            if lane == 0 {
                for j in 0..n {
                    let column = &self.codes[j * self.stride + panel * LANES..][..LANES];
                    for (lane, &code) in column.iter().enumerate() {
                        unpacked[lane * n + j] = code;
                    }
                }
            }
            let packed = &mut codes[r * row_bytes..][..row_bytes];
            pack_row(bits, &unpacked[lane * n..][..n], packed);
            let of_panel = panel * self.groups..(panel + 1) * self.groups;
            for column in &self.scales[of_panel.clone()] {
                scales.push(f16::from_f32(column[lane]));
            }
            if !scheme.symmetric {
                for (zero, column) in row_zeros.iter_mut().zip(&self.zeros[of_panel]) {
                    *zero = column[lane] as u8;
                }
                pack_row(bits, &row_zeros, &mut zeros[r * zero_bytes..][..zero_bytes]);
            }
        }
        let zeros = (!scheme.symmetric).then_some(zeros);
        Ok(QuantMatrix::from_parts(
            self.rows, n, scheme, group, codes, scales, zeros,
        )?)
    }
}

impl PanelSpan {
    /// Copies a panel's columns of a span; targets are the errors.
    pub(super) fn gather(&mut self, errors: &[f32], codes: &[u8], panel: usize, stride: usize) {
        self.errors.clear();
        self.codes.clear();
        for (errors, codes) in errors.chunks(stride).zip(codes.chunks(stride)) {
            let at = panel * LANES;
            let mut column = [0.0; LANES];
            column.copy_from_slice(&errors[at..at + LANES]);
            self.errors.push(column);
            let mut column = [0; LANES];
            column.copy_from_slice(&codes[at..at + LANES]);
            self.codes.push(column);
        }
        self.targets.clear();
        self.targets.extend_from_slice(&self.errors);
    }

    /// Adds a panel's columns of `more` to the targets.
    pub(super) fn add_to_targets(&mut self, more: &[f32], panel: usize, stride: usize) {
        for (target, more) in self.targets.iter_mut().zip(more.chunks(stride)) {
            let more = &more[panel * LANES..][..LANES];
            target.iter_mut().zip(more).for_each(|(t, m)| *t += m);
        }
    }

    /// Writes errors and codes back.
    pub(super) fn scatter(
        &self,
        errors: &mut [f32],
        codes: &mut [u8],
        panel: usize,
        stride: usize,
    ) {
        let at = panel * LANES;
        for (out, column) in errors.chunks_mut(stride).zip(&self.errors) {
            out[at..at + LANES].copy_from_slice(column);
        }
        for (out, column) in codes.chunks_mut(stride).zip(&self.codes) {
            out[at..at + LANES].copy_from_slice(column);
        }
    }
}

/// `out = a · b`, `b` `[inner, stride]` row-major.
pub(super) fn product(out: &mut [f32], a: MatRef<'_, f32>, b: &[f32], inner: usize, stride: usize) {
    let out = MatMut::from_row_major_slice_mut(out, a.nrows(), stride);
    let b = MatRef::from_row_major_slice(b, inner, stride);
    matmul(out, Accum::Replace, a, b, 1.0, Par::Seq);
}

/// The diagonal block of a row-major `[n, n]` matrix at `at`, contiguous.
fn block_of(matrix: &[f32], n: usize, at: usize, width: usize) -> Vec<f32> {
    let rows = matrix.chunks(n.max(1)).skip(at).take(width);
    rows.flat_map(|row| &row[at..at + width]).copied().collect()
}
