//! Nodes that sum over axes.

use super::eval::{Inputs, input, int, listed};
use super::tensor::{MAX_ELEMENTS, Tensor, broadcast_shape, count};
use crate::ir::OnnxOp;
use crate::weights::DType;

/// Multiplications of the largest product whose numbers are followed.
const MAX_PRODUCTS: usize = 1 << 26;

pub(super) fn reduce(name: &str, onnx: &OnnxOp, inputs: Inputs<'_>) -> Option<Tensor> {
    let (start, fold): (f64, fn(f64, f64) -> f64) = match name {
        "ReduceSum" | "ReduceMean" => (0.0, |a, b| a + b),
        "ReduceMax" => (f64::NEG_INFINITY, f64::max),
        "ReduceMin" => (f64::INFINITY, f64::min),
        "ReduceProd" => (1.0, |a, b| a * b),
        "ArgMax" | "ArgMin" => return arg(name, onnx, inputs),
        _ => return None,
    };
    let x = input(inputs, 0)?;
    let axes = axes(onnx, inputs)?;
    let keep = int(onnx, "keepdims", 1) != 0;
    let full: Vec<usize> = dims(x, &axes, true);
    let shape = dims(x, &axes, keep);
    let total = count(&shape).filter(|n| *n <= MAX_ELEMENTS);
    let (Some(data), Some(total)) = (x.values(), total) else {
        return Some(Tensor::shaped(x.dtype, shape));
    };
    let own = super::tensor::strides(&x.shape);
    let to = super::tensor::strides(&full);
    let mut out = vec![start; total];
    for (flat, &value) in data.iter().enumerate() {
        let mut at = 0usize;
        for (axis, (&step, &target)) in own.iter().zip(&to).enumerate() {
            let here = flat / step.max(1) as usize % (*x.shape.get(axis)?).max(1);
            if !axes.contains(&axis) {
                at += here * target as usize;
            }
        }
        let slot = out.get_mut(at)?;
        *slot = fold(*slot, value);
    }
    if name == "ReduceMean" {
        let n = data.len() as f64 / out.len().max(1) as f64;
        out.iter_mut().for_each(|v| *v /= n);
    }
    Some(Tensor::new(x.dtype, shape, out))
}

/// The axes that a reduction sums over.
pub(super) fn axes(onnx: &OnnxOp, inputs: Inputs<'_>) -> Option<Vec<usize>> {
    let x = input(inputs, 0)?;
    match listed(onnx, "axes", inputs, 1) {
        Some(axes) if !axes.is_empty() => axes.iter().map(|&a| x.axis(a)).collect(),
        _ if int(onnx, "noop_with_empty_axes", 0) != 0 => Some(Vec::new()),
        _ => Some((0..x.rank()).collect()),
    }
}

fn dims(x: &Tensor, axes: &[usize], keep: bool) -> Vec<usize> {
    let dims = x.shape.iter().enumerate();
    let kept = dims.filter_map(|(axis, &d)| match axes.contains(&axis) {
        true => keep.then_some(1),
        false => Some(d),
    });
    kept.collect()
}

/// Shapes alone: nothing that is raised depends on which element is largest.
fn arg(_name: &str, onnx: &OnnxOp, inputs: Inputs<'_>) -> Option<Tensor> {
    let x = input(inputs, 0)?;
    let axis = x.axis(int(onnx, "axis", 0))?;
    Some(Tensor::shaped(
        DType::I64,
        dims(x, &[axis], int(onnx, "keepdims", 1) != 0),
    ))
}

pub(super) fn gemm(onnx: &OnnxOp, inputs: Inputs<'_>) -> Option<Tensor> {
    let (a, b) = (input(inputs, 0)?, input(inputs, 1)?);
    let side = |t: &Tensor, flip: bool| t.shape.get(usize::from(flip)).copied();
    let rows = side(a, int(onnx, "transA", 0) != 0)?;
    let cols = side(b, int(onnx, "transB", 0) == 0)?;
    Some(Tensor::shaped(a.dtype, vec![rows, cols]))
}

pub(super) fn matmul(a: &Tensor, b: &Tensor) -> Option<Tensor> {
    if a.rank() < 2 || b.rank() < 2 {
        return None;
    }
    let (lead_a, m) = a.shape.split_at(a.rank() - 2);
    let (lead_b, n) = b.shape.split_at(b.rank() - 2);
    let (&[m, k], &[k2, n]) = (m, n) else {
        return None;
    };
    let lead = broadcast_shape(lead_a, lead_b)?;
    let mut shape = lead.clone();
    shape.extend([m, n]);
    let total = count(&shape)?;
    let small = (1..=MAX_ELEMENTS).contains(&total) && total.checked_mul(k)? <= MAX_PRODUCTS;
    if k != k2 || a.data.is_none() || b.data.is_none() || !small {
        return (k == k2).then(|| Tensor::shaped(a.dtype, shape));
    }
    let wide = |t: &Tensor, rows: usize, cols: usize| {
        let mut shape = lead.clone();
        shape.extend([rows, cols]);
        t.broadcast(&shape)
    };
    let (a, b) = (wide(a, m, k)?, wide(b, k, n)?);
    let (Some(x), Some(y)) = (a.values(), b.values()) else {
        return Some(Tensor::shaped(a.dtype, shape));
    };
    let mut out = Vec::with_capacity(total);
    for block in 0..count(&lead)? {
        for row in 0..m {
            for col in 0..n {
                let at = |i: usize| {
                    let left = x.get((block * m + row) * k + i)?;
                    Some(left * y.get((block * k + i) * n + col)?)
                };
                out.push((0..k).map(at).sum::<Option<f64>>()?);
            }
        }
    }
    Some(Tensor::new(a.dtype, shape, out))
}
