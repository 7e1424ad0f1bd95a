//! Gradients of native ops: inputs are `dy`, then the op's own.

use crate::exec::attend;
use crate::exec::kernels::grad::{activation, attention, elementwise, norm};
use crate::exec::kernels::{elementwise as plain, rope};
use crate::exec::ops::{self, Prepared};
use crate::exec::program::{Arg, Step};
use crate::exec::run::{Run, misfit};
use crate::exec::tensor::{Data, Tensor};
use crate::exec::{ExecError, Pool};

type Gradients = Vec<Option<Tensor>>;

/// The gradient by each input of a native op; of those that nobody wants, `None`.
pub(super) fn backward(
    run: &mut Run,
    step: &Step,
    native: &Prepared,
) -> Result<Gradients, ExecError> {
    match native {
        Prepared::RmsNorm {
            eps,
            unit_offset,
            slice,
        } => rms_norm(run, step, *eps, *unit_offset, *slice),
        Prepared::LayerNorm { eps } => layer_norm(run, step, *eps),
        Prepared::Rope {
            table,
            heads,
            head_dim,
            interleaved,
            ..
        } => {
            // Positions are the op's second input, `dy` in the place of its first.
            let arg = step.inputs.get(2).copied().unwrap_or(Arg::None);
            let angles = ops::angles_of(run, step, *table, 0, arg)?.inverse();
            let mut dy = run.own(step, 0)?;
            let width = dy.width();
            let pool = &run.engine.pool;
            let values = floats_mut(step, &mut dy)?;
            if width != heads * head_dim {
                let problem = format!("gradient {width} wide for {heads} heads of {head_dim}");
                return Err(misfit(step, problem));
            }
            rope::rotate(pool, &angles, *heads, *head_dim, *interleaved, values);
            Ok(vec![Some(dy)])
        }
        Prepared::Attention { shape, .. } => attend_back(run, step, shape),
        Prepared::Activate(function) => pointwise(run, step, |pool, x, dy| {
            activation::activate(pool, *function, x, dy)
        }),
        Prepared::Softcap(cap) => pointwise(run, step, |pool, x, dy| {
            activation::softcap(pool, *cap, x, dy)
        }),
        Prepared::Hadamard { rotation, inverse } => {
            let dy = run.own(step, 0)?;
            Ok(vec![Some(ops::turned(run, step, dy, rotation, !inverse)?)])
        }
        Prepared::Scale(factor) => {
            let factor = match step.inputs.get(2) {
                None | Some(Arg::None) => *factor,
                Some(_) => {
                    let given = run.floats(step, 2)?;
                    let one = given.first().filter(|_| given.len() == 1);
                    *one.ok_or_else(|| misfit(step, "the factor is not a single number"))?
                }
            };
            let mut dy = run.own(step, 0)?;
            plain::scale(&run.engine.pool, factor, floats_mut(step, &mut dy)?);
            Ok(vec![Some(dy)])
        }
        Prepared::Add => sides(run, step, None),
        Prepared::Mul => sides(run, step, Some([2, 1])),
        Prepared::Slice { start, width } => {
            let x = run.operand(step, 1)?;
            let (shape, whole) = (x.shape.clone(), x.width());
            let dy = run.operand(step, 0)?;
            let end = start.checked_add(*width).filter(|&end| end <= whole);
            let fits = dy.width() == *width && dy.rows() == x.rows();
            let end = end.filter(|_| fits);
            let problem = || format!("gradient {:?} of a slice of {shape:?}", dy.shape);
            let end = end.ok_or_else(|| misfit(step, problem()))?;
            let mut dx = run.buffers.take(shape.iter().product());
            let dy = run.floats(step, 0)?;
            elementwise::unslice(&run.engine.pool, dy, whole, *start..end, &mut dx);
            Ok(vec![Some(Tensor::f32(&shape, dx))])
        }
        Prepared::FirstToken => {
            let (dy, x) = (run.operand(step, 0)?, run.operand(step, 1)?);
            let (shape, width) = (x.shape.clone(), x.width());
            let (count, len) = attend::sequences(x);
            if dy.len() != count * width {
                let problem = format!("gradient {:?} of {shape:?}", dy.shape);
                return Err(misfit(step, problem));
            }
            let mut dx = vec![0f32; x.len()];
            let rows = dx.chunks_mut((len * width).max(1));
            for (sequence, dy) in rows.zip(run.floats(step, 0)?.chunks(width.max(1))) {
                sequence[..width].copy_from_slice(dy);
            }
            Ok(vec![Some(Tensor::f32(&shape, dx))])
        }
        Prepared::Positions => Err(misfit(step, "positions have no gradient")),
    }
}

fn wanted(step: &Step, at: usize) -> bool {
    step.outputs.get(at).is_some_and(Option::is_some)
}

fn floats_mut<'t>(step: &Step, x: &'t mut Tensor) -> Result<&'t mut [f32], ExecError> {
    match &mut x.data {
        Data::F32(values) => Ok(values),
        _ => Err(misfit(step, "a gradient must be f32")),
    }
}

/// `dy` and x of one shape.
fn alike(run: &Run, step: &Step) -> Result<(), ExecError> {
    let (dy, x) = (run.operand(step, 0)?, run.operand(step, 1)?);
    if dy.len() == x.len() {
        return Ok(());
    }
    let problem = format!("gradient {:?} of activations {:?}", dy.shape, x.shape);
    Err(misfit(step, problem))
}

