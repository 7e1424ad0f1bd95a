//! How much memory and disk a run will take, from shapes alone.

use crate::ir::site::Site;
use crate::ir::{Module, Term};
use crate::pass::{Access, MatrixPass, Pass};
use crate::weights::DType;

use super::RunError;
use super::schedule::Schedule;
use super::units::earlier_terms;

/// Entries per row tile: 1 MiB of f32, which stays in a core's second-level cache.
const TILE_ENTRIES: u64 = 256 * 1024;
/// Entries per row tile of a transposed matrix: each tile touches every page of it.
const TRANSPOSED_TILE_ENTRIES: u64 = 16 * 1024 * 1024;
/// Finished terms that may wait to be written, bytes.
pub(super) const PENDING_BYTES: u64 = 192 << 20;
/// Code, tables and the allocator's slack, bytes.
const BASE_BYTES: u64 = 96 << 20;

/// How one site is worked on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Rows.
    pub rows: u64,
    /// Columns.
    pub cols: u64,
    /// Rows per unit of work: all of them unless every pass takes rows by themselves.
    pub unit_rows: u64,
    /// Working memory of one unit, mapped source pages included, bytes.
    pub unit_bytes: u64,
    /// Upper bound of the finished terms, bytes.
    pub term_bytes: u64,
}

impl Shape {
    /// The same where what is left goes to a later stage, as f32.
    pub(super) fn passing_on(mut self) -> Self {
        let bytes = |rows: u64| rows.saturating_mul(self.cols).saturating_mul(4);
        self.term_bytes = self.term_bytes.saturating_add(bytes(self.rows));
        self.unit_bytes = self.unit_bytes.saturating_add(bytes(self.unit_rows));
        self
    }
}

/// What becomes of a run's result, as far as memory is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Shards of a folder: finished terms leave memory.
    Folder,
    /// An ONNX file, made from shards: a term at a time is in memory, in several forms.
    Onnx,
    /// Text without weights: what one stage leaves for the next stays in memory.
    Shown,
}

/// What a run will take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Estimate {
    /// Peak resident memory, bytes, upper bound.
    pub peak_memory_bytes: u64,
    /// Upper bound of the rewritten terms, bytes.
    pub term_bytes: u64,
    /// Units that may be worked on at once.
    pub workers: usize,
}

/// How a site is worked on by these steps.
///
/// # Errors
/// A pass can't say what it takes.
pub(super) fn shape_of(
    schedule: &Schedule,
    steps: &[usize],
    site: &Site,
    dtype: DType,
    transposed: bool,
) -> Result<Shape, RunError> {
    let (rows, cols) = (site.rows, site.cols);
    let passes = steps.iter().filter_map(|&s| match &schedule.steps[s].pass {
        Pass::Matrix(pass) => Some((s, pass.as_ref())),
        Pass::Module(_) => None,
    });
    let cost = |step: usize, pass: &dyn MatrixPass, rows: u64| {
        pass.cost(rows, cols)
            .map_err(|e| schedule.failed(step, site, &e))
    };
    let mut whole = false;
    let (mut workspace, mut terms) = (0u64, 0u64);
    let entries = rows.saturating_mul(cols);
    let tile = if transposed {
        TRANSPOSED_TILE_ENTRIES
    } else {
        TILE_ENTRIES
    };
    let tile_rows = (tile / cols.max(1)).max(16).div_ceil(16) * 16;
    for (step, pass) in passes.clone() {
        whole |= pass.access() == Access::Whole;
        terms = terms.saturating_add(cost(step, pass, rows)?.term_bytes);
    }
    let unit_rows = if whole { rows } else { tile_rows.min(rows) };
    for (step, pass) in passes {
        workspace = workspace.max(cost(step, pass, unit_rows)?.workspace_bytes);
    }
    if steps.last().is_some_and(|&s| schedule.keeps_residual(s)) {
        terms = terms.saturating_add(dtype.bytes_for(entries).unwrap_or(0));
    }
    let unit_entries = unit_rows.saturating_mul(cols);
    let source = if transposed { entries } else { unit_entries };
    let mapped = dtype.bytes_for(source).unwrap_or(0);
    let term_share = (terms as u128 * unit_rows as u128 / rows.max(1) as u128) as u64;
    let unit_bytes = unit_entries
        .saturating_mul(4)
        .saturating_add(workspace)
        .saturating_add(mapped)
        .saturating_add(term_share);
    Ok(Shape {
        rows,
        cols,
        unit_rows,
        unit_bytes,
        term_bytes: terms,
    })
}

