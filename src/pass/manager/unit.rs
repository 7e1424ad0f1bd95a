//! One unit of work: some rows of a matrix, through all its passes.

use std::ops::Range;
use std::time::Instant;

use crate::ir::Rotation;
use crate::numeric::matrix;
use crate::pass::terms::TermData;
use crate::pass::{Earlier, MatrixPass, Moments, Peel, Place, Quantizer, Remark, Residual, Stored};
use crate::weights::{DType, MatrixView};

/// A site as the workers see it.
pub(super) struct Job<'a> {
    /// The site's name.
    pub(super) name: &'a str,
    /// The dense matrix.
    pub(super) view: MatrixView,
    /// Steps, as indices of the schedule, with their passes.
    pub(super) passes: Vec<(usize, &'a dyn MatrixPass)>,
    /// Whether what is left behind the last pass is stored, and as what.
    pub(super) keep: Option<DType>,
    /// Terms that earlier runs made: with the dense term, the matrix that errors are relative to.
    pub(super) kept: Vec<TermData>,
    /// Seed of the site.
    pub(super) seed: u64,
    /// Seed of rotations.
    pub(super) rotation_seed: u64,
    /// Moments of the site's input, where a pass uses them.
    pub(super) moments: Option<Moments>,
}

/// What one pass did in one unit.
pub(super) struct UnitStep {
    pub(super) step: usize,
    pub(super) term: Option<TermData>,
    pub(super) note: String,
    /// Σ residual² behind the pass.
    pub(super) residual_squares: f64,
    pub(super) nanos: u64,
}

/// What came of one unit.
pub(super) struct UnitResult {
    pub(super) weight_squares: f64,
    pub(super) steps: Vec<UnitStep>,
    pub(super) residual: Option<TermData>,
    /// Σ of squares of what is in no stored term.
    pub(super) error_squares: f64,
    pub(super) remarks: Vec<Remark>,
}

/// Why a unit failed.
#[derive(Clone, Debug)]
pub(super) struct UnitError {
    /// The pass, if one was running.
    pub(super) step: Option<usize>,
    /// Whether the statistics of the activations are at fault.
    pub(super) statistics: bool,
    pub(super) message: String,
}

impl UnitError {
    fn reading(error: impl std::fmt::Display) -> Self {
        Self {
            step: None,
            statistics: false,
            message: error.to_string(),
        }
    }
}

/// Runs a job's passes on some of its rows.
pub(super) fn run(job: &Job<'_>, rows: Range<usize>) -> Result<UnitResult, UnitError> {
    if let Some(result) = stored(job, &rows) {
        return result;
    }
    let cols = job.view.cols();
    let mut residual = vec![0f32; rows.len() * cols];
    job.view
        .read_rows_f32(rows.clone(), &mut residual)
        .map_err(UnitError::reading)?;
    job.view.release_rows(rows.clone());
    let mut weight_squares = matrix::norm2(&residual);
    if !weight_squares.is_finite() {
        return Err(not_finite(&residual, rows.start, cols));
    }
    if !job.kept.is_empty() {
        let mut whole = residual.clone();
        for term in &job.kept {
            term.add_rows(rows.clone(), &mut whole)
                .map_err(UnitError::reading)?;
        }
        weight_squares = matrix::norm2(&whole);
    }
    // What `DropNow` passes have dropped: an error that no later pass can mend.
    let mut dropped = 0f64;
    let mut result = UnitResult {
        weight_squares,
        steps: Vec::with_capacity(job.passes.len()),
        residual: None,
        error_squares: 0.0,
        remarks: Vec::new(),
    };
    let mut rotation = None;
    for (index, &(step, pass)) in job.passes.iter().enumerate() {
        let began = Instant::now();
        let passes = job.passes.iter().zip(&mut result.steps);
        let earlier = passes.filter_map(|((_, pass), step)| {
            let (pass, term) = (*pass, step.term.as_mut()?);
            Some(Earlier { pass, term })
        });
        let mut peel = Peel {
            site: job.name,
            rows: rows.len(),
            cols,
            residual: &mut residual,
            seed: job.seed.wrapping_add(step as u64),
            next: following(job, index),
            quantized_later: job
                .passes
                .iter()
                .skip(index + 1)
                .any(|(_, p)| p.quantizes()),
            moments: job.moments.as_ref(),
            rotation: &mut rotation,
            rotation_seed: job.rotation_seed,
            earlier: earlier.collect(),
            remarks: &mut result.remarks,
        };
        let before = peel.remarks.len();
        let peeled = pass.peel(&mut peel).map_err(|e| UnitError {
            step: Some(step),
            statistics: false,
            message: e.to_string(),
        })?;
        for remark in result.remarks.iter_mut().skip(before) {
            remark.pass = step.to_string();
        }
        let term = match (peeled.term, rotation) {
            (Some(term), Some(rotation)) => Some(in_coordinates(term, rotation, step)?),
            (term, _) => term,
        };
        let residual_squares = dropped + matrix::norm2(&residual);
        if !residual_squares.is_finite() {
            return Err(UnitError {
                step: Some(step),
                statistics: false,
                message: "it left values in the residual that are not finite".to_string(),
            });
        }
        if pass.residual() == Residual::DropNow {
            dropped = residual_squares;
            residual.fill(0.0);
        }
        result.steps.push(UnitStep {
            step,
            term,
            note: peeled.note,
            residual_squares,
            nanos: began.elapsed().as_nanos() as u64,
        });
    }
    if let Some(rotation) = rotation {
        rotation.undo(&mut residual, cols);
    }
    let last = result
        .steps
        .last()
        .map_or(weight_squares, |s| s.residual_squares);
    result.error_squares = last;
    if let Some(dtype) = job.keep {
        let (bytes, rounding) = encode(&mut residual, dtype);
        result.error_squares = dropped + rounding;
        result.residual = Some(TermData::Dense {
            dtype,
            bytes,
            rows: rows.len(),
            cols,
        });
    }
    Ok(result)
}

