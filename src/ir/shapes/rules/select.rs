//! Ops that pick elements, count them or make them up: Gather, Slice, Shape, Range, fills.

use super::{Fact, Names, Node, Size, Table, axes_of, axis_of, one, product, unnamed};
use crate::weights::DType;

pub(super) const RULES: Table = &[
    (&["Shape"], shape),
    (&["Size"], size),
    (&["Gather"], gather),
    (&["GatherElements"], gather_elements),
    (&["GatherND"], gather_nd),
    (&["Slice"], slice),
    (&["ConstantOfShape"], constant_of_shape),
    (&["Range"], range),
    (&["NonZero"], non_zero),
    (&["TopK"], top_k),
    (&["OneHot"], one_hot),
    (&["Resize", "Upsample"], resize),
];

/// Ends beyond this mean the end.
const FAR: i64 = i32::MAX as i64;

fn shape(node: &Node<'_>, _: &mut Names) -> Option<Vec<Fact>> {
    let Some(shape) = node.shape(0) else {
        return one(Some(DType::I64), None);
    };
    let rank = i64::try_from(shape.len()).ok()?;
    let bound = |at: i64| if at < 0 { at.saturating_add(rank) } else { at }.clamp(0, rank);
    let from = bound(node.int("start", 0)?);
    let to = bound(node.int("end", rank)?).max(from);
    let part = shape.get(usize::try_from(from).ok()?..usize::try_from(to).ok()?)?;
    let data = part.iter().cloned().map(Some).collect();
    Some(vec![Fact::ints(data, false)])
}

fn size(node: &Node<'_>, _: &mut Names) -> Option<Vec<Fact>> {
    let count = node.shape(0).and_then(product);
    Some(vec![Fact::ints(vec![count], true)])
}

fn gather(node: &Node<'_>, _: &mut Names) -> Option<Vec<Fact>> {
    let (x, indices) = (node.fact(0)?, node.fact(1)?);
    let axis = node.int("axis", 0)?;
    let (Some(dims), Some(picked)) = (&x.shape, &indices.shape) else {
        return one(x.dtype, None);
    };
    let axis = axis_of(axis, dims.len())?;
    let (head, tail) = (dims.get(..axis)?, dims.get(axis + 1..)?);
    let made = Fact::new(x.dtype, Some([head, picked, tail].concat()));
    let pick = || {
        let data = x.data.as_ref().filter(|_| dims.len() == 1)?;
        let at = |index: &i64| axis_of(*index, data.len());
        let pick = |index: &i64| at(index).and_then(|at| data.get(at)).cloned().flatten();
        Some(indices.numbers()?.iter().map(pick).collect())
    };
    let data = pick();
    Some(vec![made.with_data(data)])
}

fn gather_elements(node: &Node<'_>, _: &mut Names) -> Option<Vec<Fact>> {
    one(node.dtype(0), node.fact(1)?.shape.clone())
}

fn gather_nd(node: &Node<'_>, _: &mut Names) -> Option<Vec<Fact>> {
    let batch = usize::try_from(node.int("batch_dims", 0)?).ok()?;
    let known = || {
        let (x, indices) = (node.shape(0)?, node.shape(1)?);
        let (last, lead) = indices.split_last()?;
        let depth = usize::try_from(last.known()?).ok()?;
        let rest = x.get(batch.checked_add(depth)?..)?;
        Some([lead, rest].concat())
    };
    one(node.dtype(0), known())
}

