//! Ops that move elements: reshape, transpose, join, cut, repeat. Small integer tensors move along.

use super::{Fact, Names, Node, Size, Table, axes_of, axis_of, broadcast, one, product, unnamed};
use crate::ir::shapes::fact::MAX_ELEMENTS;

pub(super) const RULES: Table = &[
    (&["Transpose"], transpose),
    (&["Reshape"], reshape),
    (&["Flatten"], flatten),
    (&["Squeeze"], squeeze),
    (&["Unsqueeze"], unsqueeze),
    (&["Concat"], concat),
    (&["Split"], split),
    (&["Expand"], expand),
    (&["Tile"], tile),
    (&["Pad"], pad),
    (&["DepthToSpace"], depth_to_space),
    (&["SpaceToDepth"], space_to_depth),
];

fn transpose(node: &Node<'_>, _: &mut Names) -> Option<Vec<Fact>> {
    let x = node.fact(0)?;
    let perm = node.ints("perm")?;
    let Some(shape) = &x.shape else {
        return one(x.dtype, None);
    };
    let turned: Option<Vec<Size>> = match perm {
        None => Some(shape.iter().rev().cloned().collect()),
        Some(perm) if perm.len() == shape.len() => {
            let axes = axes_of(perm, shape.len())?;
            axes.into_iter().map(|at| shape.get(at).cloned()).collect()
        }
        Some(_) => None,
    };
    one(x.dtype, turned)
}

fn reshape(node: &Node<'_>, names: &mut Names) -> Option<Vec<Fact>> {
    let x = node.fact(0)?;
    let keep_zero = node.int("allowzero", 0)? != 0;
    let wanted: Vec<Option<Size>> = match (node.fact(1), node.ints("shape")?) {
        (Some(target), _) => match (&target.data, &target.shape) {
            (Some(data), _) => data.to_vec(),
            (None, Some(shape)) => {
                let rank = shape.first()?.known()?;
                let rank = usize::try_from(rank).ok().filter(|n| *n <= 64)?;
                let shape = unnamed(rank, names);
                return one(x.dtype, Some(shape));
            }
            _ => return one(x.dtype, None),
        },
        (None, Some(given)) => given.iter().map(|&d| Some(Size::of(d))).collect(),
        (None, None) => return None,
    };
    let mut shape: Vec<Option<Size>> = Vec::with_capacity(wanted.len());
    for (at, size) in wanted.iter().enumerate() {
        shape.push(match size {
            Some(size) if size.is(0) && !keep_zero => {
                x.shape.as_ref().and_then(|dims| dims.get(at)).cloned()
            }
            Some(size) if size.is(-1) => None,
            size => size.clone(),
        });
    }
    fill_one(x, &mut shape);
    let shape = shape
        .into_iter()
        .map(|size| names.or_unnamed(size))
        .collect();
    let data = x.data.as_ref().map(|data| data.to_vec());
    Some(vec![Fact::new(x.dtype, Some(shape)).with_data(data)])
}

/// The only open size of a shape is what the input's elements leave for it.
fn fill_one(x: &Fact, shape: &mut [Option<Size>]) {
    let mut open = shape.iter_mut().filter(|size| size.is_none());
    let (Some(_), None) = (open.next(), open.next()) else {
        return;
    };
    let rest = product(shape.iter().flatten());
    let all = x.shape.as_ref().and_then(product);
    let (Some(rest), Some(all)) = (rest, all) else {
        return;
    };
    if let Some(slot) = shape.iter_mut().find(|size| size.is_none()) {
        *slot = all.over(&rest);
    }
}

fn flatten(node: &Node<'_>, names: &mut Names) -> Option<Vec<Fact>> {
    let axis = node.int("axis", 1)?;
    let Some(shape) = node.shape(0) else {
        let shape = unnamed(2, names);
        return one(node.dtype(0), Some(shape));
    };
    let rank = i64::try_from(shape.len()).ok()?;
    let axis = if axis < 0 {
        axis.checked_add(rank)?
    } else {
        axis
    };
    let (head, tail) = shape.split_at_checked(usize::try_from(axis).ok()?)?;
    let (head, tail) = (product(head), product(tail));
    let shape = vec![names.or_unnamed(head), names.or_unnamed(tail)];
    one(node.dtype(0), Some(shape))
}

fn moved(x: &Fact, shape: Option<Vec<Size>>) -> Option<Vec<Fact>> {
    let data = x.data.as_ref().map(|data| data.to_vec());
    Some(vec![Fact::new(x.dtype, shape).with_data(data)])
}

