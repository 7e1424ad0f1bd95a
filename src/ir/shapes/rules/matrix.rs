//! Products: MatMul, Gemm, Einsum, attention, recurrent layers.

use super::{Fact, Names, Node, Size, Table, broadcast, one};
use crate::weights::DType;

pub(super) const RULES: Table = &[
    (&["MatMul"], matmul),
    (&["MatMulInteger"], matmul_integer),
    (&["QLinearMatMul"], qlinear_matmul),
    (&["Gemm"], gemm),
    (&["Einsum"], einsum),
    (&["Attention"], attention),
    (&["LSTM", "GRU", "RNN"], recurrent),
];

/// The shape of a product, as numpy has it.
fn product_of(a: &[Size], b: &[Size], names: &mut Names) -> Option<Vec<Size>> {
    let (a_lead, b_lead): (&[Size], &[Size]) = (
        a.get(..a.len().saturating_sub(2))?,
        b.get(..b.len().saturating_sub(2))?,
    );
    let mut shape = broadcast(a_lead, b_lead, names);
    match (a.len(), b.len()) {
        (0, _) | (_, 0) => return None,
        (1, 1) => {}
        (1, _) => shape.push(b.last()?.clone()),
        (_, 1) => shape.push(a.get(a.len() - 2)?.clone()),
        _ => shape.extend([a.get(a.len() - 2)?.clone(), b.last()?.clone()]),
    }
    Some(shape)
}

fn matmul_as(
    node: &Node<'_>,
    (a, b): (usize, usize),
    dtype: Option<DType>,
    names: &mut Names,
) -> Option<Vec<Fact>> {
    let shape = match (node.shape(a), node.shape(b)) {
        (Some(a), Some(b)) => product_of(a, b, names),
        _ => None,
    };
    one(dtype, shape)
}

fn matmul(node: &Node<'_>, names: &mut Names) -> Option<Vec<Fact>> {
    let dtype = node.dtype(0).or(node.dtype(1));
    matmul_as(node, (0, 1), dtype, names)
}

fn matmul_integer(node: &Node<'_>, names: &mut Names) -> Option<Vec<Fact>> {
    matmul_as(node, (0, 1), Some(DType::I32), names)
}

fn qlinear_matmul(node: &Node<'_>, names: &mut Names) -> Option<Vec<Fact>> {
    matmul_as(node, (0, 3), node.dtype(7), names)
}

fn gemm(node: &Node<'_>, names: &mut Names) -> Option<Vec<Fact>> {
    let (trans_a, trans_b) = (node.int("transA", 0)? != 0, node.int("transB", 0)? != 0);
    let side = |at: usize, column: bool| match node.shape(at) {
        Some([rows, columns]) => Some(if column { columns } else { rows }.clone()),
        _ => None,
    };
    let (m, n) = (side(0, trans_a), side(1, !trans_b));
    let shape = vec![names.or_unnamed(m), names.or_unnamed(n)];
    one(node.dtype(0).or(node.dtype(1)), Some(shape))
}

/// Letters alone; what has an ellipsis stays unknown.
fn einsum(node: &Node<'_>, _: &mut Names) -> Option<Vec<Fact>> {
    let text: String = node.text("equation")?.split_whitespace().collect();
    let dtype = node.dtype(0);
    let (left, right) = text.split_once("->")?;
    if text.contains('.') {
        return one(dtype, None);
    }
    let find = |letter: char| {
        let mut found: Option<&Size> = None;
        for (at, term) in left.split(',').enumerate() {
            let place = term.chars().position(|c| c == letter);
            let Some(place) = place else { continue };
            let size = node.shape(at)?.get(place)?;
            // A one among others is broadcast.
            if found.is_none_or(|have| have.is(1)) {
                found = Some(size);
            }
        }
        found.cloned()
    };
    one(dtype, right.chars().map(find).collect())
}

fn attention(node: &Node<'_>, names: &mut Names) -> Option<Vec<Fact>> {
    let heads = (node.int("q_num_heads", 0)?, node.int("kv_num_heads", 0)?);
    let shape = match (node.shape(0)?, node.shape(2)?) {
        ([b, h, s, _], [.., width]) => vec![b.clone(), h.clone(), s.clone(), width.clone()],
        ([b, s, _], [_, _, width]) if heads.0 > 0 && heads.1 > 0 => {
            let head = width.over(&Size::of(heads.1));
            let width = head.and_then(|head| head.times(&Size::of(heads.0)));
            vec![b.clone(), s.clone(), names.or_unnamed(width)]
        }
        _ => return None,
    };
    one(node.dtype(0), Some(shape))
}

fn recurrent(node: &Node<'_>, names: &mut Names) -> Option<Vec<Fact>> {
    let dtype = node.dtype(0);
    let directions = match node.text("direction")? {
        "" | "forward" | "reverse" => 1,
        "bidirectional" => 2,
        _ => return None,
    };
    let stated = match node.int("hidden_size", -1)? {
        -1 => node.shape(2).and_then(|r| r.get(2).cloned()),
        size => Some(Size::of(size)),
    };
    let hidden = names.or_unnamed(stated);
    let layout = node.int("layout", 0)?;
    let (first, second) = match node.shape(0) {
        Some([first, second, _]) => (first.clone(), second.clone()),
        _ => (names.unnamed(), names.unnamed()),
    };
    let directions = Size::of(directions);
    let (all, last) = match layout {
        0 => (
            vec![first, directions.clone(), second.clone(), hidden.clone()],
            vec![directions, second, hidden],
        ),
        _ => (
            vec![first.clone(), second, directions.clone(), hidden.clone()],
            vec![first, directions, hidden],
        ),
    };
    let last = Fact::new(dtype, Some(last));
    Some(vec![Fact::new(dtype, Some(all)), last.clone(), last])
}
