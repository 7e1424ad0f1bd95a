//! Mixtures of experts → every expert on every token, weighted.
//!
//! ONNX has no standard routing op; all experts run, and those that a token
//! wasn't sent to count nothing. Exact, at the cost of all experts.

use super::lower::{Item, Lowerer, Site};
use super::{ExportError, lower::no_form};
use crate::ir::{Attr, Attrs, Moe, OnnxOp, Op, OpKind, Operand};
use crate::weights::DType;

impl Lowerer<'_> {
    /// The nodes of a mixture, in order, and the value that they end in.
    pub(super) fn moe(
        &mut self,
        site: &mut Site,
        op: &Op,
        moe: &Moe,
    ) -> Result<(Vec<Item>, Operand), ExportError> {
        let &[x, logits] = op.inputs.as_slice() else {
            return Err(no_form(site, "a mixture needs activations and logits"));
        };
        let last = vec![("axis", Attr::Int(-1))];
        let shares = self.standard(site, "Softmax", vec![logits], last.clone());
        let k = self.ints(site, "top_k", &[i64::from(moe.top_k)]);
        let (mut values, chosen) = self.top_k(site, shares, k);
        if moe.normalize {
            let axes = self.ints(site, "axes", &[-1]);
            let sum = self.standard(site, "ReduceSum", vec![values, axes], Vec::new());
            values = self.standard(site, "Div", vec![values, sum], Vec::new());
        }
        let zero = self.number(site, 0.0)?;
        let none = self.standard(site, "Mul", vec![shares, zero], Vec::new());
        let weights = self.standard(site, "ScatterElements", vec![none, chosen, values], last);
        let mut items = Vec::new();
        let mut sum: Option<Operand> = None;
        for (index, region) in moe.experts.iter().enumerate() {
            let (&[input], &[output]) = (region.inputs.as_slice(), region.outputs.as_slice())
            else {
                return Err(no_form(site, "an expert needs one input and one output"));
            };
            site.nodes.push(identity(x, input));
            items.extend(std::mem::take(&mut site.nodes).into_iter().map(Item::New));
            items.extend(region.ops.iter().map(|&id| Item::Old(id)));
            let share = self.cut(site, weights, (index as i64, index as i64 + 1), 1);
            let part = self.standard(site, "Mul", vec![output, share], Vec::new());
            sum = Some(match sum {
                None => part,
                Some(sum) => self.standard(site, "Add", vec![sum, part], Vec::new()),
            });
        }
        items.extend(std::mem::take(&mut site.nodes).into_iter().map(Item::New));
        // In words without numbers of its own, so that many mixtures make one warning.
        let what = "every token goes through every expert of the mixture, since standard ONNX has no op that chooses";
        let count = moe.experts.len();
        self.notes.push(format!(
            "{}: {what}: {count} experts run where the model takes {}",
            op.name, moe.top_k
        ));
        let sum = sum.ok_or_else(|| no_form(site, "a mixture without experts"))?;
        Ok((items, sum))
    }

    fn top_k(&mut self, site: &mut Site, x: Operand, k: Operand) -> (Operand, Operand) {
        let values = self.standard(site, "TopK", vec![x, k], vec![("axis", Attr::Int(-1))]);
        let name = self.fresh(&format!("{}/TopK_indices", site.name));
        let id = self.graph.add_value(&name, None);
        if let Some(node) = site.nodes.last_mut() {
            node.results.push(Some(id));
        }
        debug_assert_eq!(site.dtype, DType::F32);
        (values, Operand::Value(id))
    }
}

/// Gives an expert's input the mixture's activations.
fn identity(x: Operand, input: crate::ir::ValueId) -> Op {
    let kind = OpKind::Onnx(OnnxOp {
        domain: String::new(),
        op_type: "Identity".to_owned(),
        overload: String::new(),
        attrs: Attrs::new(),
    });
    Op::new(kind, vec![x], input)
}
