//! Ops that work on elements, with broadcasting; small integer tensors are computed.

use super::{Fact, Names, Node, Size, Table, broadcast, one};
use crate::weights::DType;

pub(super) const RULES: Table = &[
    (
        &[
            "Abs",
            "Acos",
            "Acosh",
            "Asin",
            "Asinh",
            "Atan",
            "Atanh",
            "BatchNormalization",
            "BitwiseNot",
            "Ceil",
            "Celu",
            "Clip",
            "Cos",
            "Cosh",
            "CumSum",
            "Elu",
            "Erf",
            "Exp",
            "Floor",
            "Gelu",
            "GroupNormalization",
            "HardSigmoid",
            "HardSwish",
            "Hardmax",
            "InstanceNormalization",
            "LRN",
            "LeakyRelu",
            "Log",
            "LogSoftmax",
            "LpNormalization",
            "MeanVarianceNormalization",
            "Mish",
            "PRelu",
            "RMSNormalization",
            "Reciprocal",
            "Relu",
            "ReverseSequence",
            "RotaryEmbedding",
            "Round",
            "Scatter",
            "ScatterElements",
            "ScatterND",
            "Selu",
            "Shrink",
            "Sigmoid",
            "Sign",
            "Sin",
            "Sinh",
            "Softmax",
            "Softplus",
            "Softsign",
            "Sqrt",
            "Swish",
            "Tan",
            "Tanh",
            "TensorScatter",
            "ThresholdedRelu",
            "Trilu",
        ],
        like_first,
    ),
    (&["Identity"], identity),
    (&["Neg", "Not"], unary),
    (&["IsNaN", "IsInf"], test),
    (&["Dropout"], dropout),
    (&["LayerNormalization"], layer_norm),
    (
        &[
            "Add",
            "BitShift",
            "BitwiseAnd",
            "BitwiseOr",
            "BitwiseXor",
            "Div",
            "Max",
            "Mean",
            "Min",
            "Mod",
            "Mul",
            "Pow",
            "Sub",
            "Sum",
        ],
        arithmetic,
    ),
    (
        &[
            "And",
            "Equal",
            "Greater",
            "GreaterOrEqual",
            "Less",
            "LessOrEqual",
            "Or",
            "Xor",
        ],
        comparison,
    ),
    (&["Where"], where_),
    (&["Cast"], cast),
    (&["CastLike"], cast_like),
];

/// Type and shape of the first input; its elements are others.
pub(super) fn like_first(node: &Node<'_>, _: &mut Names) -> Option<Vec<Fact>> {
    let first = node.fact(0)?;
    one(first.dtype, first.shape.clone())
}

fn identity(node: &Node<'_>, _: &mut Names) -> Option<Vec<Fact>> {
    Some(vec![node.fact(0)?.clone()])
}

fn unary(node: &Node<'_>, _: &mut Names) -> Option<Vec<Fact>> {
    let x = node.fact(0)?;
    let not = node.onnx.op_type == "Not";
    let each = |x: &Option<Size>| {
        let x = x.as_ref()?;
        match not {
            true => Some(Size::of(i64::from(x.known()? == 0))),
            false => x.times(&Size::of(-1)),
        }
    };
    let data = x.data.as_ref().map(|data| data.iter().map(each).collect());
    Some(vec![Fact::new(x.dtype, x.shape.clone()).with_data(data)])
}

fn test(node: &Node<'_>, _: &mut Names) -> Option<Vec<Fact>> {
    one(Some(DType::Bool), node.fact(0)?.shape.clone())
}

fn dropout(node: &Node<'_>, _: &mut Names) -> Option<Vec<Fact>> {
    let x = node.fact(0)?;
    // The mask had the input's type before opset 10.
    Some(vec![
        Fact::new(x.dtype, x.shape.clone()),
        Fact::new(None, x.shape.clone()),
    ])
}

fn layer_norm(node: &Node<'_>, _: &mut Names) -> Option<Vec<Fact>> {
    let x = node.fact(0)?;
    let axis = node.int("axis", -1)?;
    let mut inner = x.shape.clone();
    if let Some(shape) = &mut inner {
        let axis = super::axis_of(axis, shape.len())?;
        shape.iter_mut().skip(axis).for_each(|d| *d = Size::of(1));
    }
    let stash = node.dtype_attr("stash_type")?.unwrap_or(DType::F32);
    let statistic = Fact::new(Some(stash), inner);
    let y = Fact::new(x.dtype, x.shape.clone());
    Some(vec![y, statistic.clone(), statistic])
}

/// What the shapes of all inputs are broadcast to.
fn broadcast_all(node: &Node<'_>, names: &mut Names) -> Option<Vec<Size>> {
    // Before opset 7 the first input gave the shape.
    let old = ["axis", "broadcast"];
    if old.iter().any(|name| node.onnx.attrs.get(name).is_some()) {
        return Some(node.shape(0)?.to_vec());
    }
    let mut shape = node.shape(0)?.to_vec();
    for at in 1..node.inputs.len() {
        shape = broadcast(&shape, node.shape(at)?, names);
    }
    Some(shape)
}

