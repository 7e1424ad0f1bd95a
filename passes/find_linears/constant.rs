//! From an operand back to the weight behind it, and what lies in between.

use std::collections::HashMap;

use super::{Finder, int, onnx_of};
use crate::ir::{Attr, Attrs, OpId, Operand, ValueId, WeightId};
use crate::weights::DType;

/// Nodes between a weight and its user that are followed.
const MAX_CHAIN: usize = 64;

/// A constant matrix as a node sees it.
#[derive(Clone)]
pub(super) struct Constant {
    pub(super) weight: WeightId,
    /// Stored dimensions.
    pub(super) dims: Vec<u64>,
    /// The node sees the transpose.
    pub(super) transposed: bool,
    /// Element type that the node sees.
    pub(super) dtype: DType,
    /// Nodes between weight and user.
    pub(super) chain: Vec<OpId>,
    /// The DequantizeLinear that the weight was decoded from.
    pub(super) dequantize: Option<Attrs>,
}

impl Finder<'_> {
    /// Follows an operand back to a weight.
    pub(super) fn constant(&mut self, operand: Operand) -> Option<Constant> {
        self.constant_behind(operand, 0)
    }

    pub(super) fn constant_behind(&mut self, operand: Operand, depth: usize) -> Option<Constant> {
        let value = match operand {
            Operand::None => return None,
            Operand::Weight(id) => return self.stored(id),
            Operand::Value(value) => value,
        };
        if depth > MAX_CHAIN {
            return None;
        }
        if let Some(found) = self.gathered(value, depth) {
            return Some(found);
        }
        let (id, op, onnx) = self.maker(value)?;
        let input = op.inputs.first().copied();
        let (op_type, inputs) = (onnx.op_type.as_str(), op.inputs.clone());
        let mut found = match op_type {
            "Constant" => {
                let Attr::Weight(weight) = onnx.attrs.get("value")? else {
                    return None;
                };
                self.stored(*weight)?
            }
            "Identity" => self.constant_behind(input?, depth + 1)?,
            "Transpose" => {
                let perm = onnx.attrs.get("perm").and_then(Attr::as_ints);
                let swaps = perm.is_none_or(|perm| perm == [1, 0]);
                let mut inner = self.constant_behind(input?, depth + 1)?;
                if inner.dims.len() != 2 || !swaps {
                    return None;
                }
                inner.transposed = !inner.transposed;
                inner
            }
            "Cast" => {
                let to = int(onnx, "to", 0);
                let to = i32::try_from(to).ok().and_then(DType::from_onnx)?;
                let mut inner = self.constant_behind(input?, depth + 1)?;
                if !widens(inner.dtype, to) {
                    return None;
                }
                inner.dtype = to;
                inner
            }
            "DequantizeLinear" => {
                let onnx = onnx.clone();
                self.dequantized(&inputs, &onnx, depth + 1)?
            }
            _ => return None,
        };
        found.chain.push(id);
        Some(found)
    }

    pub(super) fn stored(&self, id: WeightId) -> Option<Constant> {
        let weight = self.module.weight(id)?;
        Some(Constant {
            weight: id,
            dims: weight.dims.clone(),
            transposed: false,
            dtype: weight.dtype,
            chain: Vec::new(),
            dequantize: None,
        })
    }

    /// Removes nodes between weights and linears that nothing uses any more.
    pub(super) fn drop_dead_chains(&mut self) {
        let graph = self.graph;
        let mut uses: HashMap<ValueId, usize> = HashMap::new();
        let mut count = |operand: &Operand| {
            if let Operand::Value(value) = operand {
                *uses.entry(*value).or_default() += 1;
            }
        };
        for id in graph.walk() {
            let Some(op) = graph.op(id) else { continue };
            self.raised
                .get(&id)
                .unwrap_or(&op.inputs)
                .iter()
                .for_each(&mut count);
            let regions = op.kind.regions();
            regions
                .iter()
                .flat_map(|region| &region.outputs)
                .for_each(&mut count);
        }
        graph.body.outputs.iter().for_each(&mut count);
        while let Some(id) = self.chains.pop() {
            let Some(op) = graph.op(id) else { continue };
            let dead = |result: &ValueId| uses.get(result).is_none_or(|&n| n == 0);
            if !op.results.iter().flatten().all(dead) || self.raised.contains_key(&id) {
                continue;
            }
            let at = self.at(id);
            self.patch.replace(at, Vec::new());
            self.raised.insert(id, Vec::new());
            for input in &op.inputs {
                if let Operand::Value(value) = input {
                    uses.entry(*value).and_modify(|n| *n = n.saturating_sub(1));
                    self.chains
                        .extend(self.makers.get(value).filter(|id| self.is_chain(**id)));
                }
            }
        }
    }

    /// Where an operand comes from, through nodes that stand between weights and their users.
    pub(super) fn origin(&self, operand: Operand) -> Option<ValueId> {
        let Operand::Value(mut value) = operand else {
            return None;
        };
        for _ in 0..MAX_CHAIN {
            match self.makers.get(&value) {
                Some(&id) if self.is_chain(id) => {
                    let Some(Operand::Value(before)) = self.graph.op(id)?.inputs.first() else {
                        return None;
                    };
                    value = *before;
                }
                _ => break,
            }
        }
        Some(value)
    }

    pub(super) fn is_chain(&self, id: OpId) -> bool {
        let op_type = self
            .graph
            .op(id)
            .and_then(onnx_of)
            .map(|onnx| onnx.op_type.as_str());
        let chain = [
            "Constant",
            "Identity",
            "Transpose",
            "Cast",
            "DequantizeLinear",
        ];
        op_type.is_some_and(|op_type| chain.contains(&op_type))
    }
}

/// Is every value of `from` exact in `to`?
fn widens(from: DType, to: DType) -> bool {
    use DType::{BF16, F16, F32, F64};
    from == to || matches!((from, to), (F16 | BF16, F32 | F64) | (F32, F64))
}
