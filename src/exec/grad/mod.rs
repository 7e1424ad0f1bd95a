//! Ops of training, run: losses, and the ops of backward graphs.

mod native;
mod routes;

use super::kernels::grad::loss::{self, Target};
use super::kernels::grad::{self, elementwise};
use super::matrix::PreparedMatrix;
use super::ops::Prepared;
use super::program::{Arg, Step};
use super::run::{Run, misfit};
use super::tensor::Tensor;
use super::{ExecError, Pool};
use crate::ir::{Part, Rotation, Training};

/// An op of training, ready to run.
pub(super) struct PreparedGrad {
    pub(super) work: Work,
    /// The matrix that it reads.
    pub(super) matrix: Option<PreparedMatrix>,
    pub(super) experts: Vec<ExpertGrad>,
}

/// What it computes.
pub(super) enum Work {
    Of(Prepared),
    Loss(Held),
    LossGrad(Held),
    Linear(f32),
    Outer(f32),
    Scatter(usize),
    Rotate(Rotation),
    Term(Part),
    Factors(f32),
    SumRows,
    Moe { top_k: usize, normalize: bool },
}

/// What logits, or activations, are held against.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Held {
    Labels,
    Logits,
    Top,
    Values,
}

/// An expert's own step backward.
pub(super) struct ExpertGrad {
    /// Where its tokens and their `dy` go.
    pub(super) inputs: [usize; 2],
    /// Its result, the gradient by its tokens, gradients by its parameters.
    pub(super) outputs: Vec<Arg>,
    pub(super) steps: Vec<Step>,
    /// Sizes of the gradients by its parameters, for an expert without tokens.
    pub(super) sizes: Vec<usize>,
}

impl Work {
    pub(super) fn new(training: &Training) -> Self {
        match training {
            Training::CrossEntropy => Work::Loss(Held::Labels),
            Training::Kl => Work::Loss(Held::Logits),
            Training::TopKl => Work::Loss(Held::Top),
            Training::MeanSquare => Work::Loss(Held::Values),
            Training::CrossEntropyGrad => Work::LossGrad(Held::Labels),
            Training::KlGrad => Work::LossGrad(Held::Logits),
            Training::TopKlGrad => Work::LossGrad(Held::Top),
            Training::MeanSquareGrad => Work::LossGrad(Held::Values),
            Training::Linear { scale } => Work::Linear(*scale as f32),
            Training::Outer { scale } => Work::Outer(*scale as f32),
            Training::Scatter { entries } => {
                Work::Scatter(usize::try_from(*entries).unwrap_or(usize::MAX))
            }
            Training::Rotate { out, r#in, seed } => Work::Rotate(Rotation {
                out_block: *out,
                in_block: *r#in,
                seed: *seed,
            }),
            Training::Term { of } => Work::Term(*of),
            Training::Factors { scale } => Work::Factors(*scale as f32),
            Training::SumRows => Work::SumRows,
            Training::Moe { top_k, normalize } => Work::Moe {
                top_k: *top_k as usize,
                normalize: *normalize,
            },
        }
    }
}