fn rms_norm(
    run: &mut Run,
    step: &Step,
    eps: f32,
    unit_offset: bool,
    slice: Option<usize>,
) -> Result<Gradients, ExecError> {
    alike(run, step)?;
    let shape = run.operand(step, 1)?.shape.clone();
    let (width, gains) = (run.operand(step, 1)?.width(), run.floats(step, 2)?.len());
    let part = slice.unwrap_or(width);
    if part == 0 || gains != part || !width.is_multiple_of(part) {
        let problem = format!("activations {shape:?} and a gain of {gains}");
        return Err(misfit(step, problem));
    }
    let offset = if unit_offset { 1.0 } else { 0.0 };
    let mut dx = run.buffers.take(shape.iter().product());
    let (dy, x, gain) = (
        run.floats(step, 0)?,
        run.floats(step, 1)?,
        run.floats(step, 2)?,
    );
    let pool = &run.engine.pool;
    norm::rms_norm_input(pool, (dy, x), gain, eps, offset, &mut dx);
    let by_gain = wanted(step, 1).then(|| norm::rms_norm_gain(pool, dy, x, part, eps));
    let by_gain = by_gain.map(|values| Tensor::f32(&[part], values));
    Ok(vec![Some(Tensor::f32(&shape, dx)), by_gain])
}

fn layer_norm(run: &mut Run, step: &Step, eps: f32) -> Result<Gradients, ExecError> {
    alike(run, step)?;
    let shape = run.operand(step, 1)?.shape.clone();
    let width = run.operand(step, 1)?.width();
    if width == 0 || run.floats(step, 2)?.len() != width {
        let problem = format!("activations {shape:?} and a gain of another width");
        return Err(misfit(step, problem));
    }
    let mut dx = run.buffers.take(shape.iter().product());
    let (dy, x, gain) = (
        run.floats(step, 0)?,
        run.floats(step, 1)?,
        run.floats(step, 2)?,
    );
    let pool = &run.engine.pool;
    norm::layer_norm_input(pool, (dy, x), gain, eps, &mut dx);
    let mut rest = vec![None, None];
    if wanted(step, 1) || wanted(step, 2) {
        let (gain, bias) = norm::layer_norm_gain(pool, dy, x, width, eps);
        rest = vec![
            Some(Tensor::f32(&[width], gain)),
            Some(Tensor::f32(&[width], bias)),
        ];
    }
    rest.insert(0, Some(Tensor::f32(&shape, dx)));
    Ok(rest)
}

fn pointwise(
    run: &mut Run,
    step: &Step,
    f: impl FnOnce(&Pool, &[f32], &mut [f32]),
) -> Result<Gradients, ExecError> {
    alike(run, step)?;
    let mut dy = run.own(step, 0)?;
    let x = run.floats(step, 1)?;
    f(&run.engine.pool, x, floats_mut(step, &mut dy)?);
    Ok(vec![Some(dy)])
}

/// Gradients of sums and products, the shorter operand's summed over its repeats.
///
/// `others` are the inputs that `dy` is multiplied with: of a product, the other operand.
fn sides(run: &mut Run, step: &Step, others: Option<[usize; 2]>) -> Result<Gradients, ExecError> {
    let dy = run.operand(step, 0)?;
    let len = dy.len();
    let mut made = Vec::new();
    for at in 0..2 {
        if !wanted(step, at) {
            made.push(None);
            continue;
        }
        let own = run.operand(step, at + 1)?;
        let (shape, short) = (own.shape.clone(), own.len());
        let dy = run.floats(step, 0)?;
        let other = match others {
            Some(others) => Some(run.floats(step, others[at])?),
            None => None,
        };
        if short == 0 || !len.is_multiple_of(short) {
            let problem = format!("a gradient of {len} values for an operand {shape:?}");
            return Err(misfit(step, problem));
        }
        let pool = &run.engine.pool;
        let values = match other {
            None if short == len => dy.to_vec(),
            None => elementwise::sum_of_repeats(pool, len, short, |i| dy[i]),
            Some(other) if short == len => {
                let mut values = dy.to_vec();
                let width = other.len().max(1);
                values
                    .chunks_mut(width)
                    .for_each(|row| plain::mul(pool, other, row));
                values
            }
            Some(other) => {
                let n = other.len().max(1);
                elementwise::sum_of_repeats(pool, len, short, |i| dy[i] * other[i % n])
            }
        };
        made.push(Some(Tensor::f32(&shape, values)));
    }
    Ok(made)
}

fn attend_back(
    run: &mut Run,
    step: &Step,
    shape: &crate::exec::kernels::attention::AttentionShape,
) -> Result<Gradients, ExecError> {
    let (q, k, v) = (
        run.operand(step, 1)?,
        run.operand(step, 2)?,
        run.operand(step, 3)?,
    );
    attend::check_heads(step, shape, (q, k, v))?;
    let shapes = [q.shape.clone(), k.shape.clone(), v.shape.clone()];
    let (sequences, keys) = (attend::sequences(q).0, attend::sequences(k).1);
    if run.operand(step, 0)?.len() != q.len() {
        return Err(misfit(
            step,
            format!("a gradient for queries {:?}", q.shape),
        ));
    }
    let mask = attend::key_mask(run, step, 4, sequences * keys)?;
    let forward = attention::Forward {
        queries: run.floats(step, 1)?,
        keys: run.floats(step, 2)?,
        values: run.floats(step, 3)?,
        mask: mask.as_deref(),
        sequences,
    };
    let dy = run.floats(step, 0)?;
    let made = attention::attention(&run.engine.pool, shape, &forward, dy);
    let tensors = made.into_iter().zip(&shapes);
    Ok(tensors
        .map(|(values, shape)| Some(Tensor::f32(shape, values)))
        .collect())
}
