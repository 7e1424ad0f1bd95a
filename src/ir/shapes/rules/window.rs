//! Convolutions and pools.

use super::{Fact, Names, Node, Size, Table, one};
use crate::weights::DType;

pub(super) const RULES: Table = &[
    (&["Conv"], conv),
    (&["ConvInteger"], conv_integer),
    (&["QLinearConv"], qlinear_conv),
    (&["ConvTranspose"], conv_transpose),
    (&["AveragePool", "LpPool", "MaxPool"], pool),
    (
        &["GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool"],
        global_pool,
    ),
];

/// How a window moves over the spatial axes.
struct Window {
    kernel: Vec<Size>,
    strides: Vec<i64>,
    dilations: Vec<i64>,
    pads: Vec<i64>,
    auto_pad: String,
    ceil: bool,
}

impl Window {
    fn of(node: &Node<'_>, axes: usize, weight: Option<&[Size]>) -> Option<Self> {
        let list = |name: &str, count: usize, default: i64| -> Option<Vec<i64>> {
            match node.ints(name)? {
                None => Some(vec![default; count]),
                Some(list) => (list.len() == count).then(|| list.to_vec()),
            }
        };
        let kernel = match node.ints("kernel_shape")? {
            Some(sizes) => sizes.iter().map(|&n| Size::of(n)).collect(),
            None => weight?.get(2..)?.to_vec(),
        };
        let pads = axes.checked_mul(2)?;
        Some(Self {
            kernel,
            strides: list("strides", axes, 1)?,
            dilations: list("dilations", axes, 1)?,
            pads: list("pads", pads, 0)?,
            auto_pad: node.text("auto_pad")?.to_owned(),
            ceil: node.int("ceil_mode", 0)? != 0,
        })
        .filter(|window| window.kernel.len() == axes)
    }

    /// The number of windows along spatial axis `at` of length `size`.
    fn count(&self, at: usize, size: &Size) -> Option<Size> {
        let stride = *self.strides.get(at).filter(|n| **n > 0)?;
        let same = self.auto_pad.starts_with("SAME");
        if same {
            return match (size.known(), stride) {
                (_, 1) => Some(size.clone()),
                (Some(n), _) => Some(Size::of(n.checked_add(stride - 1)?.checked_div(stride)?)),
                _ => None,
            };
        }
        let kernel = self.kernel.get(at)?.known()?;
        let reach = kernel
            .checked_sub(1)?
            .checked_mul(*self.dilations.get(at)?)?;
        let pads = match self.auto_pad.as_str() {
            "VALID" => 0,
            "" | "NOTSET" => {
                let after = self.pads.get(self.kernel.len().checked_add(at)?)?;
                self.pads.get(at)?.checked_add(*after)?
            }
            _ => return None,
        };
        let room = size.plus(&Size::of(pads.checked_sub(reach)?.checked_sub(1)?))?;
        let steps = match (room.known(), stride) {
            (_, 1) => room,
            (Some(room), _) if room >= 0 && !(self.ceil && room % stride != 0) => {
                Size::of(room.checked_div(stride)?)
            }
            _ => return None,
        };
        steps.plus(&Size::of(1))
    }

    fn counts(&self, sizes: &[Size], names: &mut Names) -> Vec<Size> {
        let sizes = sizes.iter().enumerate();
        sizes
            .map(|(at, size)| {
                let count = self.count(at, size);
                names.or_unnamed(count)
            })
            .collect()
    }
}

fn conv_as(
    node: &Node<'_>,
    weight: usize,
    dtype: Option<DType>,
    names: &mut Names,
) -> Option<Vec<Fact>> {
    let filters = node.shape(weight);
    let rank = node.shape(0).or(filters).map(<[Size]>::len);
    let Some(rank) = rank.filter(|n| *n >= 3) else {
        return one(dtype, None);
    };
    let out = names.or_unnamed(filters.and_then(|w| w.first().cloned()));
    let (batch, sizes) = match node.shape(0) {
        Some([batch, _, sizes @ ..]) => (batch.clone(), sizes.to_vec()),
        _ => (names.unnamed(), super::unnamed(rank - 2, names)),
    };
    let window = Window::of(node, sizes.len(), filters);
    let mut shape = vec![batch, out];
    shape.extend(match window {
        Some(window) => window.counts(&sizes, names),
        None => super::unnamed(sizes.len(), names),
    });
    one(dtype, Some(shape))
}

fn conv(node: &Node<'_>, names: &mut Names) -> Option<Vec<Fact>> {
    conv_as(node, 1, node.dtype(0).or(node.dtype(1)), names)
}

fn conv_integer(node: &Node<'_>, names: &mut Names) -> Option<Vec<Fact>> {
    conv_as(node, 1, Some(DType::I32), names)
}

fn qlinear_conv(node: &Node<'_>, names: &mut Names) -> Option<Vec<Fact>> {
    conv_as(node, 3, node.dtype(7), names)
}

fn conv_transpose(node: &Node<'_>, names: &mut Names) -> Option<Vec<Fact>> {
    let dtype = node.dtype(0);
    let Some([batch, _, sizes @ ..]) = node.shape(0) else {
        return one(dtype, None);
    };
    let per_group = node.shape(1).and_then(|w| w.get(1));
    let out = per_group.and_then(|n| n.times(&Size::of(node.int("group", 1)?)));
    let mut shape = vec![batch.clone(), names.or_unnamed(out)];
    shape.extend(super::unnamed(sizes.len(), names));
    one(dtype, Some(shape))
}

fn pool(node: &Node<'_>, names: &mut Names) -> Option<Vec<Fact>> {
    let dtype = node.dtype(0);
    let Some([batch, channels, sizes @ ..]) = node.shape(0) else {
        return one(dtype, None);
    };
    let mut shape = vec![batch.clone(), channels.clone()];
    shape.extend(match Window::of(node, sizes.len(), None) {
        Some(window) => window.counts(sizes, names),
        None => super::unnamed(sizes.len(), names),
    });
    let positions = Fact::new(Some(DType::I64), Some(shape.clone()));
    Some(vec![Fact::new(dtype, Some(shape)), positions])
}

fn global_pool(node: &Node<'_>, _: &mut Names) -> Option<Vec<Fact>> {
    let mut shape = node.shape(0).map(<[Size]>::to_vec);
    if let Some(shape) = &mut shape {
        shape.iter_mut().skip(2).for_each(|d| *d = Size::of(1));
    }
    one(node.dtype(0), shape)
}