/// Runs one op of training; results that nobody wants are not made.
pub(super) fn run(run: &mut Run, step: &Step, op: &PreparedGrad) -> Result<(), ExecError> {
    let made = match &op.work {
        Work::Of(native) => native::backward(run, step, native)?,
        Work::Loss(held) => {
            let (x, target, weights) = held_against(run, step, *held)?;
            let value = loss::loss(&run.engine.pool, x.0, x.1, target, weights);
            vec![Some(Tensor::f32(&[], vec![value as f32]))]
        }
        Work::LossGrad(held) => {
            let shape = run.operand(step, 0)?.shape.clone();
            let mut out = run.buffers.take(shape.iter().product());
            let (x, target, weights) = held_against(run, step, *held)?;
            loss::gradient(&run.engine.pool, x.0, x.1, target, weights, &mut out);
            vec![Some(Tensor::f32(&shape, out))]
        }
        Work::Linear(scale) => vec![Some(linear(run, step, op, *scale)?)],
        Work::Outer(scale) => vec![Some(outer(run, step, *scale)?)],
        Work::Scatter(entries) => vec![Some(scatter(run, step, *entries)?)],
        Work::Rotate(rotation) => vec![Some(rotate(run, step, *rotation)?)],
        Work::Term(part) => {
            let (matrix, dw) = (matrix(step, op)?, run.operand(step, 0)?);
            if dw.shape != [matrix.rows, matrix.cols] {
                let problem = format!(
                    "{:?} for a matrix {} × {}",
                    dw.shape, matrix.rows, matrix.cols
                );
                return Err(misfit(step, problem));
            }
            let values = matrix.part(&run.engine.pool, *part, run.floats(step, 0)?)?;
            vec![Some(Tensor::f32(&[values.len()], values))]
        }
        Work::Factors(scale) => factors(run, step, op, *scale)?,
        Work::SumRows => {
            let width = run.operand(step, 0)?.width();
            let sums = elementwise::sum_of_rows(&run.engine.pool, run.floats(step, 0)?, width);
            vec![Some(Tensor::f32(&[width], sums))]
        }
        Work::Moe { top_k, normalize } => {
            routes::backward(run, step, &op.experts, *top_k, *normalize)?
        }
    };
    for (slot, value) in step.outputs.iter().zip(made) {
        if let (Some(slot), Some(value)) = (slot, value) {
            run.set(*slot, value);
        }
    }
    Ok(())
}

fn matrix<'a>(step: &Step, op: &'a PreparedGrad) -> Result<&'a PreparedMatrix, ExecError> {
    op.matrix
        .as_ref()
        .ok_or_else(|| misfit(step, "has no matrix"))
}

/// Rows of floats and their width, what they are held against, and tokens' weights.
type Against<'a> = ((&'a [f32], usize), Target<'a>, &'a [f32]);

fn held_against<'a>(run: &'a Run, step: &Step, held: Held) -> Result<Against<'a>, ExecError> {
    let x = run.operand(step, 0)?;
    let (width, rows) = (x.width(), x.rows());
    let integers = |at: usize| {
        let ids = run.operand(step, at)?.integers();
        ids.ok_or_else(|| misfit(step, format!("input {at} must be integers")))
    };
    let last = if held == Held::Top { 3 } else { 2 };
    let weights = run.floats(step, last)?;
    let (target, given, needed) = match held {
        Held::Labels => {
            let labels = integers(1)?;
            (Target::Labels(labels), labels.len(), rows)
        }
        Held::Logits => {
            let logits = run.floats(step, 1)?;
            (Target::Logits(logits), logits.len(), rows * width)
        }
        Held::Values => {
            let values = run.floats(step, 1)?;
            (Target::Values(values), values.len(), rows * width)
        }
        Held::Top => {
            let (ids, log_probabilities) = (integers(1)?, run.floats(step, 2)?);
            let k = run.operand(step, 1)?.width();
            let target = Target::Top {
                ids,
                log_probabilities,
                k,
            };
            let given = ids.len().min(log_probabilities.len());
            (target, given, rows * k)
        }
    };
    if width == 0 || given != needed || weights.len() != rows {
        let problem = format!(
            "{:?} against {given} values (needs {needed}) with {} weights",
            x.shape,
            weights.len()
        );
        return Err(misfit(step, problem));
    }
    Ok(((run.floats(step, 0)?, width), target, weights))
}

fn scaled(pool: &Pool, scale: f32, mut values: Vec<f32>) -> Vec<f32> {
    if scale != 1.0 {
        super::kernels::elementwise::scale(pool, scale, &mut values);
    }
    values
}

fn linear(run: &mut Run, step: &Step, op: &PreparedGrad, scale: f32) -> Result<Tensor, ExecError> {
    let matrix = matrix(step, op)?;
    let dy = run.operand(step, 0)?;
    let (mut shape, rows) = (dy.shape.clone(), dy.rows());
    if dy.width() != matrix.rows || dy.shape.is_empty() {
        let problem = format!("gradient {:?} where `out` is {}", dy.shape, matrix.rows);
        return Err(misfit(step, problem));
    }
    if let Some(last) = shape.last_mut() {
        *last = matrix.cols;
    }
    let mut dx = run.buffers.take(rows * matrix.cols);
    let pool = &run.engine.pool;
    matrix.transposed(pool, run.floats(step, 0)?, &mut dx)?;
    Ok(Tensor::f32(&shape, scaled(pool, scale, dx)))
}

