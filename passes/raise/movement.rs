//! Nodes that move elements: shapes, and numbers where they are known.

use super::eval::{Inputs, input, int, listed};
use super::indexing;
use super::tensor::{MAX_ELEMENTS, MAX_RANK, Tensor, axis_of, count, strides};
use crate::ir::OnnxOp;
use crate::weights::DType;

pub(super) fn moved(name: &str, onnx: &OnnxOp, inputs: Inputs<'_>) -> Option<Tensor> {
    let x = || input(inputs, 0);
    match name {
        "Reshape" => reshape(onnx, x()?, &input(inputs, 1)?.integers()?),
        "Flatten" => {
            let x = x()?;
            let axis = int(onnx, "axis", 1);
            let at = if axis == x.rank() as i64 {
                x.rank()
            } else {
                x.axis(axis)?
            };
            let (rows, cols) = (count(x.shape.get(..at)?)?, count(x.shape.get(at..)?)?);
            x.reshaped(vec![rows, cols])
        }
        "Squeeze" => squeeze(onnx, inputs),
        "Unsqueeze" => unsqueeze(x()?, &listed(onnx, "axes", inputs, 1)?),
        "Transpose" => transpose(x()?, &permutation(onnx, x()?.rank())?),
        "Expand" => {
            let wanted = sizes(&input(inputs, 1)?.integers()?)?;
            let shape = super::tensor::broadcast_shape(&x()?.shape, &wanted)?;
            x()?.broadcast(&shape)
        }
        "Tile" => tile(x()?, &sizes(&input(inputs, 1)?.integers()?)?),
        "Slice" => slice(x()?, &slices(onnx, inputs)?),
        "Concat" => concat(onnx, inputs),
        "Gather" => {
            let at = input(inputs, 1)?;
            let axis = x()?.axis(int(onnx, "axis", 0))?;
            let Some(index) = at.integers() else {
                let mut shape = x()?.shape.get(..axis)?.to_vec();
                shape.extend(&at.shape);
                shape.extend(x()?.shape.get(axis + 1..)?);
                return Some(Tensor::shaped(x()?.dtype, shape));
            };
            x()?.take(axis, &index, &at.shape)
        }
        "GatherElements" => indexing::gather_elements(onnx, x()?, input(inputs, 1)?),
        "GatherND" => indexing::gather_nd(onnx, x()?, input(inputs, 1)?),
        "ScatterND" => indexing::scatter_nd(x()?, input(inputs, 1)?, input(inputs, 2)?),
        "Range" => range(inputs),
        "ConstantOfShape" => {
            let shape = sizes(&x()?.integers()?)?;
            let value = input(inputs, 1);
            let dtype = value.map_or(DType::F32, |v| v.dtype);
            let number = value.map_or(Some(0.0), Tensor::number)?;
            let total = count(&shape).filter(|n| *n <= MAX_ELEMENTS)?;
            Some(Tensor::new(dtype, shape, vec![number; total]))
        }
        "Trilu" => trilu(onnx, inputs),
        "CumSum" => cumsum(onnx, inputs),
        "NonZero" => nonzero(x()?),
        _ => None,
    }
}

/// Sizes that are not negative.
fn sizes(values: &[i64]) -> Option<Vec<usize>> {
    values.iter().map(|&v| usize::try_from(v).ok()).collect()
}

/// The order of a Transpose's axes.
pub(super) fn permutation(onnx: &OnnxOp, rank: usize) -> Option<Vec<usize>> {
    match onnx.attrs.get("perm").and_then(crate::ir::Attr::as_ints) {
        None => Some((0..rank).rev().collect()),
        Some(perm) if perm.len() == rank => perm.iter().map(|&p| axis_of(p, rank)).collect(),
        Some(_) => None,
    }
}

fn transpose(x: &Tensor, perm: &[usize]) -> Option<Tensor> {
    let own = strides(&x.shape);
    let shape = perm
        .iter()
        .map(|&p| x.shape.get(p).copied())
        .collect::<Option<_>>()?;
    let steps: Vec<isize> = perm
        .iter()
        .map(|&p| own.get(p).copied())
        .collect::<Option<_>>()?;
    x.strided(shape, 0, &steps)
}