fn squeeze(node: &Node<'_>, _: &mut Names) -> Option<Vec<Fact>> {
    let x = node.fact(0)?;
    let kept = || {
        let shape = x.shape.as_ref()?;
        let gone = match node.numbers_of("axes", 1)? {
            Some(axes) => axes_of(&axes, shape.len())?,
            None => {
                // Without axes all ones go, so every size has to be known to be one or not.
                let one = |(at, d): (usize, &Size)| match d.differs(&Size::of(1)) {
                    Some(true) => Some(None),
                    Some(false) => Some(Some(at)),
                    None => None,
                };
                let ones: Option<Vec<_>> = shape.iter().enumerate().map(one).collect();
                ones?.into_iter().flatten().collect()
            }
        };
        let left = shape
            .iter()
            .enumerate()
            .filter(|(at, _)| !gone.contains(at));
        Some(left.map(|(_, d)| d.clone()).collect())
    };
    moved(x, kept())
}

fn unsqueeze(node: &Node<'_>, _: &mut Names) -> Option<Vec<Fact>> {
    let x = node.fact(0)?;
    let widened = || {
        let shape = x.shape.as_ref()?;
        let axes = node.numbers_of("axes", 1)??;
        let rank = shape.len().checked_add(axes.len()).filter(|n| *n <= 64)?;
        let mut ones = axes_of(&axes, rank)?;
        ones.sort_unstable();
        ones.dedup();
        let mut old = shape.iter().cloned();
        let size = |at: usize| match ones.contains(&at) {
            true => Some(Size::of(1)),
            false => old.next(),
        };
        let wide: Option<Vec<Size>> = (0..rank).map(size).collect();
        wide.filter(|_| ones.len() == axes.len())
    };
    moved(x, widened())
}

fn concat(node: &Node<'_>, names: &mut Names) -> Option<Vec<Fact>> {
    let axis = node.int("axis", 1)?;
    let dtype = node.dtype(0);
    let ranks = (0..node.inputs.len()).find_map(|at| node.fact(at)?.rank());
    let Some(rank) = ranks else {
        return one(dtype, None);
    };
    let axis = axis_of(axis, rank)?;
    let mut shape: Vec<Option<Size>> = vec![None; rank];
    let mut total = Some(Size::of(0));
    for at in 0..node.inputs.len() {
        let Some(part) = node.shape(at) else {
            total = None;
            continue;
        };
        if part.len() != rank {
            return None;
        }
        total = total.and_then(|sum| sum.plus(part.get(axis)?));
        for (slot, size) in shape.iter_mut().zip(part) {
            // All parts agree beside the axis: one that is known holds for all.
            match slot {
                Some(known) if known.known().is_some() || size.known().is_none() => {}
                _ => *slot = Some(size.clone()),
            }
        }
    }
    if let Some(slot) = shape.get_mut(axis) {
        *slot = total;
    }
    let shape = shape
        .into_iter()
        .map(|size| names.or_unnamed(size))
        .collect();
    let data = || {
        let parts = (0..node.inputs.len()).map(|at| node.fact(at)?.data.as_ref());
        let parts: Option<Vec<_>> = parts.collect();
        let few = |parts: &Vec<_>| {
            let lengths = parts.iter().map(|part: &&std::rc::Rc<Vec<_>>| part.len());
            lengths.sum::<usize>() <= MAX_ELEMENTS
        };
        let parts = parts.filter(few)?;
        Some(parts.iter().flat_map(|part| part.iter().cloned()).collect())
    };
    let data = if rank == 1 { data() } else { None };
    Some(vec![Fact::new(dtype, Some(shape)).with_data(data)])
}

fn split(node: &Node<'_>, names: &mut Names) -> Option<Vec<Fact>> {
    let x = node.fact(0)?;
    let axis = node.int("axis", 0)?;
    let Some(shape) = &x.shape else {
        return Some(vec![Fact::new(x.dtype, None); node.results]);
    };
    let axis = axis_of(axis, shape.len())?;
    let whole = shape.get(axis)?;
    let count = i64::try_from(node.results).ok().filter(|n| *n > 0)?;
    let given = node.has(1) || node.onnx.attrs.get("split").is_some();
    let sizes: Vec<Option<Size>> = match node.numbers_of("split", 1).flatten() {
        Some(sizes) => sizes.into_iter().map(|n| Some(Size::of(n))).collect(),
        None if given => vec![None; node.results],
        None => match whole.known() {
            // The last part is smaller where they are not equal.
            Some(n) => {
                let part = n.checked_add(count - 1)?.checked_div(count)?;
                let left = |at: i64| n.saturating_sub(at.saturating_mul(part)).clamp(0, part);
                (0..count).map(|at| Some(Size::of(left(at)))).collect()
            }
            None => vec![whole.over(&Size::of(count)); node.results],
        },
    };
    let mut from = 0usize;
    let mut parts = Vec::with_capacity(node.results);
    for size in sizes.into_iter().take(node.results) {
        let length = size.as_ref().and_then(Size::known);
        let length = length.and_then(|n| usize::try_from(n).ok());
        let data = match (&x.data, length, shape.len()) {
            (Some(data), Some(n), 1) => data.get(from..from.saturating_add(n)),
            _ => None,
        };
        let data = data.map(<[Option<Size>]>::to_vec);
        from = from.saturating_add(length.unwrap_or(MAX_ELEMENTS));
        let mut dims = shape.clone();
        *dims.get_mut(axis)? = names.or_unnamed(size);
        parts.push(Fact::new(x.dtype, Some(dims)).with_data(data));
    }
    Some(parts)
}