fn outer(run: &mut Run, step: &Step, scale: f32) -> Result<Tensor, ExecError> {
    let (dy, x) = (run.operand(step, 0)?, run.operand(step, 1)?);
    let (out, inp) = (dy.width(), x.width());
    if dy.rows() != x.rows() {
        let problem = format!("gradient {:?} and activations {:?}", dy.shape, x.shape);
        return Err(misfit(step, problem));
    }
    let mut dw = run.buffers.take(out * inp);
    let (dy, x) = (run.floats(step, 0)?, run.floats(step, 1)?);
    grad::outer(&run.engine.pool, dy, x, out, inp, &mut dw);
    Ok(Tensor::f32(
        &[out, inp],
        scaled(&run.engine.pool, scale, dw),
    ))
}

fn scatter(run: &mut Run, step: &Step, entries: usize) -> Result<Tensor, ExecError> {
    let (dy, ids) = (run.operand(step, 0)?, run.operand(step, 1)?);
    let (width, rows) = (dy.width(), dy.rows());
    let given = ids.integers();
    let given = given.ok_or_else(|| misfit(step, "needs integer indices"))?;
    let place = |&id: &i64| {
        let id = if id < 0 {
            id.saturating_add(entries as i64)
        } else {
            id
        };
        usize::try_from(id).ok().filter(|&id| id < entries)
    };
    let ids: Option<Vec<usize>> = given.iter().map(place).collect();
    let ids = ids.ok_or_else(|| misfit(step, format!("an index beyond {entries} entries")))?;
    if ids.len() != rows {
        let problem = format!("{} indices for gradient {:?}", ids.len(), dy.shape);
        return Err(misfit(step, problem));
    }
    let mut dw = run.buffers.take(entries * width);
    elementwise::scatter(&run.engine.pool, run.floats(step, 0)?, &ids, width, &mut dw);
    Ok(Tensor::f32(&[entries, width], dw))
}

fn rotate(run: &mut Run, step: &Step, rotation: Rotation) -> Result<Tensor, ExecError> {
    let mut dw = run.own(step, 0)?;
    let shape = dw.shape.clone();
    let fits = |block: u64, at: usize| {
        let block = usize::try_from(block).unwrap_or(0);
        block > 0 && shape.get(at).is_some_and(|n| n.is_multiple_of(block))
    };
    if shape.len() != 2 || !fits(rotation.out_block, 0) || !fits(rotation.in_block, 1) {
        return Err(misfit(step, format!("blocks do not divide {shape:?}")));
    }
    if let super::Data::F32(values) = &mut dw.data {
        let side = rotation.in_side();
        super::kernels::hadamard::rotate(&run.engine.pool, &side, values, shape[1]);
        rotation.out_side().rotate_cols(values, shape[1]);
    }
    Ok(dw)
}

fn factors(
    run: &mut Run,
    step: &Step,
    op: &PreparedGrad,
    scale: f32,
) -> Result<Vec<Option<Tensor>>, ExecError> {
    let (dy, x, matrix) = (
        run.operand(step, 0)?,
        run.operand(step, 1)?,
        matrix(step, op)?,
    );
    if dy.width() != matrix.rows || x.width() != matrix.cols || dy.rows() != x.rows() {
        let problem = format!("gradient {:?} and activations {:?}", dy.shape, x.shape);
        return Err(misfit(step, problem));
    }
    let pool = &run.engine.pool;
    let made = matrix.factors(pool, run.floats(step, 0)?, run.floats(step, 1)?)?;
    let tensor = |values: Vec<f32>| Some(Tensor::f32(&[values.len()], scaled(pool, scale, values)));
    Ok(made.into_iter().map(tensor).collect())
}
