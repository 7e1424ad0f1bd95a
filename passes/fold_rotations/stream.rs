//! Residual streams: values that are added to each other, who makes them and who reads them.

use std::collections::{BTreeSet, HashSet};

use super::edits::Edits;
use super::fold::block;
use super::uses::{Uses, kind_name, value};
use crate::ir::{
    Encoding, Native, Op, OpId, OpKind, Operand, Region, Storage, Turn, ValueId, WeightId,
};
use crate::pass::{Remark, RemarkKind};

/// Values of one stream, and what stands around them.
#[derive(Default)]
struct Stream {
    width: u64,
    /// Linears and embeddings whose results are part of it.
    writers: BTreeSet<OpId>,
    /// Norms whose gain their readers take up: norm, readers, gain, whether less 1 is stored.
    norms: Vec<(OpId, Vec<OpId>, WeightId, bool)>,
    /// Linears that read it with no norm between.
    plain: BTreeSet<OpId>,
    /// What makes it and can't be turned; why.
    made: Vec<(OpId, ValueId, String)>,
    /// What reads it and can't be turned; why.
    read: Vec<(OpId, usize, ValueId, String)>,
}

/// Turns every residual stream that it pays for.
pub(super) fn turn(edits: &mut Edits<'_>, remarks: &mut Vec<Remark>) {
    let mut seen: HashSet<ValueId> = HashSet::new();
    let graph = edits.uses.graph;
    for &id in &graph.body.ops {
        let Some(op) = graph.op(id) else { continue };
        let norm = match &op.kind {
            OpKind::Native(Native::RmsNorm { slice: None, .. } | Native::LayerNorm { .. }) => op,
            _ => continue,
        };
        let Some(start) = norm.inputs.first().and_then(value) else {
            continue;
        };
        if seen.contains(&start) {
            continue;
        }
        let members = connected(&edits.uses, start);
        seen.extend(&members);
        // A norm alone is no stream.
        if members.len() < 2 {
            continue;
        }
        let place = format!("the stream that {} reads", edits.uses.name(id));
        match gather(&edits.uses, &members) {
            Ok(stream) => apply(edits, stream, &place, remarks),
            Err(why) => remarks.push(Remark::missed(&place, why)),
        }
    }
}

/// Values that sums and factors join.
fn connected(uses: &Uses<'_>, start: ValueId) -> Vec<ValueId> {
    let (mut found, mut open) = (HashSet::from([start]), vec![start]);
    let mut order = Vec::new();
    while let Some(at) = open.pop() {
        order.push(at);
        let maker = uses.maker(at).map(|(_, op)| op);
        let users = uses.users(at).iter();
        let users = users.filter_map(|(id, _)| uses.graph.op(*id));
        for op in maker.into_iter().chain(users).filter(|op| joins(op)) {
            let inputs = op.inputs.iter().filter_map(value);
            for next in inputs.chain(op.results.iter().flatten().copied()) {
                if found.insert(next) {
                    open.push(next);
                }
            }
        }
    }
    order.sort_unstable();
    order
}

/// Whether a rotation of what goes in is one of what comes out.
fn joins(op: &Op) -> bool {
    match &op.kind {
        OpKind::Native(Native::Add) => op.inputs.iter().all(|i| value(i).is_some()),
        OpKind::Native(Native::Scale { .. }) => op.inputs.len() == 1,
        _ => false,
    }
}