fn reshape(onnx: &OnnxOp, x: &Tensor, target: &[i64]) -> Option<Tensor> {
    let zero_is_zero = int(onnx, "allowzero", 0) != 0;
    let mut shape = Vec::with_capacity(target.len());
    for (at, &dim) in target.iter().enumerate() {
        shape.push(match dim {
            0 if !zero_is_zero => *x.shape.get(at)?,
            -1 => 1,
            dim => usize::try_from(dim).ok()?,
        });
    }
    if let Some(at) = target.iter().position(|&d| d == -1) {
        let rest = count(&shape)?;
        let total = count(&x.shape)?;
        *shape.get_mut(at)? = total.checked_div(rest)?;
    }
    x.reshaped(shape)
}

fn squeeze(onnx: &OnnxOp, inputs: Inputs<'_>) -> Option<Tensor> {
    let x = input(inputs, 0)?;
    let axes = match listed(onnx, "axes", inputs, 1) {
        Some(axes) => axes
            .iter()
            .map(|&a| x.axis(a))
            .collect::<Option<Vec<_>>>()?,
        None => (0..x.rank())
            .filter(|&a| x.shape.get(a) == Some(&1))
            .collect(),
    };
    let kept = x
        .shape
        .iter()
        .enumerate()
        .filter(|(at, _)| !axes.contains(at));
    x.reshaped(kept.map(|(_, &d)| d).collect())
}

/// Where an Unsqueeze puts new axes, in the result.
pub(super) fn new_axes(axes: &[i64], rank: usize) -> Option<Vec<usize>> {
    let rank = rank + axes.len();
    axes.iter().map(|&axis| axis_of(axis, rank)).collect()
}

fn unsqueeze(x: &Tensor, axes: &[i64]) -> Option<Tensor> {
    if axes.len() > MAX_RANK {
        return None;
    }
    let new = new_axes(axes, x.rank())?;
    let mut old = x.shape.iter();
    let dims = (0..x.rank() + new.len()).map(|at| match new.contains(&at) {
        true => Some(1),
        false => old.next().copied(),
    });
    x.reshaped(dims.collect::<Option<_>>()?)
}

fn tile(x: &Tensor, repeats: &[usize]) -> Option<Tensor> {
    let sizes = x.shape.iter().zip(repeats).map(|(&d, &n)| d.checked_mul(n));
    let shape: Vec<usize> = sizes.collect::<Option<_>>()?;
    if repeats.len() != x.rank() {
        return None;
    }
    // Nothing is repeated before it is known to be small.
    let total = count(&shape)?;
    if total == 0 || total > MAX_ELEMENTS || x.data.is_none() {
        return Some(Tensor::shaped(x.dtype, shape));
    }
    let mut out = x.clone();
    for (axis, &n) in repeats.iter().enumerate() {
        let size = *out.shape.get(axis)?;
        let at: Vec<i64> = (0..n).flat_map(|_| 0..size as i64).collect();
        out = out.take(axis, &at, &[at.len()])?;
    }
    Some(out)
}

/// One axis of a Slice: axis, start, number of elements, step.
pub(super) type Cut = (usize, usize, usize, i64);

