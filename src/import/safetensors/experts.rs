//! Mixtures of experts, in every way that checkpoints spell them.
//!
//! | spelling | tensors |
//! |---|---|
//! | one by one | `experts.3.gate_proj.weight` (Mixtral: `w1`, `w3`, `w2`) `[inner, hidden]`, … |
//! | stacked | `experts.gate_proj` `[E, inner, hidden]`, `experts.up_proj`, `experts.down_proj` |
//! | stacked and fused | `experts.gate_up_proj` `[E, 2·inner, hidden]`, gate rows first; `experts.down_proj` |
//!
//! Stacks may also be stored transposed, `[E, hidden, 2·inner]` and `[E, inner, hidden]`.

use std::collections::BTreeSet;

use super::builder::{Builder, LinearSpec};
use super::config::Fields;
use crate::import::Result;
use crate::ir::{Activation, Moe, Native, OpKind, Operand, Role, ValueId, WeightId, WeightView};

/// The mixture's choices.
#[derive(Clone, Debug)]
pub(super) struct Experts {
    /// How many there are.
    pub(super) count: u64,
    /// How many a token is sent to.
    pub(super) top_k: u64,
    /// Whether the chosen ones' probabilities are scaled to sum to one.
    pub(super) normalize: bool,
    /// Width inside an expert.
    pub(super) inner: u64,
    /// Modules that may hold router and experts: `mlp`, `block_sparse_moe`.
    pub(super) homes: &'static [&'static str],
    /// Names of gate, up and down where experts have tensors of their own.
    pub(super) names: [&'static str; 3],
    /// Every n-th layer is a mixture: (layer + 1) divisible by n.
    pub(super) step: u64,
    /// Layers that are plain all the same.
    pub(super) plain: BTreeSet<u64>,
}

/// Where an expert's matrix is.
struct Stack {
    weight: WeightId,
    transposed: bool,
}

impl Experts {
    /// Refuses to send a token to more experts than there are.
    ///
    /// # Errors
    /// `ImportError::Config` at `num_experts_per_tok`.
    pub(super) fn checked(self, fields: &Fields<'_>) -> Result<Self> {
        if self.top_k > self.count {
            let problem = format!("is {}, but there are {} experts", self.top_k, self.count);
            return Err(fields.fault("num_experts_per_tok", problem));
        }
        Ok(self)
    }

    /// Whether a layer is a mixture.
    pub(super) fn in_layer(&self, layer: u64) -> bool {
        (layer + 1).is_multiple_of(self.step) && !self.plain.contains(&layer)
    }

    /// Router and experts of the layer at `path`.
    pub(super) fn build(
        &self,
        b: &mut Builder,
        x: ValueId,
        path: &str,
        (hidden, activation): (u64, Activation),
    ) -> ValueId {
        let home = self.home(b, path);
        let router = format!("{home}.gate");
        let router = LinearSpec::new(&router, self.count, hidden).role(Role::Router);
        let logits = b.linear(x, &router);
        let experts = format!("{home}.experts");
        let moe = Moe {
            top_k: u32::try_from(self.top_k).unwrap_or(u32::MAX),
            normalize: self.normalize,
            experts: self.regions(b, &experts, (hidden, activation)),
        };
        let ty = b.activations(hidden);
        let inputs = vec![Operand::Value(x), Operand::Value(logits)];
        b.op(&home, OpKind::Moe(moe), inputs, Some(ty))
    }

    fn home(&self, b: &Builder, path: &str) -> String {
        let named = |home: &&str| format!("{path}.{home}");
        let mut homes = self.homes.iter().map(named);
        let found = homes.find(|home| b.tensors.has(&format!("{home}.gate.weight"), true));
        found.unwrap_or_else(|| self.homes.first().map(named).unwrap_or_default())
    }

    fn regions(
        &self,
        b: &mut Builder,
        path: &str,
        (hidden, activation): (u64, Activation),
    ) -> Vec<crate::ir::Region> {
        let fused = self.stacked(b, path, "gate_up_proj", (2 * self.inner, hidden));
        let gate = self.stacked(b, path, "gate_proj", (self.inner, hidden));
        let up = self.stacked(b, path, "up_proj", (self.inner, hidden));
        let down = self.stacked(b, path, "down_proj", (hidden, self.inner));
        let mut regions = Vec::new();
        for expert in 0..self.count {
            if b.tensors.problems.len() > 100 {
                break; // A hostile number of experts is not worth a region each.
            }
            let at = format!("{path}.{expert}");
            let region = b.region(&expert.to_string(), hidden, |b, x| {
                let matrix = |b: &mut Builder, x, n: usize, stack: &Option<Stack>, (out, inp)| {
                    let long = ["gate_proj", "up_proj", "down_proj"];
                    let names = if stack.is_some() { long } else { self.names };
                    let name = format!("{at}.{}", names.get(n).copied().unwrap_or_default());
                    let spec = LinearSpec::new(&name, out, inp).role(Role::Expert);
                    self.expert(b, x, &spec, stack, expert)
                };
                let (gated, upped) = if fused.is_some() {
                    let name = format!("{at}.gate_up_proj");
                    let spec = LinearSpec::new(&name, 2 * self.inner, hidden).role(Role::Expert);
                    let both = self.expert(b, x, &spec, &fused, expert);
                    (
                        b.slice(both, 0, self.inner),
                        b.slice(both, self.inner, self.inner),
                    )
                } else {
                    let shape = (self.inner, hidden);
                    (matrix(b, x, 0, &gate, shape), matrix(b, x, 1, &up, shape))
                };
                let gated = b.activate(gated, activation);
                let y = b.apply("", Native::Mul, &[gated, upped]);
                matrix(b, y, 2, &down, (hidden, self.inner))
            });
            regions.push(region);
        }
        regions
    }

    /// One expert's linear: a matrix of the stack, or a tensor of its own.
    fn expert(
        &self,
        b: &mut Builder,
        x: ValueId,
        spec: &LinearSpec<'_>,
        stack: &Option<Stack>,
        expert: u64,
    ) -> ValueId {
        match stack {
            None => b.linear(x, spec),
            Some(stack) => {
                let view = WeightView {
                    weight: stack.weight,
                    index: Some(expert),
                    transposed: stack.transposed,
                };
                b.linear_of(x, spec, view, None)
            }
        }
    }

    /// The stack called `name`, if the checkpoint has one, with or without `.weight`.
    fn stacked(
        &self,
        b: &mut Builder,
        path: &str,
        name: &str,
        (out, inp): (u64, u64),
    ) -> Option<Stack> {
        let names = [format!("{path}.{name}"), format!("{path}.{name}.weight")];
        let name = names.iter().find(|name| b.tensors.has(name, false))?;
        let dims = b.tensors.dims(name);
        // Square stacks are taken as [E, out, in], as `transformers` stores these families.
        let transposed = out != inp && dims == Some(&[self.count, inp, out]);
        let dims = match transposed {
            true => [self.count, inp, out],
            false => [self.count, out, inp],
        };
        let weight = b.tensors.weight(name, &dims);
        Some(Stack { weight, transposed })
    }
}