fn gather(uses: &Uses<'_>, members: &[ValueId]) -> Result<Stream, String> {
    let mut stream = Stream::default();
    for &member in members {
        if uses.leaves(member) {
            return Err("it leaves the graph by itself".into());
        }
        let Some((id, op)) = uses.maker(member) else {
            return Err("it is an input of the graph".into());
        };
        if !uses.in_body(id) {
            return Err(format!("{} makes it inside of a region", uses.name(id)));
        }
        if !joins(op) {
            match writers(uses, id, op) {
                Ok(writers) => stream.writers.extend(writers),
                Err(why) => stream.made.push((id, member, why)),
            }
        }
        for &(id, index) in uses.users(member) {
            let Some(op) = uses.graph.op(id).filter(|op| !joins(op)) else {
                continue;
            };
            if let Some(gain) = gain(op) {
                let normed = op.results.first().copied().flatten();
                let normed = normed.ok_or("a norm of it has no result")?;
                match gain.and_then(|gain| Ok((gain, readers(uses, normed)?))) {
                    Ok(((gain, unit_offset), readers)) => {
                        vector(uses, gain).map_err(|why| format!("{}: {why}", uses.name(id)))?;
                        stream.norms.push((id, readers, gain, unit_offset));
                    }
                    Err(why) => stream.read.push((id, index, member, why)),
                }
                continue;
            }
            match reader(uses, id, index) {
                Ok(readers) => stream.plain.extend(readers),
                Err(why) => stream.read.push((id, index, member, why)),
            }
        }
    }
    stream.width = width(uses, &stream)?;
    Ok(stream)
}

/// The gain of a norm of whole rows, and whether less 1 is stored; of another norm, why it has none.
fn gain(op: &Op) -> Option<Result<(WeightId, bool), String>> {
    match &op.kind {
        OpKind::Native(Native::RmsNorm {
            slice: None,
            unit_offset,
            ..
        }) => Some(match op.inputs.get(1) {
            Some(Operand::Weight(gain)) => Ok((*gain, *unit_offset)),
            _ => Err("its gain is no constant".into()),
        }),
        OpKind::Native(Native::LayerNorm { .. }) => Some(Err(
            "layer_norm takes the mean off, which does not commute with a rotation".into(),
        )),
        _ => None,
    }
}

/// Whether a gain lies in a file or in the text as it is.
fn vector(uses: &Uses<'_>, id: WeightId) -> Result<(), String> {
    let weight = uses.module.weight(id).ok_or("its gain is missing")?;
    let plain = matches!(
        &weight.storage,
        Storage::File {
            encoding: Encoding::Raw,
            ..
        } | Storage::Inline(_)
    );
    match plain && weight.dtype.is_float() && weight.dims.len() == 1 {
        true => Ok(()),
        false => Err("its gain is no plain vector of floats".into()),
    }
}

/// The linears that read a normed value, all of them turned; or why that can't be.
fn readers(uses: &Uses<'_>, normed: ValueId) -> Result<Vec<OpId>, String> {
    if uses.leaves(normed) {
        return Err("its result leaves the graph".into());
    }
    let mut found = Vec::new();
    for &(id, index) in uses.users(normed) {
        found.extend(reader(uses, id, index)?);
    }
    match found.is_empty() {
        true => Err("no linear reads it".into()),
        false => Ok(found),
    }
}

/// The linears that an op reads a value with.
fn reader(uses: &Uses<'_>, id: OpId, index: usize) -> Result<Vec<OpId>, String> {
    let op = uses.graph.op(id).ok_or("an op is gone")?;
    let named = |why: String| format!("of {}, {why}", uses.name(id));
    match &op.kind {
        OpKind::Linear(_) => uses.foldable(op).map(|()| vec![id]).map_err(named),
        OpKind::Moe(moe) if index == 0 => {
            let mut found = Vec::new();
            for expert in &moe.experts {
                let input = *expert.inputs.first().ok_or("an expert has no input")?;
                if uses.leaves(input) {
                    return Err(named("an expert hands its input on".into()));
                }
                for &(inner, _) in uses.users(input) {
                    let op = uses.graph.op(inner).ok_or("an op is gone")?;
                    uses.foldable(op)
                        .map_err(|why| named(format!("{}: {why}", uses.name(inner))))?;
                    found.push(inner);
                }
            }
            Ok(found)
        }
        other => Err(format!("{} {} reads it", kind_name(other), uses.name(id))),
    }
}

