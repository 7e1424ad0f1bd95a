//! A matrix whose terms take several launches: codes in rotated coordinates, or several such terms.

use super::input::{turn, unique};
use super::{
    Beside, Elementwise, Emit, Growing, Job, Launched, Part, PartTerms, Result, Stack, Terms, Value,
};
use crate::plan::lower::build::int;
use crate::plan::lower::terms::{Base, matrix};
use crate::plan::{Place, cost};

/// One launch of the matrix.
struct Pass {
    base: Option<Base>,
    /// Low-rank and sparse terms go along.
    extras: bool,
}

impl Emit<'_> {
    pub(super) fn passes(
        &mut self,
        p: &mut Growing,
        name: &str,
        job: &Job,
        part: &Part,
        terms: &Terms,
    ) -> Result<()> {
        let extras = !terms.low_rank.is_empty() || !terms.sparse.is_empty();
        // What stands in the matrix's own coordinates first, so that rotated results are added to it.
        // Few tokens' codes are one launch with it.
        let (plain, rotated): (Vec<Base>, Vec<Base>) = terms
            .bases
            .iter()
            .copied()
            .partition(|b| b.rotation.is_none());
        let together = extras && plain.is_empty() && rotated.len() == 1 && job.tokens <= 8;
        let mut passes: Vec<Pass> = plain
            .into_iter()
            .map(|b| Pass {
                base: Some(b),
                extras: false,
            })
            .collect();
        match passes.first_mut() {
            Some(first) => first.extras = extras,
            None if extras && !together => passes.push(Pass { base: None, extras }),
            None => {}
        }
        passes.extend(rotated.into_iter().map(|b| Pass {
            base: Some(b),
            extras: together,
        }));
        let out = terms
            .bases
            .iter()
            .any(|b| b.rotation.is_some_and(|r| r.out_block > 1));
        let mut why = "codes are kept rotated".to_string();
        if out {
            why += ", and outputs are turned back by a launch";
        }
        if passes.len() > 1 {
            why = format!("{} launches: {why}, other terms are not", passes.len());
        }
        self.note(name, why);
        let late = job.activation.is_some() || job.softcap.is_some();
        let padded = part.padded();
        let count = passes.len();
        let mut sum = match late {
            true => None,
            false => job.residual.clone(),
        };
        for (index, pass) in passes.into_iter().enumerate() {
            let last = index + 1 == count;
            let target = match last && !late {
                true => (job.y.clone(), job.ldy, job.y_offset),
                false => {
                    let buffer = unique(p, &format!("{name}.sum"));
                    (p.buffer(&buffer, "f32", &[job.tokens, padded]), padded, 0)
                }
            };
            let one = Job {
                activation: None,
                softcap: None,
                residual: sum.take(),
                y: target.0.clone(),
                ldy: target.1,
                y_offset: target.2,
                ..job.clone()
            };
            let bias = index == 0 && terms.bias;
            self.pass(p, name, &one, (part, terms), pass, bias)?;
            sum = Some((target.0, target.1));
        }
        if late {
            self.late(p, name, job, sum)?;
        }
        Ok(())
    }

    /// Activation, cap and residual behind a sum of launches.
    fn late(
        &mut self,
        p: &mut Growing,
        name: &str,
        job: &Job,
        sum: Option<(Value, u64)>,
    ) -> Result<()> {
        let Some((mut value, mut stride)) = sum else {
            return Ok(());
        };
        let width = job.ldy;
        let ops = [
            job.activation.map(Elementwise::Activate),
            job.softcap.map(Elementwise::Softcap),
        ];
        let ops: Vec<Elementwise> = ops.into_iter().flatten().collect();
        for (index, op) in ops.iter().enumerate() {
            let last = index + 1 == ops.len() && job.residual.is_none();
            let to = match last {
                true => job.y.clone(),
                false => {
                    let buffer = unique(p, &format!("{name}.late"));
                    p.buffer(&buffer, "f32", &[job.tokens, width])
                }
            };
            self.elementwise(
                p,
                name,
                *op,
                (value, stride),
                None,
                (to.clone(), width),
                width,
            );
            (value, stride) = (to, width);
        }
        if let Some(residual) = &job.residual {
            let y = (job.y.clone(), job.ldy);
            self.elementwise(
                p,
                name,
                Elementwise::Add,
                (value, stride),
                Some(residual.clone()),
                y,
                width,
            );
        }
        Ok(())
    }

    fn pass(
        &mut self,
        p: &mut Growing,
        name: &str,
        job: &Job,
        (part, terms): (&Part, &Terms),
        pass: Pass,
        bias: bool,
    ) -> Result<()> {
        let (matrix, _) = matrix(self.graph, part.op)?;
        let cols = matrix.in_features;
        let rotation = pass.base.and_then(|b| b.rotation);
        let turned = rotation.filter(|r| r.out_block > 1);
        let own = self.bias(part).filter(|_| bias);
        let one = PartTerms {
            part: part.clone(),
            base: pass.base.map(|b| b.term),
            low_rank: if pass.extras {
                terms.low_rank.clone()
            } else {
                Vec::new()
            },
            sparse: if pass.extras {
                terms.sparse.clone()
            } else {
                Vec::new()
            },
            bias: own.filter(|_| turned.is_none()),
        };
        let stack = Stack {
            interleaved: false,
            cols,
            base: pass.base.map(|b| Base { term: 0, ..b }),
            factors: terms.factors.filter(|_| pass.extras),
            sparse: !one.sparse.is_empty(),
            bias: one.bias.is_some(),
            scale_bits: terms.scale.to_bits(),
            experts: vec![vec![one]],
        };
        let input = match rotation.filter(|r| r.in_block > 1) {
            Some(rotation) => Some(self.rotated(p, job, rotation.in_side())?),
            None => None,
        };
        let padded = part.padded();
        let apart = match rotation.filter(|_| pass.extras) {
            None => None,
            Some(_) => Some(Beside {
                x: self.normed(p, job)?,
                y: turned.map(|_| {
                    let buffer = unique(p, &format!("{name}.terms"));
                    (p.buffer(&buffer, "f32", &[job.tokens, padded]), padded)
                }),
            }),
        };
        let Some(rotation) = turned else {
            let launched = Launched {
                stack,
                scale: terms.scale,
                job,
                rotated: input,
                beside: apart,
            };
            return self.launch(p, name, &launched);
        };
        // The terms' results have the residual already.
        let (within, added) = match apart.as_ref().and_then(|a| a.y.clone()) {
            Some(terms) => (job.residual.clone(), Some(terms)),
            None => (None, job.residual.clone()),
        };
        let buffer = unique(p, &format!("{name}.turned"));
        let between = p.buffer(&buffer, "f32", &[job.tokens, padded]);
        let inner = Job {
            residual: within,
            y: between.clone(),
            ldy: padded,
            y_offset: 0,
            ..job.clone()
        };
        let launched = Launched {
            stack,
            scale: terms.scale,
            job: &inner,
            rotated: input,
            beside: apart,
        };
        self.launch(p, name, &launched)?;
        let side = rotation.out_side();
        let width = part.rows.end - part.rows.start;
        let signs = self.signs(name, side, width)?;
        let bias = match own {
            Some(id) => {
                let recipe = crate::plan::pack::recipe::Recipe::Vectors {
                    parts: vec![("bias".to_string(), id, false)],
                    width,
                };
                let weight = self.weight(
                    &format!("{name}.bias"),
                    "vector",
                    (1, width),
                    Vec::new(),
                    recipe,
                )?;
                self.section(&weight, "bias")
            }
            None => Value::Null,
        };
        let defines = [
            ("INVERSE", 1),
            ("BIAS", i64::from(own.is_some())),
            ("RESIDUAL", i64::from(added.is_some())),
        ];
        let index = self.variant("hadamard", &defines);
        let y = match &job.y {
            Value::Buffer { name, offset } => Value::at(name.clone(), offset + job.y_offset * 4),
            other => other.clone(),
        };
        let (residual, ldr) = added.unwrap_or((Value::Null, 0));
        let flops = job.tokens * width * u64::from(side.block.trailing_zeros());
        let estimate = self.estimate(Place::Device, job.tokens * width * 8, flops, false);
        let estimate = cost::rotation(estimate, side.block as u64);
        let given = vec![
            ("x", between),
            ("signs", self.section(&signs, "signs")),
            ("bias", bias),
            ("residual", residual),
            ("y", y),
            ("scalars", self.scalars(p)),
            ("width", int(width)),
            ("ldx", int(padded)),
            ("ldy", int(job.ldy)),
            ("ldr", int(ldr)),
            ("block", int(side.block as u64)),
        ];
        p.push(
            &format!("{name}.back"),
            ("hadamard", index),
            turn(job.tokens, width),
            given,
            estimate,
        );
        Ok(())
    }
}
