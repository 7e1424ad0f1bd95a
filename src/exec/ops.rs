//! Native ops on tensors: shapes are checked here, arithmetic is in the kernels.

use super::attend::{attend, sequence_len, sequences};
use super::kernels::attention::AttentionShape;
use super::kernels::rope::Angles;
use super::kernels::{activation, elementwise, hadamard, norm, rope};
use super::program::{Arg, Step};
use super::run::{Run, misfit};
use super::tensor::{Data, Tensor};
use super::{ExecError, Pool};
use crate::ir::{Activation, Native};
use crate::numeric::hadamard::Rotation;

/// A native op with its sizes in machine words and its tables made.
pub(super) enum Prepared {
    RmsNorm {
        eps: f32,
        unit_offset: bool,
        slice: Option<usize>,
    },
    LayerNorm {
        eps: f32,
    },
    Rope {
        /// Which of the program's tables of frequencies.
        table: usize,
        heads: usize,
        head_dim: usize,
        rotary_dim: usize,
        interleaved: bool,
    },
    Attention {
        shape: AttentionShape,
        cache: Option<usize>,
    },
    Activate(Activation),
    Add,
    Mul,
    Scale(f32),
    Softcap(f32),
    Hadamard {
        rotation: Rotation,
        inverse: bool,
    },
    Slice {
        start: usize,
        width: usize,
    },
    Positions,
    FirstToken,
}

impl Prepared {
    /// `table` numbers the frequencies of a rotary embedding.
    pub(super) fn new(native: &Native, table: usize) -> Self {
        let size = |n: &u64| usize::try_from(*n).unwrap_or(usize::MAX);
        match native {
            Native::RmsNorm {
                eps,
                unit_offset,
                slice,
            } => Prepared::RmsNorm {
                eps: *eps as f32,
                unit_offset: *unit_offset,
                slice: slice.as_ref().map(size),
            },
            Native::LayerNorm { eps } => Prepared::LayerNorm { eps: *eps as f32 },
            Native::Rope {
                heads,
                head_dim,
                rotary_dim,
                interleaved,
                ..
            } => Prepared::Rope {
                table,
                heads: size(heads),
                head_dim: size(head_dim),
                rotary_dim: size(rotary_dim),
                interleaved: *interleaved,
            },
            Native::Attention {
                heads,
                kv_heads,
                head_dim,
                scale,
                causal,
                window,
                softcap,
                cache,
            } => Prepared::Attention {
                shape: AttentionShape {
                    heads: size(heads),
                    kv_heads: size(kv_heads),
                    head_dim: size(head_dim),
                    scale: *scale as f32,
                    causal: *causal,
                    window: window.as_ref().map(size),
                    softcap: softcap.map(|c| c as f32),
                },
                cache: cache.as_ref().map(size),
            },
            Native::Activate { function } => Prepared::Activate(*function),
            Native::Add => Prepared::Add,
            Native::Mul => Prepared::Mul,
            Native::Scale { factor } => Prepared::Scale(*factor as f32),
            Native::Softcap { cap } => Prepared::Softcap(*cap as f32),
            Native::Hadamard {
                block,
                seed,
                inverse,
            } => Prepared::Hadamard {
                rotation: Rotation {
                    block: size(block),
                    seed: *seed,
                },
                inverse: *inverse,
            },
            Native::Slice { start, width } => Prepared::Slice {
                start: size(start),
                width: size(width),
            },
            Native::Positions => Prepared::Positions,
            Native::FirstToken => Prepared::FirstToken,
        }
    }

    /// Whether a call must see all tokens of a sequence: there is no cache of those before.
    pub(super) fn needs_whole_sequences(&self) -> bool {
        matches!(
            self,
            Prepared::Attention { cache: None, .. } | Prepared::FirstToken
        )
    }

    /// Whether each row of the result depends on the same row of the inputs only.
    pub(super) fn is_row_wise(&self) -> bool {
        !matches!(
            self,
            Prepared::Attention { .. }
                | Prepared::Rope { .. }
                | Prepared::Positions
                | Prepared::FirstToken
        )
    }
}