/// The linears or the embedding that an op makes a value with.
fn writers(uses: &Uses<'_>, id: OpId, op: &Op) -> Result<Vec<OpId>, String> {
    match &op.kind {
        OpKind::Linear(_) | OpKind::Embedding(_) => uses.foldable(op).map(|()| vec![id]),
        OpKind::Moe(moe) => {
            let of = |expert: &Region| -> Result<OpId, String> {
                let output = expert.outputs.first().and_then(value);
                let made = output.and_then(|output| uses.maker(output));
                let (inner, op) = made.ok_or("an expert makes nothing")?;
                let alone = output.is_some_and(|output| uses.users(output).is_empty());
                match &op.kind {
                    OpKind::Linear(_) if alone && expert.ops.contains(&inner) => {
                        let named = |why| format!("{}: {why}", uses.name(inner));
                        uses.foldable(op).map(|()| inner).map_err(named)
                    }
                    _ => Err("an expert's result is not made by a linear".to_string()),
                }
            };
            moe.experts.iter().map(of).collect()
        }
        other => Err(format!("{} makes it", kind_name(other))),
    }
}

/// The stream's width, which all matrices around it must have.
fn width(uses: &Uses<'_>, stream: &Stream) -> Result<u64, String> {
    let matrix = |id: &OpId| uses.graph.op(*id)?.kind.matrix();
    let out = stream.writers.iter().filter_map(|id| {
        let op = uses.graph.op(*id)?;
        let matrix = matrix(id)?;
        Some(match &op.kind {
            OpKind::Embedding(_) => matrix.in_features,
            _ => matrix.out_features,
        })
    });
    let behind = stream.norms.iter().flat_map(|(_, readers, _, _)| readers);
    let inputs = behind.chain(&stream.plain);
    let inputs = inputs.filter_map(|id| Some(matrix(id)?.in_features));
    let gains = stream
        .norms
        .iter()
        .filter_map(|(_, _, gain, _)| uses.module.weight(*gain)?.elements());
    let all: BTreeSet<u64> = out.chain(inputs).chain(gains).collect();
    match all.into_iter().collect::<Vec<_>>().as_slice() {
        [] => Err("no matrix that can be turned reads or writes it".into()),
        [one] => Ok(*one),
        several => Err(format!(
            "matrices around it have different widths: {several:?}"
        )),
    }
}

fn apply(edits: &mut Edits<'_>, stream: Stream, place: &str, remarks: &mut Vec<Remark>) {
    let (folded, explicit) = (stream.norms.len(), stream.made.len() + stream.read.len());
    let ops = stream.made.iter().map(|(id, _, why)| (id, why));
    let ops = ops.chain(stream.read.iter().map(|(id, _, _, why)| (id, why)));
    let named = ops.map(|(id, why)| format!("{} ({why})", edits.uses.name(*id)));
    let mut named: Vec<String> = named.collect();
    let rest = named.len().saturating_sub(4);
    named.truncate(4);
    if rest > 0 {
        named.push(format!("{rest} more"));
    }
    let named = named.join(", ");
    if folded == 0 || explicit > folded {
        let text = format!(
            "norms that fold: {folded}, ops that would have to stand beside them: {explicit}: {named}"
        );
        return remarks.push(Remark::missed(place, text));
    }
    let Some(block) = block(stream.width) else {
        let text = format!("{} has no power of two to make blocks of", stream.width);
        return remarks.push(Remark::missed(place, text));
    };
    let turn = Turn {
        block,
        seed: edits.options.seed,
        repeat: None,
    };
    let mut reads = stream.plain.len();
    for (norm, readers, gain, unit_offset) in stream.norms {
        edits.take_gain(norm);
        reads += readers.len();
        for reader in readers {
            let fold = edits.fold(reader);
            fold.input = Some(turn);
            fold.gain = Some((gain, unit_offset));
        }
    }
    for reader in stream.plain {
        edits.fold(reader).input = Some(turn);
    }
    let writes = stream.writers.len();
    for writer in stream.writers {
        edits.fold(writer).output = Some(turn);
    }
    for (op, result, _) in stream.made {
        edits.turn_result(op, result, turn);
    }
    for (op, index, input, _) in stream.read {
        edits.turn_input_back(op, index, input, turn);
    }
    let width = stream.width;
    let mut text = format!(
        "{width} wide, turned in blocks of {block}: {reads} matrices read it, {writes} write it"
    );
    if explicit > 0 {
        text += &format!("; an op turns what stands beside it: {named}");
    }
    remarks.push(Remark::new(RemarkKind::Passed, place, text));
}