fn slice(node: &Node<'_>, names: &mut Names) -> Option<Vec<Fact>> {
    let x = node.fact(0)?;
    let Some(dims) = &x.shape else {
        return one(x.dtype, None);
    };
    let given = |name: &str, at: usize| -> Option<Vec<Option<Size>>> {
        match node.fact(at) {
            Some(fact) => Some(fact.data.as_ref()?.to_vec()),
            None => {
                let list = node.ints(name)??;
                Some(list.iter().map(|&n| Some(Size::of(n))).collect())
            }
        }
    };
    let absent = |name: &str, at: usize| !node.has(at) && node.onnx.attrs.get(name).is_none();
    let axes = match absent("axes", 3) {
        // As many of the first axes as there are starts.
        true => {
            let count = node.fact(1).map_or_else(
                || Some(node.ints("starts")??.len()),
                |fact| usize::try_from(fact.shape.as_ref()?.first()?.known()?).ok(),
            );
            count.map(|n| (0..n.min(dims.len())).collect::<Vec<_>>())
        }
        false => node
            .numbers_of("axes", 3)
            .flatten()
            .and_then(|axes| axes_of(&axes, dims.len())),
    };
    let Some(axes) = axes else {
        return one(x.dtype, Some(unnamed(dims.len(), names)));
    };
    let (starts, ends) = (given("starts", 1), given("ends", 2));
    let steps = given("steps", 4);
    let mut shape = dims.clone();
    let mut bounds = None;
    for (index, axis) in axes.into_iter().enumerate() {
        let of = |list: &Option<Vec<Option<Size>>>| list.as_ref()?.get(index)?.clone();
        let step = match absent("steps", 4) {
            true => Some(1),
            false => of(&steps).and_then(|step| step.known()),
        };
        let (start, end) = (of(&starts), of(&ends));
        let slot = shape.get_mut(axis)?;
        bounds = Some((start.clone(), end.clone(), step));
        *slot = cut(names, slot, start.as_ref(), end.as_ref(), step);
    }
    let data = bounds.and_then(|bounds| elements(x, bounds));
    Some(vec![Fact::new(x.dtype, Some(shape)).with_data(data)])
}

/// First and last position, clamped as Slice does, and the number of steps between them.
fn span(n: i64, start: i64, end: i64, step: i64) -> Option<(i64, i64)> {
    let from_end = |at: i64| if at < 0 { at.saturating_add(n) } else { at };
    let (low, high) = if step > 0 { (0, n) } else { (-1, n - 1) };
    let start = from_end(start).clamp(low.max(0).min(high.max(0)), high.max(0));
    let end = from_end(end).clamp(low, high.max(low));
    let gap = end.checked_sub(start)?;
    let count = match step {
        0 => return None,
        1.. => gap.checked_add(step - 1)?.checked_div(step)?,
        _ => gap.checked_add(step + 1)?.checked_div(step)?,
    };
    Some((start, if n == 0 { 0 } else { count.max(0) }))
}

/// What a slice leaves of a dimension.
fn cut(
    names: &mut Names,
    dim: &Size,
    start: Option<&Size>,
    end: Option<&Size>,
    step: Option<i64>,
) -> Size {
    let (Some(start), Some(end), Some(step)) = (start, end, step) else {
        return names.unnamed();
    };
    match (dim.known(), start.known(), end.known(), step) {
        (Some(n), Some(start), Some(end), step) => match span(n, start, end, step) {
            Some((_, count)) => Size::of(count),
            None => names.unnamed(),
        },
        // All of it, forwards or backwards.
        (None, Some(0), Some(FAR..), 1) => dim.clone(),
        (None, Some(-1), Some(end), -1) if end < -FAR => dim.clone(),
        (None, Some(0), Some(end), 1) if end >= 0 => names.lesser(dim, end),
        (None, Some(start), Some(FAR..), 1) if (-FAR..0).contains(&start) => {
            names.lesser(dim, -start)
        }
        (_, Some(0), None, 1) if end == dim => dim.clone(),
        (Some(n), Some(0), None, 1) if end.never_negative() => names.lesser(end, n),
        _ => names.unnamed(),
    }
}

/// The elements that a slice of a vector picks.
fn elements(
    x: &Fact,
    (start, end, step): (Option<Size>, Option<Size>, Option<i64>),
) -> Option<Vec<Option<Size>>> {
    let data = x.data.as_ref().filter(|_| x.rank() == Some(1))?;
    let n = i64::try_from(data.len()).ok()?;
    let step = step?;
    let (first, count) = span(n, start?.known()?, end?.known()?, step)?;
    let at = |k: i64| usize::try_from(first.checked_add(k.checked_mul(step)?)?).ok();
    (0..count).map(|k| data.get(at(k)?).cloned()).collect()
}

fn constant_of_shape(node: &Node<'_>, names: &mut Names) -> Option<Vec<Fact>> {
    if node.onnx.attrs.get("value").is_some() && node.value.is_none() {
        return None;
    }
    let dtype = match &node.value {
        Some(value) => value.dtype,
        None => Some(DType::F32),
    };
    let target = node.fact(0)?;
    let shape: Vec<Size> = match (&target.data, &target.shape) {
        (Some(data), _) => data.iter().map(|d| names.or_unnamed(d.clone())).collect(),
        (None, Some(dims)) => {
            let rank = usize::try_from(dims.first()?.known()?).ok();
            unnamed(rank.filter(|n| *n <= 64)?, names)
        }
        _ => return one(dtype, None),
    };
    let made = Fact::new(dtype, Some(shape));
    let fill = node.value.as_ref().and_then(|value| value.data.clone());
    let data = match (fill.as_deref().map(Vec::as_slice), made.elements()) {
        (Some([only]), Some(count)) => Some(vec![only.clone(); count]),
        _ => None,
    };
    Some(vec![made.with_data(data)])
}

