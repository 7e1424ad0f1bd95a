//! Quantizing and back.

use super::{Fact, Names, Node, Size, Table, one};
use crate::weights::DType;

pub(super) const RULES: Table = &[
    (&["DequantizeLinear"], dequantize),
    (&["QuantizeLinear"], quantize),
    (&["DynamicQuantizeLinear"], dynamic),
];

fn dequantize(node: &Node<'_>, _: &mut Names) -> Option<Vec<Fact>> {
    let stated = node.dtype_attr("output_dtype")?;
    let dtype = stated.or(node.dtype(1));
    one(dtype, node.fact(0)?.shape.clone())
}

fn quantize(node: &Node<'_>, _: &mut Names) -> Option<Vec<Fact>> {
    let dtype = match (node.has(2), node.dtype_attr("output_dtype")?) {
        (true, _) => node.dtype(2),
        (false, stated) => Some(stated.unwrap_or(DType::U8)),
    };
    one(dtype, node.fact(0)?.shape.clone())
}

fn dynamic(node: &Node<'_>, _: &mut Names) -> Option<Vec<Fact>> {
    let scalar = |dtype: DType| Fact::new(Some(dtype), Some(Vec::<Size>::new()));
    let codes = Fact::new(Some(DType::U8), node.fact(0)?.shape.clone());
    Some(vec![codes, scalar(DType::F32), scalar(DType::U8)])
}