/// Elements of input `at`, spread to `count` of them.
fn spread(node: &Node<'_>, at: usize, count: usize) -> Option<Vec<Option<Size>>> {
    let data = node.fact(at)?.data.as_ref()?;
    match data.as_slice() {
        [one] => Some(vec![one.clone(); count]),
        all if all.len() == count && node.fact(at)?.rank()? <= 1 => Some(all.to_vec()),
        _ => None,
    }
}

/// Two inputs' elements put together, where all is small and lies in one row.
fn zip(
    node: &Node<'_>,
    made: &Fact,
    each: impl Fn(&Size, &Size) -> Option<Size>,
) -> Option<Vec<Option<Size>>> {
    let count = made
        .elements()
        .filter(|_| made.rank().is_some_and(|rank| rank <= 1))?;
    let (a, b) = (spread(node, 0, count)?, spread(node, 1, count)?);
    let pairs = a.iter().zip(&b);
    Some(pairs.map(|(a, b)| each(a.as_ref()?, b.as_ref()?)).collect())
}

fn arithmetic(node: &Node<'_>, names: &mut Names) -> Option<Vec<Fact>> {
    let made = Fact::new(node.dtype(0), broadcast_all(node, names));
    let integer = matches!(made.dtype, Some(DType::I64 | DType::I32));
    if !integer || node.inputs.len() != 2 {
        return Some(vec![made]);
    }
    let op = node.onnx.op_type.as_str();
    let each = |a: &Size, b: &Size| match op {
        "Add" => a.plus(b),
        "Sub" => a.minus(b),
        "Mul" => a.times(b),
        "Div" => quotient(a, b),
        "Max" | "Min" => {
            let (x, y) = (a.known()?, b.known()?);
            Some(Size::of(if op == "Max" { x.max(y) } else { x.min(y) }))
        }
        "Mod" => Some(Size::of(a.known()?.checked_rem_euclid(positive(b)?)?)),
        _ => None,
    };
    let data = zip(node, &made, each);
    Some(vec![made.with_data(data)])
}

fn positive(size: &Size) -> Option<i64> {
    size.known().filter(|value| *value > 0)
}

/// Division that rounds to zero; exact ones alone where names are in it.
fn quotient(a: &Size, b: &Size) -> Option<Size> {
    match (a.known(), b.known()) {
        (Some(x), Some(y)) => Some(Size::of(x.checked_div(y)?)),
        _ => a.over(b),
    }
}

fn comparison(node: &Node<'_>, names: &mut Names) -> Option<Vec<Fact>> {
    let made = Fact::new(Some(DType::Bool), broadcast_all(node, names));
    let op = node.onnx.op_type.as_str();
    let each = |a: &Size, b: &Size| {
        if op == "Equal" {
            return a.differs(b).map(|differ| Size::of(i64::from(!differ)));
        }
        let (x, y) = (a.known()?, b.known()?);
        let holds = match op {
            "Greater" => x > y,
            "GreaterOrEqual" => x >= y,
            "Less" => x < y,
            "LessOrEqual" => x <= y,
            "And" => x != 0 && y != 0,
            "Or" => x != 0 || y != 0,
            _ => (x != 0) != (y != 0),
        };
        Some(Size::of(i64::from(holds)))
    };
    let data = zip(node, &made, each);
    Some(vec![made.with_data(data)])
}

fn where_(node: &Node<'_>, names: &mut Names) -> Option<Vec<Fact>> {
    let made = Fact::new(node.dtype(1), broadcast_all(node, names));
    let choose = || {
        let count = made
            .elements()
            .filter(|_| made.rank().is_some_and(|rank| rank <= 1))?;
        let (c, x) = (spread(node, 0, count)?, spread(node, 1, count)?);
        let y = spread(node, 2, count)?;
        let each = c.iter().zip(x.iter().zip(&y));
        let each = each.map(|(c, (x, y))| match c.as_ref().and_then(Size::known) {
            Some(0) => y.clone(),
            Some(_) => x.clone(),
            None => x.clone().filter(|_| x == y),
        });
        Some(each.collect())
    };
    let data = choose();
    Some(vec![made.with_data(data)])
}

fn cast(node: &Node<'_>, _: &mut Names) -> Option<Vec<Fact>> {
    let to = node.dtype_attr("to")??;
    Some(vec![converted(node.fact(0)?, Some(to))])
}

fn cast_like(node: &Node<'_>, _: &mut Names) -> Option<Vec<Fact>> {
    Some(vec![converted(node.fact(0)?, node.dtype(1))])
}

fn converted(x: &Fact, to: Option<DType>) -> Fact {
    let each = |x: &Option<Size>| {
        let x = x.as_ref()?;
        match (to?, x.known()) {
            (DType::I64, _) => Some(x.clone()),
            // Sizes that are names are taken to fit, as the model takes them to.
            (DType::I32, None) => Some(x.clone()),
            (DType::I32, Some(value)) => i32::try_from(value).ok().map(|_| x.clone()),
            (DType::Bool, Some(value)) => Some(Size::of(i64::from(value != 0))),
            _ => None,
        }
    };
    let data = x.data.as_ref().map(|data| data.iter().map(each).collect());
    Fact::new(to, x.shape.clone()).with_data(data)
}