/// Memory for terms that earlier generations made, while a job that builds on them is open: the terms,
/// the pages that they are read from, decoded factors.
pub(super) fn kept_bytes(module: &Module, site: &Site) -> u64 {
    let Some(matrix) = site.matrix(module) else {
        return 0;
    };
    let mut sum = 0u64;
    for term in &earlier_terms(module, site) {
        let stored = term.bytes(matrix, &module.weights);
        let decoded = match term {
            Term::Dense(_) => continue,
            Term::LowRank(low_rank) => low_rank.blocks.iter().fold(0u64, |sum, b| {
                let sides = (b.rows as u64).saturating_add(b.cols as u64);
                sum.saturating_add(sides.saturating_mul(b.rank as u64).saturating_mul(8))
            }),
            _ => 0,
        };
        sum = sum
            .saturating_add(stored.saturating_mul(3))
            .saturating_add(decoded);
    }
    sum
}

/// Memory for the tensors that an ONNX file needs of a site, the largest at a time: the term, a copy,
/// and the form that it takes in the file.
///
/// # Errors
/// As [`shape_of`].
pub(super) fn export_bytes(
    schedule: &Schedule,
    steps: &[usize],
    site: &Site,
) -> Result<u64, RunError> {
    let (rows, cols) = (site.rows, site.cols);
    let mut most = 0;
    for &step in steps {
        let Pass::Matrix(pass) = &schedule.steps[step].pass else {
            continue;
        };
        let cost = pass.cost(rows, cols);
        let term = cost
            .map_err(|e| schedule.failed(step, site, &e))?
            .term_bytes;
        let bytes = match pass.quantizer() {
            // Codes as bytes before they are packed, and every group's place.
            Some(_) => {
                let codes = rows.saturating_mul(cols).saturating_mul(3);
                term.saturating_mul(3).saturating_add(codes)
            }
            // 4-bit factors as f32, once whole and thrice as the tensor; columns also as ones
            // among zeros, `[count, in]` in f32.
            None => {
                let wide = (2 * cols.min(1 << 40)).div_ceil(rows.max(1));
                term.saturating_mul(34u64.saturating_add(wide))
            }
        };
        most = most.max(bytes);
    }
    Ok(most)
}

/// Memory that a run needs apart from what is worked on: code, names, ops and values.
pub(super) fn base_bytes(module: &Module) -> u64 {
    let ops = module.graphs.iter().map(|g| 2048 * g.ops.len() as u64);
    BASE_BYTES + 1024 * (module.weights.len() as u64) + ops.sum::<u64>()
}

/// Peak memory of a run with so many workers; with a limit, the most workers that stay within it.
/// `beside` is what is in memory all the time.
pub(super) fn estimate(
    module: &Module,
    shapes: &[Shape],
    threads: usize,
    limit: Option<u64>,
    beside: u64,
) -> Estimate {
    let term_bytes = shapes
        .iter()
        .map(|s| s.term_bytes)
        .fold(0, u64::saturating_add);
    let mut units: Vec<u64> = shapes.iter().map(|s| s.unit_bytes).collect();
    units.sort_unstable_by(|a, b| b.cmp(a));
    let largest_terms = shapes.iter().map(|s| s.term_bytes).max().unwrap_or(0);
    let pending = largest_terms
        .max(PENDING_BYTES.min(term_bytes))
        .saturating_mul(2);
    let fixed = base_bytes(module)
        .saturating_add(beside)
        .saturating_add(pending);
    // Tiles of one site can fill every worker, so the largest unit counts for each.
    let peak = |workers: usize| {
        let largest = units.first().copied().unwrap_or(0);
        fixed.saturating_add(largest.saturating_mul(workers as u64))
    };
    let fits = |workers: &usize| limit.is_none_or(|limit| peak(*workers) <= limit);
    let workers = (1..=threads.max(1)).rev().find(fits).unwrap_or(0);
    Estimate {
        peak_memory_bytes: peak(workers.max(1)),
        term_bytes,
        workers,
    }
}
