//! Mixtures of experts as launches.
//!
//! A few tokens: each chosen expert is a row of the launch's grid, and its weights are read for its token
//! alone. Many tokens are sorted by expert first, so that an expert's weights meet all of its tokens.

use super::build::{int, per_token};
use super::emit::{Emit, Result};
use super::linear::{Job, Routed};
use super::macros::Macro;
use super::program::Growing;
use crate::ir::Activation;
use crate::plan::kernels::Launch;
use crate::plan::{Place, PlanError, Value};

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
        let biased = experts
            .iter()
            .flatten()
            .find(|part| self.bias(part).is_some());
        if let Some(part) = biased {
            let problem = format!(
                "`{}` has a bias, and experts with biases have no kernel",
                part.name
            );
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
        let sorted = match p.is_small() {
            true => None,
            false => Some(self.sort(p, name, &ids, (count, *top_k))),
        };
        let routed = |kind| Routed {
            kind,
            ids: ids.clone(),
            weights: weights.clone(),
            top_k: *top_k,
            sorted: sorted.clone(),
        };
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
        job.routed = Some(routed(1));
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
        job.routed = Some(routed(2));
        let (out, width) = (self.slot(p, *y), self.width(*y));
        let residual = residual.map(|r| (self.slot(p, r), self.width(r)));
        if p.is_small() {
            (job.y, job.ldy, job.residual) = (out, width, residual);
            return self.linear(p, &format!("{name}.down"), &job);
        }
        let padded = experts.first().map_or(0, |e| e[2].padded());
        let results = p.buffer(&format!("{name}.results"), "f32", &[slots, padded]);
        (job.y, job.ldy) = (results.clone(), padded);
        self.linear(p, &format!("{name}.down"), &job)?;
        let (residual, ldr) = residual.unwrap_or((Value::Null, 0));
        let operands = *top_k + 1 + u64::from(ldr > 0);
        let bytes = p.tokens * width * 4 * operands;
        let estimate = self.estimate(Place::Device, bytes, 2 * slots * width, false);
        let given = vec![
            ("x", results),
            ("weights", weights),
            ("residual", residual),
            ("y", out),
            ("scalars", self.scalars(p)),
            ("width", int(width.min(padded))),
            ("top_k", int(*top_k)),
            ("ldx", int(padded)),
            ("ldy", int(width)),
            ("ldr", int(ldr)),
        ];
        let mut launch = per_token(p.tokens, 256);
        launch.grid[1] = u32::try_from(width.div_ceil(1024).max(1)).unwrap_or(u32::MAX);
        let index = self.variant("moe_combine", &[]);
        p.push(
            &format!("{name}.combine"),
            ("moe_combine", index),
            launch,
            given,
            estimate,
        );
        Ok(())
    }

    /// Tokens' choices by expert: slots, and where each expert's start.
    fn sort(
        &mut self,
        p: &mut Growing,
        name: &str,
        ids: &Value,
        (experts, top_k): (u64, u64),
    ) -> (Value, Value) {
        let count = p.tokens * top_k;
        let slots = p.buffer(&format!("{name}.slots"), "i32", &[count]);
        let starts = p.buffer(&format!("{name}.starts"), "i32", &[experts + 1]);
        let index = self.variant("moe_sort", &[]);
        // Every expert looks at every slot, twice.
        let flops = 2 * count * experts;
        let estimate = self.estimate(Place::Device, count * 8 + experts * 4, flops, false);
        let given = vec![
            ("ids", ids.clone()),
            ("slots", slots.clone()),
            ("starts", starts.clone()),
            ("scalars", self.scalars(p)),
            ("tokens", int(p.tokens)),
            ("experts", int(experts)),
            ("top_k", int(top_k)),
        ];
        let launch = Launch {
            grid: [1, 1, 1],
            block: 1024,
            shared_bytes: 0,
        };
        p.push(
            &format!("{name}.sort"),
            ("moe_sort", index),
            launch,
            given,
            estimate,
        );
        (slots, starts)
    }
}
