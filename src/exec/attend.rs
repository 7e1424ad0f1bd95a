//! Attention on tensors: heads checked, caches extended, the kernel called.

use super::kernels::attention::{self, AttentionShape, Keys};
use super::program::Step;
use super::run::{Run, misfit};
use super::tensor::{Data, Tensor};
use super::{ExecError, State};

/// Tokens of each sequence.
pub(super) fn sequence_len(x: &Tensor) -> usize {
    x.shape.len().checked_sub(2).map_or(1, |i| x.shape[i])
}

/// Sequences and their length: `[B,S,width]`, or `[S,width]` for one.
pub(super) fn sequences(x: &Tensor) -> (usize, usize) {
    let len = sequence_len(x);
    (x.rows().checked_div(len).unwrap_or(0), len)
}

/// Attention, over the cache where the run has one.
pub(super) fn attend(
    run: &mut Run,
    step: &Step,
    shape: &AttentionShape,
    cache: Option<usize>,
) -> Result<Tensor, ExecError> {
    let (q, k, v) = (
        run.operand(step, 0)?,
        run.operand(step, 1)?,
        run.operand(step, 2)?,
    );
    check_heads(step, shape, (q, k, v))?;
    let (count, kv_len) = (sequences(q).0, sequences(k).1);
    let out_shape = q.shape.clone();
    let mask = key_mask(run, step, 3, count * kv_len)?;
    if run.state.is_some() && cache.is_some() && mask.iter().flatten().any(|&m| m == 0.0) {
        let problem = "a mask that hides keys, where keys of earlier calls are kept";
        return Err(misfit(step, problem));
    }
    let mut out = run.buffers.take(out_shape.iter().product());
    let state = run.state.take();
    let result = match (state, cache) {
        (Some(state), Some(slot)) => {
            let result = append(run, step, shape, (state, slot), count);
            if result.is_ok() {
                attend_cached(run, step, shape, (state, slot), &mut out)?;
            }
            run.state = Some(state);
            result
        }
        (state, _) => {
            run.state = state;
            attend_whole(run, step, shape, (count, kv_len, mask.as_deref()), &mut out)
        }
    };
    result.map(|()| Tensor::f32(&out_shape, out))
}

pub(super) fn check_heads(
    step: &Step,
    shape: &AttentionShape,
    (q, k, v): (&Tensor, &Tensor, &Tensor),
) -> Result<(), ExecError> {
    let wide = shape.heads.checked_mul(shape.head_dim);
    let narrow = shape.kv_heads.checked_mul(shape.head_dim);
    let heads = shape.kv_heads > 0 && shape.heads.is_multiple_of(shape.kv_heads);
    if heads
        && shape.head_dim > 0
        && Some(q.width()) == wide
        && Some(k.width()) == narrow
        && k.shape == v.shape
        && sequences(k).0 == sequences(q).0
    {
        return Ok(());
    }
    let problem = format!(
        "queries {:?}, keys {:?} and values {:?} do not fit {} heads ({} for keys) of {}",
        q.shape, k.shape, v.shape, shape.heads, shape.kv_heads, shape.head_dim
    );
    Err(misfit(step, problem))
}

/// Appends keys and values to the sequences' caches.
fn append(
    run: &Run,
    step: &Step,
    shape: &AttentionShape,
    (state, slot): (&mut State, usize),
    count: usize,
) -> Result<(), ExecError> {
    let (k, v) = (run.floats(step, 1)?, run.floats(step, 2)?);
    let each = k.len().checked_div(count).unwrap_or(0).max(1);
    if state.sequences.len() != count {
        let problem = format!(
            "{count} sequences where the cache has {}",
            state.sequences.len()
        );
        return Err(misfit(step, problem));
    }
    let parts = k.chunks(each).zip(v.chunks(each));
    for (sequence, (k, v)) in state.sequences.iter_mut().zip(parts) {
        let slot = sequence.slots.get_mut(slot);
        let slot = slot.filter(|s| s.keys.fits(shape.kv_heads, shape.head_dim));
        let slot = slot.ok_or_else(|| misfit(step, "the state has no cache of such heads"))?;
        slot.keys.push(k);
        slot.values.extend_from_slice(v);
    }
    Ok(())
}

fn attend_cached(
    run: &Run,
    step: &Step,
    shape: &AttentionShape,
    (state, slot): (&State, usize),
    out: &mut [f32],
) -> Result<(), ExecError> {
    let q = run.floats(step, 0)?;
    let each = q
        .len()
        .checked_div(state.sequences.len())
        .unwrap_or(0)
        .max(1);
    let of = |(sequence, queries)| {
        let sequence: &super::state::Sequence = sequence;
        let slot = sequence.slots.get(slot)?;
        Some(attention::Sequence {
            queries,
            keys: Keys::Cache(&slot.keys),
            values: &slot.values,
            past: sequence.len,
            mask: None,
        })
    };
    let sequences = state.sequences.iter().zip(q.chunks(each)).filter_map(of);
    let sequences: Vec<_> = sequences.collect();
    attention::attention(&run.engine.pool, shape, &sequences, out);
    Ok(())
}

fn attend_whole(
    run: &Run,
    step: &Step,
    shape: &AttentionShape,
    (count, kv_len, mask): (usize, usize, Option<&[f32]>),
    out: &mut [f32],
) -> Result<(), ExecError> {
    let (q, k, v) = (
        run.floats(step, 0)?,
        run.floats(step, 1)?,
        run.floats(step, 2)?,
    );
    let each = |x: &[f32]| x.len().checked_div(count).unwrap_or(0).max(1);
    let keys = k.chunks(each(k)).zip(v.chunks(each(v)));
    let sequences: Vec<_> = q
        .chunks(each(q))
        .zip(keys)
        .enumerate()
        .map(|(s, (queries, (keys, values)))| attention::Sequence {
            queries,
            keys: Keys::Rows(keys),
            values,
            past: 0,
            mask: mask.and_then(|m| m.get(s * kv_len..(s + 1) * kv_len)),
        })
        .collect();
    attention::attention(&run.engine.pool, shape, &sequences, out);
    Ok(())
}

/// Which keys may be attended to, of all sequences.
pub(super) fn key_mask(
    run: &Run,
    step: &Step,
    input: usize,
    keys: usize,
) -> Result<Option<Vec<f32>>, ExecError> {
    let Some(mask) = step.inputs.get(input).and_then(|a| run.get(*a)) else {
        return Ok(None);
    };
    if mask.len() != keys {
        let problem = format!("a mask {:?} for {keys} keys", mask.shape);
        return Err(misfit(step, problem));
    }
    let odd = match &mask.data {
        Data::I64(m) => m.iter().find(|m| !(0..=1).contains(*m)).map(|&m| m as f32),
        Data::F32(m) => m.iter().copied().find(|&m| m != 0.0 && m != 1.0),
        Data::Bool(_) => None,
    };
    if let Some(odd) = odd {
        let problem = format!("a mask of keys has {odd}: 1 keeps a key and 0 hides it");
        return Err(misfit(step, problem));
    }
    Ok(Some(match &mask.data {
        Data::I64(m) => m.iter().map(|&m| f32::from(u8::from(m != 0))).collect(),
        Data::F32(m) => m.clone(),
        Data::Bool(m) => m.iter().map(|&m| f32::from(u8::from(m))).collect(),
    }))
}
