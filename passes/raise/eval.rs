//! What ONNX nodes compute: shapes of everything, numbers of what does not depend on activations.

use std::rc::Rc;

use super::movement;
use super::reduce;
use super::tensor::{Tensor, broadcast_shape, count};
use crate::ir::{Attr, OnnxOp};
use crate::weights::DType;

/// A node's inputs at one probe; `None` where one is left out or unknown.
pub(super) type Inputs<'a> = &'a [Option<Tensor>];

/// An integer attribute.
pub(super) fn int(onnx: &OnnxOp, name: &str, default: i64) -> i64 {
    onnx.attrs
        .get(name)
        .and_then(Attr::as_int)
        .unwrap_or(default)
}

/// A float attribute.
pub(super) fn float(onnx: &OnnxOp, name: &str) -> Option<f64> {
    onnx.attrs.get(name).and_then(Attr::as_float).map(f64::from)
}

/// Input number `at`.
pub(super) fn input<'a>(inputs: Inputs<'a>, at: usize) -> Option<&'a Tensor> {
    inputs.get(at)?.as_ref()
}

/// Integers of input number `at`, or else of an attribute.
pub(super) fn listed(onnx: &OnnxOp, name: &str, inputs: Inputs<'_>, at: usize) -> Option<Vec<i64>> {
    match input(inputs, at) {
        Some(tensor) => tensor.integers(),
        None => onnx.attrs.get(name)?.as_ints().map(<[i64]>::to_vec),
    }
}

/// The results of a node; `None` where nothing is known.
pub(super) fn eval(onnx: &OnnxOp, inputs: Inputs<'_>, results: usize) -> Vec<Option<Tensor>> {
    if !matches!(onnx.domain.as_str(), "" | "ai.onnx") {
        return contributed(onnx, inputs);
    }
    if onnx.op_type == "Split" {
        return movement::split(onnx, inputs, results).unwrap_or_default();
    }
    vec![one(onnx, inputs)]
}

/// Shapes of the ops of `com.microsoft` that are raised.
fn contributed(onnx: &OnnxOp, inputs: Inputs<'_>) -> Vec<Option<Tensor>> {
    if onnx.domain != "com.microsoft" {
        return Vec::new();
    }
    let x = input(inputs, 0).map(|x| Tensor::shaped(x.dtype, x.shape.clone()));
    match onnx.op_type.as_str() {
        "SkipLayerNormalization" | "SkipSimplifiedLayerNormalization" => {
            vec![x.clone(), None, None, x]
        }
        "GroupQueryAttention" => {
            let packed = input(inputs, 1).is_none();
            let kv = int(onnx, "kv_num_heads", 0);
            let heads = int(onnx, "num_heads", 0);
            let narrowed = x.and_then(|mut x| {
                if packed {
                    let width = *x.shape.last()? as i64;
                    let own = width.checked_mul(heads)? / (heads + 2 * kv).max(1);
                    *x.shape.last_mut()? = usize::try_from(own).ok()?;
                }
                Some(x)
            });
            vec![narrowed]
        }
        "MultiHeadAttention" | "Gelu" | "FastGelu" | "BiasGelu" | "QuickGelu"
        | "RotaryEmbedding" => vec![x],
        _ => Vec::new(),
    }
}

fn one(onnx: &OnnxOp, inputs: Inputs<'_>) -> Option<Tensor> {
    let x = input(inputs, 0);
    match onnx.op_type.as_str() {
        "Identity" | "Dropout" => x.cloned(),
        "Cast" => cast(onnx, x?),
        "CastLike" => Some(Tensor {
            dtype: input(inputs, 1)?.dtype,
            ..x?.clone()
        }),
        "Where" => select(inputs),
        "Clip" => clip(onnx, inputs),
        "Shape" => shape_of(onnx, x?),
        "Size" => Some(Tensor::new(
            DType::I64,
            Vec::new(),
            vec![count(&x?.shape)? as f64],
        )),
        "Softmax"
        | "LayerNormalization"
        | "RMSNormalization"
        | "Gelu"
        | "LogSoftmax"
        | "SimplifiedLayerNormalization"
        | "RotaryEmbedding"
        | "Attention"
        | "Swish" => Some(Tensor::shaped(x?.dtype, x?.shape.clone())),
        "MatMul" => reduce::matmul(x?, input(inputs, 1)?),
        "Gemm" => reduce::gemm(onnx, inputs),
        name => unary(name, x)
            .or_else(|| variadic(name, inputs))
            .or_else(|| reduce::reduce(name, onnx, inputs))
            .or_else(|| movement::moved(name, onnx, inputs)),
    }
}

fn cast(onnx: &OnnxOp, x: &Tensor) -> Option<Tensor> {
    let to = i32::try_from(int(onnx, "to", 0))
        .ok()
        .and_then(DType::from_onnx)?;
    let whole = to.is_integer() && x.dtype.is_float();
    let convert = |v: &f64| match to {
        DType::Bool => f64::from(*v != 0.0),
        _ if whole => v.trunc(),
        _ => *v,
    };
    let data = x
        .values()
        .map(|data| Rc::new(data.iter().map(convert).collect()));
    Some(Tensor {
        dtype: to,
        shape: x.shape.clone(),
        data,
    })
}

fn shape_of(onnx: &OnnxOp, x: &Tensor) -> Option<Tensor> {
    let rank = i64::try_from(x.rank()).ok()?;
    let place = |at: i64| usize::try_from(if at < 0 { at + rank } else { at }.clamp(0, rank)).ok();
    let (start, end) = (
        place(int(onnx, "start", 0))?,
        place(int(onnx, "end", rank))?,
    );
    let dims = x.shape.get(start..end.max(start))?;
    Some(Tensor::ints(dims.iter().map(|&d| d as f64).collect()))
}