/// Runs one native op.
pub(super) fn native(run: &mut Run, step: &Step, native: &Prepared) -> Result<Tensor, ExecError> {
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
            rotary_dim,
            interleaved,
        } => {
            if heads.checked_mul(*head_dim).is_none() || rotary_dim > head_dim {
                let problem =
                    format!("{rotary_dim} rotary dimensions of {heads} heads of {head_dim}");
                return Err(misfit(step, problem));
            }
            rotate(run, step, *table, (*heads, *head_dim), *interleaved)
        }
        Prepared::Attention { shape, cache } => attend(run, step, shape, *cache),
        Prepared::Activate(function) => in_place(run, step, |pool, x| {
            activation::activate(pool, *function, x)
        }),
        Prepared::Softcap(cap) => {
            in_place(run, step, |pool, x| elementwise::softcap(pool, *cap, x))
        }
        Prepared::Hadamard { rotation, inverse } => {
            let x = run.own(step, 0)?;
            turned(run, step, x, rotation, *inverse)
        }
        Prepared::Scale(factor) => scale(run, step, *factor),
        Prepared::Add => binary(run, step, elementwise::add),
        Prepared::Mul => binary(run, step, elementwise::mul),
        Prepared::Slice { start, width } => slice(run, step, *start, *width),
        Prepared::Positions => positions(run, step),
        Prepared::FirstToken => first_token(run, step),
    }
}

fn rms_norm(
    run: &mut Run,
    step: &Step,
    eps: f32,
    unit_offset: bool,
    slice: Option<usize>,
) -> Result<Tensor, ExecError> {
    let x = run.operand(step, 0)?;
    let (shape, len) = (x.shape.clone(), x.len());
    let (width, gains) = (x.width(), run.floats(step, 1)?.len());
    let part = slice.unwrap_or(width);
    if part == 0 || gains != part || !width.is_multiple_of(part) {
        let problem = format!("activations {shape:?} and a gain of {gains}");
        return Err(misfit(step, problem));
    }
    let mut out = run.buffers.take(len);
    let (x, gain) = (run.floats(step, 0)?, run.floats(step, 1)?);
    norm::rms_norm(&run.engine.pool, x, gain, eps, unit_offset, &mut out);
    Ok(Tensor::f32(&shape, out))
}

fn layer_norm(run: &mut Run, step: &Step, eps: f32) -> Result<Tensor, ExecError> {
    let x = run.operand(step, 0)?;
    let (shape, len, width) = (x.shape.clone(), x.len(), x.width());
    let mut out = run.buffers.take(len);
    let (x, gain) = (run.floats(step, 0)?, run.floats(step, 1)?);
    let bias = match step.inputs.get(2) {
        None | Some(Arg::None) => None,
        Some(_) => Some(run.floats(step, 2)?),
    };
    let fits = |part: &[f32]| part.len() == width && width > 0;
    if !fits(gain) || !bias.is_none_or(fits) {
        let problem = format!("activations {shape:?} and a gain of {}", gain.len());
        return Err(misfit(step, problem));
    }
    norm::layer_norm(&run.engine.pool, x, gain, bias, eps, &mut out);
    Ok(Tensor::f32(&shape, out))
}

fn rotate(
    run: &mut Run,
    step: &Step,
    table: usize,
    (heads, head_dim): (usize, usize),
    interleaved: bool,
) -> Result<Tensor, ExecError> {
    let x = run.operand(step, 0)?;
    if x.width() != heads * head_dim {
        let problem = format!("activations {:?} for {heads} heads of {head_dim}", x.shape);
        return Err(misfit(step, problem));
    }
    let arg = step.inputs.get(1).copied().unwrap_or(Arg::None);
    angles_of(run, step, table, 0, arg)?;
    let mut x = run.own(step, 0)?;
    let found = run.angles.iter().find(|(of, _)| *of == (table, arg));
    if let Some((_, angles)) = found {
        let values = floats_mut(step, &mut x)?;
        rope::rotate(
            &run.engine.pool,
            angles,
            heads,
            head_dim,
            interleaved,
            values,
        );
    }
    Ok(x)
}