/// The cuts that a Slice makes.
pub(super) fn slices(onnx: &OnnxOp, inputs: Inputs<'_>) -> Option<Vec<Cut>> {
    let x = input(inputs, 0)?;
    let starts = listed(onnx, "starts", inputs, 1)?;
    let ends = listed(onnx, "ends", inputs, 2)?;
    let axes = match inputs.get(3) {
        Some(Some(axes)) => axes.integers()?,
        _ => match listed(onnx, "axes", inputs, 3) {
            Some(axes) => axes,
            None => (0..starts.len() as i64).collect(),
        },
    };
    let steps = match input(inputs, 4) {
        Some(steps) => steps.integers()?,
        None => vec![1; starts.len()],
    };
    let mut cuts = Vec::new();
    for (((start, end), axis), step) in starts.iter().zip(&ends).zip(&axes).zip(&steps) {
        let axis = x.axis(*axis)?;
        let size = i64::try_from(*x.shape.get(axis)?).ok()?;
        let place = |at: i64| if at < 0 { at.saturating_add(size) } else { at };
        let (start, count) = match *step {
            0 => return None,
            s if s > 0 => {
                let start = place(*start).clamp(0, size);
                let end = place(*end).clamp(start, size);
                (start, (end - start + s - 1) / s)
            }
            s => {
                let start = place(*start).clamp(-1, size - 1);
                let end = place(*end).clamp(-1, start);
                (start.max(0), (start - end - s - 1) / -s)
            }
        };
        cuts.push((
            axis,
            usize::try_from(start).ok()?,
            usize::try_from(count).ok()?,
            *step,
        ));
    }
    Some(cuts)
}

fn slice(x: &Tensor, cuts: &[Cut]) -> Option<Tensor> {
    let mut shape = x.shape.clone();
    let mut steps = strides(&x.shape);
    let mut start = 0isize;
    for &(axis, first, count, step) in cuts {
        let stride = steps.get_mut(axis)?;
        start += *stride * first as isize;
        *stride = stride.checked_mul(isize::try_from(step).ok()?)?;
        *shape.get_mut(axis)? = count;
    }
    x.strided(shape, start, &steps)
}

/// The pieces of a Split: the axis and each piece's first element and size.
pub(super) fn pieces(
    onnx: &OnnxOp,
    inputs: Inputs<'_>,
    results: usize,
) -> Option<(usize, Vec<(usize, usize)>)> {
    let x = input(inputs, 0)?;
    let axis = x.axis(int(onnx, "axis", 0))?;
    let size = *x.shape.get(axis)?;
    let widths = match listed(onnx, "split", inputs, 1) {
        Some(widths) => sizes(&widths)?,
        None => {
            let each = size.div_ceil(results.max(1));
            (0..results)
                .map(|i| each.min(size.saturating_sub(i * each)))
                .collect()
        }
    };
    let mut start = 0usize;
    let mut pieces = Vec::new();
    for width in widths {
        pieces.push((start, width));
        start = start.checked_add(width)?;
    }
    (start == size).then_some((axis, pieces))
}

pub(super) fn split(
    onnx: &OnnxOp,
    inputs: Inputs<'_>,
    results: usize,
) -> Option<Vec<Option<Tensor>>> {
    let x = input(inputs, 0)?;
    let (axis, pieces) = pieces(onnx, inputs, results)?;
    let cut = |(start, width)| slice(x, &[(axis, start, width, 1)]);
    Some(pieces.into_iter().map(cut).collect())
}

fn concat(onnx: &OnnxOp, inputs: Inputs<'_>) -> Option<Tensor> {
    let parts: Vec<&Tensor> = inputs.iter().map(Option::as_ref).collect::<Option<_>>()?;
    let first = *parts.first()?;
    let axis = first.axis(int(onnx, "axis", 0))?;
    let mut shape = first.shape.clone();
    let widths = parts.iter().map(|p| p.shape.get(axis).copied());
    let widths: Vec<usize> = widths.collect::<Option<_>>()?;
    *shape.get_mut(axis)? = widths.iter().try_fold(0usize, |n, &w| n.checked_add(w))?;
    let data: Option<Vec<&[f64]>> = parts.iter().map(|p| p.values()).collect();
    let total = count(&shape).filter(|n| (1..=MAX_ELEMENTS).contains(n));
    let (Some(data), Some(total)) = (data, total) else {
        return Some(Tensor::shaped(first.dtype, shape));
    };
    let outer = count(shape.get(..axis)?)?;
    let inner = count(shape.get(axis + 1..)?)?;
    let mut out = Vec::with_capacity(total);
    for block in 0..outer {
        for (part, width) in data.iter().zip(&widths) {
            let size = width * inner;
            out.extend_from_slice(part.get(block * size..(block + 1) * size)?);
        }
    }
    Some(Tensor::new(first.dtype, shape, out))
}