fn range(node: &Node<'_>, names: &mut Names) -> Option<Vec<Fact>> {
    let dtype = node.dtype(0);
    let scalar = |at: usize| match node.fact(at)?.data.as_ref()?.as_slice() {
        [only] => only.clone(),
        _ => None,
    };
    let (start, limit, delta) = (scalar(0), scalar(1), scalar(2));
    let known = |size: &Option<Size>| size.as_ref().and_then(Size::known);
    let count = || match (known(&start), known(&limit), known(&delta)?) {
        (Some(start), Some(limit), delta) => {
            let gap = i128::from(limit) - i128::from(start);
            let delta = i128::from(delta);
            let count = (gap + delta - delta.signum()).checked_div(delta)?;
            Some(Size::of(i64::try_from(count.max(0)).ok()?))
        }
        (_, _, 1) => limit
            .as_ref()?
            .minus(start.as_ref()?)
            .filter(Size::never_negative),
        _ => None,
    };
    let length = count();
    let made = Fact::new(dtype, Some(vec![names.or_unnamed(length)]));
    let data = || {
        let (start, delta) = (known(&start)?, known(&delta)?);
        let count = i64::try_from(made.elements()?).ok()?;
        let at = |k: i64| start.checked_add(k.checked_mul(delta)?).map(Size::of);
        Some((0..count).map(at).collect())
    };
    let data = data();
    Some(vec![made.with_data(data)])
}

fn non_zero(node: &Node<'_>, names: &mut Names) -> Option<Vec<Fact>> {
    let rank = node
        .shape(0)
        .and_then(|shape| i64::try_from(shape.len()).ok());
    // A scalar counts as a vector of one in some versions.
    let rank = names.or_unnamed(rank.filter(|n| *n > 0).map(Size::of));
    let count = names.unnamed();
    one(Some(DType::I64), Some(vec![rank, count]))
}

fn top_k(node: &Node<'_>, names: &mut Names) -> Option<Vec<Fact>> {
    let axis = node.int("axis", -1)?;
    let k = match node.fact(1) {
        Some(fact) => fact
            .data
            .as_ref()
            .and_then(|data| data.first().cloned().flatten()),
        None => Some(Size::of(node.int("k", -1)?)),
    };
    let mut shape = node.shape(0).map(<[Size]>::to_vec);
    if let Some(dims) = &mut shape {
        let axis = axis_of(axis, dims.len())?;
        *dims.get_mut(axis)? = names.or_unnamed(k);
    }
    let values = Fact::new(node.dtype(0), shape.clone());
    Some(vec![values, Fact::new(Some(DType::I64), shape)])
}

fn one_hot(node: &Node<'_>, names: &mut Names) -> Option<Vec<Fact>> {
    let axis = node.int("axis", -1)?;
    let mut shape = node.shape(0).map(<[Size]>::to_vec);
    if let Some(dims) = &mut shape {
        let axis = axis_of(axis, dims.len() + 1)?;
        let depth = node.fact(1).and_then(|fact| fact.data.clone());
        let depth = depth.and_then(|data| data.first().cloned().flatten());
        dims.insert(axis, names.or_unnamed(depth));
    }
    one(node.dtype(2), shape)
}

fn resize(node: &Node<'_>, names: &mut Names) -> Option<Vec<Fact>> {
    let rank = node.fact(0)?.rank();
    let sizes = node.numbers(3).filter(|sizes| Some(sizes.len()) == rank);
    let plain = node.onnx.op_type == "Resize"
        && node.onnx.attrs.get("axes").is_none()
        && matches!(node.text("keep_aspect_ratio_policy")?, "" | "stretch");
    let shape = match (sizes.filter(|_| plain), rank) {
        (Some(sizes), _) => {
            let sizes = sizes.into_iter();
            Some(sizes.map(|n| names.or_unnamed(Some(Size::of(n)))).collect())
        }
        (None, rank) => rank.map(|rank| unnamed(rank, names)),
    };
    one(node.dtype(0), shape)
}