/// Angles of every row of input `of` at the positions `at`; made once for all layers.
pub(super) fn angles_of<'r>(
    run: &'r mut Run,
    step: &Step,
    table: usize,
    of: usize,
    at: Arg,
) -> Result<&'r Angles, ExecError> {
    let known = run.angles.iter().position(|(of, _)| *of == (table, at));
    let place = match known {
        Some(place) => place,
        None => {
            let angles = angles(run, step, table, of, at)?;
            run.angles.push(((table, at), angles));
            run.angles.len() - 1
        }
    };
    let found = run.angles.get(place).map(|(_, angles)| angles);
    found.ok_or_else(|| misfit(step, "no such table"))
}

/// Angles of every row of a rotary embedding's input.
fn angles(run: &Run, step: &Step, table: usize, of: usize, at: Arg) -> Result<Angles, ExecError> {
    let x = run.operand(step, of)?;
    let positions = run.get(at);
    let positions = positions.ok_or_else(|| misfit(step, "positions have no value"))?;
    let ids = positions.integers();
    let ids = ids.ok_or_else(|| misfit(step, "positions must be integers"))?;
    if ids.len() != x.rows() && ids.len() != sequence_len(x) {
        let problem = format!(
            "activations {:?} and positions {:?}",
            x.shape, positions.shape
        );
        return Err(misfit(step, problem));
    }
    // Positions of one sequence serve all sequences.
    let each = ids.iter().copied().cycle().take(x.rows());
    let each: Option<Vec<u32>> = each.map(|p| u32::try_from(p).ok()).collect();
    let each = each.ok_or_else(|| misfit(step, "a position below 0 or above 2^32"))?;
    let tables = &run.engine.program.rope_tables;
    let table = tables
        .get(table)
        .ok_or_else(|| misfit(step, "no such table"))?;
    let expected = run.state.as_ref().map_or(0, |state| state.expected());
    Ok(table.angles(&each, expected))
}

fn in_place(
    run: &mut Run,
    step: &Step,
    f: impl FnOnce(&Pool, &mut [f32]),
) -> Result<Tensor, ExecError> {
    let mut x = run.own(step, 0)?;
    f(&run.engine.pool, floats_mut(step, &mut x)?);
    Ok(x)
}

fn floats_mut<'t>(step: &Step, x: &'t mut Tensor) -> Result<&'t mut [f32], ExecError> {
    let name = x.type_name();
    match &mut x.data {
        Data::F32(values) => Ok(values),
        _ => Err(misfit(step, format!("input 0 is {name}, not f32"))),
    }
}

/// Rows turned, or turned back.
pub(super) fn turned(
    run: &Run,
    step: &Step,
    mut x: Tensor,
    rotation: &Rotation,
    inverse: bool,
) -> Result<Tensor, ExecError> {
    let (width, shape) = (x.width(), x.shape.clone());
    let hadamard = hadamard::Hadamard::new(*rotation, width).ok_or_else(|| {
        let block = rotation.block;
        misfit(step, format!("blocks of {block} do not divide {shape:?}"))
    })?;
    let values = floats_mut(step, &mut x)?;
    match inverse {
        true => hadamard.inverse(&run.engine.pool, values),
        false => hadamard.forward(&run.engine.pool, values),
    }
    Ok(x)
}

fn scale(run: &mut Run, step: &Step, factor: f32) -> Result<Tensor, ExecError> {
    let mut x = run.own(step, 0)?;
    let factor = match step.inputs.get(1) {
        None | Some(Arg::None) => factor,
        Some(_) => {
            let given = run.floats(step, 1)?;
            let one = given.first().filter(|_| given.len() == 1);
            *one.ok_or_else(|| misfit(step, "the factor is not a single number"))?
        }
    };
    elementwise::scale(&run.engine.pool, factor, floats_mut(step, &mut x)?);
    Ok(x)
}

/// `x (+|·) y` of equal shapes, or with a `y` that is repeated over the rows.
fn binary(
    run: &mut Run,
    step: &Step,
    f: fn(&Pool, &[f32], &mut [f32]),
) -> Result<Tensor, ExecError> {
    let (a, b) = (run.operand(step, 0)?, run.operand(step, 1)?);
    let (first, second) = if a.len() >= b.len() { (0, 1) } else { (1, 0) };
    let (long, short) = if first == 0 { (a, b) } else { (b, a) };
    fits(step, long, short)?;
    let mut x = run.own(step, first)?;
    let y = run.floats(step, second)?;
    repeated(&run.engine.pool, y, floats_mut(step, &mut x)?, f);
    Ok(x)
}