fn range(inputs: Inputs<'_>) -> Option<Tensor> {
    let part = |at| input(inputs, at)?.number();
    let (start, end, step) = (part(0)?, part(1)?, part(2)?);
    let n = ((end - start) / step).ceil().max(0.0);
    if !n.is_finite() || n > MAX_ELEMENTS as f64 {
        return None;
    }
    let data: Vec<f64> = (0..n as usize).map(|i| start + i as f64 * step).collect();
    Some(Tensor::new(input(inputs, 0)?.dtype, vec![data.len()], data))
}

fn trilu(onnx: &OnnxOp, inputs: Inputs<'_>) -> Option<Tensor> {
    let x = input(inputs, 0)?;
    let k = match input(inputs, 1) {
        Some(k) => k.number()? as i64,
        None => 0,
    };
    let upper = int(onnx, "upper", 1) != 0;
    let (cols, rows) = (*x.shape.last()?, *x.shape.get(x.rank().checked_sub(2)?)?);
    let Some(data) = x.values() else {
        return Some(x.clone());
    };
    let keep = |at: usize| {
        let (row, col) = ((at / cols % rows) as i64, (at % cols) as i64);
        if upper {
            col - row >= k
        } else {
            col - row <= k
        }
    };
    let pick = |(at, &v): (usize, &f64)| if keep(at) { v } else { 0.0 };
    let data = data.iter().enumerate().map(pick).collect();
    Some(Tensor::new(x.dtype, x.shape.clone(), data))
}

fn cumsum(onnx: &OnnxOp, inputs: Inputs<'_>) -> Option<Tensor> {
    let x = input(inputs, 0)?;
    let axis = x.axis(input(inputs, 1)?.number()? as i64)?;
    if int(onnx, "reverse", 0) != 0 || int(onnx, "exclusive", 0) != 0 {
        return Some(Tensor::shaped(x.dtype, x.shape.clone()));
    }
    let Some(mut data) = x.values().map(<[f64]>::to_vec) else {
        return Some(x.clone());
    };
    let (size, inner) = (*x.shape.get(axis)?, count(x.shape.get(axis + 1..)?)?);
    for at in 0..data.len() {
        if inner > 0 && at / inner % size.max(1) > 0 {
            let before = *data.get(at - inner)?;
            *data.get_mut(at)? += before;
        }
    }
    Some(Tensor::new(x.dtype, x.shape.clone(), data))
}

fn nonzero(x: &Tensor) -> Option<Tensor> {
    let own = strides(&x.shape);
    let data = x.values()?;
    let hits: Vec<usize> = (0..data.len())
        .filter(|&i| data.get(i) != Some(&0.0))
        .collect();
    let mut out = Vec::new();
    for (axis, &stride) in own.iter().enumerate() {
        let size = (*x.shape.get(axis)?).max(1);
        out.extend(
            hits.iter()
                .map(|&i| (i / stride.max(1) as usize % size) as f64),
        );
    }
    Some(Tensor::new(DType::I64, vec![x.rank(), hits.len()], out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_made_before_its_size_is_known() {
        let one = Tensor::new(DType::I64, vec![1], vec![1.0]);
        let tiled = tile(&one, &[100_000_000_000]).expect("a shape");
        assert_eq!((tiled.shape, tiled.data), (vec![100_000_000_000], None));
        assert!(tile(&one, &[usize::MAX]).is_none());
        let small = tile(&one, &[3]).expect("numbers");
        assert_eq!(small.values(), Some(&[1.0; 3][..]));
        // Many times nothing is done at once.
        let none = Tensor::new(DType::I64, vec![0], Vec::new());
        let still = tile(&none, &[1 << 39]).expect("a shape");
        assert_eq!(still.shape, [0]);
        let wide = Tensor::new(DType::I64, vec![1 << 38, 0], Vec::new());
        assert_eq!(
            wide.take(1, &[], &[0]).map(|t| t.shape),
            Some(vec![1 << 38, 0])
        );
    }
}
