//! Mixtures of experts as launches.

use super::build::{int, per_token};
use super::emit::{Emit, Result};
use super::linear::Job;
use super::macros::Macro;
use super::program::Growing;
use crate::ir::Activation;
use crate::plan::{Place, PlanError};

impl Emit<'_> {
    /// Router's choice, gate and up of the chosen experts, and the sum of their results.
    pub(super) fn experts(&mut self, p: &mut Growing, step: &Macro) -> Result<()> {
        let Macro::Experts {
            name,
            x,
            norm,
            logits,
            top_k,
            normalize,
            experts,
            activation,
            residual,
            y,
        } = step
        else {
            return Ok(());
        };
        if !p.is_small() {
            let problem = "more than 8 tokens at a time have no kernel";
            return Err(PlanError::unsupported("moe", name, problem));
        }
        let slots = p.tokens * top_k;
        let ids = p.buffer(&format!("{name}.ids"), "i32", &[p.tokens, *top_k]);
        let weights = p.buffer(&format!("{name}.weights"), "f32", &[p.tokens, *top_k]);
        let index = self.variant("moe_route", &[("NORMALIZE", i64::from(*normalize))]);
        let count = experts.len() as u64;
        let estimate = self.estimate(
            Place::Device,
            p.tokens * count * 4,
            p.tokens * count * 4,
            false,
        );
        let given = vec![
            ("logits", self.slot(p, *logits)),
            ("ids", ids.clone()),
            ("weights", weights.clone()),
            ("scalars", self.scalars(p)),
            ("experts", int(count)),
            ("top_k", int(*top_k)),
            ("ldl", int(self.width(*logits))),
        ];
        p.push(
            &format!("{name}.route"),
            ("moe_route", index),
            per_token(p.tokens, 32),
            given,
            estimate,
        );
        let inner = experts.first().map_or(0, |e| e[0].padded());
        let hidden = p.buffer(&format!("{name}.inner"), "f32", &[slots, inner]);
        let mut job = Job::experts(
            experts
                .iter()
                .map(|[gate, up, _]| vec![gate.clone(), up.clone()])
                .collect(),
            Some(*activation),
        );
        job.x = self.slot(p, *x);
        job.ldx = self.width(*x);
        job.norm = norm.clone();
        job.tokens = p.tokens;
        job.routed = Some((1, ids.clone(), weights.clone(), *top_k));
        (job.y, job.ldy) = (hidden.clone(), inner);
        self.linear(p, &format!("{name}.gate_up"), &job)?;
        let mut job = Job::experts(
            experts
                .iter()
                .map(|[_, _, down]| vec![down.clone()])
                .collect(),
            None::<Activation>,
        );
        (job.x, job.ldx) = (hidden, inner);
        job.tokens = p.tokens;
        job.routed = Some((2, ids, weights, *top_k));
        (job.y, job.ldy) = (self.slot(p, *y), self.width(*y));
        job.residual = residual.map(|r| (self.slot(p, r), self.width(r)));
        self.linear(p, &format!("{name}.down"), &job)
    }
}