/// `x (+|·) y`, `y` repeated over the rows of `x`.
fn repeated(pool: &Pool, y: &[f32], x: &mut [f32], f: fn(&Pool, &[f32], &mut [f32])) {
    if y.len() == x.len() {
        f(pool, y, x);
        return;
    }
    let width = y.len().max(1);
    x.chunks_mut(width).for_each(|row| f(pool, y, row));
}

/// activation(first) · second; one may be repeated over the rows of the other.
pub(super) fn glu(run: &mut Run, step: &Step, function: Activation) -> Result<Tensor, ExecError> {
    let (gate, up) = (run.operand(step, 0)?, run.operand(step, 1)?);
    let (equal, longer) = (gate.shape == up.shape, gate.len() >= up.len());
    if !equal {
        let (long, short) = if longer { (gate, up) } else { (up, gate) };
        fits(step, long, short)?;
    }
    let mut gate = run.own(step, 0)?;
    if equal {
        let up = run.floats(step, 1)?;
        activation::gated(&run.engine.pool, function, up, floats_mut(step, &mut gate)?);
        return Ok(gate);
    }
    activation::activate(&run.engine.pool, function, floats_mut(step, &mut gate)?);
    if longer {
        let up = run.floats(step, 1)?;
        repeated(
            &run.engine.pool,
            up,
            floats_mut(step, &mut gate)?,
            elementwise::mul,
        );
        return Ok(gate);
    }
    let mut up = run.own(step, 1)?;
    let gate = floats_mut(step, &mut gate)?;
    repeated(
        &run.engine.pool,
        gate,
        floats_mut(step, &mut up)?,
        elementwise::mul,
    );
    Ok(up)
}

/// Whether the shorter can be repeated over the rows of the longer.
fn fits(step: &Step, long: &Tensor, short: &Tensor) -> Result<(), ExecError> {
    if long.shape.ends_with(&short.shape) || squeezed(&long.shape).ends_with(squeezed(&short.shape))
    {
        return Ok(());
    }
    let problem = format!("shapes {:?} and {:?} do not fit", long.shape, short.shape);
    Err(misfit(step, problem))
}

/// A shape without its leading ones.
fn squeezed(shape: &[usize]) -> &[usize] {
    let ones = shape.iter().take_while(|&&d| d == 1).count();
    shape.get(ones..).unwrap_or_default()
}

fn slice(run: &mut Run, step: &Step, start: usize, width: usize) -> Result<Tensor, ExecError> {
    let x = run.operand(step, 0)?;
    let whole = x.width();
    let end = start.checked_add(width).filter(|&end| end <= whole);
    let end = end.ok_or_else(|| {
        misfit(
            step,
            format!("columns {start} .. + {width} of activations {:?}", x.shape),
        )
    })?;
    let (rows, mut shape) = (x.rows(), x.shape.clone());
    if let Some(last) = shape.last_mut() {
        *last = width;
    }
    let mut out = run.buffers.take(rows * width);
    let x = run.floats(step, 0)?;
    elementwise::slice(&run.engine.pool, x, whole, start..end, &mut out);
    Ok(Tensor::f32(&shape, out))
}

fn positions(run: &mut Run, step: &Step) -> Result<Tensor, ExecError> {
    let ids = run.operand(step, 0)?;
    let len = ids.width().max(1);
    let past = |row: usize| run.state.as_ref().map_or(0, |s| s.len(row));
    let of = |i: usize| i64::try_from(past(i / len) + i % len).unwrap_or(i64::MAX);
    Ok(Tensor::i64(&ids.shape, (0..ids.len()).map(of).collect()))
}

fn first_token(run: &mut Run, step: &Step) -> Result<Tensor, ExecError> {
    let x = run.operand(step, 0)?;
    let ((count, len), width) = (sequences(x), x.width());
    let values = run.floats(step, 0)?;
    let each = (len * width).max(1);
    let out: Vec<f32> = values
        .chunks(each)
        .flat_map(|s| s.iter().take(width))
        .copied()
        .collect();
    Ok(Tensor::f32(&[count, width], out))
}
