//! Heads of values, and inputs of linears behind activations.

use std::collections::BTreeMap;

use super::edits::Edits;
use super::uses::value;
use crate::ir::{Native, OpId, OpKind, Turn, ValueId};
use crate::numeric::hadamard::block_for;
use crate::pass::{Remark, RemarkKind};

/// Other signs than the stream's, so that a matrix is not turned alike on both sides.
const HEADS: u64 = 0x6865_6164_735f_0a0d;
/// The same for what is behind activations.
const DOWN: u64 = 0x646f_776e_5f5f_0a0d;

/// The largest block of `width`, if there is one.
pub(super) fn block(width: u64) -> Option<u64> {
    let block = block_for(usize::try_from(width).ok()?) as u64;
    (block > 1).then_some(block)
}

/// Turns each head of the values, and the columns of what reads attention's result.
pub(super) fn heads(edits: &mut Edits<'_>, remarks: &mut Vec<Remark>) {
    let mut folded = 0;
    for id in edits.uses.graph.walk() {
        let Some(op) = edits.uses.graph.op(id) else {
            continue;
        };
        let OpKind::Native(Native::Attention {
            heads,
            kv_heads,
            head_dim,
            ..
        }) = op.kind
        else {
            continue;
        };
        match around(edits, id, (heads, kv_heads, head_dim)) {
            Ok((makes, reads)) => {
                let Some(block) = block(head_dim) else {
                    continue;
                };
                let turn = Turn {
                    block,
                    seed: edits.options.seed ^ HEADS,
                    repeat: Some(head_dim),
                };
                edits.fold(makes).output = Some(turn);
                reads
                    .into_iter()
                    .for_each(|read| edits.fold(read).input = Some(turn));
                folded += 1;
            }
            Err(why) => {
                let name = edits.uses.name(id);
                let text = format!("its heads are not turned: {why}");
                remarks.push(Remark::missed(&name, text));
            }
        }
    }
    if folded > 0 {
        let text =
            format!("attentions whose values are turned, head by head, without an op: {folded}");
        let name = &edits.uses.graph.body.name;
        remarks.push(Remark::new(RemarkKind::Passed, name, text));
    }
}

/// The linear that makes the values of an attention, and those that read its result.
fn around(
    edits: &Edits<'_>,
    attention: OpId,
    (heads, kv_heads, head_dim): (u64, u64, u64),
) -> Result<(OpId, Vec<OpId>), String> {
    let uses = &edits.uses;
    if block(head_dim).is_none() {
        return Err(format!("{head_dim} has no power of two to make blocks of"));
    }
    let op = uses.graph.op(attention).ok_or("it is gone")?;
    let values = op
        .inputs
        .get(2)
        .and_then(value)
        .ok_or("its values are a constant")?;
    let made = uses
        .maker(values)
        .ok_or("its values are an input of the graph")?;
    let wide = |n: u64, width: u64| n.checked_mul(head_dim) == Some(width);
    match (&made.1.kind, uses.foldable(made.1)) {
        (OpKind::Linear(linear), Ok(())) if wide(kv_heads, linear.matrix.out_features) => {}
        (OpKind::Linear(_), Ok(())) => {
            return Err(format!("{} makes more than its values", uses.name(made.0)));
        }
        (_, Err(why)) => {
            return Err(format!(
                "of what makes its values, {}, {why}",
                uses.name(made.0)
            ));
        }
        (_, Ok(())) => return Err(format!("{} makes its values", uses.name(made.0))),
    }
    if uses.users(values).len() != 1 || uses.leaves(values) {
        return Err("its values are read elsewhere as well".into());
    }
    let result = op
        .results
        .first()
        .copied()
        .flatten()
        .ok_or("it has no result")?;
    if uses.leaves(result) {
        return Err("its result leaves the graph".into());
    }
    let mut reads = Vec::new();
    for &(id, _) in uses.users(result) {
        let reader = uses.graph.op(id).ok_or("its reader is gone")?;
        match (&reader.kind, uses.foldable(reader)) {
            (OpKind::Linear(linear), Ok(())) if wide(heads, linear.matrix.in_features) => {
                reads.push(id);
            }
            (OpKind::Linear(_), Err(why)) => {
                return Err(format!("of what reads it, {}, {why}", uses.name(id)));
            }
            _ => return Err(format!("{} stands behind it", uses.name(id))),
        }
    }
    match reads.is_empty() {
        true => Err("nothing reads it".into()),
        false => Ok((made.0, reads)),
    }
}

/// Turns what linears read from activations and gated products, by an op for each.
pub(super) fn down(edits: &mut Edits<'_>, remarks: &mut Vec<Remark>) {
    let mut readers: BTreeMap<ValueId, Vec<OpId>> = BTreeMap::new();
    for id in edits.uses.graph.walk() {
        let Some(op) = edits.uses.graph.op(id) else {
            continue;
        };
        let (OpKind::Linear(linear), Some(input)) = (&op.kind, op.inputs.first().and_then(value))
        else {
            continue;
        };
        let made = edits.uses.maker(input).map(|(_, op)| &op.kind);
        let behind = matches!(
            made,
            Some(OpKind::Native(Native::Activate { .. } | Native::Mul))
        );
        if !behind || edits.is_turned(id) {
            continue;
        }
        match (edits.uses.foldable(op), block(linear.matrix.in_features)) {
            (Ok(()), Some(_)) => readers.entry(input).or_default().push(id),
            (Err(why), _) => {
                let text = format!("its input is not turned: {why}");
                remarks.push(Remark::missed(&edits.uses.name(id), text));
            }
            (_, None) => {
                let text = format!(
                    "{} has no power of two to make blocks of",
                    linear.matrix.in_features
                );
                remarks.push(Remark::missed(&edits.uses.name(id), text));
            }
        }
    }
    let count = readers.len();
    for (input, linears) in readers {
        let width = linears
            .first()
            .and_then(|&id| match &edits.uses.graph.op(id)?.kind {
                OpKind::Linear(linear) => Some(linear.matrix.in_features),
                _ => None,
            });
        let (Some(block), Some((maker, _))) = (width.and_then(block), edits.uses.maker(input))
        else {
            continue;
        };
        let turn = Turn {
            block,
            seed: edits.options.seed ^ DOWN,
            repeat: None,
        };
        edits.turn_for(maker, input, &linears, turn);
    }
    if count > 0 {
        let text = format!("inputs behind activations that an op turns: {count}");
        let name = &edits.uses.graph.body.name;
        remarks.push(Remark::new(RemarkKind::Passed, name, text));
    }
}
