//! ONNX Runtime's own ops, as far as exporters and this tool write them.

use super::{Fact, Names, Node, Size, Table, axis_of, elementwise, one};
use crate::weights::DType;

pub(super) const RULES: Table = &[
    (
        &[
            "BiasGelu",
            "FastGelu",
            "Gelu",
            "QuickGelu",
            "RotaryEmbedding",
            "SimplifiedLayerNormalization",
            "SkipLayerNormalization",
            "SkipSimplifiedLayerNormalization",
        ],
        elementwise::like_first,
    ),
    (&["MatMulNBits"], matmul_nbits),
    (&["GatherBlockQuantized"], gather_block_quantized),
];

fn matmul_nbits(node: &Node<'_>, _: &mut Names) -> Option<Vec<Fact>> {
    let n = node.int("N", -1).filter(|n| *n >= 0)?;
    let mut shape = node.shape(0).map(<[Size]>::to_vec);
    if let Some(shape) = &mut shape {
        *shape.last_mut()? = Size::of(n);
    }
    one(node.dtype(0), shape)
}

fn gather_block_quantized(node: &Node<'_>, names: &mut Names) -> Option<Vec<Fact>> {
    let dtype = node.dtype(2);
    let (Some(table), Some(picked)) = (node.shape(0), node.shape(1)) else {
        return one(dtype, None);
    };
    let axis = axis_of(node.int("gather_axis", 0)?, table.len())?;
    let blocked = axis_of(node.int("quantize_axis", 1)?, table.len())?;
    let mut sizes = table.to_vec();
    if node.dtype(0) == Some(DType::U8) {
        let per_byte = 8i64.checked_div(node.int("bits", 4)?)?;
        let slot = sizes.get_mut(blocked)?;
        let size = slot.times(&Size::of(per_byte));
        *slot = names.or_unnamed(size);
    }
    let (head, tail) = (sizes.get(..axis)?, sizes.get(axis + 1..)?);
    one(dtype, Some([head, picked, tail].concat()))
}