/// Says that a term is of the rotated matrix; only codes are kept so.
fn in_coordinates(term: TermData, rotation: Rotation, step: usize) -> Result<TermData, UnitError> {
    match term {
        TermData::Quant(_) | TermData::Trellis(_) => {
            Ok(TermData::Rotated(rotation, Box::new(term)))
        }
        other => Err(UnitError {
            step: Some(step),
            statistics: false,
            message: format!(
                "a term of {} cannot be kept in rotated coordinates; put this pass before `rotate`",
                other.label()
            ),
        }),
    }
}

/// The quantizer behind pass number `index`, if the job has one.
fn following(job: &Job<'_>, index: usize) -> Option<Quantizer> {
    let later = job.passes.iter().skip(index + 1);
    later.filter_map(|(_, pass)| pass.quantizer()).next()
}

/// The fast path: one quantizer, straight from stored 16- or 32-bit rows.
fn stored(job: &Job<'_>, rows: &Range<usize>) -> Option<Result<UnitResult, UnitError>> {
    let [(step, pass)] = job.passes.as_slice() else {
        return None;
    };
    if job.keep.is_some() || !job.kept.is_empty() {
        return None;
    }
    let bytes = job.view.raw_rows(rows.clone())?;
    let (count, cols) = (rows.len(), job.view.cols());
    let stored = match job.view.dtype() {
        DType::BF16 => Stored::Bf16 {
            bytes,
            rows: count,
            cols,
        },
        DType::F16 => Stored::F16 {
            bytes,
            rows: count,
            cols,
        },
        DType::F32 => Stored::F32 {
            bytes,
            rows: count,
            cols,
        },
        _ => return None,
    };
    let began = Instant::now();
    let place = Place {
        site: job.name,
        seed: job.seed.wrapping_add(*step as u64),
    };
    let peeled = match pass.peel_stored(stored, place)? {
        Ok(peeled) => peeled,
        Err(_) if !finite(job, rows) => return None,
        Err(error) => {
            return Some(Err(UnitError {
                step: Some(*step),
                statistics: false,
                message: error.to_string(),
            }));
        }
    };
    job.view.release_rows(rows.clone());
    if !peeled.weight_squares.is_finite() {
        return None;
    }
    Some(Ok(UnitResult {
        weight_squares: peeled.weight_squares,
        steps: vec![UnitStep {
            step: *step,
            note: String::new(),
            term: Some(peeled.term),
            residual_squares: peeled.residual_squares,
            nanos: began.elapsed().as_nanos() as u64,
        }],
        residual: None,
        error_squares: peeled.residual_squares,
        remarks: Vec::new(),
    }))
}

/// Whether rows have a finite norm. Where they have none the slow path says which weight is at fault.
fn finite(job: &Job<'_>, rows: &Range<usize>) -> bool {
    let mut values = vec![0f32; rows.len() * job.view.cols()];
    let read = job.view.read_rows_f32(rows.clone(), &mut values);
    read.is_ok() && matrix::norm2(&values).is_finite()
}

fn not_finite(values: &[f32], first_row: usize, cols: usize) -> UnitError {
    let at = values.iter().position(|x| !x.is_finite());
    let message = match at {
        Some(at) => {
            let (row, col) = (first_row + at / cols.max(1), at % cols.max(1));
            let value = values.get(at).copied().unwrap_or(f32::NAN);
            format!(
                "weight [{row}, {col}] is {value}; repair the checkpoint, or leave this tensor out with -t '<name>=none'"
            )
        }
        None => "the sum of its squares overflows".to_string(),
    };
    UnitError {
        step: None,
        statistics: false,
        message,
    }
}

/// Values in their stored type, and the sum of squares of what rounding loses.
fn encode(values: &mut [f32], dtype: DType) -> (Vec<u8>, f64) {
    let mut bytes = Vec::with_capacity(values.len() * dtype.bits() as usize / 8);
    for x in values.iter_mut() {
        let stored = match dtype {
            DType::BF16 => {
                let half = half::bf16::from_f32(*x);
                bytes.extend_from_slice(&half.to_le_bytes());
                half.to_f32()
            }
            DType::F16 => {
                let half = half::f16::from_f32(*x);
                bytes.extend_from_slice(&half.to_le_bytes());
                half.to_f32()
            }
            _ => {
                bytes.extend_from_slice(&x.to_le_bytes());
                *x
            }
        };
        *x -= stored;
    }
    (bytes, matrix::norm2(values))
}

/// The type that a residual is stored in: the source's where it is a common float type.
pub(super) fn residual_dtype(source: DType) -> DType {
    match source {
        DType::BF16 | DType::F16 => source,
        _ => DType::F32,
    }
}