fn unary(name: &str, x: Option<&Tensor>) -> Option<Tensor> {
    let apply: fn(f64) -> f64 = match name {
        "Neg" => |x| -x,
        "Abs" => f64::abs,
        "Sqrt" => f64::sqrt,
        "Reciprocal" => f64::recip,
        "Cos" => f64::cos,
        "Sin" => f64::sin,
        "Exp" => f64::exp,
        "Log" => f64::ln,
        "Tanh" => f64::tanh,
        "Sigmoid" => |x| 1.0 / (1.0 + (-x).exp()),
        "Relu" => |x| x.max(0.0),
        "Erf" => super::expr::erf,
        "Floor" => f64::floor,
        "Ceil" => f64::ceil,
        "Round" => f64::round_ties_even,
        "Sign" => |x| if x == 0.0 { 0.0 } else { x.signum() },
        "Not" => |x| f64::from(x == 0.0),
        "IsNaN" => |x| f64::from(x.is_nan()),
        "IsInf" => |x| f64::from(x.is_infinite()),
        _ => return None,
    };
    let x = x?;
    let dtype = match name {
        "Not" | "IsNaN" | "IsInf" => DType::Bool,
        _ => x.dtype,
    };
    let data = x
        .values()
        .map(|data| Rc::new(data.iter().map(|&v| apply(v)).collect()));
    Some(Tensor {
        dtype,
        shape: x.shape.clone(),
        data,
    })
}

fn variadic(name: &str, inputs: Inputs<'_>) -> Option<Tensor> {
    let first = input(inputs, 0)?;
    let integral = first.dtype.is_integer();
    let (apply, truth): (fn(f64, f64) -> f64, bool) = match name {
        "Add" | "Sum" => (|a, b| a + b, false),
        "Sub" => (|a, b| a - b, false),
        "Mul" => (|a, b| a * b, false),
        "Div" if integral => (|a, b| (a / b).trunc(), false),
        "Div" => (|a, b| a / b, false),
        "Pow" => (f64::powf, false),
        "Mod" if integral => (f64::rem_euclid, false),
        "Mod" => (|a, b| a % b, false),
        "Min" => (f64::min, false),
        "Max" => (f64::max, false),
        "And" | "BitwiseAnd" => (|a, b| f64::from(a != 0.0 && b != 0.0), true),
        "Or" | "BitwiseOr" => (|a, b| f64::from(a != 0.0 || b != 0.0), true),
        "Xor" => (|a, b| f64::from((a != 0.0) != (b != 0.0)), true),
        "Equal" => (|a, b| f64::from(a == b), true),
        "Less" => (|a, b| f64::from(a < b), true),
        "LessOrEqual" => (|a, b| f64::from(a <= b), true),
        "Greater" => (|a, b| f64::from(a > b), true),
        "GreaterOrEqual" => (|a, b| f64::from(a >= b), true),
        _ => return None,
    };
    if name.starts_with("Bitwise") && first.dtype != DType::Bool {
        return None;
    }
    let mut sum = first.clone();
    for at in 1..inputs.len() {
        sum = binary(&sum, input(inputs, at)?, apply)?;
    }
    if truth {
        sum.dtype = DType::Bool;
    }
    Some(sum)
}

/// An op of two tensors, element by element.
fn binary(a: &Tensor, b: &Tensor, apply: fn(f64, f64) -> f64) -> Option<Tensor> {
    let shape = broadcast_shape(&a.shape, &b.shape)?;
    if a.data.is_none() || b.data.is_none() {
        return Some(Tensor::shaped(a.dtype, shape));
    }
    let (x, y) = (a.broadcast(&shape)?, b.broadcast(&shape)?);
    let (Some(left), Some(right)) = (x.values(), y.values()) else {
        return Some(Tensor::shaped(a.dtype, shape));
    };
    let data = left.iter().zip(right).map(|(&l, &r)| apply(l, r)).collect();
    Some(Tensor::new(a.dtype, shape, data))
}

fn select(inputs: Inputs<'_>) -> Option<Tensor> {
    let (c, a, b) = (input(inputs, 0)?, input(inputs, 1)?, input(inputs, 2)?);
    let shape = broadcast_shape(&broadcast_shape(&c.shape, &a.shape)?, &b.shape)?;
    let wide = [c, a, b].map(|t| t.broadcast(&shape));
    let [Some(c), Some(a), Some(b)] = wide else {
        return None;
    };
    let (Some(choice), Some(x), Some(y)) = (c.values(), a.values(), b.values()) else {
        return Some(Tensor::shaped(a.dtype, shape));
    };
    let pick = |((&c, &x), &y): ((&f64, &f64), &f64)| if c != 0.0 { x } else { y };
    let data = choice.iter().zip(x).zip(y).map(pick).collect();
    Some(Tensor::new(a.dtype, shape, data))
}

fn clip(onnx: &OnnxOp, inputs: Inputs<'_>) -> Option<Tensor> {
    let x = input(inputs, 0)?;
    let bound = |at: usize, name: &str, default: f64| match input(inputs, at) {
        Some(bound) => bound.number(),
        None => Some(float(onnx, name).unwrap_or(default)),
    };
    let low = bound(1, "min", f64::NEG_INFINITY)?;
    let high = bound(2, "max", f64::INFINITY)?;
    let data = x
        .values()
        .map(|data| Rc::new(data.iter().map(|v| v.max(low).min(high)).collect()));
    Some(Tensor { data, ..x.clone() })
}
