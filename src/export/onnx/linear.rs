//! Linears: axes turned to where MatMul contracts them, terms, scale, bias.

use super::ExportError;
use super::lower::{Lowerer, Site, no_form};
use crate::ir::{Attr, Layout, Linear, Op, Operand, Type};

impl Lowerer<'_> {
    /// The nodes of a linear; the value that they end in.
    pub(super) fn linear(
        &mut self,
        site: &mut Site,
        op: &Op,
        linear: &Linear,
    ) -> Result<Operand, ExportError> {
        let x = op.inputs.first().copied().unwrap_or(Operand::None);
        let swap = match linear.layout {
            Layout::Rows => None,
            Layout::Columns => {
                let rank = self.rank(x).or(site.rank);
                let rank = rank.filter(|rank| (2..=64).contains(rank));
                let rank = rank.ok_or_else(|| no_form(site, "the activation's rank is unknown"))?;
                let mut perm: Vec<i64> = (0..rank as i64).collect();
                perm.swap(rank - 1, rank - 2);
                Some((perm.clone(), perm))
            }
            Layout::Channels(axes) => {
                let rank = i64::from(axes) + 2;
                let last = [0].into_iter().chain(2..rank).chain([1]).collect();
                let second = [0, rank - 1].into_iter().chain(1..rank - 1).collect();
                Some((last, second))
            }
        };
        let mut input = x;
        if let Some((to_last, _)) = &swap {
            let perm = Attr::Ints(to_last.clone());
            input = self.standard(site, "Transpose", vec![x], vec![("perm", perm)]);
        }
        let mut y = self.sum_of_terms(site, input, &linear.matrix)?;
        if linear.scale != 1.0 {
            let scale = self.scalar(site, "scale", linear.scale);
            let scale = scale.ok_or_else(|| no_form(site, "a scale of this type"))?;
            y = self.standard(site, "Mul", vec![y, scale], Vec::new());
        }
        if let Some(bias) = linear.bias {
            let bias = self.activation(site, Operand::Weight(bias));
            y = self.standard(site, "Add", vec![y, bias], Vec::new());
        }
        if let Some((_, back)) = swap {
            y = self.standard(site, "Transpose", vec![y], vec![("perm", Attr::Ints(back))]);
        }
        Ok(y)
    }

    fn rank(&self, operand: Operand) -> Option<usize> {
        let Operand::Value(id) = operand else {
            return None;
        };
        match self.graph.value(id)?.ty.as_ref()? {
            Type::Tensor(tensor) => Some(tensor.shape.as_ref()?.len()),
            _ => None,
        }
    }
}