fn expand(node: &Node<'_>, names: &mut Names) -> Option<Vec<Fact>> {
    let x = node.fact(0)?;
    let target = node.fact(1)?;
    let rank = match (&target.data, &target.shape) {
        (Some(data), _) => Some(data.len()),
        (None, Some(shape)) => {
            let rank = shape.first().and_then(Size::known);
            rank.and_then(|n| usize::try_from(n).ok())
                .filter(|n| *n <= 64)
        }
        _ => None,
    };
    let (Some(rank), Some(shape)) = (rank, &x.shape) else {
        return one(x.dtype, None);
    };
    let wanted: Vec<Size> = match &target.data {
        Some(data) => data
            .iter()
            .map(|size| names.or_unnamed(size.clone()))
            .collect(),
        None => unnamed(rank, names),
    };
    let made = Fact::new(x.dtype, Some(broadcast(shape, &wanted, names)));
    let fill = match (x.data.as_ref().map(|data| data.as_slice()), made.elements()) {
        (Some([only]), Some(count)) => Some(vec![only.clone(); count]),
        _ => None,
    };
    Some(vec![made.with_data(fill)])
}

fn tile(node: &Node<'_>, names: &mut Names) -> Option<Vec<Fact>> {
    let x = node.fact(0)?;
    let Some(shape) = &x.shape else {
        return one(x.dtype, None);
    };
    let repeats = node.fact(1).and_then(|fact| fact.data.clone());
    let repeats = repeats.filter(|data| data.len() == shape.len());
    let tiled = match repeats {
        Some(repeats) => {
            let each = shape.iter().zip(repeats.iter());
            each.map(|(d, n)| {
                let size = n.as_ref().and_then(|n| d.times(n));
                names.or_unnamed(size)
            })
            .collect()
        }
        None => unnamed(shape.len(), names),
    };
    one(x.dtype, Some(tiled))
}

fn pad(node: &Node<'_>, names: &mut Names) -> Option<Vec<Fact>> {
    let x = node.fact(0)?;
    let Some(shape) = &x.shape else {
        return one(x.dtype, None);
    };
    let rank = shape.len();
    let padded = |names: &mut Names| {
        let old = if node.onnx.attrs.get("paddings").is_some() {
            "paddings"
        } else {
            "pads"
        };
        let pads = node.numbers_of(old, 1)??;
        let axes: Vec<usize> = match node.has(3) {
            true => axes_of(&node.numbers(3)?, rank)?,
            false => (0..rank).collect(),
        };
        let (before, after) = pads.split_at_checked(axes.len())?;
        let mut padded = shape.clone();
        for (at, (b, a)) in axes.into_iter().zip(before.iter().zip(after)) {
            let slot = padded.get_mut(at)?;
            let size = slot.plus(&Size::of(b.checked_add(*a)?));
            *slot = names.or_unnamed(size);
        }
        (after.len() == before.len()).then_some(padded)
    };
    let padded = padded(names).unwrap_or_else(|| unnamed(rank, names));
    one(x.dtype, Some(padded))
}

fn depth_to_space(node: &Node<'_>, names: &mut Names) -> Option<Vec<Fact>> {
    let [n, c, h, w] = node.shape(0)? else {
        return None;
    };
    let block = Size::of(node.int("blocksize", 0)?);
    let sizes = [
        c.over(&block.times(&block)?),
        h.times(&block),
        w.times(&block),
    ];
    let sizes = sizes.map(|size| names.or_unnamed(size));
    let shape = std::iter::once(n.clone()).chain(sizes).collect();
    one(node.dtype(0), Some(shape))
}

fn space_to_depth(node: &Node<'_>, names: &mut Names) -> Option<Vec<Fact>> {
    let [n, c, h, w] = node.shape(0)? else {
        return None;
    };
    let block = Size::of(node.int("blocksize", 0)?);
    let sizes = [
        c.times(&block.times(&block)?),
        h.over(&block),
        w.over(&block),
    ];
    let sizes = sizes.map(|size| names.or_unnamed(size));
    let shape = std::iter::once(n.clone()).chain(sizes).collect();
    one(node.dtype(0), Some(shape))
}
