//! Nodes that read or write elements at computed places.

use super::eval::int;
use super::tensor::{MAX_ELEMENTS, Tensor, axis_of, count, strides};
use crate::ir::OnnxOp;

pub(super) fn gather_elements(onnx: &OnnxOp, x: &Tensor, at: &Tensor) -> Option<Tensor> {
    let axis = x.axis(int(onnx, "axis", 0))?;
    let (Some(data), Some(index)) = (x.values(), at.integers()) else {
        return Some(Tensor::shaped(x.dtype, at.shape.clone()));
    };
    let (own, theirs) = (strides(&x.shape), strides(&at.shape));
    let size = *x.shape.get(axis)?;
    let mut out = Vec::with_capacity(index.len());
    for (flat, &chosen) in index.iter().enumerate() {
        let mut from = 0isize;
        let mut rest = flat as isize;
        for (dim, (&step, &stride)) in own.iter().zip(&theirs).enumerate() {
            let here = rest / stride.max(1);
            rest %= stride.max(1);
            let place = if dim == axis {
                axis_of(chosen, size)? as isize
            } else {
                here
            };
            from += place * step;
        }
        out.push(*data.get(usize::try_from(from).ok()?)?);
    }
    Some(Tensor::new(x.dtype, at.shape.clone(), out))
}

pub(super) fn gather_nd(onnx: &OnnxOp, x: &Tensor, at: &Tensor) -> Option<Tensor> {
    let batch = usize::try_from(int(onnx, "batch_dims", 0)).ok()?;
    let depth = *at.shape.last()?;
    let rows = at.shape.get(..at.rank() - 1)?;
    let tail = x.shape.get(batch.checked_add(depth)?..)?;
    let shape: Vec<usize> = rows.iter().chain(tail).copied().collect();
    let small = count(&shape)? <= MAX_ELEMENTS;
    let (Some(data), Some(index), 0, true) = (x.values(), at.integers(), batch, small) else {
        return Some(Tensor::shaped(x.dtype, shape));
    };
    let (own, inner) = (strides(&x.shape), count(tail)?);
    let mut out = Vec::new();
    for tuple in index.chunks(depth.max(1)) {
        let from = place(tuple, &x.shape, &own)?;
        out.extend_from_slice(data.get(from..from + inner)?);
    }
    Some(Tensor::new(x.dtype, shape, out))
}

/// Where the element starts that leading indices name.
fn place(tuple: &[i64], shape: &[usize], strides: &[isize]) -> Option<usize> {
    let mut from = 0usize;
    for ((&i, &size), &stride) in tuple.iter().zip(shape).zip(strides) {
        from += axis_of(i, size)? * stride as usize;
    }
    Some(from)
}

pub(super) fn scatter_nd(x: &Tensor, at: &Tensor, updates: &Tensor) -> Option<Tensor> {
    let depth = *at.shape.last()?;
    let (Some(data), Some(index), Some(new)) = (x.values(), at.integers(), updates.values()) else {
        return Some(Tensor::shaped(x.dtype, x.shape.clone()));
    };
    let (own, inner) = (strides(&x.shape), count(x.shape.get(depth..)?)?);
    let mut out = data.to_vec();
    for (tuple, new) in index.chunks(depth.max(1)).zip(new.chunks(inner.max(1))) {
        let from = place(tuple, &x.shape, &own)?;
        out.get_mut(from..from + inner)?
            .copy_from_slice(new.get(..inner)?);
    }
    Some(Tensor::new(x.dtype, x.shape.clone(), out))
}
